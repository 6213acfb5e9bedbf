"""Run model, tokenizer, training and release tests on the oldest and the newest allowed releases of their libraries.

    python tests/versions.py             both ends
    python tests/versions.py oldest      one end

Each end has an environment in the checkout, `.venv-oldest` and `.venv-newest`, which is installed again when
pyproject.toml or the releases on the package index change. At the oldest end the libraries below are at the lower
bounds of pyproject.toml; at the newest they, and all other packages, are at the newest release that is allowed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parent.parent
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "trl",
    "datasets",
    "huggingface-hub",
)
TESTS = (
    "tests/test_library_surfaces.py",
    # The model, its tokenizer, and text generation
    "tests/modeling_pleias/test_model.py",
    "tests/modeling_pleias/test_parity.py",
    "tests/modeling_pleias/test_tokenizer.py",
    "tests/common/test_generation.py",
    "tests/model_card/test_femto.py::test_it_knows_each_of_its_languages",
    "tests/test_examples.py::test_generate_prints_a_continuation_in_the_language_of_each_prompt",
    # Pretraining
    "tests/run/test_launch.py",
    "tests/pretraining/test_pretrain.py::test_a_run_writes_every_file_of_its_contract",
    "tests/pretraining/test_pretrain.py::test_pretraining_and_its_data_need_neither_trl_nor_datasets",
    "tests/pretraining/test_pretrain.py::test_the_model_folder_opens_with_auto_classes_and_pipeline",
    "tests/pretraining/test_pretrain.py::test_training_lowers_the_loss_and_the_bits_per_byte_of_held_out_text",
    "tests/pretraining/test_pretrain.py::test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit",
    "tests/pretraining/test_pretrain.py::test_two_processes_use_the_same_batches_and_end_at_the_same_loss",
    # Fine-tuning with SFT, DPO and GRPO
    "tests/finetuning/test_finetune.py",
    # A release, its export to ONNX and OpenVINO, and GGUF
    "tests/model_card/test_release.py::test_every_check_of_a_good_release_passed_and_is_recorded",
    "tests/model_card/test_release.py::test_auto_map_names_every_class_that_the_package_registers",
    "tests/model_card/test_release.py::test_without_the_package_both_variants_give_the_logits_and_the_text_of_the_run",
    "tests/model_card/test_release.py::test_with_the_package_the_custom_variant_loads_without_trust",
    "tests/model_card/test_release.py::test_an_export_writes_the_text_of_torch_without_torch",
    "tests/model_card/test_release.py::test_the_onnx_example_of_the_card_writes_the_same_text",
    "tests/model_card/test_gguf.py::test_transformers_reads_the_bf16_file_back_to_the_same_logits",
)


def pip(*arguments: str) -> str:
    """Return the output of a pip command that reads the project or the package index."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def declared_ranges() -> dict[str, SpecifierSet]:
    """Return the range of each library in pyproject.toml, over the base install and all extras."""
    report = pip("install", "--quiet", "--dry-run", "--no-deps", "--no-build-isolation", "--report", "-", ".")
    ranges = {name: SpecifierSet() for name in LIBRARIES}
    for requirement in map(Requirement, json.loads(report)["install"][0]["metadata"]["requires_dist"]):
        if (name := canonicalize_name(requirement.name)) in ranges:
            ranges[name] &= requirement.specifier
    return ranges


def allowed_releases(name: str, allowed: SpecifierSet) -> list[str]:
    """Return the releases of a library on the package index within a range, the oldest first."""
    lines = pip("index", "versions", name).splitlines()
    line = next(line for line in lines if line.startswith("Available versions:"))
    versions = {Version(Version(text).public) for text in line.partition(":")[2].split(",")}
    if not (matching := sorted(allowed.filter(versions))):
        sys.exit(f"The package index has no {name}{allowed}: correct the range in pyproject.toml.")
    return [str(version) for version in matching]


def install(end: str, environment: Path, pins: dict[str, str], pyproject: str) -> int:
    """Install the project with all extras and exactly the pinned releases; return pip's exit status.

    The constraint file that pip is given takes the place of one in its configuration.
    """
    stamp, constraints = environment / "installed.txt", environment / "constraints.txt"
    pinned = "".join(f"{name}=={release}\n" for name, release in pins.items())
    if stamp.is_file() and stamp.read_text() == pyproject + pinned:
        return 0
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    stamp.unlink(missing_ok=True)
    constraints.write_text(pinned)
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if end == "newest" else []
    command = [environment / "bin/python", "-m", "pip", "install", "--quiet", "--progress-bar", "off", *upgrade]
    status = subprocess.run(
        [*command, "--editable", ".[dev]"], cwd=REPOSITORY, env=os.environ | {"PIP_CONSTRAINT": str(constraints)}
    ).returncode
    if status == 0:
        stamp.write_text(pyproject + pinned)
    return status


def run_tests(environment: Path) -> tuple[int, str]:
    """Run TESTS in an environment; return pytest's exit status and its last line."""
    command = [environment / "bin/python", "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short"]
    command += ["-n", "auto", "--maxprocesses", "4", "--dist", "loadscope", *TESTS]
    last = ""
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip().strip("= ") or last
    return process.returncode, last


def main() -> int:
    """Install and test each end; the last lines printed are the releases and the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("end", nargs="?", choices=["oldest", "newest"], help="Default: both.")
    end = parser.parse_args().end
    ends = [end] if end else ["oldest", "newest"]
    pyproject = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    ranges = declared_ranges()
    releases = {name: allowed_releases(name, allowed) for name, allowed in ranges.items()}
    pins, statuses, results = {}, {}, {}
    for end in ends:
        environment = REPOSITORY / f".venv-{end}"
        pins[end] = {name: allowed[0 if end == "oldest" else -1] for name, allowed in releases.items()}
        print(f"\n{end}: {', '.join(f'{name} {release}' for name, release in pins[end].items())}\n", flush=True)
        statuses[end] = install(end, environment, pins[end], pyproject)
        if statuses[end]:
            results[end] = "pip cannot install these releases together: raise a lower bound in pyproject.toml"
        else:
            statuses[end], results[end] = run_tests(environment)
    print("\n" + " " * 16 + "".join(f"{end:12}" for end in ends) + "allowed")
    for name, allowed in ranges.items():
        print(f"{name:16}" + "".join(f"{pins[end][name]:12}" for end in ends) + str(allowed))
    for end in ends:
        print(f"{end}: {'failed' if statuses[end] else 'passed'} ({results[end]})")
    return int(any(statuses.values()))


if __name__ == "__main__":
    sys.exit(main())
