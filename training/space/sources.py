"""Tab Sources: the passages of a text that occur verbatim in training shards, with their documents and licences."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from ..common.files import read_json
from ..data.source_names import Source, source_of
from ..tasks.ocr.review import escape
from ..tracing.search import MatchedDocument, MatchedSpan, TraceIndex, copied_characters
from ..tracing.suffix_array import SHORTEST
from .messages import one_sentence

COLORS = {"open": "#15803d", "attribution": "#1d5fbf", "share-alike": "#b45309", "refused": "#b91c1c"}
ON_CLICK = """
const show = (event) => {
  const number = event.target.closest("mark")?.dataset.number;
  if (number) trigger("click", { number: Number(number) });
};
element.addEventListener("click", show);
element.addEventListener("keydown", (event) => event.key === "Enter" && show(event));
"""
NEIGHBOURS = 200  # characters of a document shown on each side of a passage
DOCUMENTS = 3  # shown per passage


@dataclass(frozen=True)
class Segment:
    """Part of a text between the ends of passages.

    Args:
        text: The part.
        spans: Passages that cover it, the longest first.
    """

    text: str
    spans: list[MatchedSpan]


def segments(text: str, spans: list[MatchedSpan]) -> list[Segment]:
    """Cut a text where one of its passages starts or ends."""
    ends = [(span.start, span.start + len(span.text)) for span in spans]
    cuts = sorted({0, len(text), *(place for pair in ends for place in pair)})
    return [
        Segment(
            text[start:end],
            sorted(
                (span for span, (first, last) in zip(spans, ends, strict=True) if first <= start and end <= last),
                key=lambda span: -span.length,
            ),
        )
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]


def marked_text(parts: list[Segment]) -> str:
    """Return a text as HTML in which passages are marked in the colour of their licence, with a legend."""

    def mark(text: str, decision: str, attributes: str = "") -> str:
        return f'<mark style="color:inherit;background:{COLORS[decision]}40"{attributes}>{escape(text)}</mark>'

    decisions = [part.spans[0].documents[0].decision if part.spans else None for part in parts]
    legend = " ".join(mark(decision, decision) for decision in COLORS if decision in decisions)
    text = "".join(
        mark(part.text, decision, f' tabindex="0" data-number="{i}"') if decision else escape(part.text)
        for i, (part, decision) in enumerate(zip(parts, decisions, strict=True))
    )
    hint = f"<p>Passages in training documents whose licence is {legend}; click one.</p>" if legend else ""
    return f"{hint}<div style='white-space:pre-wrap;overflow-wrap:anywhere;cursor:default'>{text}</div>"


def retrieval_dates(index: TraceIndex) -> dict[str, str]:
    """Return when each source was retrieved, from the manifests of an index's shards; none of shards that are gone."""
    dates = {}
    for shards in index.facts["shards"]:
        path = Path(shards["folder"]) / "manifest.json"
        recorded = read_json(path)["corpus"].get("sources", {}).get("sources", []) if path.is_file() else []
        for entry in recorded:
            dates[str(Source(entry.get("kind"), entry["name"], entry.get("version")))] = entry.get("retrieved")
    return dates


def describe_match(document: MatchedDocument, around: tuple[str, str], passage: str, dates: dict[str, str]) -> str:
    """Return a document as HTML: its source, licence and date, and a passage with the text around it."""
    source = source_of(document.identifier)
    name = escape(source or document.collection or document.identifier)
    if source and source.url:
        name = f'<a href="{escape(source.url)}" target="_blank" rel="noreferrer">{name}</a>'
    facts = [
        f"<b>{escape(document.license)}</b> ({escape(document.decision)})",
        escape(document.collection),
        escape(document.language),
        f"retrieved {escape(dates.get(str(source)) or 'on an unknown date')}",
    ]
    before, after = map(escape, around)
    return (
        f"<p><b>{name}</b> &middot; {' &middot; '.join(filter(None, facts))}<br>"
        f"<small>{escape(document.identifier)} &middot; {escape(document.shard)}, byte {document.position:,} of the "
        f"document</small></p><blockquote style='white-space:pre-wrap'>{before}<mark>{escape(passage)}</mark>{after}"
        "</blockquote>"
    )


def add_sources_tab(index: TraceIndex, complete: Callable[[str, int], Iterator[str]]) -> None:
    """Add the components of the tab.

    Args:
        index: Index of the training shards.
        complete: Function of a text and a number of tokens that yields the text with its continuation.
    """
    dates = retrieval_dates(index)

    def mark(text: str, minimum: int):
        with one_sentence(text):
            start = time.monotonic()
            spans = index.spans(text, min_tokens=minimum, max_documents=DOCUMENTS)
            seconds = time.monotonic() - start
        parts = segments(text, spans)
        share = copied_characters(spans) / len(text)
        summary = (
            f"Verbatim in {index.facts['documents']:,} training documents: {share:.0%} of the text, in "
            f"{len(spans)} passage{'s' * (len(spans) != 1)} of at least {minimum} tokens (found in {seconds:.2f} s)."
        )
        return marked_text(parts), summary, "", parts

    def show(parts: list[Segment], event: gr.EventData) -> str:
        blocks = []
        for span in parts[event.number].spans:
            count = span.in_documents
            blocks.append(f"<h4>{span.length} tokens in {count:,} document{'s' * (count > 1)}</h4>")
            for document in span.documents:
                around = index.around(span.text, document, NEIGHBOURS)
                blocks.append(describe_match(document, around, span.text, dates))
        return "".join(blocks)

    text = gr.Textbox(lines=6, label="Text; a continuation is added to it (AI-generated)")
    with gr.Row():
        minimum = gr.Slider(SHORTEST, 100, 20, step=1, label="Tokens of a passage, at least")
        count = gr.Slider(1, 512, 64, step=1, label="New tokens of a continuation (greedy)")
    with gr.Row():
        continued = gr.Button("Continue, then find sources", variant="primary")
        pasted = gr.Button("Find sources")
    summary = gr.Markdown()
    marked = gr.HTML(elem_id="sources", js_on_load=ON_CLICK)
    details, state = gr.HTML(elem_id="documents"), gr.State([])
    outputs = [marked, summary, details, state]
    continued.click(complete, [text, count], text).success(mark, [text, minimum], outputs)
    pasted.click(mark, [text, minimum], outputs)
    marked.click(show, state, details)
