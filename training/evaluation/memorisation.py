"""Memorisation: fraction of generated text that occurs verbatim in the training shards."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ..common.files import fingerprint
from ..common.intervals import Metric, ratio, ratios_by
from ..tracing.search import THRESHOLDS, TraceIndex, copied_characters
from .held_out_text import Text
from .language_adherence import continuations, prompts
from .models import EvaluatedModel

LISTED = 20  # longest passages listed with their documents


@dataclass
class MemorisationConfig:
    """Prompts and generation settings of memorisation.

    Args:
        prompts: Number of prompts per language, beginnings of held-out text.
        prompt_characters: Maximum characters of a prompt, which ends at a space.
        new_tokens: Tokens per continuation; fewer if prompt and continuation exceed the context length.
        repetition_penalty: Repetition penalty of generation. Default: 1 (none), because a penalty prevents copying.
    """

    prompts: int = 16
    prompt_characters: int = 160
    new_tokens: int = 200
    repetition_penalty: float = 1.0


class Memorisation:
    """Task: fractions of generated characters in passages of at least N tokens of training documents."""

    name = "memorisation"

    def __init__(self, texts: list[Text], config: MemorisationConfig, index: Path):
        self.config, self.settings, self.index = config, asdict(config), TraceIndex(index)
        self.rows = prompts(texts, config)
        self.data = {
            "source": str(index),
            "index": {key: self.index.facts[key] for key in ("fingerprint", "documents", "tokens", "splits")},
            "prompts": len(self.rows),
            "fingerprint": fingerprint([self.rows, self.index.facts["fingerprint"]]),
        }

    def measure(self, subject: EvaluatedModel) -> dict:
        """Generate continuations; return each with its copied characters per length, and the copied passages."""
        rows, passages = continuations(subject, self.rows, self.config, self.name), []
        for row in rows:
            text = row["continuation"]
            spans = self.index.spans(text, min_tokens=min(THRESHOLDS)) if text.strip() else []
            row["characters"] = len(text)
            row["copied"] = {str(length): copied_characters(spans, min_tokens=length) for length in THRESHOLDS}
            passages += [asdict(span) for span in spans]
        passages.sort(key=lambda span: -span["length"])
        outside = {document["identifier"]: document for span in passages for document in span["outside"]}
        result = {"continuations": rows, "passages": len(passages)}
        return result | {"longest": passages[:LISTED], "outside": list(outside.values())}

    def metrics(self, record: dict) -> dict[str, Metric | int]:
        """Return the copied fraction per minimum length, and the number of matched documents that are not open."""
        rows = record["continuations"]
        characters = [row["characters"] for row in rows]
        shares = {
            f"copied, {length} tokens or more": ratio([row["copied"][str(length)] for row in rows], characters)
            for length in THRESHOLDS
        }
        return shares | {"matched documents outside the open list": len(record["outside"])}

    def details(self, record: dict) -> dict:
        """Return the copied fraction by language, and the longest passages with their first document."""
        rows, length = record["continuations"], str(min(THRESHOLDS))
        copied, characters = [row["copied"][length] for row in rows], [row["characters"] for row in rows]
        passages = [
            {
                "tokens": span["length"],
                "text": span["text"],
                "documents": span["in_documents"],
                "identifier": span["documents"][0]["identifier"],
                "license": span["documents"][0]["license"],
            }
            for span in record["longest"]
        ]
        languages = ratios_by((row["language"] for row in rows), copied, characters)
        groups = {f"language, copied in {length} tokens or more": languages}
        return {"passages": record["passages"], "longest": passages, "outside": record["outside"], "groups": groups}
