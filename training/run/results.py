"""Write and read eval/TASK.json: metrics of a task with data fingerprint, versions, hardware and command."""

import sys
from datetime import datetime, timezone
from pathlib import Path

from ..common.environment import environment
from ..common.escaping import shell_line
from ..common.files import read_json, write_json


def write_result(folder: Path, task: str, metrics: dict[str, float | dict], *, data: dict, **facts) -> Path:
    """Write FOLDER/TASK.json, in the format that the model card reads; return its path.

    Args:
        folder: Folder for the file.
        task: Name of the task and of the file.
        metrics: A number or {"value", "low", "high"} (training.common.intervals) by name.
        data: Evaluation data: "fingerprint" is their hash (training.common.files.fingerprint), other keys describe
            them.
        facts: Other values to store: settings, metrics per language, examples.
    """
    path = folder / f"{task}.json"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    origin = {"command": shell_line(sys.orig_argv), "date": date, **environment()}
    write_json(path, {"task": task, "metrics": metrics, "data": data, **facts, **origin})
    return path


def read_results(folder: Path) -> dict[str, dict]:
    """Return every result in a folder, by task."""
    return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
