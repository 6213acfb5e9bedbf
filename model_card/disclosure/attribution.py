"""List the sources of a release's text, and credit them: evidence/sources.json and ATTRIBUTION.md.

    {count, in_text: number of sources, and of those with text in a shard,
     corpora  [{fingerprint, stages, train, validation: {documents, bytes, tokens}}],
     sources  [{the entry of the corpus's sources.json, license: SPDX expression,
                in_text: whether a shard has text of it,
                shards: {first 12 digits of a corpus's fingerprint: {train, validation: {documents, bytes, tokens}}}}]}

Both are computed from data.json, and `model_card.validate` computes them again. The numbers of `shards` add up to
those of the corpora, if the manifests count by source.
"""

import re
from functools import cache
from pathlib import Path

from license_expression import ExpressionError, get_spdx_licensing

from ..escaping import code_span, markdown_cell
from ..facts import MEASURES, source_key, split_source, total
from ..files import read_json, write_json, write_text

ATTRIBUTION = "ATTRIBUTION.md"
SPLITS = ("train", "validation")
CREATORS = 12  # maximum number of names per source in ATTRIBUTION.md; sources.json has more
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
SCANCODE = "LicenseRef-scancode-"  # licences that ScanCode's list describes, not SPDX's


def key_of(entry: dict) -> str:
    """Return the name of an entry of sources.json in `by_source`; an entry of a fine-tuning has only a name."""
    return source_key(entry) if entry.get("kind") else entry["name"]


def entries_of(corpus: dict) -> dict[str, dict]:
    """Return the entries of the sources of a corpus, by key. A source without an entry has that of its name."""
    listed = (corpus.get("sources") or {}).get("sources", [])
    entries = {key_of(entry): entry for entry in listed if isinstance(entry, dict)}
    counted = {row["source"] for row in corpus.get("by_source", ())}
    return {key: split_source(key) for key in sorted(counted - entries.keys())} | entries


@cache
def spdx_licensing():
    """Return the parser of SPDX expressions; one for each licence would take most of the time of a BOM."""
    return get_spdx_licensing()


@cache
def spdx_expression(name: str) -> str | None:
    """Return a licence as a normalised SPDX expression, in which any LicenseRef name may be, or None if it is none."""
    spdx = spdx_licensing()
    try:
        parsed = spdx.parse(name)
        unknown = spdx.unknown_license_keys(parsed)
    except ExpressionError:
        return None
    return str(parsed) if parsed is not None and all(key.startswith("LicenseRef-") for key in unknown) else None


def licences_of(entry: dict, rows: list[dict]) -> list[str]:
    """Return the licences of a source: those of its documents in the shards, or those that its entry states."""
    names = [row["license"] for row in rows] or list(entry.get("licences") or ())
    return list(dict.fromkeys(filter(None, names or [entry.get("license") or entry.get("licence")])))


def all_of(licences: list[str]) -> str:
    """Return one name for text under several licences, each for some of the documents."""
    return " AND ".join(f"({name})" if " OR " in name and len(licences) > 1 else name for name in licences)


def list_sources(data: list[dict]) -> dict:
    """Return the content of sources.json.

    Args:
        data: data.json.
    """
    entries: dict[str, dict] = {}
    uncounted: set[str] = set()  # of a corpus that does not count by source, so that all are taken for used
    rows: dict[str, list[dict]] = {}
    shards: dict[str, dict] = {}
    corpora, sources = [], []
    for corpus in data:
        entries |= (listed := entries_of(corpus))
        uncounted |= set() if "by_source" in corpus else listed.keys()
        numbers = {split: total([row for row in corpus["account"] if row["split"] == split]) for split in SPLITS}
        corpora.append({"fingerprint": corpus["fingerprint"], "stages": corpus["stages"], **numbers})
        counted: dict[str, list[dict]] = {}
        for row in corpus.get("by_source", ()):
            counted.setdefault(row["source"], []).append(row)
        for key, part in counted.items():
            rows.setdefault(key, []).extend(part)
            splits = {split: [row for row in part if row["split"] == split] for split in SPLITS}
            numbers = {split: total(some) for split, some in splits.items() if some}
            shards.setdefault(key, {})[corpus["fingerprint"][:12]] = numbers
    for key in sorted(entries):
        license = entries[key].get("license") or all_of(licences_of(entries[key], rows.get(key, [])))
        in_text = key in shards or key in uncounted
        described = {"license": license, "in_text": in_text, "shards": shards.get(key, {})}
        sources.append({**entries[key], **described})
    counts = {"count": len(sources), "in_text": sum(source["in_text"] for source in sources)}
    return {**counts, "corpora": corpora, "sources": sources}


