"""Format and parse questions with sources and answers that cite them, in both published formats.

RAG 0.1 (Pico and Nano 0.1), with a citation:

    <|query_start|>Q<|query_end|>
    <|source_start|><|source_id_start|>ID<|source_id_end|>TEXT<|source_end|>
    <|source_analysis_start|>
    ANALYSIS<|source_analysis_end|>
    <|answer_start|>STATEMENT <ref name="ID">"QUOTE"</ref><|answer_end|>

The prompt ends with `<|source_analysis_start|>`, without a line break. In RAG 2025 a source is
`<|source_start|><|source_id|>ID TEXT<|source_end|>` and a citation `<ref name="<|source_id|>ID">QUOTE</ref>`, and the
model fills seven blocks, each between markers on lines of their own; the prompt ends with `<|language_start|>` and a
line break. The published description does not specify the line breaks between blocks: they are this project's choice.

All external text, ids included, is escaped (training.tasks.markers), so formatting round-trips even if a text contains
markers or citations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..markers import escape, unescape

Format = Literal["rag-0.1", "rag-2025"]
FORMATS: tuple[Format, ...] = get_args(Format)
STOP = "<|answer_end|>"
# Blocks generated before the answer, in order. A query report is answerable, trivial, reformulated, unclear or
# refused; a source report is extensive, basic, incomplete or infeasible.
BLOCKS: dict[Format, tuple[str, ...]] = {
    "rag-0.1": ("source_analysis",),
    "rag-2025": ("language", "query_analysis", "query_report", "source_analysis", "source_report", "draft"),
}
# End of the prompt: the first block is open.
PROMPT_END: dict[Format, str] = {"rag-0.1": "<|source_analysis_start|>", "rag-2025": "<|language_start|>\n"}
# No pattern searches again for an end that is missing: malformed text would take the square of its length.
_SOURCE = {  # up to the text
    "rag-0.1": re.compile(r"<\|source_start\|><\|source_id_start\|>(.*?)<\|source_id_end\|>", re.DOTALL),
    "rag-2025": re.compile(r"<\|source_start\|><\|source_id\|>(\S+) "),
}
_SOURCE_END = "<|source_end|>\n"
_CITATION = {
    "rag-0.1": re.compile(r'<ref name="([^"\n]*)">"(.*?)"</ref>', re.DOTALL),
    "rag-2025": re.compile(r'<ref name="<\|source_id\|>([^"\n]*)">(.*?)</ref>', re.DOTALL),
}
_OPENED = re.compile(r"<ref\b")


@dataclass(frozen=True)
class Citation:
    """A quote from a source.

    Args:
        source: Id of the source.
        quote: Words of the source.
    """

    source: str
    quote: str

    def literal(self, sources: dict[str, str]) -> bool:
        """Return whether the quote is not blank and occurs verbatim in the cited source."""
        return bool(self.quote.strip()) and self.quote in sources.get(self.source, "")


@dataclass(frozen=True)
class Response:
    """A model's output: the blocks before the answer, and the answer as a sequence of texts and citations.

    Args:
        parts: Texts and citations of the answer.
        blocks: Name in `BLOCKS` -> content.
        malformed: Number of citations that were opened but cannot be parsed.
    """

    parts: tuple[str | Citation, ...] = ()
    blocks: dict[str, str] = field(default_factory=dict)
    malformed: int = 0

    @property
    def citations(self) -> list[Citation]:
        """Citations of the answer, in order."""
        return [part for part in self.parts if isinstance(part, Citation)]

    @property
    def plain(self) -> str:
        """Answer without citations."""
        texts: list[str] = []
        for part in self.parts:
            if isinstance(part, Citation):  # removed with the space before it
                while texts and not texts[-1].strip(" "):
                    texts.pop()
                texts[-1:] = [text.rstrip(" ") for text in texts[-1:]]
            else:
                texts.append(part)
        return "".join(texts).strip()

    @property
    def text(self) -> str:
        """Answer in RAG 0.1 format."""
        return _answer(self.parts, "rag-0.1")


def around_quote(source: str, rag_format: Format) -> tuple[str, str]:
    """Return the markup before and after a quote from a source."""
    if rag_format == "rag-0.1":
        return f'<ref name="{escape(source)}">"', '"</ref>'
    return f'<ref name="<|source_id|>{escape(source)}">', "</ref>"


def _answer(parts: tuple[str | Citation, ...], rag_format: Format) -> str:
    texts = []
    for part in parts:
        if isinstance(part, Citation):
            before, after = around_quote(part.source, rag_format)
            texts.append(f"{before}{escape(part.quote)}{after}")
        else:
            texts.append(escape(part))
    return "".join(texts)


def _check_id(source: str) -> str:
    if not source or re.search(r'["<>\s]', source):
        raise ValueError(
            f"source id {source!r}: an id must not be empty or contain whitespace, quotation marks, < or >."
        )
    return source


def format_prompt(query: str, sources: dict[str, str], rag_format: Format = "rag-0.1") -> str:
    """Format a question and its sources (id -> text) as a prompt.

    Raises:
        ValueError: If an id is invalid.
    """
    lines = [f"<|query_start|>{escape(query)}<|query_end|>\n"]
    for source, text in sources.items():
        if rag_format == "rag-0.1":
            opening = f"<|source_start|><|source_id_start|>{escape(_check_id(source))}<|source_id_end|>"
        else:
            opening = f"<|source_start|><|source_id|>{escape(_check_id(source))} "
        lines.append(f"{opening}{escape(text)}<|source_end|>\n")
    return "".join([*lines, PROMPT_END[rag_format]])


def format_rag(
    query: str, sources: dict[str, str], response: Response, rag_format: Format = "rag-0.1"
) -> tuple[str, str]:
    """Return (prompt, completion) of a question, its sources (id -> text) and the response.

    Raises:
        ValueError: If an id is invalid.
    """
    for citation in response.citations:
        _check_id(citation.source)
    edge = "" if rag_format == "rag-0.1" else "\n"
    contents = {name: escape(response.blocks.get(name, "")) for name in BLOCKS[rag_format]}
    contents["answer"] = _answer(response.parts, rag_format)
    blocks = [f"<|{name}_start|>{edge}{content}{edge}<|{name}_end|>" for name, content in contents.items()]
    return format_prompt(query, sources, rag_format), "\n".join(blocks).removeprefix(PROMPT_END[rag_format])


def parse_prompt(prompt: str, rag_format: Format = "rag-0.1") -> tuple[str, dict[str, str]]:
    """Return (question, id -> text of each source) of a prompt, with or without its completion.

    Raises:
        ValueError: If the text does not begin with such a prompt.
    """
    query = re.match(r"<\|query_start\|>(.*?)<\|query_end\|>\n", prompt, re.DOTALL)
    if not query:
        raise ValueError(f"no question with sources: {prompt[:80]!r}")
    sources, place = {}, query.end()
    while match := _SOURCE[rag_format].match(prompt, place):
        if (end := prompt.find(_SOURCE_END, match.end())) < 0:
            break
        sources[unescape(match[1])] = unescape(prompt[match.end() : end])
        place = end + len(_SOURCE_END)
    if not prompt.startswith(PROMPT_END[rag_format], place):
        raise ValueError(f"no prompt in format {rag_format}: {prompt[place : place + 80]!r}")
    return unescape(query[1]), sources


def parse_completion(completion: str, rag_format: Format = "rag-0.1") -> Response:
    """Parse a completion as far as possible; without `<|answer_start|>` the answer is empty."""
    before, opened, rest = (PROMPT_END[rag_format] + completion).partition("<|answer_start|>")
    blocks = {}
    for name in BLOCKS[rag_format]:
        content, closed, _ = before.partition(f"<|{name}_start|>")[2].partition(f"<|{name}_end|>")
        blocks[name] = unescape(_content(content, rag_format)) if closed else ""
    answer = _content(rest.partition(STOP)[0], rag_format) if opened else ""
    return parse_answer(answer, rag_format, blocks)


def parse_answer(answer: str, rag_format: Format = "rag-0.1", blocks: dict[str, str] | None = None) -> Response:
    """Parse the citations of an answer."""
    parts = tuple(_parts(answer, rag_format))
    citations = sum(isinstance(part, Citation) for part in parts)
    return Response(parts, blocks or {}, malformed=len(_OPENED.findall(answer)) - citations)


def _content(block: str, rag_format: Format) -> str:
    """Return a block without the line breaks next to its markers."""
    return block if rag_format == "rag-0.1" else block.removeprefix("\n").removesuffix("\n")


def _parts(answer: str, rag_format: Format) -> Iterator[str | Citation]:
    place, closing = 0, around_quote("", rag_format)[1]
    for match in _CITATION[rag_format].finditer(answer, 0, answer.rfind(closing) + len(closing)):
        if match.start() > place:
            yield unescape(answer[place : match.start()])
        yield Citation(unescape(match[1]), unescape(match[2]))
        place = match.end()
    if place < len(answer):
        yield unescape(answer[place:])
