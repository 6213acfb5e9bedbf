"""Rewrite toxic passages, or write content warnings, with a language model behind an OpenAI-compatible endpoint.

An output is accepted only if it is the requested JSON, in the document's language, within length limits, scored none,
and free of the hostile sentences that it should replace. Otherwise the request is repeated, and after the last attempt
the document fails with a reason that is counted. Accepted text is marked as synthetic, with the model's name.
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

from ..common.files import write_json
from ..common.language import LANGUAGES, identify
from ..common.normalization import normalize
from .endpoint import CollectingRunner, Endpoint, EndpointError, parse_json
from .toxicity import verdict
from .toxicity_axes import Scorer, passages

PROMPTS = Path(__file__).with_name("rewriting.yaml")
PROMPT_VERSION = hashlib.sha256(PROMPTS.read_bytes()).hexdigest()[:12]  # other prompts do not reuse cached outputs
OUTPUT_KEY = {"rewrite": "text", "warn": "warning"}
LENGTH_RATIOS = (0.4, 2.5)  # rewritten passage to passage; a shorter one is a summary or a refusal
WARNING_CHARACTERS = (20, 400)
MIN_LETTERS = 40  # shorter outputs are not checked for their language
RUN = 6  # consecutive words of a hostile sentence that an output must not contain; fewer if the sentence is shorter
LONG_RUN = 40  # the same for a passage without a sentence that is hostile on its own
EXCERPT = 4_000  # characters of hostile passages in the request for a content warning
TRANSPORT_ERRORS = ("timeout", "connection", "server_error")  # only these wait before the next attempt


@dataclass(frozen=True, kw_only=True)
class Request:
    """A document to change: `rewrite` its hostile passages, or prepend a warning (`warn`)."""

    identifier: str
    text: str
    language: str  # ISO code
    action: Literal["rewrite", "warn"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a request: the text and its fields for the `curation` struct, or the error type.

    Args:
        identifier: Document identifier.
        text: Changed text.
        marks: `action`, `rewritten_by` (the model), `prompt_version`, `synthetic` (True), and `passages_rewritten`
            (a number) or `content_warning` (the sentence before the text).
        failure: timeout, connection, server_error (transport); refused (the endpoint rejected the request); nonsense
            (not the requested JSON, or control characters); cut_off; length; language; still_toxic; verbatim (hostile
            sentences repeated).
    """

    identifier: str
    text: str | None = None
    marks: dict = field(default_factory=dict)
    failure: str | None = None


# Acceptance ---------------------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """Split a text into sentences, or lines of verse."""
    return [sentence for sentence in re.findall(r"[^.!?;\n]+[.!?;]*", text) if sentence.strip()]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalize(text).text.lower())


def repeats(original: str, output: str, language: str, scorer: Scorer) -> bool:
    """Return whether an output repeats `RUN` consecutive words of a hostile sentence of the original.

    If no sentence is hostile on its own, the limit is `LONG_RUN` words of the passage.
    """
    parts = sentences(original)
    scored = scorer.score(parts, [language] * len(parts))
    hostile = [part for part, scores in zip(parts, scored, strict=True) if max(scores.levels) >= 2]
    normalized = f" {' '.join(_words(output))} "
    for part in hostile or [original]:
        words = _words(part)
        run = min(RUN if hostile else LONG_RUN, len(words))
        if any(f" {' '.join(words[i : i + run])} " in normalized for i in range(len(words) - run + 1)):
            return True
    return False


CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")  # all but tabs, line ends and page breaks


def check_output(output: str, original: str, *, action: str, language: str, scorer: Scorer) -> None:
    """Check an output for length, language, toxicity and repetition of the original.

    Raises:
        Failure: nonsense (control characters that the original lacks), length, language, still_toxic or verbatim.
    """
    if set(CONTROL.findall(output)) - set(original):
        raise EndpointError("nonsense")
    shortest, longest = WARNING_CHARACTERS if action == "warn" else (ratio * len(original) for ratio in LENGTH_RATIOS)
    if not shortest <= len(output) <= longest or (action == "warn" and "\n" in output):
        raise EndpointError("length")
    if sum(map(str.isalpha, output)) >= MIN_LETTERS and identify(output)[0] != language:
        raise EndpointError("language")
    if verdict(scorer.score([output], [language])[0]) != "none":
        raise EndpointError("still_toxic")
    if repeats(original, output, language, scorer):
        raise EndpointError("verbatim")


# Requests -----------------------------------------------------------------------------------------


@cache
def _prompts() -> dict[str, dict[str, str]]:
    return yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))


def payload(passage: str, *, action: str, language: str, attempt: int = 0) -> dict:
    """Return the request for one passage; later attempts have another seed and a higher temperature."""
    key = OUTPUT_KEY[action]
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
        "max_tokens": 256 + (len(passage) if action == "rewrite" else 0),  # a token has at least one character
    }


