"""Programs run by path (`python training/plan.py`) as well as by module, from any working folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.common.files import read_json

ROOT = Path(__file__).parent.parent
GUARD = '\nif __name__ == "__main__":\n'
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for package in ("training", "model_card")
    for path in (ROOT / package).rglob("*.py")
    if GUARD in path.read_text(encoding="utf-8") and path.parent.name != "space" and path.name != "load_probe.py"
) + ["training/curation"]
QUICK = ("model_card/validate.py", "training/mixture.py")  # each starts in half a second


def run(*command: str | int | Path, cwd: Path) -> str:
    """Return the output of a command without a way to the checkout other than the program's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, timeout=300, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "program", [*QUICK, *(pytest.param(path, marks=pytest.mark.slow) for path in PROGRAMS if path not in QUICK)]
)
def test_a_program_shows_its_help_when_run_by_path_from_another_folder(program, tmp_path):
    output = run(sys.executable, "-W", "error::DeprecationWarning:__main__", ROOT / program, "--help", cwd=tmp_path)
    assert output.startswith("usage: ")


def test_the_folder_of_the_program_shadows_no_installed_or_standard_module(tmp_path):
    """training/trace.py and training/evaluate.py have the names of a standard and of an installed module."""
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'training')!r})  # as Python does for `python training/mixture.py`\n"
        f"runpy.run_path({str(ROOT / 'training/mixture.py')!r}, run_name='by_path')\n"
        "import trace\nprint(trace.__file__)"
    )
    assert str(ROOT) not in run(sys.executable, "-c", code, cwd=tmp_path)


@pytest.mark.slow
def test_worker_processes_of_shards_run_by_path_write_the_same_shards(
    tiny_corpus, tiny_tokenizer, tiny_shards, tmp_path
):
    command = [sys.executable, ROOT / "training/shards.py", "--corpus", tiny_corpus, "--tokenizer", tiny_tokenizer]
    run(*command, "--validation_share", "0.1", "--workers", "2", "--out", "shards", cwd=tmp_path)
    shards = [read_json(folder / "manifest.json")["shards"] for folder in (tmp_path / "shards", tiny_shards)]
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_accelerate_launches_two_processes_of_pretrain_by_path(tiny_corpus, tmp_path):
    config = {
        "name": "tiny",
        "stages": [{"name": "base", "steps": 2, "sequences": 8}],
        "model": {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "num_key_value_heads": 1},
        "corpus": {"source": "parquet", "path": str(tiny_corpus), "languages": ["en", "fr"]},
        "sequence_length": 32,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 2]
    run(*launch, ROOT / "training/pretrain.py", "--config", "config.yaml", cwd=tmp_path)
    assert [session["processes"] for session in read_json(tmp_path / "runs/tiny/run.json")["sessions"]] == [2]
