"""Toxic passages rewritten, and content warnings written, by a language model behind an OpenAI-compatible endpoint.

An answer is taken only if it is the JSON asked for, in the document's language, of a fitting length, scored none, and
free of the hostile sentences it was to remove; otherwise it is asked for again, and in the end the document fails with
a reason that is counted. What is taken is marked as synthetic, with the model's name.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from datatrove.data import Document
from datatrove.pipeline.inference.types import InferenceError

from ..files import write_json
from ..language import LANGUAGES, identify
from .endpoint import Endpoint, Failure, Runner
from .toxicity import verdict
from .toxicity_axes import Scorer, passages

PROMPTS = Path(__file__).with_name("rewriting.yaml")
PROMPT_VERSION = hashlib.sha256(PROMPTS.read_bytes()).hexdigest()[:12]  # answers to other prompts are not reused
ANSWER_KEY = {"rewrite": "text", "warn": "warning"}
LENGTHS = (0.4, 2.5)  # of a rewritten passage against the passage; shorter is a summary or a refusal
WARNING_CHARACTERS = (20, 400)
JUDGED_LETTERS = 40  # below, a text is too short to tell its language
RUN = 6  # words in a row from a hostile sentence that must not come back; all of it where it is shorter
LONG_RUN = 40  # from a passage none of whose sentences is hostile by itself
EXCERPT = 4_000  # characters of hostile passages that a content warning is written from
PAUSED = ("timeout", "connection", "server_error")  # before the next try; an answer that cannot be used needs none


@dataclass(frozen=True, kw_only=True)
class Request:
    """A document to change: `rewrite` its hostile passages, or `warn` before it."""

    identifier: str
    text: str
    language: str  # ISO code
    action: Literal["rewrite", "warn"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a request: the text and its marks for the `curation` struct, or the kind of failure.

    marks: `action`, `rewritten_by` (the model), `prompt_version`, `synthetic` (True), and `passages_rewritten` (how
    many) or `content_warning` (the sentence that stands before the text).
    failure: timeout, connection, server_error (transport); refused (the endpoint would not take the request); nonsense
    (not the JSON asked for); cut_off; length; language; still_toxic; verbatim (hostile sentences came back).
    """

    identifier: str
    text: str | None = None
    marks: dict = field(default_factory=dict)
    failure: str | None = None


# The rules for an answer --------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """A text in sentences, or lines of verse."""
    return [sentence for sentence in re.findall(r"[^.!?;\n]+[.!?;]*", text) if sentence.strip()]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def comes_back(original: str, answer: str, language: str, scorer: Scorer) -> bool:
    """Whether an answer repeats the original: `RUN` words in a row of a sentence that is hostile by itself, or
    `LONG_RUN` of a passage of which no sentence is."""
    parts = sentences(original)
    scored = scorer.score(parts, [language] * len(parts))
    hostile = [part for part, scores in zip(parts, scored, strict=True) if max(scores.levels) >= 2]
    given = f" {' '.join(_words(answer))} "
    for part in hostile or [original]:
        words = _words(part)
        run = min(RUN if hostile else LONG_RUN, len(words))
        if any(f" {' '.join(words[i : i + run])} " in given for i in range(len(words) - run + 1)):
            return True
    return False


def accept(answer: str, original: str, *, action: str, language: str, scorer: Scorer) -> None:
    """Let an answer pass, or say why not.

    Raises:
        Failure: length, language, still_toxic or verbatim.
    """
    if action == "warn":
        least, most = WARNING_CHARACTERS
        fits = "\n" not in answer
    else:
        least, most = (share * len(original) for share in LENGTHS)
        fits = True
    if not (fits and least <= len(answer) <= most):
        raise Failure("length")
    if sum(map(str.isalpha, answer)) >= JUDGED_LETTERS and identify(answer)[0] != language:
        raise Failure("language")
    if verdict(scorer.score([answer], [language])[0]) != "none":
        raise Failure("still_toxic")
    if comes_back(original, answer, language, scorer):
        raise Failure("verbatim")


# Asking -------------------------------------------------------------------------------------------


@cache
def _prompts() -> dict[str, dict[str, str]]:
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))


