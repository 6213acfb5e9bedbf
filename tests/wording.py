"""Check names and prose: docstring openings, argument descriptions, words to avoid, variable names (`make quality`).

    python tests/wording.py            every finding with its file and line; exit status 1 if there is one
    python tests/wording.py --counts   counts per rule

CONTRIBUTING.md has the rules. `--root FOLDER` checks another checkout.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

DOCSTRING = "docstring that begins with a relative or question word"
ARGUMENT = "argument description that begins with a preposition or conjunction"
WORD = "word to avoid"
VARIABLE = "variable name without meaning"
RULES = (DOCSTRING, ARGUMENT, WORD, VARIABLE)

OPENING = re.compile(r"(What|Which|Who|Whose|How|Where|Whether|Those)\b")
PREPOSITION = re.compile(r"^ +`?[*\w.]+`?: (of|that|as|for|and|with|in|from|to|by|on|at|where|whose|which)\b")
# Only words and phrases that have no use in this project besides the one that another term expresses better.
WORDS = re.compile(
    r"\b(?:learnt|spelt|spoilt|anew|lest|likewise|mend(?:ed|s|ing)?|drills(?!`)|misread|made-up|likeliest|contenders?"
    r"|flavours?|(?:goes|went|gone|going|go) on (?:with|from)|left out|leaves? out|passed over|but for|so many"
    r"|word for word(?! in|,)|what (?:came|became) of|in all(?=[.,;:)])|by itself|(?:is|are) to be|no number"
    r"|led back to|whole or not there|held against|on file|of like length|cannot be had|in place of|from above)\b",
    re.IGNORECASE,
)
VARIABLES = frozenset("one found of mine said told made asked given own whole kept".split())
# Text in other languages or from other hands, and this list.
EXEMPT = re.compile(
    r"tests/wording\.py|model_card/femto/(?!README)|.*/(toxicity|pii_samples|phrases|packages|licence_labels)\.yaml|.*\.json"
)


def files(root: Path) -> list[Path]:
    """List the tracked Python, Markdown and YAML files to check."""
    command = [
        "git",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.py",
        "*.md",
        "*.yaml",
        "*.toml",
        "Makefile",
    ]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [root / name for name in names if name and not EXEMPT.fullmatch(name) and (root / name).is_file()]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the first line number and the text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node, clean=False)) is not None:
                yield node.body[0].lineno, text


def bindings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line number and the name of every variable and parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, rule and excerpt of every finding in a file."""
    text = path.read_text(encoding="utf-8")
    for match in WORDS.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, WORD, match[0]
    if path.suffix != ".py":
        return
    tree = ast.parse(text)
    for line, docstring in docstrings(tree):
        if OPENING.match(docstring):
            yield line, DOCSTRING, docstring.partition("\n")[0]
        for offset, entry in enumerate(docstring.split("\n")):
            if PREPOSITION.match(entry):
                yield line + offset, ARGUMENT, entry.strip()
    for line, name in bindings(tree):
        if name in VARIABLES:
            yield line, VARIABLE, name


def main() -> None:
    """Print the findings, or their counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", action="store_true", help="Print the number of findings per rule instead.")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="Checkout to check. Default: this one."
    )
    arguments = parser.parse_args()
    counts = Counter()
    for path in files(arguments.root):
        for line, rule, excerpt in sorted(findings(path)):
            counts[rule] += 1
            if not arguments.counts:
                print(f"{path.relative_to(arguments.root)}:{line}: {rule}: {excerpt}")
    if arguments.counts:
        print("\n".join(f"{counts[rule]:5} {rule}" for rule in RULES))
    sys.exit(bool(counts))


if __name__ == "__main__":
    main()
