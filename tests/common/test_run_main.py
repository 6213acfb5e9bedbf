"""The end of programs (signals, errors of the system, text that a terminal cannot show), and YAML files of others."""

import errno
from pathlib import Path

import pytest
from programs import run_program

import model_card.signals
import training.common.signals
from training.common.config import InputError, read_yaml

RUNNERS = {"training": "training.common.config", "model_card": "model_card.files"}
both = pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)


def run(code, runner, log):
    """Run a program whose `main` is some code."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    prelude = f"import os, signal, sys, time\nfrom pathlib import Path\nfrom {runner} import run_main\ndef main():\n"
    return run_program(None, prelude=f"{prelude}{lines}run_main(main)\n", log=log)


@both
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_a_program_with_one_line_and_removes_its_temporary_files(tmp_path, runner, name, status):
    code = (
        f"try:\n    os.kill(os.getpid(), signal.{name})\n    time.sleep(10_000)\n"
        f"finally:\n    Path({str(tmp_path / 'removed')!r}).touch()"
    )
    done = run(code, runner, tmp_path / "log")
    assert (done.returncode, done.stderr.strip()) == (status, f"Stopped by {name}.")
    assert (tmp_path / "removed").exists()


def test_both_packages_end_in_the_same_way():
    files = [Path(module.__file__).read_text() for module in (model_card.signals, training.common.signals)]
    assert files[0] == files[1]


NATIVE = "import hashlib, threading\nnative = lambda: hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"  # an hour


@pytest.mark.parametrize(("seconds", "signals"), [(0, ["SIGTERM"]), (3600, ["SIGTERM", "SIGINT"])])
def test_a_signal_ends_native_code_after_a_while_and_a_second_one_at_once(tmp_path, seconds, signals):
    code = f"import training.common.signals\ntraining.common.signals.GRACE = {seconds}\n{NATIVE}"
    for delay, name in enumerate(signals, 1):
        code += f"threading.Timer({delay / 5}, os.kill, (os.getpid(), signal.{name})).start()\n"
    done = run(f"{code}native()", RUNNERS["training"], tmp_path / "log")
    assert done.returncode == {"SIGTERM": 143, "SIGINT": 130}[signals[-1]]
    assert done.stderr.strip() == f"Stopped by {signals[-1]}."


def test_signals_of_forked_processes_and_handlers_of_the_program_end_nothing(tmp_path):
    code = (
        "import training.common.signals\ntraining.common.signals.GRACE = 0\n"
        "child = os.fork()\n"
        "if not child:\n    signal.signal(signal.SIGTERM, lambda *arguments: os._exit(7))\n    signal.pause()\n"
        "time.sleep(0.2)\nos.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "signal.signal(signal.SIGINT, lambda *arguments: print('its own'))\nos.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.2)"
    )
    done = run(code, RUNNERS["training"], tmp_path / "log")
    assert (done.returncode, done.stdout) == (0, "7\nits own\n"), done.stderr


def test_a_second_signal_ends_a_program_that_does_not_end(tmp_path):
    code = (
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(10_000)\n"
        "finally:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(10_000)"
    )
    done = run(code, RUNNERS["training"], tmp_path / "log")
    assert (done.returncode, done.stderr.strip()) == (130, "Stopped by SIGTERM.")


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    code = "os.kill(os.getpid(), signal.SIGINT)\nprint('still here')"
    prelude = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    prelude += f"import os\nfrom training.common.config import run_main\ndef main():\n{lines}run_main(main)"
    done = run_program(None, prelude=prelude, log=tmp_path / "log")  # as under nohup
    assert (done.returncode, done.stdout) == (0, "still here\n")


@both
@pytest.mark.parametrize(
    "error",
    [f"OSError({errno.ENOSPC}, 'No space left on device', 'a/file')", "Exception('a/file: too large (os error 27)')"],
)
def test_an_error_of_the_system_is_one_line_with_status_2(tmp_path, runner, error):
    done = run(f"raise {error}", runner, tmp_path / "log")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "a/file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@both
def test_an_error_of_the_code_keeps_its_traceback(tmp_path, runner):
    done = run("raise KeyError('a bug')", runner, tmp_path / "log")
    assert done.returncode == 1 and "Traceback" in done.stderr


@both
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_text_that_a_terminal_cannot_show_is_printed_in_similar_characters(tmp_path, runner, encoding):
    text = "\u250c\u2500\u252c\u2510 \u2502 \u2550 \u03bb \ud800"
    prelude = f"import sys\nfrom {runner} import run_main\nsys.stdout.reconfigure(encoding={encoding!r})\n"
    prelude += f"run_main(lambda: print({ascii(text)}))"
    done = run_program(None, prelude=prelude, log=tmp_path / "log")
    assert (done.returncode, done.stdout) == (0, "+-++ | - ? ?\n"), done.stderr


def test_the_similar_characters_are_those_of_ascii(tmp_path):
    text = "\u250c\u2500\u252c\u2510 \u2502 \u2550 \u2013 \u201cna\u00efve\u201d \u03bb"
    prelude = "import sys\nfrom training.common.config import run_main\nsys.stdout.reconfigure(encoding='ascii')\n"
    done = run_program(None, prelude=f"{prelude}run_main(lambda: print({ascii(text)}))", log=tmp_path / "log")
    assert done.stdout == '+-++ | - - "naive" ?\n'


def test_output_that_nobody_reads_ends_a_program_quietly(tmp_path):
    code = "reader, writer = os.pipe()\nos.dup2(writer, 1)\nos.close(writer)\nos.close(reader)\nprint('a line')"
    done = run(f"signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n{code}", RUNNERS["training"], tmp_path / "log")
    assert (done.returncode, done.stderr) == (1, "")


def test_yaml_with_a_byte_order_mark_is_read_as_without(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfstages: [1]\r\nname: x\r\n")
    assert read_yaml(tmp_path / "a.yaml") == {"stages": [1], "name": "x"}


@pytest.mark.parametrize(
    "content", [b"a: " + b"[" * 1500 + b"]" * 1500, b"a: caf\xe9", b"a: [", b"- 1", b"", b"a: \x00"]
)
def test_yaml_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match="a.yaml (is not YAML|has no settings)"):
        read_yaml(tmp_path / "a.yaml")
