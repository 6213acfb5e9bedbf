"""Sources of documents: the package, commit or data set in an identifier, with its package URL and web address."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..common.files import read_json
from ..common.language import CODES
from .creators import parse_lives, parse_year
from .licences import spdx_name

# `github:` comes first because a commit may have digits only; versions of Debian have an epoch (4:7.4.7).
IDENTIFIER = re.compile(
    r"(?:github:(?P<repository>[^/@]+/[^/@]+)@(?P<commit>[0-9a-f]{7,40}):"
    r"|(?P<kind>PyPI|pip|Debian|deb|npm):(?P<name>(?:@[^/]+/)?[^=@#:]+)(?:==?|@)(?P<version>(?:\d+:)?[^:#]+)[:#])"
)
KINDS = {"PyPI": "pip", "Debian": "deb"}  # other spellings
ADDRESSES = {  # web address of each kind; Debian's snapshots list the versions of a name
    "pip": "https://pypi.org/project/{name}/{version}/",
    "deb": "https://snapshot.debian.org/binary/{name}/",
    "npm": "https://www.npmjs.com/package/{name}/v/{version}",
    "github": "https://github.com/{name}/tree/{version}",
    "hf": "https://huggingface.co/datasets/{name}/tree/{version}",
}
PURLS = {
    "pip": "pkg:pypi/{name}@{version}",
    "deb": "pkg:deb/debian/{name}@{version}?arch=all",
    "npm": "pkg:npm/{name}@{version}",
    "github": "pkg:github/{name}@{version}",
    "hf": "pkg:huggingface/{name}@{version}",
}


CREATORS = 1000  # maximum number of creators that are listed per source: those of its first documents


class Source(NamedTuple):
    """A source of documents.

    Attributes:
        kind: pip, deb, npm, github, hf (a data set on the Hub) or folder.
        name: Name of the package, OWNER/NAME of the repository or data set, or name of the folder.
        version: Version or commit, or None if unknown.
    """

    kind: str
    name: str
    version: str | None = None

    @property
    def entry(self) -> dict:
        """Fields of sources.json: name, kind, version, purl and url."""
        return self._asdict() | {"purl": self.purl, "url": self.url}

    def __str__(self):
        """Return `KIND:NAME@VERSION`."""
        return f"{self.kind}:{self.name}" + (f"@{self.version}" if self.version else "")

    @property
    def purl(self) -> str | None:
        """Package URL, or None for a folder or without a version."""
        return self._filled(PURLS, safe="/")

    @property
    def url(self) -> str | None:
        """Web address, or None for a folder or without a version."""
        return self._filled(ADDRESSES, safe="/@")

    def _filled(self, templates: dict[str, str], safe: str) -> str | None:
        if self.kind not in templates or not self.version:
            return None
        # A purl has names of PyPI in lower case with hyphens, and names of GitHub in lower case.
        name = self.name
        if templates is PURLS and self.kind in ("pip", "github"):
            name = name.lower().replace("_", "-") if self.kind == "pip" else name.lower()
        return templates[self.kind].format(name=quote(name, safe=safe), version=quote(self.version, safe=":"))


def source_of(identifier: str) -> Source | None:
    """Return the source that a document's identifier begins with, or None if it names none."""
    if not (match := IDENTIFIER.match(identifier)):
        return None
    if match["repository"]:
        return Source("github", match["repository"], match["commit"])
    return Source(KINDS.get(match["kind"], match["kind"]), match["name"], match["version"])


def parse_source(text: str) -> Source:
    """Return the source that `str(source)` writes."""
    kind, _, rest = text.partition(":")
    name, _, version = rest.rpartition("@") if "@" in rest[1:] else (rest, "", "")
    return Source(kind, name, version or None)


def default_source(folder: Path) -> Source:
    """Return the source of a corpus's documents whose identifiers name none: its data set, or its folder."""
    listed = _listed(folder)
    if len(listed) == 1 and listed[0].get("kind") in ("hf", "folder"):
        return Source(listed[0]["kind"], listed[0]["name"], listed[0].get("version"))
    return Source("folder", folder.resolve().name)


