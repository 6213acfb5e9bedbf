"""Write the lists of modules in the READMEs of training and model_card from their docstrings.

    python tests/module_lists.py

tests/test_readme.py compares the lists with the modules.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Folder with a README, and its packages that have a README of their own or none.
FOLDERS = {"training": {"curation", "bench"}, "model_card": set()}
LIST = re.compile(r"(?<=<!-- modules -->\n```\n).*?(?=```\n)", re.DOTALL)


def summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def lines(folder: Path, skipped: set[str], indent: str = "") -> list[str]:
    """List the modules of a folder, then those of its packages."""
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    listed = [f"{indent + path.name:28} {summary(path)}" for path in files]
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        if package.name not in skipped:
            listed.append(f"{indent + package.name + '/':28} {summary(package / '__init__.py')}".rstrip())
            listed += lines(package, skipped, indent + "  ")
    return listed


def expected(folder: str) -> str:
    """Return the README of a folder with its current list of modules."""
    listed = "".join(f"{line}\n" for line in lines(ROOT / folder, FOLDERS[folder]))
    return LIST.sub(lambda _: listed, (ROOT / folder / "README.md").read_text(encoding="utf-8"), count=1)


def main() -> None:
    """Write the lists."""
    for folder in FOLDERS:
        (ROOT / folder / "README.md").write_text(expected(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