def licence_address(identifier: str) -> str | None:
    """Return the address of the text of a licence, by its identifier in an SPDX expression, or None if it has none."""
    if identifier.startswith(SCANCODE):
        return f"https://scancode-licensedb.aboutcode.org/{identifier.removeprefix(SCANCODE)}.html"
    return f"https://spdx.org/licenses/{identifier}.html" if identifier in spdx_licensing().known_symbols else None


def linked_licence(name: str) -> str:
    """Return a licence as Markdown, each SPDX identifier with a link to its text."""
    if not spdx_expression(name):
        return markdown_cell(name)

    def link(match: re.Match) -> str:
        address = licence_address(match[0])
        return f"[{match[0]}]({address})" if address else match[0]

    return IDENTIFIER.sub(link, name)


def linked_source(entry: dict) -> str:
    """Return the name of a source as Markdown, with a link if its address is known."""
    name, url = markdown_cell(entry["name"]), entry.get("url") or ""
    return f"[{name}]({url})" if re.fullmatch(r"https://[\w./@:%+~-]+", url) else name


def attribution(name: str, content: dict) -> str:
    """Return the text of ATTRIBUTION.md.

    Args:
        name: Name of the release.
        content: sources.json.
    """
    lines = []
    for entry in filter(lambda entry: entry["in_text"], content["sources"]):
        tokens = sum(split["tokens"] for numbers in entry["shards"].values() for split in numbers.values())
        creators = [markdown_cell(creator["name"]) for creator in entry.get("creators", ())]
        shown, others = "; ".join(creators[:CREATORS]), len(creators) - CREATORS
        more = "more than " if entry.get("documents_of_other_creators") else ""
        cells = [
            linked_source(entry),
            markdown_cell(entry.get("version") or "-"),
            linked_licence(entry["license"]) if entry["license"] else "-",
            *(f"{entry[measure]:,}" if entry.get(measure) else "-" for measure in MEASURES[:2]),
            f"{tokens:,}" if tokens else "-",
            shown + (f" and {more}{others:,} others" if others > 0 else "") or "-",
        ]
        lines.append((-tokens, entry["name"], f"| {' | '.join(cells)} |\n"))
    return (
        "# Attribution\n\n"
        f"The model {code_span(name)} was trained on text of the sources below, whose authors and publishers are "
        "credited here, as licences such as CC BY ask. They have not endorsed the model.\n\n"
        "Documents and bytes are those of the corpus. Tokens are those of the shards of all stages, with repetitions "
        "and held-out text. [`evidence/sources.json`](evidence/sources.json) adds for each source its hash, the "
        "sentence that gives the licence, the licences as the source names them, and further creators; if it has "
        "more than are listed, `documents_of_other_creators` counts the documents of the others.\n\n"
        "| source | version | licence | documents | bytes | tokens | creators |\n|---|---|---|--:|--:|--:|---|\n"
        + "".join(line for *_, line in sorted(lines))
    )


def write_attribution(folder: Path) -> None:
    """Write evidence/sources.json and ATTRIBUTION.md of a folder, or remove them if data.json lists no source."""
    evidence = folder / "evidence"
    content = list_sources(read_json(evidence / "data.json"))
    if content["sources"]:
        write_json(evidence / "sources.json", content)
        name = read_json(evidence / "release.json")["name"]
        write_text(folder / ATTRIBUTION, attribution(name, content))
    else:
        for path in (evidence / "sources.json", folder / ATTRIBUTION):
            path.unlink(missing_ok=True)
