"""The blocks: a thin datatrove step around each pure function, in the order of the pipeline."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline

from ..data import licences
from ..language import CODES, LANGUAGES, languages_of
from . import lines, ocr, pii, rewriting, toxicity
from .blocks import Block, batches, changed, iso

SCORED_DOCUMENTS, SCORED_CHARACTERS = 256, 2_000_000  # a batch for the scorer and the endpoint
ENOUGH = 200  # characters for a judgement of language or quality to count
SURE = 0.9  # of another language than the label says


class Licence(Block):
    """The licence gate; what passes carries its SPDX expression from here on."""

    name = field = "licence"

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        found = licences.decide_document(row)
        findings = asdict(found)
        if found.decision == "refused":
            return findings, "licence refused", found.rule
        row["license"] = found.spdx or found.label
        return findings, None, None


class Language(Block):
    """The languages that are wanted; a label that the text plainly contradicts is corrected."""

    name = field = "language"

    def __init__(self, languages: list[str], on_error: str):
        super().__init__(on_error)
        self.languages = languages

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        label = row["language"]
        code = label if label in LANGUAGES else CODES.get(label)
        if label and code not in self.languages:
            return {"label": label}, "other language", f"labelled {label}"
        found = languages_of(document.text)
        plain = len(document.text) >= ENOUGH and found.confidence >= SURE
        if code is None or (plain and found.language != code):
            code = found.language
        findings = {"label": label, "found": LANGUAGES[code], "confidence": found.confidence, "share": found.share}
        if code not in self.languages:
            return findings, "other language", f"the text is {LANGUAGES[code]}"
        row["language"] = LANGUAGES[code]
        return findings, None, None


class Lines(Block):
    """Line repair."""

    name = field = "lines"

    def __init__(self, page_break: str | None, on_error: str):
        super().__init__(on_error)
        self.page_break = page_break

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        found = lines.repair(document.text, iso(row), page_break=self.page_break)
        changed(document, found.text)
        return found.counts, None if found.text.strip() else "empty", "after line repair"


class Ocr(Block):
    """The quality of the text's recognition, where there is enough text to judge."""

    name = field = "ocr"

    def __init__(self, threshold: float | None, on_error: str):
        super().__init__(on_error)
        self.threshold = ocr.THRESHOLD if threshold is None else threshold

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        found = ocr.quality(document.text, iso(row))
        findings = {**found._asdict(), "threshold": self.threshold}
        if len(document.text) >= ENOUGH and found.score < self.threshold:
            return findings, "poor OCR", f"quality {found.score:.3f} below {self.threshold}"
        return findings, None, None


class Pii(Block):
    """Personal data replaced with fictitious values."""

    name = field = "pii"

    def __init__(self, seed: int, on_error: str):
        super().__init__(on_error)
        self.seed = seed

    def judge(self, document: Document, row: dict) -> tuple[dict | None, str | None, str | None]:
        found = pii.replace(document.text, iso(row), seed=f"{self.seed} {document.id}")
        changed(document, found.text)
        return dict(found.found), None, None


class Toxicity(Block):
    """Five scores, and what the policy does with them: out of this corpus, or rewritten, or behind a warning."""

    name = field = "toxicity"

    def __init__(
        self,
        scorer: str,
        *,
        device: str,
        policy: str,
        edition: str,
        endpoint: rewriting.Endpoint | None,
        cache: Path,
        on_error: str,
    ):
        super().__init__(on_error)
        self.scorer_name, self.device, self.policy, self.edition = scorer, device, policy, edition
        self.endpoint, self.cache = endpoint, cache

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        scorer = toxicity.load(self.scorer_name, device=self.device)
        for batch in batches(data, SCORED_DOCUMENTS, SCORED_CHARACTERS):
            with self.track_time("batch"):
                judged = [document for document in batch if document.metadata["reason"] is None]
                self.stat_update("bytes", value=sum(one.metadata["curation"]["bytes"] for one in judged))
                scored = self.score(scorer, judged)
                actions = [self.act(*pair, scorer.name) for pair in zip(judged, scored, strict=True)]
                requests = [(one, action) for one, action in zip(judged, actions, strict=True) if action]
                if requests:
                    self.rewrite(scorer, requests)
            yield from batch

    def score(self, scorer: toxicity.Scorer, documents: list[Document]) -> list[toxicity.Scores | None]:
        """Scores of documents; None for one that the scorer cannot take, which then has a reason to go."""
        try:
            return scorer.score([one.text for one in documents], [iso(one.metadata) for one in documents])
        except Exception as error:
            if len(documents) > 1:
                return [self.score(scorer, [one])[0] for one in documents]
            self.fail(documents[0], error)
            return [None]

    def act(self, document: Document, scores: toxicity.Scores | None, by: str) -> str | None:
        """Keep the scores and do what the policy says; "rewrite" or "warn" where a language model has to do it."""
        if scores is None:
            return None
        row, verdict = document.metadata, toxicity.verdict(scores)
        row["curation"]["toxicity"] = asdict(scores) | {"total": scores.total, "verdict": verdict, "by": by}
        action = toxicity.action(verdict, policy=self.policy, corpus=self.edition)
        if action in ("rewrite", "warn") and self.endpoint is not None:
            return action
        if action != "keep":
            row["reason"] = "mildly toxic" if verdict == "mild" else verdict
            row["detail"] = f"total {scores.total} by {by}, policy {self.policy}: " + (
                f"{action}, and there is no endpoint to do it" if action in ("rewrite", "warn") else action
            )
        return None

    def rewrite(self, scorer: toxicity.Scorer, requests: list[tuple[Document, str]]) -> None:
        """Have documents changed by the endpoint; one that could not be changed is dropped."""
        asked = [
            rewriting.Request(identifier=one.id, text=one.text, language=iso(one.metadata), action=action)
            for one, action in requests
        ]
        results = rewriting.rewrite(asked, self.endpoint, scorer=scorer, cache=self.cache)
        for (document, _), result in zip(requests, results, strict=True):
            if result.failure:
                document.metadata |= {"reason": "not rewritten", "detail": result.failure}
            else:
                changed(document, result.text)
                document.metadata["curation"]["rewriting"] = result.marks
