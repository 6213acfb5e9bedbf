"""Rows of user-provided questions with sources, and the fields of every row."""

from pathlib import Path

from ...common.config import InputError
from ...common.language import LANGUAGES, identify
from ..sources import read_user_files
from .format import Format, Response, format_rag, parse_answer

USER_COLUMNS = ("query", "sources", "answer")


def row(meta: dict, query: str, sources: dict[str, str], response: Response, rag_format: Format) -> dict:
    """Return a row: meta (id, language, source, license), prompt and completion, and the fields of the metrics."""
    prompt, completion = format_rag(query, sources, response, rag_format)
    return {
        **meta,
        "format": rag_format,
        "query": query,
        "sources": [{"id": source, "text": text} for source, text in sources.items()],
        "answer": response.plain,
        "cited": sorted({citation.source for citation in response.citations}),
        "refused": not response.citations,
        "prompt": prompt,
        "completion": completion,
    }


def read_user_rows(path: Path, rag_format: Format) -> list[dict]:
    """Read user-provided rows from a JSON Lines or Parquet file, or a folder of such files.

    Required columns: query; sources, a list of texts or of {"id", "text"}; answer, with citations as in RAG 0.1 (`<ref
    name="ID">"quote"</ref>`), or without any if it refuses. Optional columns: id, language (ISO code), license, source
    (the row's document; rows of one document are held out together), analysis (a sentence on the sources).

    Raises:
        InputError: If a file cannot be read or lacks a column, or a citation does not occur in the row's sources.
    """
    rows = read_user_files(path, f"questions with {', '.join(USER_COLUMNS)}")
    return [_user_row(raw, f"{file}, row {i + 1}", rag_format) for file, i, raw in rows]


def _user_row(raw: object, place: str, rag_format: Format) -> dict:
    for column in USER_COLUMNS:
        if not isinstance(raw, dict) or not raw.get(column):
            raise InputError(f"{place} has no {column}: each row needs {', '.join(USER_COLUMNS)}.")
    listed = [
        source if isinstance(source, dict) else {"id": n, "text": source} for n, source in enumerate(raw["sources"], 1)
    ]
    if not all(source.get("id") and source.get("text") for source in listed):
        raise InputError(f'{place} has a source without id or text: use texts, or {{"id": ..., "text": ...}}.')
    sources = {str(source["id"]): source["text"] for source in listed}
    response = parse_answer(raw["answer"])
    for citation in response.citations:
        if not citation.literal(sources):
            raise InputError(
                f'{place} cites "{citation.quote[:60]}" from source {citation.source!r}, where it does not occur: '
                "quotes must be verbatim."
            )
    if response.malformed:
        raise InputError(f'{place} has a citation that cannot be parsed: write <ref name="ID">"quote"</ref>.')
    language = raw.get("language") or identify(f"{raw['query']} {response.plain}")[0]
    blocks = {
        "language": LANGUAGES.get(language, language),
        "query_report": "answerable",
        "source_analysis": raw.get("analysis") or "",
        "source_report": "basic" if response.citations else "infeasible",
    }
    meta = {"id": str(raw.get("id") or place), "language": language, "license": raw.get("license") or "not stated"}
    meta["source"] = str(raw.get("source") or raw["query"])
    try:
        return row(meta, raw["query"], sources, Response(response.parts, blocks), rag_format)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
