"""Check the card in a folder offline: metadata, placeholders, links, every number against its source, code fences.

    python -m model_card.validate dist/NAME/llama [--run]

Prints a table of problems, and exits with status 1 if there are any. card.py writes README.md and card.json.
"""

if not __package__:  # run by path; same as `python -m model_card.validate`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from .card import python_blocks
from .disclosure.attribution import ATTRIBUTION, attribution, list_sources
from .escaping import terminal_line
from .facts import HUB_NAME, facts
from .files import ReleaseError, inside, read_json, run_main, sha256
from .hub import LISTS
from .provenance import ESCAPES, FENCE, EvidenceFiles, resolve_pointer
from .signals import end_with_parent

REQUIRED = ("language", "license", "pipeline_tag", "tags")
ALLOWED = {  # key -> the list that contains its values
    "language": "languages",
    "license": "licenses",
    "library_name": "libraries",
    "pipeline_tag": "pipeline_tags",
    "base_model_relation": "relations",
}
EMISSIONS = ("emissions", "source", "training_type", "geographical_location", "hardware_used")
PLACEHOLDERS = re.compile(
    r"\bTODO\b|\bFIXME\b|\bTBD\b|\[More Information Needed\]|\[optional\]|\{\{|\}\}|\{%|<your|lorem ipsum", re.I
)
# A number, but not one in a name such as Q8_0, bf16 or CC-BY-4.0.
NUMBER = re.compile(r"(?<![\w.,/#-])[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?%?(?![\w/]|[.,-]\w)")
LINK = re.compile(
    r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(https?://[^>]*)>|^\[[^\]]+\]:\s*(\S+)", re.M
)
INLINE = re.compile(r"`[^`\n]+`")
# Electricity emits between a few g CO2eq per kWh (hydro) and 1,100 (lignite); twice that leaves room for losses of the
# grid and the overhead of a computing centre. Kilograms or tonnes instead of grams are far outside.
GRAMS_PER_KWH = (1, 2200)
SECONDS = 300  # per code fence
ROUNDING = 1e-6  # bits per byte


@dataclass(order=True)
class Problem:
    """One line of the table of problems.

    Args:
        line: Line of README.md; 0 for the folder.
        kind: metadata, placeholder, link, number, code or section.
        message: What is wrong, and the fix if it is not obvious.
    """

    line: int
    kind: str
    message: str


def split_front_matter(text: str) -> tuple[str, str, int]:
    """Return the metadata, the body, and the number of lines before the body.

    Raises:
        ReleaseError: If there is no metadata.
    """
    match = re.match(r"---\n(.*?\n)---\n", text, re.S)
    if not match:
        raise ReleaseError("README.md does not begin with metadata between two lines of ---.")
    return match[1], text[match.end() :], match[0].count("\n")


def mask_matches(text: str, *patterns: re.Pattern) -> str:
    """Replace what the patterns match by spaces, so that lines and columns are kept."""
    for pattern in patterns:
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def line_of(text: str, offset: int) -> int:
    """Return the number of the line at an offset."""
    return text.count("\n", 0, offset) + 1


# Checks ---------------------------------------------------------------------------------------


def check_metadata(head: dict) -> Iterator[str]:
    """Compare keys and values with the Hub's lists."""
    yield from (f"{key} is missing" for key in REQUIRED if not head.get(key))
    yield from (f"{key} is not a key that the Hub knows" for key in head if key not in LISTS["keys"])
    languages = LISTS["languages"].split()
    for key, name in ALLOWED.items():
        allowed = languages if name == "languages" else LISTS[name]
        values = head.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if value not in allowed:
                yield f"{key}: {value!r} is not one of the Hub's {name.replace('_', ' ')}"
    for key in ("base_model", "datasets"):
        values = head.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not HUB_NAME.fullmatch(str(value)):
                yield f"{key}: {value!r} is not OWNER/NAME"
    if ("base_model" in head) != ("base_model_relation" in head):
        yield "base_model and base_model_relation must be set together"
    if head.get("license") == "other" and not (head.get("license_name") and head.get("license_link")):
        yield "license: other needs license_name and license_link"
    if "co2_eq_emissions" in head:
        yield from check_emissions(head["co2_eq_emissions"])
    for entry in head.get("model-index", []):
        yield from check_results(entry)


def check_emissions(emissions) -> Iterator[str]:
    """Check the format of `co2_eq_emissions`."""
    if not isinstance(emissions, dict):
        yield "co2_eq_emissions must have source, training_type, geographical_location and hardware_used"
        return
    yield from (f"co2_eq_emissions: {key} is missing" for key in EMISSIONS if not emissions.get(key))
    if not isinstance(emissions.get("emissions"), int | float) or emissions["emissions"] < 0:
        yield "co2_eq_emissions: emissions must be a number of grams"
    if emissions.get("training_type") not in LISTS["training_types"]:
        yield f"co2_eq_emissions: training_type must be one of {', '.join(LISTS['training_types'])}"


def check_results(entry: dict) -> Iterator[str]:
    """Check the format of an entry of `model-index`."""
    if not entry.get("name") or not entry.get("results"):
        yield "model-index: an entry has no name or no results"
    for i, result in enumerate(entry.get("results", [])):
        prefix = f"model-index, result {i + 1}"
        if (result.get("task") or {}).get("type") not in LISTS["pipeline_tags"]:
            yield f"{prefix}: task.type is not one of the Hub's pipeline tags"
        dataset = result.get("dataset") or {}
        if not dataset.get("type") or not dataset.get("name"):
            yield f"{prefix}: dataset needs type and name"
        for metric in result.get("metrics") or [{}]:
            value = metric.get("value")
            if not metric.get("type") or not isinstance(value, int | float) or value != value:
                yield f"{prefix}: a metric needs type and a number as value"


def anchors(body: str) -> set[str]:
    """Return the anchors of the headings, as the Hub and GitHub form them."""
    slugs, seen = set(), {}
    for title in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", mask_matches(body, FENCE), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        slugs.add(f"{slug}-{count}" if count else slug)
    return slugs


def check_links(body: str, folder: Path) -> Iterator[tuple[int, str]]:
    """Check that relative links and anchors have a target, and that absolute links are well formed."""
    text, known = mask_matches(body, FENCE, INLINE), anchors(body)
    for match in LINK.finditer(text):
        target = next(filter(None, match.groups()))
        url = urlsplit(target)
        if url.scheme in ("http", "https"):
            if not re.fullmatch(r"([\w-]+\.)+[a-z]{2,}(:\d+)?", url.netloc, re.I):
                yield line_of(text, match.start()), f"{target} is not an address"
        elif url.scheme == "mailto":
            if not re.fullmatch(r"[^@\s]+@[\w-]+(\.[\w-]+)+", url.path):
                yield line_of(text, match.start()), f"{target} is not a mail address"
        elif url.scheme:
            yield line_of(text, match.start()), f"{target}: {url.scheme} is not a scheme of the web"
        elif url.path:
            path = (folder / unquote(url.path)).resolve()
            if folder.resolve() not in path.parents or not path.exists():
                yield line_of(text, match.start()), f"{target} is not in the folder"
        elif url.fragment not in known:
            yield line_of(text, match.start()), f"{target}: no heading has this anchor"


def check_sections(body: str) -> Iterator[tuple[int, str]]:
    """Check that there is text under every heading."""
    text = mask_matches(body, FENCE)
    headings = [*re.finditer(r"^(#{1,6})\s+(.+)$", text, re.M)]
    for match, following in zip(headings, [*headings[1:], None], strict=True):
        end = following.start() if following else len(body)
        deeper = following is not None and len(following[1]) > len(match[1])
        if not deeper and not body[match.end() : end].strip():
            yield line_of(text, match.start()), f"there is no text under {match[2]!r}"


def check_numbers(text: str, head: dict, folder: Path) -> Iterator[tuple[int, str]]:
    """Check that card.json lists every number of the body, and that each is at its place and equals its source."""
    card, sources, covered = read_json(folder / "card.json"), EvidenceFiles(folder), set()
    begins = [0, *(match.end() for match in re.finditer("\n", text))]
    for name, digest in card["evidence"].items():
        if not inside(folder, name).is_file():
            yield 0, f"{name} is missing, and numbers come from it"
            return
        if sha256(folder / name) != digest:
            yield 0, f"{name} changed after the card was written: write the card again"
    for number in card["numbers"]:
        place, shown, source = number["line"], number["text"], number["source"]
        start = begins[place - 1] + number["column"] - 1 if place <= len(begins) else len(text)
        actual = text[start : start + len(shown)]
        if actual != shown:
            yield place, f"expected {shown} ({source}), got {actual!r}: write the card again"
        covered.update(range(start, start + len(shown)))
        yield from ((place, problem) for problem in compare(sources, number, shown))
    for entry in card["metadata"]:
        yield from ((0, problem) for problem in compare(sources, entry, None))
        try:
            value = resolve_pointer(head, entry["pointer"])
        except KeyError:
            value = None
        if value != entry["value"]:
            yield 0, f"metadata{entry['pointer']} is {value!r}, but {entry['source']} is {entry['value']!r}"
    _, body, shift = split_front_matter(text)
    plain = mask_matches(body, FENCE, INLINE, re.compile(r"\]\([^)]*\)"), re.compile(r"https?://\S+"))
    for count, line in enumerate(plain.split("\n"), shift + 1):
        for match in NUMBER.finditer(re.sub(r"^\s*\d+\.\s", lambda item: " " * len(item[0]), line)):
            if not covered.issuperset(range(begins[count - 1] + match.start(), begins[count - 1] + match.end())):
                yield count, f"{match[0]} comes from no file: print it from a file in the template"


def compare(sources: EvidenceFiles, entry: dict, shown: str | None) -> Iterator[str]:
    """Compare a recorded value with its source, and its text with the value."""
    try:
        value = sources.value(entry["source"])
    except KeyError:
        yield f"{entry['source']} does not exist, and {shown or entry['value']} came from it"
        return
    if value != entry["value"]:
        yield f"{shown or entry['value']} is stale: {entry['source']} is now {value!r}"
    elif shown is not None and not is_shown_as(value.__format__(entry["format"]), shown):
        yield f"{shown} is not the value of {entry['source']}, {value!r}"


def is_shown_as(text: str, shown: str) -> bool:
    """Return whether a card may show a text in this way: unchanged, or escaped for the place."""
    return shown == text or any(shown == escape(text) for escape in ESCAPES)


def check_evidence(head: dict, folder: Path) -> Iterator[str]:
    """Check that facts.json follows from the other evidence, which is the release's, and that emissions are grams."""
    evidence = folder / "evidence"
    if not (evidence / "release.json").is_file():
        return
    release, stored = read_json(evidence / "release.json"), read_json(evidence / "facts.json")
    inputs = [read_json(evidence / f"{name}.json") for name in ("data", "lineage")]
    fresh = json.loads(json.dumps(facts(release, *inputs)))
    for key in sorted(fresh.keys() | stored.keys()):
        if fresh.get(key) != stored.get(key):
            yield f"evidence/facts.json: {key} does not follow from release.json, data.json and lineage.json"
    outer = folder.parent / "release.json"
    if outer.is_file() and read_json(outer) != release:
        yield f"evidence/release.json differs from {outer}: write the card again"
    yield from check_runs(release, folder)
    yield from check_manifests(inputs[0], folder)
    yield from check_attribution(release["name"], inputs[0], folder)
    for name in ("comparison.json", "minimal_pairs.json"):
        if (evidence / name).is_file():
            yield from check_comparison(f"evidence/{name}", read_json(evidence / name))
    grams = (head.get("co2_eq_emissions") or {}).get("emissions")
    if isinstance(grams, int | float) and stored.get("watt_hours"):
        kwh = stored["watt_hours"] / 1000
        rate = grams / kwh
        if not GRAMS_PER_KWH[0] <= rate <= GRAMS_PER_KWH[1]:
            yield (
                f"co2_eq_emissions: {grams:g} g for {kwh:g} kWh is {rate:.3g} g/kWh, which no "
                "electricity emits: the Hub expects grams"
            )


def check_runs(release: dict, folder: Path) -> Iterator[str]:
    """Check that the files of runs/, if it exists, are the released ones; both variants have the same."""
    if not (folder / "runs").is_dir():
        return
    listed = release["folders"].get("llama", {"files": {}})["files"]
    listed = {name: file["sha256"] for name, file in listed.items() if name.startswith("runs/")}
    paths = {path.relative_to(folder).as_posix(): path for path in (folder / "runs").rglob("*") if path.is_file()}
    for name in sorted(listed.keys() | paths.keys()):
        if name not in paths:
            yield f"{name} is missing, and was released"
        elif listed.get(name) != sha256(paths[name]):
            yield f"{name} is not the file that was released"


def check_manifests(data: list[dict], folder: Path) -> Iterator[str]:
    """Check that data.json states what the released manifests state; `check_runs` compares these with their hashes."""
    paths = sorted((folder / "runs").glob("*/manifests/*.json"))
    manifests = {manifest["fingerprint"]: (path, manifest) for path, manifest in ((p, read_json(p)) for p in paths)}
    for corpus in data:
        path, manifest = manifests.get(corpus["fingerprint"], (None, None))
        stated = {**manifest, **manifest["corpus"]} if manifest else {}
        for key in ("account", "by_source", "sources", "curation") if manifest else ():
            if corpus.get(key) != stated.get(key):
                yield f"evidence/data.json: {key} differs from {path.relative_to(folder).as_posix()}"


def check_attribution(name: str, data: list[dict], folder: Path) -> Iterator[str]:
    """Check that sources.json and ATTRIBUTION.md, which earlier versions did not write, follow from data.json."""
    path, credits = folder / "evidence" / "sources.json", folder / ATTRIBUTION
    if not path.is_file() and not credits.is_file():
        return
    content = list_sources(data)
    if not path.is_file() or read_json(path) != json.loads(json.dumps(content)):
        yield "evidence/sources.json does not follow from data.json"
    if not credits.is_file() or credits.read_text(encoding="utf-8") != attribution(name, content):
        yield f"{ATTRIBUTION} does not follow from data.json"


def check_comparison(file: str, content: dict) -> Iterator[str]:
    """Check that the differences between models follow from their values."""
    first = content["models"][0]["name"]
    for text, row in (item for metrics in content["tasks"].values() for item in metrics.items()):
        values = {name: value["value"] if isinstance(value, dict) else value for name, value in row["values"].items()}
        for name, difference in row["differences"].items():
            if abs(values[first] - values[name] - difference["value"]) > ROUNDING:
                yield f"{file}: the difference to {name} ({text}) does not follow from the values"


def check_code(body: str, folder: Path, *, run: bool) -> Iterator[tuple[int, str]]:
    """Parse the fences of Python, bash and JSON; run those of Python that the templates of this package wrote.

    Each runs in a new interpreter, in the folder and offline. Code that anybody else wrote into the card never runs.
    """
    blocks = python_blocks(folder) if run else set()
    for match in FENCE.finditer(body):
        language, code, line = match[2].strip(), match[3], line_of(body, match.start())
        problem = None
        if not language:
            problem = "a code fence without a language"
        elif language == "python":
            problem = parse_python(code)
            if run and not problem:
                written = code in blocks
                problem = run_python(code, folder) if written else "no template of this package wrote it: not run"
        elif language in ("bash", "sh"):
            done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
            problem = done.stderr.strip() or None
        elif language == "json":
            try:
                json.loads(code)
            except (ValueError, RecursionError) as error:
                problem = str(error)
        if problem:
            yield line, f"{language}: {problem}"


def parse_python(code: str) -> str | None:
    """Return the syntax error of Python code, or None."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last three: null bytes, nesting
        return str(error)
    return None


def run_python(code: str, folder: Path) -> str | None:
    """Run Python code; return the last line of its error, or None."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # Without the folder on the path, where a file could have the name of a module.
    command = [sys.executable, "-c", f"import sys\nsys.path = [entry for entry in sys.path if entry]\n{code}"]
    options = {"capture_output": True, "text": True, "timeout": SECONDS, "preexec_fn": end_with_parent}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, check=False, **options)
    except subprocess.TimeoutExpired:
        return f"did not end within {SECONDS} s"
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None