def payload(passage: str, *, action: str, language: str, attempt: int = 0) -> dict:
    """The request for one passage; later attempts differ in seed and temperature."""
    key = ANSWER_KEY[action]
    schema = {
        "type": "object",
        "properties": {key: {"type": "string"}},
        "required": [key],
        "additionalProperties": False,
    }
    return {
        "messages": [
            {"role": "system", "content": _prompts()[language][action]},
            {"role": "user", "content": f"<passage>\n{passage}\n</passage>"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": action, "strict": True, "schema": schema}},
        "temperature": 0.2 + 0.2 * attempt,
        "seed": attempt,
        "max_tokens": 256 + (len(passage) if action == "rewrite" else 0),  # a token is more than one character
    }


class _Asker:
    """Asks for passages until an answer can be used, and remembers the answers on disk."""

    def __init__(self, endpoint: Endpoint, scorer: Scorer, cache: Path | None) -> None:
        self.endpoint, self.scorer, self.cache = endpoint, scorer, cache

    def _cached(self, passage: str, action: str, language: str) -> Path | None:
        if self.cache is None:
            return None
        asked = json.dumps([PROMPT_VERSION, self.endpoint.model, action, language, passage])
        name = hashlib.sha256(asked.encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    async def ask(self, passage: str, *, action: str, language: str, generate: Callable) -> str:
        """A usable answer for a passage.

        Raises:
            Failure: of the last attempt.
        """
        stored = self._cached(passage, action, language)
        if stored is not None and stored.is_file():
            try:
                answer = json.loads(stored.read_text(encoding="utf-8"))["answer"]
                accept(answer, passage, action=action, language=language, scorer=self.scorer)
                return answer
            except (Failure, ValueError, LookupError, TypeError):
                pass  # accepted by another scorer, or damaged: asked for again
        for attempt in range(self.endpoint.attempts):
            try:
                answer = await self._once(passage, action, language, attempt, generate)
            except Failure as failure:
                if attempt + 1 == self.endpoint.attempts or str(failure) == "refused":
                    raise
                if str(failure) in PAUSED:
                    await asyncio.sleep(self.endpoint.pause * 2**attempt)
                continue
            if stored is not None:
                write_json(stored, {"answer": answer, "model": self.endpoint.model, "prompt_version": PROMPT_VERSION})
            return answer
        raise AssertionError("attempts is at least 1")

    async def _once(self, passage: str, action: str, language: str, attempt: int, generate: Callable) -> str:
        try:
            result = await generate(payload(passage, action=action, language=language, attempt=attempt))
        except InferenceError as error:
            if isinstance(error.__cause__, Failure):
                raise error.__cause__ from None
            raise
        if result.finish_reason == "length":
            raise Failure("cut_off")
        try:
            answer = json.loads(result.text)[ANSWER_KEY[action]].strip()
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Failure("nonsense") from None
        accept(answer, passage, action=action, language=language, scorer=self.scorer)
        return answer

    async def rewrite(self, text: str, language: str, generate: Callable) -> tuple[str, dict]:
        """The text with its hostile passages rewritten, all at once, and how many they were."""
        pieces = passages(text)
        chosen = self._hostile(pieces, language)
        bodies = {i: pieces[i].strip() for i in chosen}
        answers = await asyncio.gather(
            *(self.ask(bodies[i], action="rewrite", language=language, generate=generate) for i in chosen),
            return_exceptions=True,  # the others are finished, and cached, before the first failure counts
        )
        for i, answer in zip(chosen, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            before, _, after = pieces[i].partition(bodies[i])
            pieces[i] = before + answer + after
        rewritten = "".join(pieces)
        if verdict(self.scorer.score([rewritten], [language])[0]) != "none":
            raise Failure("still_toxic")
        return rewritten, {"passages_rewritten": len(chosen)}

    async def warn(self, text: str, language: str, generate: Callable) -> tuple[str, dict]:
        """The text behind a content warning, and the warning."""
        pieces = passages(text)
        excerpt = "\n".join(pieces[i].strip() for i in self._hostile(pieces, language))[:EXCERPT]
        warning = await self.ask(excerpt, action="warn", language=language, generate=generate)
        return f"{warning}\n\n{text}", {"content_warning": warning}

    def _hostile(self, pieces: list[str], language: str) -> list[int]:
        """The passages that make a document toxic: those with a level of 2 and more, or else the worst."""
        scored = self.scorer.score(pieces, [language] * len(pieces))
        worst = max(max(scores.levels) for scores in scored)
        return [i for i, scores in enumerate(scored) if max(scores.levels) >= min(2, worst) and pieces[i].strip()]


def rewrite(
    requests: Iterable[Request], endpoint: Endpoint, *, scorer: Scorer, cache: Path | None = None
) -> list[Result]:
    """A result for every request, in their order; `Counter(result.failure for ...)` counts failures by kind.

    Args:
        requests: documents; in a language other than the eight they fail with `language`.
        endpoint: where the model is.
        scorer: that whose verdict brought the documents here; it judges the answers too.
        cache: a folder that keeps accepted answers by passage, prompt version and model, so that a run that was cut
            off asks only for what is missing.

    Raises:
        InputError: when the endpoint is not there or does not serve the model.
    """
    requests = list(requests)
    if not requests:
        return []
    endpoint.check()
    asker = _Asker(endpoint, scorer, cache)

    async def rollout(document: Document, generate: Callable) -> dict:
        request = requests[int(document.id)]
        work = asker.rewrite if request.action == "rewrite" else asker.warn
        try:
            if request.language not in LANGUAGES:
                raise Failure("language")
            text, found = await work(request.text, request.language, generate)
        except Failure as failure:
            return {"failure": str(failure)}
        marks = {
            "action": request.action,
            "rewritten_by": endpoint.model,
            "prompt_version": PROMPT_VERSION,
            "synthetic": True,
        }
        return {"text": text, "marks": marks | found}

    runner = Runner(rollout, endpoint)
    runner.run(Document(text="", id=str(i)) for i in range(len(requests)))
    return [Result(identifier=request.identifier, **runner.results[str(i)]) for i, request in enumerate(requests)]
