"""Questions with sources and answers that cite them, written and read in both published formats.

RAG 0.1 (Pico and Nano 0.1), and how a citation stands in it:

    <|query_start|>Q<|query_end|>
    <|source_start|><|source_id_start|>ID<|source_id_end|>TEXT<|source_end|>
    <|source_analysis_start|>
    ANALYSIS<|source_analysis_end|>
    <|answer_start|>STATEMENT <ref name="ID">"QUOTE"</ref><|answer_end|>

(no line end after `<|source_analysis_start|>`, where the prompt ends). RAG 2025 writes a source as
`<|source_start|><|source_id|>ID TEXT<|source_end|>`, a citation as `<ref name="<|source_id|>ID">QUOTE</ref>`, and has
the model fill seven blocks, each between its markers on lines of their own; the prompt ends with
`<|language_start|>` and a line end. Where the published description is silent (the line ends between blocks), this is
the project's choice.

Everything that comes from outside is escaped (training.tasks.markers), so what is written is read back exactly, also
when a text holds markers or citations of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from .markers import escape, unescape

Format = Literal["rag-0.1", "rag-2025"]
FORMATS: tuple[Format, ...] = get_args(Format)
STOP = "<|answer_end|>"
# What the model writes before its answer, in order.
BLOCKS: dict[Format, tuple[str, ...]] = {
    "rag-0.1": ("source_analysis",),
    "rag-2025": ("language", "query_analysis", "query_report", "source_analysis", "source_report", "draft"),
}
QUERY_REPORTS = ("answerable", "trivial", "reformulated", "unclear", "refused")
SOURCE_REPORTS = ("extensive", "basic", "incomplete", "infeasible")

# Where the prompt ends: the first block is open.
PROMPT_END: dict[Format, str] = {"rag-0.1": "<|source_analysis_start|>", "rag-2025": "<|language_start|>\n"}
_SOURCE = {
    "rag-0.1": re.compile(
        r"<\|source_start\|><\|source_id_start\|>(.*?)<\|source_id_end\|>(.*?)<\|source_end\|>\n", re.DOTALL
    ),
    "rag-2025": re.compile(r"<\|source_start\|><\|source_id\|>(\S+) (.*?)<\|source_end\|>\n", re.DOTALL),
}
_CITATION = {
    "rag-0.1": re.compile(r'<ref name="([^"\n]*)">"(.*?)"</ref>', re.DOTALL),
    "rag-2025": re.compile(r'<ref name="<\|source_id\|>([^"\n]*)">(.*?)</ref>', re.DOTALL),
}
_OPENED = re.compile(r"<ref\b")


@dataclass(frozen=True)
class Citation:
    """A quote from a source.

    Args:
        source: the source's id.
        quote: some of its words.
    """

    source: str
    quote: str

    def literal(self, sources: dict[str, str]) -> bool:
        """Whether the quote says something and stands in the cited source, sign for sign."""
        return bool(self.quote.strip()) and self.quote in sources.get(self.source, "")


@dataclass(frozen=True)
class Response:
    """What a model writes: the blocks before the answer, and the answer as text and citations in turn.

    Args:
        parts: of the answer.
        blocks: name in `BLOCKS` -> content.
        malformed: citations that were opened and cannot be read.
    """

    parts: tuple[str | Citation, ...] = ()
    blocks: dict[str, str] = field(default_factory=dict)
    malformed: int = 0

    @property
    def citations(self) -> list[Citation]:
        """In order."""
        return [part for part in self.parts if isinstance(part, Citation)]

    @property
    def plain(self) -> str:
        """The answer without its citations."""
        text = ""
        for part in self.parts:  # a citation goes with the blank before it
            text = text.rstrip(" ") if isinstance(part, Citation) else text + part
        return text.strip()

    @property
    def text(self) -> str:
        """The answer as RAG 0.1 writes it."""
        return _answer(self.parts, "rag-0.1")


def around_quote(source: str, rag_format: Format) -> tuple[str, str]:
    """What stands before a quote from a source, and after it."""
    if rag_format == "rag-0.1":
        return f'<ref name="{source}">"', '"</ref>'
    return f'<ref name="<|source_id|>{source}">', "</ref>"


def _answer(parts: tuple[str | Citation, ...], rag_format: Format) -> str:
    written = []
    for part in parts:
        if isinstance(part, Citation):
            before, after = around_quote(part.source, rag_format)
            written.append(f"{before}{escape(part.quote)}{after}")
        else:
            written.append(escape(part))
    return "".join(written)


def _checked(source: str) -> str:
    if not source or re.search(r'["<>\s]', source):
        raise ValueError(f"source id {source!r}: ids have one sign at least, and no blank, quotation mark, < or >.")
    return source


def format_prompt(query: str, sources: dict[str, str], rag_format: Format = "rag-0.1") -> str:
    """The question and its sources (id -> text), up to where the model goes on.

    Raises:
        ValueError: when an id cannot be written.
    """
    lines = [f"<|query_start|>{escape(query)}<|query_end|>\n"]
    for source, text in sources.items():
        if rag_format == "rag-0.1":
            opening = f"<|source_start|><|source_id_start|>{_checked(source)}<|source_id_end|>"
        else:
            opening = f"<|source_start|><|source_id|>{_checked(source)} "
        lines.append(f"{opening}{escape(text)}<|source_end|>\n")
    return "".join([*lines, PROMPT_END[rag_format]])


def format_rag(
    query: str, sources: dict[str, str], response: Response, rag_format: Format = "rag-0.1"
) -> tuple[str, str]:
    """(prompt, completion) of a question, its sources (id -> text) and what is to be written.

    Raises:
        ValueError: when an id cannot be written.
    """
    for citation in response.citations:
        _checked(citation.source)
    edge = "" if rag_format == "rag-0.1" else "\n"
    contents = {name: escape(response.blocks.get(name, "")) for name in BLOCKS[rag_format]}
    contents["answer"] = _answer(response.parts, rag_format)
    blocks = [f"<|{name}_start|>{edge}{content}{edge}<|{name}_end|>" for name, content in contents.items()]
    return format_prompt(query, sources, rag_format), "\n".join(blocks).removeprefix(PROMPT_END[rag_format])


def parse_prompt(prompt: str, rag_format: Format = "rag-0.1") -> tuple[str, dict[str, str]]:
    """(question, id -> text of each source) of a prompt, with or without its completion.

    Raises:
        ValueError: when the text is no such prompt.
    """
    query = re.match(r"<\|query_start\|>(.*?)<\|query_end\|>\n", prompt, re.DOTALL)
    if not query:
        raise ValueError(f"no question with sources: {prompt[:80]!r}")
    sources, place = {}, query.end()
    while found := _SOURCE[rag_format].match(prompt, place):
        sources[found[1]] = unescape(found[2])
        place = found.end()
    if not prompt.startswith(PROMPT_END[rag_format], place):
        raise ValueError(f"no prompt in format {rag_format}: {prompt[place : place + 80]!r}")
    return unescape(query[1]), sources


def parse_completion(completion: str, rag_format: Format = "rag-0.1") -> Response:
    """What a model wrote after the prompt, as far as it can be read; without `<|answer_start|>` there is no answer."""
    before, opened, rest = (PROMPT_END[rag_format] + completion).partition("<|answer_start|>")
    blocks = {}
    for name in BLOCKS[rag_format]:
        found = re.search(rf"<\|{name}_start\|>(.*?)<\|{name}_end\|>", before, re.DOTALL)
        blocks[name] = unescape(_inner(found[1], rag_format)) if found else ""
    answer = _inner(rest.partition(STOP)[0], rag_format) if opened else ""
    return _with_parts(answer, rag_format, blocks)


def parse_answer(answer: str, rag_format: Format = "rag-0.1") -> Response:
    """An answer that stands alone, with its citations, as a user's own data have it."""
    return _with_parts(answer, rag_format, {})


def parse_rag(text: str, rag_format: Format = "rag-0.1") -> tuple[str, dict[str, str], Response]:
    """(question, sources, response) of a prompt followed by its completion.

    Raises:
        ValueError: when the text begins with no such prompt.
    """
    query, sources = parse_prompt(text, rag_format)
    return query, sources, parse_completion(text.partition(PROMPT_END[rag_format])[2], rag_format)


def _inner(block: str, rag_format: Format) -> str:
    """A block without the line ends that set it off."""
    return block if rag_format == "rag-0.1" else block.removeprefix("\n").removesuffix("\n")


def _with_parts(answer: str, rag_format: Format, blocks: dict[str, str]) -> Response:
    parts = tuple(_parts(answer, rag_format))
    read = sum(isinstance(part, Citation) for part in parts)
    return Response(parts, blocks, malformed=len(_OPENED.findall(answer)) - read)


def _parts(answer: str, rag_format: Format) -> Iterator[str | Citation]:
    place = 0
    for found in _CITATION[rag_format].finditer(answer):
        if found.start() > place:
            yield unescape(answer[place : found.start()])
        yield Citation(found[1], unescape(found[2]))
        place = found.end()
    if place < len(answer):
        yield unescape(answer[place:])
