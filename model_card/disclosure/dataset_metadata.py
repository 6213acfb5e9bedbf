"""Describe training text in Croissant 1.1 with its RAI vocabulary: a corpus folder, and the shards of a release.

mlcroissant checks what it writes, and reads the text of a corpus back with `Dataset("croissant.json").records("en")`.
What no file states is omitted.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..facts import LANGUAGE_NAMES, commands, left_out, with_spdx
from ..files import ReleaseError, read_json, relativize_paths, sha256, write_json
from ..run import json_sha256, path_roots
from .attribution import IDENTIFIER, licence_address, spdx_expression

CROISSANT, INSTALL = "croissant.json", 'pip install "modeling-pleias[release]".'
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
CONTEXT = {  # what the context of 1.1 has and the default one of mlcroissant has not; and the provenance's prefix
    **{name: f"cr:{name}" for name in ("arrayShape", "containedIn", "isArray")},
    **dict.fromkeys(("name", "description"), {"@container": "@language"}),
    "prov": "http://www.w3.org/ns/prov#",
}
SCHEMA_ORG = {  # column of Common Corpus -> property of schema.org; `license` is that of the document
    "identifier": "identifier",
    "license": "license",
    "date": "dateCreated",
    "title": "name",
    "creator": "creator",
    "language": "inLanguage",
    "word_count": "wordCount",
    "text": "text",
}
GROUPS = ("language", "license", "collection")  # columns by which documents are counted
RECORDS = "http://www.wikidata.org/entity/Q4049983"  # number of records
MANY = 50  # files; beyond, each as a record set of its own takes mlcroissant minutes
PURL = re.compile(r"pkg:[!-~]+")


class TrainingText(NamedTuple):
    """Facts about a text, from its files.

    Args:
        name: Its name.
        fingerprint: Hex hash of the files.
        url: Its address, or None.
        creator: {"name", and "email" or "url"} of who publishes it, or None.
        published: ISO date, or None.
        rows: {language, license, collection, documents} of the documents.
        sources: Content of sources.json.
        curation: Content of curation.json.
        commands: Commands that made it.
        measures: Sentence of the number of its documents and files.
        steps: Sentences of further processing.
    """

    name: str
    fingerprint: str
    url: str | None
    creator: dict | None
    published: str | None
    rows: list[dict]
    sources: dict
    curation: dict
    commands: list[str]
    measures: str
    steps: list[str]


def new_context():
    """Return the context of mlcroissant's nodes for one description."""
    import mlcroissant  # lazy imports: take seconds

    context = mlcroissant.Context(conforms_to=CONFORMS_TO[0])
    context.rdf.context |= CONTEXT
    return context


def licence_urls(names: list[str]) -> list[str]:
    """Return the address of each licence in expressions of SPDX; a name that is not of SPDX stays as it is."""
    urls = []
    for name in filter(None, names):
        identifiers = IDENTIFIER.findall(spdx_expression(name) or "")
        urls += list(filter(None, map(licence_address, identifiers))) or [name]
    return list(dict.fromkeys(urls))


def listed_sources(content: dict) -> list[dict]:
    """Return the entries of sources.json; those of earlier versions may be a folder's name."""
    return [source for source in content.get("sources", []) if isinstance(source, dict)]


def retrieval_dates(content: dict) -> list[str]:
    """Return the ISO dates on which the sources of sources.json were retrieved, in order."""
    return sorted({day for source in listed_sources(content) if is_date(day := source.get("retrieved"))})


def is_date(text: str | None) -> bool:
    """Return whether a text is an ISO date."""
    try:
        return date.fromisoformat(text or "").isoformat() == text
    except ValueError:
        return False


