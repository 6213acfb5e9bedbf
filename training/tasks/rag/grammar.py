"""Grammar of llama.cpp (GBNF) in which a citation can only name one of the sources and quote it verbatim.

It is to llama.cpp what training.tasks.rag.constrained is to transformers, with the same rules of where a quote may
begin and end, and also fixes the order of the blocks, so that every complete output can be parsed. Its size is linear
in that of the sources: at most LEAST_WORDS rules per word.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate, pairwise

from ..markers import escape
from .constrained import LEAST_WORDS, WORD_BYTE, _ends_word, _starts
from .format import BLOCKS, STOP, Format, around_quote, format_prompt

_BETWEEN_BLOCKS = r" [ \n]* "
_BLOCK_TEXT = r'block-text ::= ([^<] | "<"+ [^<|])*'
_ANSWER_TEXT = r'answer-text ::= ([^<] | "<"+ [^<|r/])*'  # no marker, and no <ref or </ref outside of `citation`


def grammar(sources: Mapping[str, str], rag_format: Format = "rag-0.1") -> str:
    """Return the grammar of the completions of a prompt, for the field `grammar` of a request to llama.cpp.

    Args:
        sources: Id -> text of the sources in the prompt.
        rag_format: Format of the prompt.
    """
    first, *others = BLOCKS[rag_format]
    blocks = [f'block-text "<|{first}_end|>"', *(f'"<|{name}_start|>" block-text "<|{name}_end|>"' for name in others)]
    answer = f'"<|answer_start|>" answer-text (citation answer-text)* "{STOP}"'
    rules = [f"root ::= {_BETWEEN_BLOCKS.join([*blocks, answer])}", _BLOCK_TEXT, _ANSWER_TEXT]
    citations = []
    for number, (source, text) in enumerate(sources.items()):
        if quotes := _quote_rules(escape(text).encode(), f"s{number}"):
            before, after = (_literal(markup) for markup in around_quote(source, rag_format))
            citations.append(f"{before} s{number} {after}")
            rules += quotes
    if citations:
        rules.append(f"citation ::= {' | '.join(citations)}")
    else:  # nothing to quote
        rules[0] = rules[0].replace(" (citation answer-text)*", "")
    return "\n".join(rules) + "\n"


def completion_request(
    query: str, sources: Mapping[str, str], rag_format: Format = "rag-0.1", *, max_tokens: int = 256
) -> dict:
    """Return the body of a request to `/v1/completions` of llama.cpp; `parse_completion` parses the text it returns.

    Raises:
        ValueError: If the id of a source is invalid.
    """
    constraint = grammar(sources, rag_format)
    return {
        "prompt": format_prompt(query, dict(sources), rag_format),
        "grammar": constraint,
        "preserved_tokens": sorted({*re.findall(r"<\|\w+\|>", constraint)}),  # llama.cpp removes others from its text
        "max_tokens": max_tokens,
        "temperature": 0,
        "repeat_penalty": 1.0,
    }


def _quote_rules(text: bytes, name: str) -> list[str]:
    """Return the rules of all quotes from an escaped source; none if it contains no word.

    Rule NAME generates a quote from its first word on, and NAME-END-WORDS what follows position END, where a word ends
    and up to which WORDS words (at most LEAST_WORDS) are written.
    """
    ends = [*(end for end in range(1, len(text)) if _ends_word(text, end)), len(text)]
    blank = [True, *(byte in b" \t\n\r\v\f" for byte in text)]  # before each position
    begins = [before and not here for before, here in pairwise(blank)]
    words = [0, *accumulate(begins)]  # that begin before each position
    last_word = max((match.end() for match in WORD_BYTE.finditer(text)), default=0)

    def up_to_next_end(start: int, written: int) -> tuple[str, str, tuple[int, int]]:
        """Return the text from a position to the next end of a word, a reference to what follows, and its state."""
        end = ends[bisect_right(ends, start)]
        written = min(written + words[end] - words[start], LEAST_WORDS)
        if end == len(text):
            return text[start:].decode(), "", (end, written)
        may_end = written == LEAST_WORDS or end >= last_word
        return text[start:end].decode(), f" {name}-{end}-{written}{'?' if may_end else ''}", (end, written)

    quotes, rules, pending = defaultdict(list), {}, []
    for start in _starts(b"", text):
        literal, following, state = up_to_next_end(start, 0 if begins[start] else 1)
        # By first character: llama.cpp compares every token of the vocabulary with every alternative.
        quotes[literal[0]].append(f"{_literal(literal[1:])}{following}")
        pending.append(state)
    while pending:
        if (state := pending.pop()) not in rules and state[0] < len(text):
            literal, following, following_state = up_to_next_end(*state)
            rules[state] = f"{name}-{state[0]}-{state[1]} ::= {_literal(literal)}{following}"
            pending.append(following_state)
    choices = (f"{_literal(letter)} ({' | '.join(rest)})" for letter, rest in quotes.items())
    return [f"{name} ::= {' | '.join(choices)}", *rules.values()] if quotes else []


def _literal(text: str) -> str:
    escaped = (f"\\x{ord(c):02x}" if c in '"\\' or c < " " else c for c in text)
    return f'"{"".join(escaped)}"'
