"""Check and measure on a GPU, in one call of a few minutes, all that the tests cannot run on CPUs.

    python -m training.bench.gpu --out OUT                       on a lent GPU
    python -m training.bench.gpu --out OUT --parts parity step   again, after a fault is fixed
    python -m training.bench.gpu --device cpu --minutes 40       the same code at tiny sizes

Each part (training.bench.gpu_parts) has a process and a time limit of its own, so that a fault, a hang or a missing
library ends that part alone. Parts that check share the device; parts that measure time then have it to themselves.
OUT/gpu.json has the results and is written after each part, OUT/gpu.log the output of the parts with all tracebacks.
The exit status is 1 if a check failed.
"""

if not __package__:  # run by path; same as `python -m training.bench.gpu`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..common.config import run_main
from ..common.environment import environment
from ..common.escaping import markdown_cell
from ..common.files import read_json, write_json

SHARE = 0.5  # of the time, for the parts that share the device
SMALLEST = 15  # seconds that a part needs at least: less is not worth its start
# Seconds that a part may take, in the order in which parts start. Those of the second table have the device alone.
CHECKS = {"parity": 200, "pretraining": 220, "compiled": 150, "evaluate": 150}
CHECKS |= {
    f"finetune_{name}": 150 for name in ("ocr", "translation", "rag", "instruct", "dpo", "grpo_ocr", "grpo_rag")
}
MEASUREMENTS = {"step": 220, "generation": 120, "fp8": 90}


@dataclass
class Part:
    """A part, its command and its limits.

    Args:
        name: Name in the results.
        command: Command that writes its results to the path that is appended.
        seconds: Maximum time.
        alone: Whether it has the device to itself.
    """

    name: str
    command: list[str]
    seconds: float
    alone: bool = False
    process: subprocess.Popen | None = field(default=None, init=False)
    start: float = field(default=0.0, init=False)
    limit: float = field(default=0.0, init=False)


