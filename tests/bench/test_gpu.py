"""The GPU benchmark: parts check what they claim, and a fault, a hang or a missing library ends one part alone."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from training.bench import gpu
from training.bench.gpu import Part, as_markdown, run_parts
from training.bench.gpu_parts import parity
from training.bench.gpu_parts.checks import Checks, SkipError
from training.bench.gpu_parts.run_part import PARTS
from training.common.config import CONFIGS
from training.common.files import read_json

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FACTS = {"device": "cpu", "hardware": {"gpus": [], "cpu": "a CPU"}, "versions": {"torch": "2"}}
WRITE = """
import json, sys
json.dump([{"check": "a", "status": "%s", "seconds": 0.1, "values": {"x": 2}}], open(sys.argv[1], "w"))
"""
# Marks its start, waits for the start of another part, and reports its times.
MEET = """
import json, sys, time
from pathlib import Path
start = time.monotonic()
Path("{folder}/{name}").touch()
while not Path("{folder}/{other}").exists():
    time.sleep(0.01)
values = {{"start": start, "end": time.monotonic()}}
json.dump([{{"check": "", "status": "passed", "seconds": 0, "values": values}}], open(sys.argv[1], "w"))
"""


def part(name: str, code: str, **options) -> Part:
    """Part that runs Python code, whose last argument is the path of its results."""
    return Part(name, [sys.executable, "-c", code], **{"seconds": 60, **options})


def statuses(results: dict) -> dict[str, str]:
    return {name: result["status"] for name, result in results.items()}


def test_a_crash_a_hang_and_a_fault_leave_the_results_of_the_other_parts(tmp_path, capsys):
    parts = [
        part("crash", (WRITE % "passed") + "import os; os.abort()"),
        part("hang", "import time; time.sleep(600)", seconds=1),
        part("fault", "raise ValueError('first line\\nthe last line')"),
        part("skipped", WRITE % "skipped"),
        part("failed check", WRITE % "failed", alone=True),
        part("good", WRITE % "passed", alone=True),
    ]
    results = run_parts(parts, tmp_path, FACTS, seconds=60, at_once=2)
    expected = ["failed", "failed", "failed", "skipped", "failed", "passed"]
    assert statuses(results) == {p.name: status for p, status in zip(parts, expected, strict=True)}
    assert read_json(tmp_path / "gpu.json") == FACTS | {"parts": results}
    assert results["crash"]["checks"][0]["values"] == {"x": 2}  # what it measured before
    assert results["hang"]["error"] == "over its limit of 1 s"
    assert results["fault"]["error"] == "status 1: the last line"
    log = (tmp_path / "gpu.log").read_text()
    assert "ValueError: first line" in log and "Traceback" in log
    table = as_markdown(FACTS, results)
    assert "| good | a | passed | 0.1 | x 2 |" in table and "Traceback" not in table
    assert "hang: started" in capsys.readouterr().out


def test_parts_that_measure_run_alone_and_others_together(tmp_path):
    pairs = {"a": "b", "b": "a", "c": "c", "d": "d"}  # a and b would wait for each other in vain, one after the other
    parts = [
        part(name, MEET.format(folder=tmp_path, name=name, other=other), alone=name in "cd")
        for name, other in pairs.items()
    ]
    results = run_parts(parts, tmp_path / "out", FACTS, seconds=120, at_once=2)
    a, b, c, d = (results[name]["checks"][0]["values"] for name in pairs)
    assert max(a["end"], b["end"]) <= c["start"] and c["end"] <= d["start"]


def test_no_part_starts_without_time_and_the_time_of_the_measurements_is_reserved(tmp_path):
    hang = "import time; time.sleep(60)"
    parts = [part("hang", hang), part("later", hang), part("good", WRITE % "passed", alone=True)]
    start = time.monotonic()
    results = run_parts(parts, tmp_path, FACTS, seconds=16, at_once=1, share=0.05)
    assert statuses(results) == {"hang": "skipped", "later": "skipped", "good": "passed"}
    assert results["hang"]["error"] == "no time was left" and time.monotonic() - start < 60


def test_the_processes_that_a_part_started_end_with_it(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid)"
    run_parts([part("parent", code)], tmp_path, FACTS, seconds=60, at_once=1)
    child = Path("/proc", (tmp_path / "gpu.log").read_text().split("\n")[2], "stat")
    assert child.parent.name.isdecimal()
    assert not child.exists() or child.read_text().split()[2] == "Z"


# Checks --------------------------------------------------------------------------------------------------


def test_a_check_fails_above_its_limit_at_nan_and_with_an_error_and_is_skipped_without_a_library(tmp_path):
    checks = Checks(tmp_path / "checks.json")

    def missing():
        import_module("a_library_that_nobody_has")

    def skip():
        raise SkipError("a GPU")

    def fail():
        raise RuntimeError("a long message\nCUDA error: an illegal memory access")

    for name, function in {
        "within": lambda: {"deviation": 0.1, "limit": 0.1},
        "above": lambda: {"deviation": 0.2, "limit": 0.1},
        "nan": lambda: {"deviation": float("nan"), "limit": 0.1},
        "library": missing,
        "device": skip,
        "error": fail,
    }.items():
        checks.run(name, function)
    rows = {
        row["check"]: (row["status"], row.get("error")) for row in json.loads((tmp_path / "checks.json").read_text())
    }
    assert rows["within"] == ("passed", None)
    assert rows["above"][0] == rows["nan"][0] == "failed"
    assert rows["library"] == ("skipped", "needs a_library_that_nobody_has")
    assert rows["device"] == ("skipped", "needs a GPU")
    assert rows["error"] == ("failed", "RuntimeError: CUDA error: an illegal memory access")


def test_every_packaged_fine_tuning_config_is_a_part_and_every_part_has_a_limit():
    configs = {path.stem for path in (CONFIGS / "finetune").glob("*.yaml")}
    assert {name for name in PARTS if name.startswith("finetune_")} == configs
    assert list(PARTS) and set(PARTS) == {*gpu.CHECKS, *gpu.MEASUREMENTS}
    for name in configs:
        task = next(line[6:] for line in open(CONFIGS / "finetune" / f"{name}.yaml") if line.startswith("task: "))
        assert PARTS[name].args == (name, task.strip())


def test_parity_notices_a_wrong_loss(tmp_path, monkeypatch):
    shape = (70, 16, 400)
    good = parity.loss_parity(parity.linear_loss, CPU, torch.float32, shape, 1e-4)
    assert good["deviation"] < 1e-6

    def scaled(*arguments):
        return parity.linear_loss(*arguments) * (1 if arguments[3] == torch.float64 else 1.001)

    assert parity.loss_parity(scaled, CPU, torch.float32, shape, 1e-4)["deviation"] > 5e-4


def test_fp8_products_and_the_attention_of_the_large_model_agree_with_the_reference(tmp_path):
    checks = Checks(tmp_path / "fp8.json")
    PARTS["fp8"](checks, CPU, tmp_path)
    checks.run("attention", parity.attention_parity, CPU)
    assert [row["status"] for row in checks.rows] == ["passed"] * 5, checks.rows
    assert all(0 < row["values"]["deviation"] <= row["values"]["limit"] for row in checks.rows)


# All parts -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_parts_pass_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "training.bench.gpu", "--device", "cpu", "--minutes", "40", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = read_json(tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout
    assert statuses(report["parts"]) == dict.fromkeys(PARTS, "passed")
    resumed = {row["check"]: row for row in report["parts"]["pretraining"]["checks"]}["kill and resume"]["values"]
    assert resumed["bit-equal"] and resumed["deviation"] == 0.0
    assert {"commit", "versions", "hardware", "command", "device"} <= set(report)


@pytest.mark.slow
def test_without_the_libraries_that_images_of_gpus_lack_a_part_runs_or_states_what_it_needs(tmp_path):
    missing = (
        "jsonargparse",
        "codecarbon",
        "trl",
        "datasets",
        "py3langid",
        "license_expression",
        "bm25s",
        "rapidfuzz",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); "
    code += "from training.bench.gpu_parts.run_part import main; main()"
    states = {}
    for name in ("parity", "generation", "pretraining", "finetune_ocr"):
        command = [sys.executable, "-c", code, name, "cpu", tmp_path / "rows.json"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        states[name] = {(row["status"], row.get("error")) for row in read_json(tmp_path / "rows.json")}
    skipped = {("skipped", "needs CUDA"), ("skipped", "needs flash_attn")}
    assert states["parity"] - skipped == states["generation"] == {("passed", None)}
    assert {status for status, _ in states["pretraining"] | states["finetune_ocr"]} == {"skipped"}, states
