"""Pipeline blocks: a datatrove step around each pure function."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline

from ..common.language import CODES, LANGUAGES, detect_languages
from ..data import licences
from ..tasks.ocr import corrector
from ..tasks.ocr.changes import Change, apply_changes
from . import dehyphenation, ocr, pii, rewriting, toxicity
from .parquet_steps import Block, BlockResult

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 2_000_000  # maximum of a batch for the scorer and the endpoint
MIN_CHARACTERS = 200  # shorter texts are not relabelled, nor dropped or corrected for their OCR quality
MIN_CONFIDENCE = 0.9  # of a language other than the label
PII_SEED = 1281
CACHE = "cache"  # in the working folder: outputs of the endpoint, which later runs reuse


def iso(row: dict) -> str:
    """ISO code of a document's language."""
    return CODES[row["language"]]


def set_text(document: Document, text: str) -> None:
    """Replace a document's text; count its words again and forget its token count."""
    if text != document.text:
        document.text = text
        document.metadata |= {"word_count": len(text.split()), "token_count": None}


class LicenceFilter(Block):
    """Licence filter; a document that passes gets its SPDX expression as `license`."""

    name = field = "licence"

    def process(self, document: Document, row: dict) -> BlockResult:
        decision = licences.decide_document(row)
        if decision.decision == "refused":
            return BlockResult(asdict(decision), "licence refused", decision.rule)
        row["license"] = decision.spdx or decision.label
        return BlockResult(asdict(decision))


class LanguageFilter(Block):
    """Language filter; corrects a label that the text clearly contradicts."""

    name = field = "language"

    def process(self, document: Document, row: dict) -> BlockResult:
        label, languages = row["language"], self.config.languages or LANGUAGES
        code = label if label in LANGUAGES else CODES.get(label)
        if label and code not in languages:
            return BlockResult({"label": label}, "other language", f"labelled {label}")
        detected = detect_languages(document.text)
        confident = len(document.text) >= MIN_CHARACTERS and detected.confidence >= MIN_CONFIDENCE
        if code is None or confident:
            code = detected.language
        findings = {
            "label": label,
            "found": LANGUAGES[code],
            "confidence": detected.confidence,
            "share": detected.share,
        }
        if code not in languages:
            return BlockResult(findings, "other language", f"the text is {LANGUAGES[code]}")
        row["language"] = LANGUAGES[code]
        return BlockResult(findings)


class LineRepair(Block):
    """Line repair."""

    name = field = "lines"

    def process(self, document: Document, row: dict) -> BlockResult:
        repaired = dehyphenation.repair(document.text, iso(row), page_break=self.config.page_break)
        set_text(document, repaired.text)
        return BlockResult(repaired.counts, None if repaired.text.strip() else "empty", "after line repair")


class OcrFilter(Block):
    """OCR quality filter; short texts always pass."""

    name = field = "ocr"

    def process(self, document: Document, row: dict) -> BlockResult:
        threshold = ocr.THRESHOLD if self.config.ocr_threshold is None else self.config.ocr_threshold
        quality = ocr.quality(document.text, iso(row))
        findings = {**quality._asdict(), "threshold": threshold}
        if len(document.text) >= MIN_CHARACTERS and quality.score < threshold:
            return BlockResult(findings, "poor OCR", f"quality {quality.score:.3f} below {threshold}")
        return BlockResult(findings)


class PiiReplacer(Block):
    """Replacement of personal data with fictitious values."""

    name = field = "pii"

    def process(self, document: Document, row: dict) -> BlockResult:
        text, counts = pii.replace(document.text, iso(row), seed=f"{PII_SEED} {document.id}")
        set_text(document, text)
        return BlockResult(counts)


@cache
def open_corrector(folder: Path) -> corrector.Corrector:
    """Load the OCR corrector once in each process."""
    return corrector.Corrector.load(folder)


