"""eval/TASK.json: a measured task with its figures, the data they stand on, versions, hardware and the command."""

import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from .environment import environment
from .files import read_json, write_json


def write_result(folder: Path, task: str, metrics: dict[str, float | dict], *, data: dict, **facts) -> Path:
    """Write FOLDER/TASK.json, in the form that the card reads.

    Args:
        task: name of the file and of the task.
        metrics: name to a number or {"value", "low", "high"} (training.intervals).
        data: what was measured on; "fingerprint" is a hash of it (training.files.fingerprint), other keys describe it.
        facts: anything else that belongs beside them: settings, per-language figures, examples.
    """
    path = folder / f"{task}.json"
    write_json(
        path,
        {
            "task": task,
            "metrics": metrics,
            "data": data,
            **facts,
            "command": shlex.join(sys.orig_argv),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **environment(),
        },
    )
    return path


def read_results(folder: Path) -> dict[str, dict]:
    """Every result in a folder, by task."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
