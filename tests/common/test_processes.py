"""Worker processes: a killed one ends the program with a message, and none outlives the program."""

import os
import signal
import time

import psutil
import pytest
from programs import run_program

from training.common.config import InputError
from training.common.processes import SpawnProcessPoolExecutor


def test_a_killed_worker_is_a_message():
    with pytest.raises(InputError, match="A worker process was killed .out of memory"):
        with SpawnProcessPoolExecutor(1) as pool:
            pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


def test_an_error_ends_the_workers_in_the_middle_of_their_work():
    with pytest.raises(ZeroDivisionError), SpawnProcessPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 100_000)
        raise ZeroDivisionError


def test_workers_do_not_receive_ctrl_c():
    with SpawnProcessPoolExecutor(1) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result() == worker


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_no_worker_outlives_its_program(tmp_path, end):
    prelude = (
        "import os, signal, time\nfrom training.common.config import run_main\n"
        "from training.common.processes import SpawnProcessPoolExecutor\n"
        "def main():\n    with SpawnProcessPoolExecutor(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        f"        pool.submit(time.sleep, 100_000)\n        {end}\n        time.sleep(100_000)\n"
        "run_main(main)"
    )
    done = run_program(None, prelude=prelude, log=tmp_path / "log")
    assert done.returncode in (-signal.SIGKILL, 143), done.stderr
    wait_for_end(int(done.stdout))


def wait_for_end(process):
    with pytest.raises(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        raise psutil.NoSuchProcess(process)


def test_the_code_of_a_card_does_not_outlive_a_killed_validation(tmp_path):
    path = tmp_path / "process"
    code = f"import os, time; print(os.getpid(), file=open({str(path)!r}, 'w'), flush=True); time.sleep(100_000)"
    prelude = (
        "import os, signal, threading, time\nfrom pathlib import Path\nfrom model_card.validate import run_python\n"
        f"path = Path({str(path)!r})\ndef kill():\n"
        "    while not (path.exists() and path.read_text()):\n        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"threading.Thread(target=kill).start()\nrun_python({code!r}, path.parent)"
    )
    done = run_program(None, prelude=prelude, log=tmp_path / "log")
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for_end(int(path.read_text()))
