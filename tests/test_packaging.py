"""The wheel contains every package, works from an empty folder, and declares what its packages import."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from versions import TESTS

import modeling_pleias
from training.cli import usage
from training.common.files import read_json

REPOSITORY = Path(__file__).parent.parent
PACKAGES = {
    "modeling_pleias": "modeling_pleias",
    "training": "modeling_pleias/training",
    "model_card": "modeling_pleias/model_card",
}


def tree() -> list[str]:
    """Return the files of the checkout that git tracks or would add, relative to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(name for name in names if name and (REPOSITORY / name).is_file())


def pip(command: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--no-deps", "--no-index", *arguments], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tree, so that an old `build/` folder cannot leak into it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in tree():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, copy)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which only the wheel is installed, including its console script."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def metadata(installed) -> PathDistribution:
    return PathDistribution(next(installed.glob("*.dist-info")))


def declared(metadata: PathDistribution, extra: str = "") -> set[Requirement]:
    """Return the requirements of the base install and of an extra, including those of nested extras."""
    requirements = set()
    for requirement in map(Requirement, metadata.requires):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "modeling-pleias":
            requirements |= {inner for name in requirement.extras for inner in declared(metadata, name)}
        else:
            requirements.add(requirement)
    return requirements


def names(requirements: set[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def run(installed: Path, empty: Path, *command: str | Path) -> str:
    """Return the output of a command in an empty folder, from which only the installed wheel can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        command, cwd=empty, env=environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_the_wheel_contains_every_file_of_the_packages_except_the_shipped_model_and_benchmarks(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [name for name in tree() if not name.startswith(("model_card/femto/", "training/bench/"))]
    parts = [name.partition("/") for name in files if name.partition("/")[0] in PACKAGES]
    assert packed == {"pleias.py", *(f"{PACKAGES[package]}/{path}" for package, _, path in parts)}


def test_the_version_is_the_one_in_the_package(metadata):
    assert metadata.version == modeling_pleias.__version__


def test_the_wheel_contains_the_licence(metadata):
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    assert metadata.read_text("licenses/LICENSE") == (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_the_base_install_requires_four_libraries(metadata):
    assert names(declared(metadata)) == {"torch", "transformers", "tokenizers", "safetensors"}


def test_the_extras_are_those_of_the_design(metadata):
    extras = {"training", "curation", "evaluation", "app", "release", "dev"}
    assert set(metadata.metadata.get_all("Provides-Extra")) == extras


@pytest.mark.parametrize("extra", ["training", "dev"])
def test_the_constraints_pin_each_direct_dependency_within_its_range(metadata, extra):
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(lambda x: x[0] != "#", lines))}
    for requirement in declared(metadata, extra):
        (exact,) = pins[canonicalize_name(requirement.name)].specifier
        assert exact.operator == "==" and exact.version in requirement.specifier, requirement


@pytest.mark.parametrize(
    "package, extra",
    [
        ("modeling_pleias", ""),
        ("training", "training"),
        ("training/curation", "curation"),
        ("training/evaluation", "evaluation"),
        ("training/space", "app"),
        ("training/bench", "dev"),  # in checkouts only
        ("model_card", "release"),
        ("tests", "dev"),
    ],
)
def test_a_package_imports_only_what_its_extra_declares(metadata, package, extra):
    allowed = names(declared(metadata, extra)) | {"huggingface-hub"}  # transformers' configs import @strict from it
    providers = packages_distributions()
    local = {"modeling_pleias", "training", "model_card"} | {
        path.stem for path in (REPOSITORY / "tests").rglob("*.py")
    }
    # Packages with another extra; the page of a Space has a requirements.txt.
    programs = ("app.py", "bench", "curation", "evaluation", "space")
    apart = {"training": programs, "training/space": ("app.py",)}.get(package, ())
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        if path.relative_to(REPOSITORY / package).parts[0] in apart:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {module.partition(".")[0] for module in modules} - local - sys.stdlib_module_names:
                distributions = set(map(canonicalize_name, providers.get(module, [])))
                assert distributions & allowed, f"{path} imports {module}, which [{extra}] does not declare"


def test_from_an_empty_folder_the_wheel_has_the_model_and_the_configs(installed, tmp_path):
    code = (
        "import modeling_pleias, transformers\n"
        "from modeling_pleias.training.common.config import resolve_config\n"
        "print(modeling_pleias.__file__)\n"
        "print(type(transformers.AutoConfig.for_model('pleias')).__module__)\n"
        "print(resolve_config('demo'))"
    )
    assert run(installed, tmp_path, sys.executable, "-c", code).splitlines() == [
        str(installed / "modeling_pleias/__init__.py"),
        "modeling_pleias.configuration_pleias",
        str(installed / "modeling_pleias/training/configs/pretrain/demo.yaml"),
    ]


def test_from_an_empty_folder_the_console_script_lists_the_programs(installed, tmp_path):
    assert run(installed, tmp_path, str(installed / "bin/pleias"), "--help") == f"{usage('modeling_pleias.')}\n"


def test_pleias_shows_versions_and_help_without_importing_torch_or_transformers(installed, tmp_path):
    code = """
import contextlib, io, sys
from pleias import main
for line in sys.argv[1].split(","):
    sys.argv = ["pleias", *line.split()]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as output:
        main()
    assert output.getvalue(), line
    print(line, *({"torch", "transformers"} & set(sys.modules)))
from modeling_pleias import PleiasConfig
from transformers import AutoConfig
print(type(AutoConfig.for_model("pleias")) is PleiasConfig)
"""
    programs = "corpus mixture shards plan trace tokenizer curation nanotron card croissant validate".split()
    programs.append("public_summary")
    lines = ["--help", "--version", *(f"{name} --help" for name in programs)]
    output = run(installed, tmp_path, sys.executable, "-c", code, ",".join(lines))
    assert output.splitlines() == [*lines, "True"]


def test_the_console_script_shows_the_version(installed, tmp_path):
    output = run(installed, tmp_path, str(installed / "bin/pleias"), "--version")
    assert output == f"modeling-pleias {modeling_pleias.__version__}\n"


@pytest.mark.slow
def test_worker_processes_of_the_console_script_write_the_same_shards(
    installed, tiny_corpus, tiny_tokenizer, tiny_shards, tmp_path
):
    command = [str(installed / "bin/pleias"), "shards", "--corpus", tiny_corpus, "--tokenizer", tiny_tokenizer]
    run(installed, tmp_path, *command, "--validation_share", "0.1", "--workers", "2", "--out", "shards")
    shards = [read_json(folder / "manifest.json")["shards"] for folder in (tmp_path / "shards", tiny_shards)]
    assert shards[0] == shards[1]


def test_the_tests_of_make_test_versions_exist():
    for test in TESTS:
        path, _, name = test.partition("::")
        assert not name or f"def {name}(" in (REPOSITORY / path).read_text(encoding="utf-8"), test


def test_ci_runs_the_test_command_of_the_readme():
    command = (REPOSITORY / ".ci/run").read_text(encoding="utf-8").splitlines()[-1]
    assert command == "make test"
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)