def validate(folder: Path, *, run: bool = False) -> list[Problem]:
    """Return the problems of the card in a folder, by line.

    Args:
        folder: The folder, with README.md and card.json.
        run: Run the Python code fences that a template of this package wrote. By default they are parsed.

    Raises:
        ReleaseError: If there is no card, or it is not UTF-8.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise ReleaseError(f"{path} does not exist: pass a folder with a card.")
    try:
        text = path.read_bytes().decode("utf-8")  # a carriage return that a model generated does not end a line
    except UnicodeDecodeError as error:
        raise ReleaseError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it.") from None
    try:
        yaml_head, body, shift = split_front_matter(text)
        head = yaml.safe_load(yaml_head)
    except (ReleaseError, yaml.YAMLError, RecursionError) as error:
        return [Problem(1, "metadata", " ".join(str(error).split()))]
    problems = [Problem(0, "metadata", message) for message in check_metadata(head)]
    problems += [
        Problem(line_of(text, m.start()), "placeholder", m[0])
        for m in PLACEHOLDERS.finditer(mask_matches(text, QUOTED))
    ]
    problems += [Problem(0, "number", message) for message in check_evidence(head, folder)]
    problems += [Problem(line, "number", message) for line, message in check_numbers(text, head, folder)]
    shifted = {
        "link": check_links(body, folder),
        "section": check_sections(body),
        "code": check_code(body, folder, run=run),
    }
    for kind, checked in shifted.items():
        problems += [Problem(line + shift, kind, message) for line, message in checked]
    return sorted(problems)


# Blocks in which doubled braces are right, and in which a model may have generated anything.
QUOTED = re.compile(r"^(`{3,})(?:bibtex|text)\n.*?^\1$", re.M | re.S)


def main() -> None:
    """`python -m model_card.validate`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="Folder with README.md and card.json.")
    parser.add_argument(
        "--run",
        action="store_true",
        help="Run the Python code fences that a template of this package wrote; the code of a custom variant runs, "
        "too. Default: parse them.",
    )
    args = parser.parse_args()
    problems = validate(args.folder, run=args.run)
    for problem in problems:
        print(f"{problem.line or '-':>5}  {problem.kind:11}  {terminal_line(problem.message)}")
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {args.folder / 'README.md'}")
        raise SystemExit(1)
    card = read_json(args.folder / "card.json")
    count = len(card["numbers"]) + len(card["metadata"])
    ran = "run" if args.run else "parsed"
    print(f"{args.folder / 'README.md'} is valid: {count} values equal their sources, code fences {ran}.")


if __name__ == "__main__":
    run_main(main)