def _listed(folder: Path) -> list[dict]:
    """Return the entries of a corpus folder's sources.json, without those of earlier versions that are a path."""
    path = folder / "sources.json"
    listed = (read_json(path) if path.is_file() else {}).get("sources", [])
    return [entry for entry in listed if isinstance(entry, dict) and "name" in entry]


def _all_of(licences: Iterable[str]) -> str:
    """Return the SPDX expression of text under several licences, each for some of the documents."""
    names = list(licences)
    return " AND ".join(f"({name})" if " OR " in name and len(names) > 1 else name for name in names)


class SourceCounts:
    """Documents and bytes per source, by language, licence, collection and creator."""

    def __init__(self):
        self._counts: dict[str, Counter] = {}
        self._creators: dict[str, dict[str, list]] = {}  # source -> creator -> documents, years of publication

    def add(
        self,
        source: str,
        language: str,
        licence: str,
        size: int,
        *,
        collection: str = "",
        creator: str = "",
        date: str = "",
    ) -> None:
        """Count a document of `size` bytes with the licence label, collection, creator and date of the corpus."""
        counts = {"documents": 1, "bytes": size, f"language {language}": 1, f"label {licence}": 1}
        counts |= {f"collection {collection}": 1} if collection else {}
        counts[f"licence {spdx_name(licence)}"] = 1
        creators = self._creators.setdefault(source, {})
        if creator in creators or creator and len(creators) < CREATORS:
            known = creators.setdefault(creator, [0, set()])
            known[0] += 1
            known[1].add(parse_year(date or ""))
        elif creator:
            counts["others"] = 1
        self._counts.setdefault(source, Counter()).update(counts)

    def add_document(self, document: dict, size: int, unnamed: Source) -> None:
        """Count a document of `size` bytes for the source in its identifier, or `unnamed` if that names none."""
        source = str(source_of(document["identifier"]) or unnamed)
        language = CODES.get(document["language"], document["language"])
        described = {name: document[name] for name in ("collection", "creator", "date")}
        self.add(source, language, document["license"], size, **described)

    def account(self, source: str) -> dict:
        """Return the statistics of one source.

        Returns:
            `documents`, `bytes`; `license`, the SPDX expression of all its documents; documents by `languages`, by
            `licences` (SPDX expressions), by `labels` (as the source names them) and, if stated, by `collections`;
            `creators`, as the source names them, with documents and, if known, the year of the last death and the
            years of publication; `documents_of_other_creators`, if there are more than CREATORS.
        """
        counts = self._counts.get(source, Counter())
        by = {
            f"{kind}s": {key.partition(" ")[2]: n for key, n in sorted(counts.items()) if key.startswith(f"{kind} ")}
            for kind in ("language", "licence", "label", "collection")
        }
        if not by["collections"]:  # not stated
            del by["collections"]
        creators = [
            {"name": name, "documents": documents}
            | ({"died": max(died for _, died in lives)} if (lives := parse_lives(name)) else {})
            | ({"published": [min(years), max(years)]} if (years := known - {None}) else {})
            for name, (documents, known) in sorted(self._creators.get(source, {}).items())
        ]
        return {
            **{"documents": counts["documents"], "bytes": counts["bytes"], "license": _all_of(by["licences"]), **by},
            **({"creators": creators} if creators else {}),
            **({"documents_of_other_creators": counts["others"]} if counts["others"] else {}),
        }

    def describe(self, folder: Path) -> list[dict]:
        """Return the entries of sources.json of all counted sources; facts of a corpus folder's own entries are kept.

        A hash, a retrieval date or the ground of a licence that no file states is None.
        """
        known = {
            str(Source(entry.get("kind"), entry["name"], entry.get("version"))): entry for entry in _listed(folder)
        }
        return [
            {
                **parse_source(text).entry,
                "sha256": None,
                "retrieved": None,
                "ground": None,
                **known.get(text, {}),
                **self.account(text),
            }
            for text in sorted(self._counts)
        ]