def run_parts(
    parts: list[Part], out: Path, facts: dict, *, seconds: float, at_once: int, share: float = SHARE
) -> dict[str, dict]:
    """Run parts within a time; return their status, seconds and checks by name, and write OUT/gpu.json and gpu.log.

    Args:
        parts: Parts in the order in which they start; all that share the device before those that have it alone.
        out: Folder of the results.
        facts: Other values of gpu.json.
        seconds: Time for all parts.
        at_once: Number of parts that share the device.
        share: Fraction of the time after which no part that shares the device runs.
    """
    start, results = time.monotonic(), {}
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.log").write_text("", encoding="utf-8")
    waiting, running = list(parts), []
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        try:
            while waiting or running:
                now = time.monotonic() - start
                for part in [part for part in running if _ended(part)]:
                    running.remove(part)
                    results[part.name] = _collect(part, Path(folder), out / "gpu.log")
                    done = f"{results[part.name]['status']} in {results[part.name]['seconds']} s"
                    print(f"{now:5.0f} s  {part.name}: {done}", flush=True)
                    write_json(out / "gpu.json", facts | {"parts": results})
                while waiting and len(running) < (1 if waiting[0].alone or any(p.alone for p in running) else at_once):
                    part = waiting.pop(0)
                    ending = seconds if part.alone or not any(p.alone for p in parts) else share * seconds
                    part.limit = min(part.seconds, ending - now)
                    if part.limit < min(SMALLEST, part.seconds):
                        results[part.name] = {"status": "skipped", "seconds": 0.0, "error": "no time was left"}
                        continue
                    running.append(part)
                    _start(
                        part, Path(folder), threads=None if part.alone else max(1, (os.cpu_count() or 1) // at_once)
                    )
                    print(f"{now:5.0f} s  {part.name}: started, at most {part.limit:.0f} s", flush=True)
                time.sleep(0.1)
        finally:
            for part in running:
                _kill(part)
    write_json(out / "gpu.json", facts | {"parts": results})
    return results


def _start(part: Part, folder: Path, threads: int | None) -> None:
    """Start a part; parts that run at the same time divide the cores."""
    variables = {} if threads is None else {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    variables = {name: str(value) for name, value in variables.items() if name not in os.environ}
    with open(folder / f"{part.name}.log", "wb") as log:
        part.process = subprocess.Popen(
            [*part.command, str(folder / f"{part.name}.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,  # so that its compilers and workers can be killed with it
        )
    part.start = time.monotonic()


def _ended(part: Part) -> bool:
    """Return whether a part has ended; one that is over its limit is killed, and what a part leaves running, too."""
    ended = part.process.poll() is not None
    if ended or time.monotonic() - part.start > part.limit:
        _kill(part)
        return True
    return False


def _kill(part: Part) -> None:
    with suppress(ProcessLookupError):
        os.killpg(part.process.pid, signal.SIGKILL)
    part.process.wait()


def _collect(part: Part, folder: Path, log: Path) -> dict:
    """Return the result of an ended part, and append its output to the log."""
    seconds, status = time.monotonic() - part.start, part.process.returncode
    output = (folder / f"{part.name}.log").read_text(encoding="utf-8", errors="replace")
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n==== {part.name}: status {status} after {seconds:.1f} s\n{output}")
    path = folder / f"{part.name}.json"
    checks = read_json(path) if path.is_file() else []
    result = {"seconds": round(seconds, 1), "checks": checks}
    if status:
        lines = output.strip().splitlines() or ["no output"]
        over = status == -signal.SIGKILL and seconds > part.limit
        error = f"over its limit of {part.limit:.0f} s" if over else f"status {status}: {lines[-1][:300]}"
        return {"status": "failed", **result, "error": error}
    states = {check["status"] for check in checks}
    return {"status": next((s for s in ("failed", "passed") if s in states), "skipped"), **result}


def as_text(value) -> str:
    """Format a value of a check: three digits, or thousands."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_markdown(facts: dict, results: Mapping[str, dict]) -> str:
    """Format the results as a Markdown table, with the machine above it."""
    machine, versions = facts["hardware"], facts["versions"]
    names = ", ".join(machine["gpus"]) or machine["cpu"]
    lines = [f"{facts['device']}: {names}; {', '.join(f'{name} {version}' for name, version in versions.items())}", ""]
    lines += ["| part | check | status | s | result |", "|---|---|---|--:|---|"]
    for name, result in results.items():
        rows = list(result.get("checks", []))
        if "error" in result:
            rows.append({"check": "", **{key: result[key] for key in ("status", "seconds", "error")}})
        for row in rows:
            values = ", ".join(f"{key} {as_text(value)}" for key, value in row.get("values", {}).items())
            text = "; ".join(filter(None, (row.get("error"), values)))
            cells = (name, row["check"], row["status"], f"{row['seconds']:.1f}", text)
            lines.append(f"| {' | '.join(markdown_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run `python -m training.bench.gpu`. argparse, because the images of rented GPUs lack jsonargparse."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="Folder for gpu.json and gpu.log.")
    parser.add_argument("--minutes", type=float, default=8, help="Time for all parts. Default: 8.")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="Default: a GPU if any.")
    names = [*CHECKS, *MEASUREMENTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-c", f"from {__package__}.gpu_parts.run_part import main; main()"]
    paths = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    parts = [
        Part(name, [*command, name, device], seconds, table is MEASUREMENTS)
        for table in (CHECKS, MEASUREMENTS)
        for name, seconds in table.items()
        if name in arguments.parts
    ]
    facts = {"command": shlex.join(sys.orig_argv), "device": device, "torch": torch.__config__.show(), **environment()}
    if device == "cpu":  # two cores are no GPU: every limit is the whole time
        for part in parts:
            part.seconds = 60 * arguments.minutes
    at_once = max(1, min(8, (os.cpu_count() or 1) // 2))
    results = run_parts(
        parts,
        arguments.out,
        facts,
        seconds=60 * arguments.minutes,
        at_once=at_once,
        share=SHARE if device == "cuda" else 0.9,
    )
    print(f"\n{as_markdown(facts, results)}\n\n{arguments.out / 'gpu.json'} has the results, gpu.log the output.")
    if any(result["status"] == "failed" for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