class OcrCorrector(Block):
    """OCR correction of documents whose OCR quality is in the band in which it helps."""

    name = field = "ocr_correction"

    def process(self, document: Document, row: dict) -> BlockResult:
        decision, changes = self.decide(document.text, iso(row), row["curation"]["ocr"]["score"])
        set_text(document, apply_changes(document.text, changes))
        records, moved = [], 0
        for change in changes:
            records.append(
                {
                    "start": change.start + moved,
                    "before": change.before,
                    "after": change.after,
                    "kind": change.kind,
                    "probability": change.probability,
                }
            )
            moved += len(change.after) - len(change.before)
        return BlockResult({"decision": decision, "changes": records})

    def decide(self, text: str, language: str, quality: float) -> tuple[str, list[Change]]:
        """Return what is decided on a text, and its changes.

        A text of many pages is left alone if the corrector abstains from half of them: spelling is old, or a
        dialect's, in a whole work, but an index or a foreign quotation in a few pages of it.
        """
        least, most = self.config.ocr_correction_band
        if len(text) < MIN_CHARACTERS or not least <= quality <= most:
            return "outside the band", []
        pieces = list(open_corrector(corrector.PACKAGED).by_piece(text, language))
        if 2 * pieces.count(None) >= len(pieces):
            return "abstained", []
        changes = [change for piece in pieces for change in piece or ()]
        return "corrected" if changes else "no error found", changes


class ToxicityFilter(Block):
    """Toxicity filter: scores documents, then keeps, drops, rewrites or warns about each as the policy specifies."""

    name = field = "toxicity"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        scorer = toxicity.load_scorer(self.config.toxicity, device=self.config.device)
        for batch in batches(data):
            with self.track_time("batch"):
                remaining = [document for document in batch if document.metadata["reason"] is None]
                self.stat_update("bytes", value=sum(document.metadata["curation"]["bytes"] for document in remaining))
                scored = self.score(scorer, remaining)
                actions = [self.act(*pair, scorer.name) for pair in zip(remaining, scored, strict=True)]
                requests = [(document, action) for document, action in zip(remaining, actions, strict=True) if action]
                if requests:
                    self.rewrite(scorer, requests)
            yield from batch

    def score(self, scorer: toxicity.Scorer, documents: list[Document]) -> list[toxicity.Scores | None]:
        """Return the scores of documents; None for a document that the scorer fails on, which is then dropped."""
        try:
            return scorer.score([document.text for document in documents], [iso(d.metadata) for d in documents])
        except Exception as error:
            if len(documents) > 1:
                return [self.score(scorer, [document])[0] for document in documents]
            self.fail(documents[0], error)
            return [None]

    def act(self, document: Document, scores: toxicity.Scores | None, by: str) -> str | None:
        """Record the scores and apply the policy; return "rewrite" or "warn" if the endpoint has to do it."""
        if scores is None:
            return None
        config, row, verdict = self.config, document.metadata, toxicity.verdict(scores)
        row["curation"]["toxicity"] = asdict(scores) | {"total": scores.total, "verdict": verdict, "by": by}
        action = toxicity.action(verdict, policy=config.policy, corpus_stage=config.corpus_stage)
        if action in ("rewrite", "warn") and config.endpoint is not None:
            return action
        if action != "keep":
            row["reason"] = "mildly toxic" if verdict == "mild" else verdict
            row["detail"] = f"total {scores.total} by {by}, policy {config.policy}: {action}"
            if action in ("rewrite", "warn"):
                row["detail"] += ", but no endpoint is configured"
        return None

    def rewrite(self, scorer: toxicity.Scorer, requests: list[tuple[Document, str]]) -> None:
        """Let the endpoint change documents; drop each that it fails to change."""
        results = rewriting.rewrite(
            [
                rewriting.Request(
                    identifier=document.id, text=document.text, language=iso(document.metadata), action=action
                )
                for document, action in requests
            ],
            self.config.endpoint,
            scorer=scorer,
            cache=self.config.work / CACHE,
        )
        for (document, _), result in zip(requests, results, strict=True):
            if result.failure:
                document.metadata |= {"reason": "not rewritten", "detail": result.failure}
            else:
                set_text(document, result.text)
                document.metadata["curation"]["rewriting"] = result.marks


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield batches of documents; those that are already dropped add nothing to a batch's characters."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text) if document.metadata["reason"] is None else 0
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
