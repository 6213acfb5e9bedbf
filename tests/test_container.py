"""Pretraining in the conditions of containers and hardened servers: another user, no tools, few writable folders."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import as_yaml

from training.bench.faults import tiny_run

ROOT = Path(__file__).parent.parent
USER = "54321"  # has no entry in /etc/passwd


def can_mount() -> bool:
    """Return whether this process may mount file systems of its own and change its user."""
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare") and shutil.which("setpriv")):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs root, unshare and setpriv")
@pytest.mark.parametrize(
    ("path", "home"),
    [("/nonexistent", True), pytest.param("/usr/bin:/bin", False, marks=pytest.mark.slow)],
    ids=["no git, no compiler, a read-only home", "no home, and a compiler whose library cannot be loaded"],
)
def test_a_run_from_corpus_to_model_needs_no_tools_no_home_and_no_executable_files(path, home):
    # Not tmp_path: other users cannot enter its parents.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("temporary", "home", "output"):
            (folder / part).mkdir()
        os.chown(folder / "output", int(USER), int(USER))
        config = tiny_run(folder)
        config = replace(config, out=folder / "output" / "run", precision="bf16")
        config = replace(config, data=replace(config.data, folder=folder / "output" / "data"))
        settings = {"PATH": path, "TMPDIR": str(folder / "temporary"), "PYTHONIOENCODING": "latin-1"}
        settings |= {"HOME": str(folder / "home")} if home else {}
        # The user may read all files, as the interpreter may be below /root, but writes only to its own folders.
        rights = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *rights]
        program = [sys.executable, "-m", "training.pretrain", "--config", str(as_yaml(config, folder / "run.yaml"))]
        environment = [shutil.which("env"), "-i", *(f"{key}={value}" for key, value in settings.items())]
        mounts = (
            f"mount -t tmpfs -o noexec,mode=1777 tmpfs {folder}/temporary && mount -t tmpfs -o ro tmpfs {folder}/home"
        )
        command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *user, *environment, *program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True)
        printed, errors = done.stdout.decode("latin-1"), done.stderr.decode("latin-1")
        assert done.returncode == 0 and "Traceback" not in errors, errors
        assert "| en |" in printed  # the table of the summary, in characters that Latin-1 has
        session = json.loads((config.folder / "run.json").read_text())["sessions"][0]
        assert session["commit"] is None and session["steps"] == config.steps
        assert "\u2502 en \u2502" in (config.folder / "summary.txt").read_text(encoding="utf-8")
