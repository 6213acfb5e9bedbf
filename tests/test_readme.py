"""The README is true: its tree is the tree on disk, its links lead somewhere, and its code runs."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from programs import run_program

import modeling_pleias  # noqa: F401  (registers the classes)
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def tracked() -> set[str]:
    """Files that git has or would take, without what a build leaves behind."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    return {line for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            if (ROOT / line).exists()}  # fmt: skip


def tree() -> set[str]:
    """Paths that the README's tree names."""
    lines = next(code for language, code in FENCES if code.startswith("pyproject.toml")).splitlines()
    paths, folder = set(), ""
    for line in lines:
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.add(name)
        else:
            paths.add(folder + name)
    return paths


def test_every_path_of_the_tree_is_on_disk():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "room",
    [
        "modeling_pleias",
        "training",
        "training/curation",
        "training/tasks",
        "training/tuning",
        "training/evaluation",
        "model_card",
    ],
)
def test_every_module_and_folder_of_the_rooms_stands_in_the_tree(room):
    inside = [Path(path).relative_to(room) for path in tracked() if path.startswith(f"{room}/")]
    names = {p.parts[0] + ("/" if len(p.parts) > 1 else "") for p in inside} - {"__init__.py"}
    assert {f"{room}/{name}" for name in names} <= tree()


def test_every_link_and_picture_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_figures_of_the_tokenizer_are_those_of_its_report():
    report = json.loads((ROOT / "modeling_pleias/tokenizer/report.json").read_text())["tokenizers"]
    for title, name in (("this one", "pleias"), ("Mistral's Tekken", "tekken"), ("OpenAI's o200k", "o200k")):
        kinds = report[name]["kinds"]
        means = [f"{kinds[kind]['mean']['tokens_per_word']:.2f}" for kind in ("old", "modern")]
        same = [row["tokens"] for key, row in kinds["declaration of human rights"].items() if key != "mean"]
        assert f"| {title} | {report[name]['entries']:,} | {' | '.join(means)} | {sum(same):,} tokens |" in README


@pytest.fixture
def demo_model(tmp_path) -> Path:
    """A folder of its own in which `runs/demo/model` is a tiny model, and the shipped one where a checkout has it."""
    (tmp_path / "model_card").symlink_to(ROOT / "model_card")
    tokenizer = PleiasTokenizer().train_new_from_iterator(
        [["Au commencement The capital of France is Paris"] * 9], 300
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = PleiasConfig(vocab_size=512, num_key_value_heads=2, max_position_embeddings=128, **shape)
    folder = tmp_path / "runs" / "demo" / "model"
    PleiasForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tmp_path


def run(code: str, folder: Path) -> str:
    """Output of code that runs in `folder` as a user of the checkout would run it."""
    done = run_program(None, prelude=code, cwd=folder, log=folder / "log")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("code", [code for language, code in FENCES if language == "python"])
def test_the_code_of_the_readme_runs_and_prints_what_it_says(code, demo_model):
    printed = run(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", demo_model)
    for promised in re.findall(r"print\(.*\)  # ([\d,]+$|True)", code, re.MULTILINE):
        assert promised in printed
    assert printed.strip()


def test_the_examples_run(demo_model):
    for script, arguments in (("generate.py", ["runs/demo/model"]), ("finetune.py", ["runs/demo/model", "runs/out"])):
        code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {[script, *arguments]!r}; "
        run(code + f"runpy.run_path({str(ROOT / 'examples' / script)!r}, run_name='__main__')", demo_model)
    before = PleiasForCausalLM.from_pretrained(demo_model / "runs/demo/model")
    after = PleiasForCausalLM.from_pretrained(demo_model / "runs/out")
    unmoved = [name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if a.equal(b)]
    assert unmoved == []  # full fine-tuning: every parameter moves


def test_the_commands_of_the_readme_name_programs_and_options_that_exist(tmp_path):
    commands = "\n".join(code for language, code in FENCES if language == "bash").replace("\\\n", " ")
    modules = re.findall(r"-m (training\.\w+)", commands)
    assert modules
    help_text = run_program(modules[0], "--help", log=tmp_path).stdout
    for option in re.findall(r"-m training\.pretrain.*", commands):
        for flag in re.findall(r"(--[\w.]+)", option.split("#")[0]):
            assert flag in help_text, flag
