"""Verify a release or a folder of it: hashes of its files, BOM, card and signature.

    python -m model_card.verify FOLDER [--public_key KEY.pem | --chain CA.crt]

Prints one line per check, and below it each changed, missing and added file; exits with status 1 if a check failed.
Hashes show that a folder is complete and unchanged since it was written; only a signature shows by whom. What git and
the Hub's client add to a folder (.gitattributes, .cache and the like) is no part of a release.
"""

if not __package__:  # run by path; same as `python -m model_card.verify`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from .escaping import terminal_line
from .files import BOM, SIGNATURE, SUMS, ReleaseError, compare_hashes, inside, read_json, run_main
from .signing import check_signature
from .validate import validate

INSTALL = 'pip install "modeling-pleias[release]"'
LINE = re.compile(r"([0-9a-f]{64})  (.+)", re.S)


class SkippedCheck(Exception):
    """A check that is not possible; the message gives the reason."""


def check_sums(folder: Path, parts: list[str]) -> Iterator[str]:
    """Yield each file that differs from SHA256SUMS. `parts` are the folders of a release, with lists of their own."""
    lines = (folder / SUMS).read_bytes().decode(errors="replace").split("\n")
    matches = [LINE.fullmatch(line) for line in lines if line]
    yield from (f"{SUMS}: {line} is no hash with a name" for line in lines if line and not LINE.fullmatch(line))
    listed = {match[2]: match[1] for match in matches if match}
    unlisted = {f"{part}{name}" for part in ("", *(f"{part}/" for part in parts)) for name in (SUMS, SIGNATURE)}
    yield from compare_hashes(listed, folder, unlisted)


def check_bom_schema(folder: Path) -> Iterator[str]:
    """Yield the errors of the BOM against the strict schema of CycloneDX.

    Raises:
        SkippedCheck: If there is no BOM, or the library is missing.
    """
    if not (folder / BOM).is_file():
        raise SkippedCheck(f"no {BOM}")
    if find_spec("cyclonedx") is None:
        raise SkippedCheck(f"needs cyclonedx-python-lib: {INSTALL}")
    from cyclonedx.schema import SchemaVersion  # lazy imports: the library may be missing
    from cyclonedx.validation.json import JsonStrictValidator

    read_json(folder / BOM)
    text = (folder / BOM).read_text(encoding="utf-8")
    for error in JsonStrictValidator(SchemaVersion.V1_7).validate_str(text, all_errors=True) or ():
        yield f"{'/'.join(map(str, error.data.absolute_path))}: {error.data.message}"


def check_bom_hashes(folder: Path) -> Iterator[str]:
    """Yield each file that differs from its hash in the BOM.

    Raises:
        SkippedCheck: If there is no BOM.
    """
    if not (folder / BOM).is_file():
        raise SkippedCheck(f"no {BOM}")
    files = read_json(folder / BOM)["components"][0]["components"]
    listed = {file["name"]: file["hashes"][0]["content"] for file in files}
    yield from compare_hashes(listed, folder, {BOM, SUMS, SIGNATURE})


def check_card(folder: Path) -> Iterator[str]:
    """Yield the problems of the card, such as a number that is not that of its file."""
    yield from (f"line {problem.line}: {problem.message}" for problem in validate(folder, run=False))


def check_signed(folder: Path, public_key: Path | None, chain: list[Path] | None) -> Iterator[str]:
    """Yield what is wrong with the signature of a folder; see `check_signature`.

    Raises:
        SkippedCheck: If there is nothing to check it with.
    """
    if not (public_key or chain):
        signed = (folder / SIGNATURE).is_file()
        raise SkippedCheck("pass --public_key or --chain" if signed else f"no {SIGNATURE}")
    if find_spec("model_signing") is None:
        raise ReleaseError(f"The signature cannot be checked without model-signing: {INSTALL}.")
    yield from check_signature(folder, public_key, chain or [])


def report(name: str, check: Callable, *arguments) -> bool:
    """Run a check and print its line; return whether it failed. The files are anybody's, as are their faults."""
    problems, state = [], "ok"
    try:
        problems = list(check(*arguments))
    except SkippedCheck as reason:
        state = f"not checked: {reason}"
    except FileNotFoundError as error:
        problems = [f"{Path(error.filename).name} is missing"]
    except ReleaseError as error:
        problems = [str(error)]
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problems = [f"a file does not have the form of this project's ({type(error).__name__}: {error})"]
    print(terminal_line(f"{name:40} {'FAILED' if problems else state}"))
    for problem in problems:
        print(f"    {terminal_line(problem)}")
    return bool(problems)


def release_parts(folder: Path) -> list[str]:
    """Return the names of the folders of a release that exist; none for one of these folders."""
    if not (folder / "release.json").is_file():
        return []
    return [part for part in read_json(folder / "release.json")["folders"] if inside(folder, part).is_dir()]


def main() -> None:
    """`python -m model_card.verify`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="Folder of a release, or one of its folders.")
    signer = parser.add_mutually_exclusive_group()
    signer.add_argument("--public_key", type=Path, help="Public key of the signer, in PEM. Default: none.")
    signer.add_argument("--chain", type=Path, nargs="+", help="Certificates of trusted issuers. Default: none.")
    args = parser.parse_args()
    for path in filter(None, [args.public_key, *(args.chain or ())]):
        if not path.is_file():
            raise ReleaseError(f"{path} does not exist: pass the key or certificate of the signer.")
    if not args.folder.is_dir():
        raise ReleaseError(f"{args.folder} is not a folder: pass that of a release.")
    parts, failed = release_parts(args.folder), []
    failed.append(report(SUMS, check_sums, args.folder, parts))
    for part in parts or [""]:
        folder, prefix = args.folder / part, f"{part}: " if part else ""
        if part:
            failed.append(report(prefix + SUMS, check_sums, folder, []))
        failed.append(report(f"{prefix}{BOM}, schema", check_bom_schema, folder))
        failed.append(report(f"{prefix}{BOM}, hashes", check_bom_hashes, folder))
        failed.append(report(f"{prefix}README.md against its files", check_card, folder))
        failed.append(report(f"{prefix}{SIGNATURE}", check_signed, folder, args.public_key, args.chain))
    if any(failed):
        print(f"{sum(failed)} of {len(failed)} checks failed.")
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
