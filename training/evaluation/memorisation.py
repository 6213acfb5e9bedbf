"""Memorisation: how much of what a model writes stands word for word in its training shards."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import fingerprint
from ..intervals import Metric, ratio
from .adherence import AdherenceConfig, continuations, prompts
from .models import Subject
from .texts import Text

LISTED = 20  # of the longest passages, with their documents


@dataclass
class MemorisationConfig:
    """What is written and traced.

    Args:
        prompts: in each language, beginnings of held-out text.
        prompt_characters: of a prompt, cut at a space.
        new_tokens: of a continuation; fewer where prompt and continuation would exceed the model's context.
        repetition_penalty: 1, since a penalty keeps a model from what it knows by heart.
    """

    prompts: int = 16
    prompt_characters: int = 160
    new_tokens: int = 200
    repetition_penalty: float = 1.0


class Memorisation:
    """The task: shares of continuations that lie in passages of so many tokens of training documents."""

    name = "memorisation"

    def __init__(self, texts: list[Text], config: MemorisationConfig, index: Path):
        from .. import trace  # whose library is needed nowhere else

        self.trace, self.config, self.settings = trace, config, asdict(config)
        self.index = trace.open_index(index)
        asked = AdherenceConfig(prompts=config.prompts, prompt_characters=config.prompt_characters)
        self.asked = [
            {"language": language, "prompt": prompt} for language, of in prompts(texts, asked).items() for prompt in of
        ]
        self.data = {
            "source": str(index),
            "index": {key: self.index.facts[key] for key in ("fingerprint", "documents", "tokens", "splits")},
            "prompts": len(self.asked),
            "fingerprint": fingerprint([self.asked, self.index.facts["fingerprint"]]),
        }

    def measure(self, subject: Subject) -> dict:
        """Every continuation, the characters of it that were copied, by length, and the passages."""
        texts = continuations(subject, [row["prompt"] for row in self.asked], self.config, self.name)
        rows, found = [], []
        for row, text in zip(self.asked, texts, strict=True):
            spans = self.index.spans(text, minimum=min(self.trace.THRESHOLDS)) if text.strip() else []
            copied = {
                str(length): self.trace.copied_characters(spans, minimum=length) for length in self.trace.THRESHOLDS
            }
            rows.append(row | {"continuation": text, "characters": len(text), "copied": copied})
            found += [asdict(span) for span in spans]
        found.sort(key=lambda span: -span["length"])
        outside = {document["identifier"]: document for span in found for document in span["outside"]}
        longest = found[:LISTED]
        return {"continuations": rows, "passages": len(found), "longest": longest, "outside": list(outside.values())}

    def metrics(self, record: dict) -> dict[str, Metric | int]:
        """Copied characters over all characters, for passages of at least so many tokens; documents not open."""
        rows = record["continuations"]
        characters = [row["characters"] for row in rows]
        found: dict = {
            f"copied, {length} tokens or more": ratio([row["copied"][str(length)] for row in rows], characters)
            for length in self.trace.THRESHOLDS
        }
        return found | {"matched documents outside the open list": len(record["outside"])}

    def facts(self, record: dict) -> dict:
        """Shares by language, and the longest passages with the first document of each."""
        rows, length = record["continuations"], str(min(self.trace.THRESHOLDS))
        languages = {}
        copied, characters = np.array([(row["copied"][length], row["characters"]) for row in rows]).T
        for language in dict.fromkeys(row["language"] for row in rows):
            inside = np.array([row["language"] == language for row in rows])
            languages[language] = ratio(copied * inside, characters * inside)
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
        groups = {f"language, copied in {length} tokens or more": languages}
        return {"passages": record["passages"], "longest": passages, "outside": record["outside"], "groups": groups}