def count_documents(rows: list[dict], column: str) -> dict[str, int]:
    """Return the number of documents by a column, the largest first."""
    counts = Counter()
    for row in rows:
        counts[row[column]] += row["documents"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sentence_of(counts: dict[str, int], column: str) -> str:
    """Return a sentence of the number of documents by a column."""
    return f"Documents by {column}: " + ", ".join(f"{name or 'not stated'} {n:,}" for name, n in counts.items()) + "."


def describe_text(text: TrainingText, context, distribution: list, record_sets: list) -> dict:
    """Return the content of a Croissant file.

    Args:
        text: The text.
        context: Result of `new_context`, with which the nodes were made.
        distribution: The nodes of files.
        record_sets: The nodes of record sets.
    """
    import mlcroissant

    codes = {name: code for code, name in LANGUAGE_NAMES.items()}
    by_language, by_licence = (count_documents(text.rows, column) for column in ("language", "license"))
    sources = listed_sources(text.sources)
    dates = retrieval_dates(text.sources)
    settings, changes = text.curation.get("settings") or {}, text.curation.get("changes") or {}
    personal = {name: n for name, n in changes.items() if name.startswith("pii")}
    dropped = (text.sources.get("dropped") or {}).items()
    steps = [f"Dropped when the corpus was built: {reason}: {n:,}." for reason, n in dropped]
    steps += [
        f"Dropped in curation: {row['reason']}: {row['documents']:,} documents."
        for row in left_out({"curation": text.curation})
    ]
    steps += [f"Changed in curation: {name}: {n:,}." for name, n in changes.items() if name not in personal]
    version, year = f"1.0.0+{text.fingerprint[:12]}", (text.published or "")[:4]
    cited = {"author": text.creator and text.creator["name"], "title": text.name, "year": year, "url": text.url}
    fields = ", ".join(f"{key} = {{{value}}}" for key, value in {**cited, "version": version}.items() if value)
    tools = {
        "language: py3langid": True,
        "OCR quality: character 4-gram models of modeling-pleias": True,
        f"toxicity: {settings.get('toxicity')}": settings.get("toxicity"),
        "personal data: Presidio's recognisers and further ones of modeling-pleias": settings.get("pii"),
    }
    unknown = by_licence.get("unknown", 0) + by_licence.get("", 0)
    limits = [f"{unknown:,} documents have no recorded licence."] if unknown else []
    limits += ["Personal names and postal addresses are not replaced."] if settings.get("pii") else []
    return mlcroissant.Metadata(
        ctx=context,
        conforms_to=CONFORMS_TO,
        name=text.name,
        description=f"{text.measures} {sentence_of(by_language, 'language')}",
        url=text.url,
        version=version,
        date_published=text.published,
        creators=[mlcroissant.Organization(ctx=context, **text.creator)] if text.creator else [],
        license=licence_urls(list(by_licence)),
        cite_as=f"@misc{{{quote(text.name, safe='')}, {fields}}}",
        in_language=[codes.get(name, name) for name in by_language if name],
        distribution=distribution,
        record_sets=record_sets,
        data_collection=f"Text that others published, from {len(sources):,} sources, which prov:wasDerivedFrom lists."
        if sources
        else None,
        data_collection_type=["Secondary Data Analysis"],
        data_collection_timeframe=[dates[0], dates[-1]] if dates else None,
        data_preprocessing_protocol=[*steps, *text.steps] or None,
        machine_annotation_tools=[name for name, used in tools.items() if used] if text.curation else None,
        personal_sensitive_information=[f"{name}, in the source text: {n:,}." for name, n in personal.items()] or None,
        data_biases=[sentence_of(count_documents(text.rows, column), column) for column in ("language", "collection")],
        data_limitations=limits or None,
        data_use_cases=["Training and evaluation of language models."],
        data_release_maintenance_plan="The files of a version never change: other files have another version.",
        extra_properties={
            "prov:wasDerivedFrom": [entity(source) for source in sources],
            "prov:wasGeneratedBy": [{"@type": "prov:Activity", "prov:label": command} for command in text.commands],
        },
    ).to_json()


def entity(source: dict) -> dict:
    """Return the entity of a source of sources.json."""
    licences = source.get("licences") or [source.get("licence") or source.get("license") or ""]
    values = {
        "@type": "prov:Entity",
        "@id": source["purl"] if PURL.fullmatch(source.get("purl") or "") else None,
        "prov:label": " ".join(filter(None, [source.get("name"), source.get("version")])),
        "url": source.get("url"),
        "license": licence_urls(list(licences)),
    }
    return {key: value for key, value in values.items() if value}


# A corpus folder ----------------------------------------------------------------------------------


def corpus_metadata(folder: Path, name: str, url: str | None, creator: dict | None, published: str | None) -> dict:
    """Return the content of croissant.json of a corpus folder: a file and a record set for each Parquet file.

    Args:
        folder: The folder.
        name: Name of the corpus.
        url: Its address, if it has one.
        creator: {"name"} of who publishes it, if known.
        published: ISO date. Defaults to the last on which a source was retrieved.

    Raises:
        ReleaseError: If it is no corpus.
    """
    context, files, sets, rows, hashes = new_context(), [], [], Counter(), {}
    paths = corpus_files(folder)
    for path in paths:
        file = path.relative_to(folder).as_posix()
        hashes[file] = sha256(path)
        columns, records, counts = read_columns(path)
        rows.update(counts)
        files.append(file_node(context, file, hashes[file], "application/x-parquet", path.stat().st_size))
        sets += [record_set(context, file, columns, records)] if len(paths) <= MANY else []
    stated = [
        relativize_paths(read_json(path), *path_roots(folder)) if path.is_file() else {}
        for path in (folder / "sources.json", folder / "curation.json")
    ]
    sources, curation = stated
    text = TrainingText(
        name=name,
        fingerprint=json_sha256(hashes),
        url=url,
        creator=creator,
        published=published or max(retrieval_dates(sources), default=None),
        rows=[{**dict(zip(GROUPS, group, strict=True)), "documents": n} for group, n in rows.items()],
        sources=sources,
        curation=curation,
        commands=commands([{"sources": sources, "curation": curation}], []),
        measures=f"{rows.total():,} documents in {len(paths):,} Parquet files with the columns of Common Corpus.",
        steps=[],
    )
    return describe_text(text, context, files, sets)


def corpus_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a corpus: not those in hidden folders, nor what curation dropped.

    Raises:
        ReleaseError: If there is none.
    """
    parts = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*.parquet")) if path.is_file()}
    files = [path for path in parts if not any(name == "dropped" or name[0] == "." for name in parts[path])]
    if not files:
        raise ReleaseError(f"{folder} contains no .parquet file: pass the folder of a corpus.")
    return files


def read_columns(path: Path) -> tuple[dict[str, bool], int, Counter]:
    """Return the columns of text (False) and whole numbers (True) of a Parquet file, its rows, and the rows by group.

    Raises:
        ReleaseError: If it is not Parquet, or lacks a column.
    """
    import pyarrow as pa  # lazy imports: only this needs it
    import pyarrow.parquet as pq

    counts: Counter = Counter()
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in GROUPS if name not in file.schema_arrow.names]:
                raise ReleaseError(f"{path} lacks the column {missing[0]}: pass the folder of a corpus.")
            for batch in file.iter_batches(columns=list(GROUPS)):
                counts.update(zip(*(batch.column(name).to_pylist() for name in GROUPS), strict=True))
            kinds = {column.name: column.type for column in file.schema_arrow}
            records = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ReleaseError(f"{path} is not Parquet ({error}).") from None
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    columns = {name: pa.types.is_integer(kind) for name, kind in kinds.items() if any(test(kind) for test in plain)}
    return columns, records, counts


def file_node(context, name: str, digest: str, format: str, size: int | None = None, description: str | None = None):
    """Return the node of a file."""
    import mlcroissant

    return mlcroissant.FileObject(
        ctx=context,
        id=quote(name),
        name=name,
        description=description,
        content_url=name,
        content_size=None if size is None else f"{size} B",
        sha256=digest,
        encoding_formats=[format],
    )


def record_set(context, file: str, columns: dict[str, bool], records: int):
    """Return the node of the documents in a Parquet file, named like the file."""
    import mlcroissant as mlc

    name = file.removesuffix(".parquet")
    fields = [
        mlc.Field(
            ctx=context,
            id=f"{quote(name)}/{quote(column)}",
            name=column,
            data_types=[mlc.DataType.INT64 if is_number else mlc.DataType.TEXT],
            equivalentProperty=[f"sc:{SCHEMA_ORG[column]}"] if column in SCHEMA_ORG else None,
            # mlcroissant compares the hash of a file only if a field's source is the file itself.
            source=mlc.Source(ctx=context, file_object=quote(file), extract=mlc.Extract(ctx=context, column=column)),
        )
        for column, is_number in columns.items()
    ]
    count = mlc.Field(
        ctx=context, id=f"{quote(name)}/records", name="number of records", data_types=[RECORDS], value=records
    )
    return mlc.RecordSet(ctx=context, id=quote(name), name=name, fields=fields, annotations=[count])


# The shards of a release --------------------------------------------------------------------------


def write_shard_metadata(variant: Path, folders: Iterable[Path], repository: str | None) -> None:
    """Write evidence/croissant/ in folders of a release whose evidence is written.

    Args:
        variant: Folder of a variant, as for `shard_metadata`.
        folders: The folders.
        repository: OWNER/NAME on the Hub, if known.
    """
    if find_spec("mlcroissant") is None:
        print(f"skip  evidence/croissant needs mlcroissant: {INSTALL}")
        return
    contents = shard_metadata(variant, repository)
    for folder in (part / "evidence" / "croissant" for part in folders):
        shutil.rmtree(folder, ignore_errors=True)  # of another run
        for name, content in contents.items():
            folder.mkdir(exist_ok=True)
            write_json(folder / name, content)


def shard_metadata(folder: Path, repository: str | None) -> dict[str, dict]:
    """Return the content of evidence/croissant/STAGES-FINGERPRINT.json for each corpus of a release, by name.

    Args:
        folder: Folder of a variant, with evidence/, and runs/ of a pretraining run.
        repository: OWNER/NAME on the Hub, if known.
    """
    release = read_json(folder / "evidence" / "release.json")
    paths = sorted((folder / "runs").glob("*/manifests/*.json"))
    manifests = {manifest["fingerprint"]: manifest for manifest in map(read_json, paths)}
    contents = {}
    for corpus in read_json(folder / "evidence" / "data.json"):
        fingerprint, context, stages = corpus["fingerprint"], new_context(), " and ".join(corpus["stages"])
        manifest = manifests.get(fingerprint, {})
        shards = manifest.get("shards", [])
        total = len(shards) or (manifest.get("left_out") or {}).get("shards")
        documents, tokens = (sum(row[measure] for row in corpus["account"]) for measure in ("documents", "tokens"))
        number = f" in {total:,} token shards" if total else ""
        share, by = (corpus["validation"].get(key) for key in ("share", "by"))
        text = TrainingText(
            name=f"{release['name']}, text of {stages}",
            fingerprint=fingerprint,
            url=f"https://huggingface.co/{repository}" if repository else None,
            creator={"name": release["provider"]["name"]} if release.get("provider") else None,
            published=release["created"][:10],
            rows=with_spdx(corpus["account"], [corpus]),
            sources=corpus.get("sources") or {},
            curation=corpus.get("curation") or {},
            commands=commands([corpus], []),
            measures=f"{documents:,} documents, {tokens:,} tokens{number}, training and validation.",
            steps=[f"Held out as validation: {share:.2%} of the text, chosen by {by}."] if share else [],
        )
        nodes = [
            file_node(
                context,
                shard["file"],
                shard["sha256"],
                "application/octet-stream",
                description=f"{shard['tokens']:,} tokens, {shard['split']}.",
            )
            for shard in shards
        ]
        name = f"{'-'.join(corpus['stages'])}-{fingerprint[:12]}.json"
        contents[name] = describe_text(text, context, nodes, [])
    return contents
