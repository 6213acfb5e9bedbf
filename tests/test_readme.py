"""READMEs: lists of modules, links, numbers, code, and the options of every command."""

import json
import re
import runpy
from pathlib import Path

import pytest
from module_lists import FOLDERS, expected
from programs import run_program

import modeling_pleias  # noqa: F401  (registers the classes)
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / folder / "README.md" for folder in (*FOLDERS, "training/curation")),
    *(ROOT / "examples").glob("*.md"),
]
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_modules_of_a_folder_are_listed_with_the_first_lines_of_their_docstrings(folder):
    assert (ROOT / folder / "README.md").read_text(encoding="utf-8") == expected(folder), "run tests/module_lists.py"


def test_the_readme_of_curation_names_every_module_and_no_other():
    folder = ROOT / "training/curation"
    named = set(re.findall(r"(?<=`)[a-z_]+\.py(?=`)", (folder / "README.md").read_text()))
    assert named == {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}


def test_every_folder_of_the_list_exists():
    listed = next(code for _, code in FENCES if code.startswith("modeling_pleias/")).splitlines()
    assert all((ROOT / line.split()[0]).is_dir() for line in listed)


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


# A block without a language after Python code is its output.
PYTHON = [
    (code, output if following == "" else None)
    for (language, code), (following, output) in zip(FENCES, [*FENCES[1:], ("-", "")], strict=True)
    if language == "python"
]


@pytest.mark.parametrize("code, output", PYTHON)
def test_the_code_of_the_readme_runs_and_prints_what_it_shows(code, output, demo_model):
    printed = run(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", demo_model)
    for expression in re.findall(r"print\(.*\)  # ([\d,]+$|True)", code, re.MULTILINE):
        assert expression in printed
    assert printed.strip() and (output is None or printed.strip() == output.strip())


def test_the_examples_run(demo_model):
    for script, arguments in (("generate.py", ["runs/demo/model"]), ("finetune.py", ["runs/demo/model", "runs/out"])):
        code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {[script, *arguments]!r}; "
        run(code + f"runpy.run_path({str(ROOT / 'examples' / script)!r}, run_name='__main__')", demo_model)
    before = PleiasForCausalLM.from_pretrained(demo_model / "runs/demo/model")
    after = PleiasForCausalLM.from_pretrained(demo_model / "runs/out")
    unmoved = [name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if a.equal(b)]
    assert unmoved == []  # full fine-tuning: every parameter moves


def commands() -> dict[str, set[str]]:
    """Return the options that the commands of the documents pass to each program."""
    options: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            for line in code.replace("\\\n", " ").splitlines() if language == "bash" else ():
                if match := re.search(
                    r"(?:-m |\bpleias )((?:training|model_card)\.[\w.]+|\w+)", line.partition(" #")[0]
                ):
                    passed = re.findall(r"(?<= --)[a-z][\w.]*", line.partition(" #")[0][match.end() :])
                    options.setdefault(match[1], set()).update(passed)
    return {name: flags for name, flags in options.items() if name.startswith(("training.", "model_card."))}


COMMANDS = commands()


@pytest.mark.parametrize("module", COMMANDS)
def test_a_program_has_the_options_that_the_documents_pass_to_it(module, tmp_path):
    program = "training.curation.__main__" if module == "training.curation" else module
    help_text = run_program(program, "--help", log=tmp_path).stdout
    # Of optional settings, --help shows the group and `--GROUP.help`.
    known = set(re.findall(r"--([a-z][\w.]*)", help_text))
    missing = [name for name in COMMANDS[module] - known if f"{name.partition('.')[0]}.help" not in known]
    assert missing == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_drawing_of_the_pipeline_is_current(scheme):
    pipeline = runpy.run_path(str(ROOT / "examples/pipeline.py"))
    expected_svg = pipeline["draw"](pipeline["COLOURS"][scheme])
    assert (ROOT / f"examples/pipeline-{scheme}.svg").read_text() == expected_svg, "run examples/pipeline.py"