class _RewriteClient:
    """Client that repeats requests until an output is accepted, and caches accepted outputs on disk."""

    def __init__(self, endpoint: Endpoint, scorer: Scorer, cache: Path | None) -> None:
        self.endpoint, self.scorer, self.cache = endpoint, scorer, cache

    def _cached(self, passage: str, action: str, language: str) -> Path | None:
        if self.cache is None:
            return None
        key = json.dumps([PROMPT_VERSION, self.endpoint.model, action, language, passage])
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    async def complete(self, passage: str, *, action: str, language: str, generate: Callable) -> str:
        """Return an accepted output for a passage.

        Raises:
            Failure: Of the last attempt.
        """
        path = self._cached(passage, action, language)
        if path is not None and path.is_file():
            try:
                output = parse_json(path.read_bytes())["answer"]
                check_output(output, passage, action=action, language=language, scorer=self.scorer)
                return output
            except (EndpointError, LookupError, TypeError):
                pass  # accepted by another scorer, or corrupt: request it again
        for attempt in range(self.endpoint.max_attempts):
            try:
                output = await self._request(passage, action, language, attempt, generate)
            except EndpointError as failure:
                if attempt + 1 == self.endpoint.max_attempts or str(failure) == "refused":
                    raise
                if str(failure) in TRANSPORT_ERRORS:
                    await asyncio.sleep(self.endpoint.retry_delay * 2**attempt)
                continue
            if path is not None:
                write_json(path, {"answer": output, "model": self.endpoint.model, "prompt_version": PROMPT_VERSION})
            return output
        raise AssertionError("max_attempts is at least 1")

    async def _request(self, passage: str, action: str, language: str, attempt: int, generate: Callable) -> str:
        try:
            result = await generate(payload(passage, action=action, language=language, attempt=attempt))
        except InferenceError as error:
            if isinstance(error.__cause__, EndpointError):
                raise error.__cause__ from None
            raise
        if result.finish_reason == "length":
            raise EndpointError("cut_off")
        try:
            output = parse_json(result.text)[OUTPUT_KEY[action]].strip()
        except (LookupError, TypeError, AttributeError):
            raise EndpointError("nonsense") from None
        check_output(output, passage, action=action, language=language, scorer=self.scorer)
        return output

    async def rewrite(self, text: str, language: str, generate: Callable) -> tuple[str, dict]:
        """Rewrite the hostile passages of a text concurrently; return the text and their number."""
        pieces = passages(text)
        bodies = {i: pieces[i].strip() for i in self._hostile(pieces, language)}
        outputs = await asyncio.gather(
            *(self.complete(body, action="rewrite", language=language, generate=generate) for body in bodies.values()),
            return_exceptions=True,  # finish and cache the others before raising the first failure
        )
        for (i, body), output in zip(bodies.items(), outputs, strict=True):
            if isinstance(output, BaseException):
                raise output
            before, _, after = pieces[i].partition(body)
            pieces[i] = before + output + after
        rewritten = "".join(pieces)
        if verdict(self.scorer.score([rewritten], [language])[0]) != "none":
            raise EndpointError("still_toxic")
        return rewritten, {"passages_rewritten": len(bodies)}

    async def warn(self, text: str, language: str, generate: Callable) -> tuple[str, dict]:
        """Prepend a content warning; return the text and the warning."""
        pieces = passages(text)
        excerpt = "\n".join(pieces[i].strip() for i in self._hostile(pieces, language))[:EXCERPT]
        warning = await self.complete(excerpt, action="warn", language=language, generate=generate)
        return f"{warning}\n\n{text}", {"content_warning": warning}

    def _hostile(self, pieces: list[str], language: str) -> list[int]:
        """Return the indices of passages with a level of at least 2, or else of those with the highest level."""
        scored = self.scorer.score(pieces, [language] * len(pieces))
        worst = max(max(scores.levels) for scores in scored)
        return [i for i, scores in enumerate(scored) if max(scores.levels) >= min(2, worst) and pieces[i].strip()]


def rewrite(
    requests: Iterable[Request], endpoint: Endpoint, *, scorer: Scorer, cache: Path | None = None
) -> list[Result]:
    """Send requests to the endpoint and return their results in order.

    Args:
        requests: Documents to change. A language other than the eight fails with `language`.
        endpoint: Server of the language model.
        scorer: Scorer that selected the documents; it also checks the outputs.
        cache: Folder of accepted outputs by passage, prompt version and model, which an interrupted run reuses.

    Raises:
        InputError: If the endpoint does not respond or does not serve the model.
    """
    requests = list(requests)
    if not requests:
        return []
    endpoint.check()
    client = _RewriteClient(endpoint, scorer, cache)

    async def rollout(document: Document, generate: Callable) -> dict:
        request = requests[int(document.id)]
        change = client.rewrite if request.action == "rewrite" else client.warn
        try:
            if request.language not in LANGUAGES:
                raise EndpointError("language")
            text, details = await change(request.text, request.language, generate)
        except EndpointError as failure:
            return {"failure": str(failure)}
        marks = {
            "action": request.action,
            "rewritten_by": endpoint.model,
            "prompt_version": PROMPT_VERSION,
            "synthetic": True,
        }
        return {"text": text, "marks": marks | details}

    runner = CollectingRunner(rollout, endpoint)
    runner.run(Document(text="", id=str(i)) for i in range(len(requests)))
    return [Result(identifier=request.identifier, **runner.results[str(i)]) for i, request in enumerate(requests)]
