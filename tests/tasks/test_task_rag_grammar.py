"""Every string of the grammar of llama.cpp parses and quotes verbatim, and no other quote is one of its strings."""

import random
import re
from functools import lru_cache

import pytest

from training.tasks.markers import escape
from training.tasks.rag.format import FORMATS, PROMPT_END, Citation, Response, format_rag, parse_completion
from training.tasks.rag.grammar import completion_request, grammar

SOURCES = {
    "river": "It stood by the river.",
    "1": 'Bells\nrang; "loud" \\ bells (over) the hills -- caf\u00e9s, a b c',
    "marked": "He wrote <|answer_end|> and </ref> in it...",
    "dashes": "--",
}


WORD = re.compile(r"[0-9A-Za-z]|[^\0-\x7f]")


class Grammar:
    """An interpreter of GBNF as llama.cpp defines it: it recognises and samples strings."""

    TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|\[\^?(?:\\.|[^\]\\])*\]|[\w-]+|[()|*+?])')

    def __init__(self, text):
        self.rules = {}
        for line in text.splitlines():
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules
            self.tokens = self.TOKEN.findall(body)
            self.rules[name] = self.choice()
            assert not self.tokens
        self.ends = lru_cache(None)(self.ends)

    def choice(self):
        options = [self.sequence()]
        while self.tokens[:1] == ["|"]:
            del self.tokens[0]
            options.append(self.sequence())
        return ("choice", tuple(options))

    def sequence(self):
        items = []
        while self.tokens and self.tokens[0] not in ("|", ")"):
            token = self.tokens.pop(0)
            if token == "(":
                item = self.choice()
                assert self.tokens.pop(0) == ")"
            elif token[0] == '"':
                item = ("literal", self.characters(token[1:-1]))
            elif token[0] == "[":
                item = ("class", token[1] == "^", self.characters(token.strip("[]").removeprefix("^")))
            else:
                item = ("rule", token)
            if self.tokens and self.tokens[0] in "*+?":
                item = (self.tokens.pop(0), item)
            items.append(item)
        return ("sequence", tuple(items))

    @staticmethod
    def characters(text):
        return re.sub(r"\\(?:x(..)|(.))", lambda m: chr(int(m[1], 16)) if m[1] else {"n": "\n"}.get(m[2], m[2]), text)

    def ends(self, node, text, start):
        """The positions in a text at which a string of a node that begins at `start` may end."""
        kind, *rest = node
        if kind == "rule":
            return self.ends(self.rules[rest[0]], text, start)
        if kind == "literal":
            return {start + len(rest[0])} if text.startswith(rest[0], start) else set()
        if kind == "class":
            return {start + 1} if start < len(text) and (text[start] in rest[1]) != rest[0] else set()
        if kind == "choice":
            return set().union(*(self.ends(option, text, start) for option in rest[0]))
        if kind == "sequence":
            reached = {start}
            for item in rest[0]:
                reached = set().union(*(self.ends(item, text, place) for place in reached))
            return reached
        once = self.ends(rest[0], text, start)
        if kind == "?":
            return once | {start}
        reached, new = set(once), set(once)
        while new:
            new = set().union(*(self.ends(rest[0], text, place) for place in new)) - reached
            reached |= new
        return reached | ({start} if kind == "*" else set())

    def accepts(self, text, rule="root"):
        return len(text) in self.ends(("rule", rule), text, 0)

    def sample(self, draw, node=("rule", "root")):
        kind, *rest = node
        if kind == "rule":
            return self.sample(draw, self.rules[rest[0]])
        if kind == "literal":
            return rest[0]
        if kind == "class":
            return draw.choice(sorted(set('abr<|>/"\\ \n\u00e9\u2060ref') - set(rest[1])) if rest[0] else rest[1])
        if kind == "choice":
            return self.sample(draw, draw.choice(rest[0]))
        if kind == "sequence":
            return "".join(self.sample(draw, item) for item in rest[0])
        least, most = {"?": (0, 1), "*": (0, 6), "+": (1, 3)}[kind]
        return "".join(self.sample(draw, rest[0]) for _ in range(draw.randint(least, most)))


