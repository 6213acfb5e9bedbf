"""`pleias PROGRAM` runs the program, shows its help under that name, and reports bad input in one line."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from training.cli import PROGRAMS

REPOSITORY = Path(__file__).parent.parent


def pleias(*arguments: str, module: str = "training.cli", without: str = "") -> subprocess.CompletedProcess:
    """Run the console entry in a new process in which the modules `without` cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({without.split()}))"
    code = f"{block}; from {module} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


def is_program(path: Path) -> bool:
    """Return whether a file defines `main` and runs it when executed."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    defines_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in statements)
    guards = (ast.unparse(node.test) for node in statements if isinstance(node, ast.If))
    return defines_main and "__name__ == '__main__'" in guards


def test_the_table_lists_every_program_on_disk_and_no_other():
    rooms = [REPOSITORY / "training", REPOSITORY / "model_card"]
    files = [path for room in rooms for pattern in ("*.py", "*/__main__.py") for path in room.glob(pattern)]
    modules = {path: ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in files}
    programs = {module for path, module in modules.items() if is_program(path)} - {
        "training.cli",
        "model_card.formats.load_probe",
    }
    assert {program.module for program in PROGRAMS.values()} == programs


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_listed_program_is_found_in_the_checkout_and_installed(program):
    assert find_spec(program.module) and find_spec(f"modeling_pleias.{program.module}")


@pytest.mark.parametrize("module", ["training.cli", "modeling_pleias.training.cli", "pleias"])
def test_help_lists_the_programs_and_needs_no_extra(module):
    result = pleias("--help", module=module, without="accelerate datasets jsonargparse pyarrow rich trl")
    assert result.returncode == 0, result.stderr
    for name, program in PROGRAMS.items():
        assert f"  {name} " in result.stdout and program.purpose in result.stdout


def test_a_program_shows_its_help_under_the_name_of_the_call():
    result = pleias("tokenizer", "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: pleias tokenizer ")


def test_an_unknown_program_is_reported_with_the_list_of_programs():
    result = pleias("pretrian")
    assert result.returncode == 2
    assert result.stderr == f"error: unknown program 'pretrian': choose from {', '.join(PROGRAMS)}.\n"


def test_a_missing_library_is_reported_with_the_extra():
    result = pleias("tokenizer", without="jsonargparse")
    assert result.returncode == 2
    assert result.stderr == (
        "error: pleias tokenizer needs the extra [training] (module jsonargparse is missing): "
        'pip install "modeling-pleias[training]".\n'
    )


def test_a_broken_import_inside_the_package_is_not_blamed_on_an_extra():
    result = pleias("tokenizer", without="training.common.config")
    assert result.returncode == 1
    assert "ModuleNotFoundError" in result.stderr and "needs the extra" not in result.stderr


def test_bad_input_of_a_program_is_reported_by_the_program(tmp_path):
    result = pleias("tokenizer", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and str(tmp_path / "nowhere") in result.stderr