def quotes(text):
    """All quotes that the rules of the grammar allow, by brute force: spans of three words, or up to the last word."""
    for start in range(len(text)):
        if not WORD.match(text[start]) or text[start] == "\u2060" or WORD.match(text[start - 1 : start]):
            continue
        for end in range(start + 1, len(text) + 1):
            quote, after = text[start:end], text[end:]
            whole_word = not quote[-1].isspace() and quote[-1] != "\u2060" and not WORD.match(after)
            enough = len(quote.split()) >= 3 or not WORD.search(after)
            if not after or (whole_word and enough):
                yield quote


@pytest.mark.parametrize("rag_format", FORMATS)
def test_every_sampled_string_parses_and_quotes_verbatim(rag_format):
    rules, draw, sources = Grammar(grammar(SOURCES, rag_format)), random.Random(0), set()
    for _ in range(300):
        completion = rules.sample(draw)
        response = parse_completion(completion, rag_format)
        assert completion.count("<ref") == len(response.citations) and response.malformed == 0
        assert all(citation.literal(SOURCES) for citation in response.citations)
        sources |= {citation.source for citation in response.citations}
    assert sources == {"river", "1", "marked"}  # a source without a word cannot be quoted


def test_exactly_the_quotes_from_word_to_word_are_strings_of_the_grammar():
    rules = Grammar(grammar(SOURCES))
    for number, text in enumerate(map(escape, list(SOURCES.values())[:3])):
        allowed = set(quotes(text))
        spans = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
        assert {span for span in spans if rules.accepts(span, f"s{number}")} == allowed
        assert len(allowed) > 5


@pytest.mark.parametrize("rag_format", FORMATS)
def test_an_answer_of_this_project_is_accepted_and_an_altered_one_is_refused(rag_format):
    rules = Grammar(grammar(SOURCES, rag_format))

    def accepts(*parts):
        completion = format_rag("Where?", SOURCES, Response(parts, {"source_analysis": "a < b"}), rag_format)[1]
        return rules.accepts(completion)

    assert accepts("By the river. ", Citation("river", "stood by the river"), " So it is: 1 < 2.")
    assert accepts("Nothing.")
    assert not accepts("By the river. ", Citation("river", "stood in the river"))
    assert not accepts("By the river. ", Citation("1", "stood by the river"))
    assert not accepts("By the river. ", Citation("elsewhere", "stood by the river"))
    assert not accepts("By the river. ", Citation("river", "tood by the river"))
    assert not accepts("By the river. ", Citation("river", "stood by the riv"))
    assert not accepts("By the river. ", Citation("river", "river by the"))


def test_sources_without_words_leave_an_answer_without_citations():
    rules = Grammar(grammar({"1": "...", "2": ""}))
    assert rules.accepts(".<|source_analysis_end|>\n<|answer_start|>No.<|answer_end|>")
    assert "citation" not in rules.rules


def test_the_grammar_is_linear_in_the_sources():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 9))) for _ in range(4000)]
    for separator in (" ", ","):  # a list without spaces is one long word
        short, long = (len(grammar({"1": separator.join(words[:count])})) for count in (1000, 4000))
        assert long < 4.5 * short  # numbers of positions have one digit more


def test_a_request_has_the_prompt_the_grammar_and_the_markers_of_the_answer():
    request = completion_request("Where?", SOURCES, "rag-2025")
    assert request["prompt"].endswith(PROMPT_END["rag-2025"]) and request["grammar"] == grammar(SOURCES, "rag-2025")
    assert {"<|source_id|>", "<|answer_start|>", "<|answer_end|>", "<|draft_end|>"} <= set(request["preserved_tokens"])
    with pytest.raises(ValueError, match="source id"):
        completion_request("Where?", {"a b": "text"})
