"""Toxicity of continuations: neutral and risky prompts in eight languages, scored on five axes."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from ..common.files import fingerprint
from ..common.intervals import Metric, ratio, ratios_by
from ..common.language import LANGUAGES
from ..curation.toxicity import load_scorer, verdict
from ..curation.toxicity_axes import AXES, Scores
from .language_adherence import continuations
from .models import EvaluatedModel

KINDS = ("neutral", "risky")


@dataclass
class ToxicityEvalConfig:
    """Generation and scoring of continuations.

    Args:
        scorer: lexicon, or a Celadon checkpoint by its name on the Hub or its folder.
        languages: ISO codes. Default: all eight.
        new_tokens: Tokens per continuation; fewer if prompt and continuation exceed the context length.
        repetition_penalty: Repetition penalty of generation. Default: 1.2, as for language adherence.
    """

    scorer: str = "lexicon"
    languages: list[str] | None = None
    new_tokens: int = 64
    repetition_penalty: float = 1.2


def packaged_prompts(languages: list[str] | None = None) -> list[dict]:
    """Return each packaged prompt as {"language", "kind", "axis" (if risky), "prompt"}.

    Risky prompts mention a group or violence without being hateful themselves: the offline scorer rates all of them 0.
    """
    texts = yaml.safe_load((Path(__file__).parent / "toxicity.yaml").read_text(encoding="utf-8"))
    rows = []
    for language in LANGUAGES:
        if languages is None or language in languages:
            for axis in ("neutral", *AXES):
                kind = {"kind": "risky", "axis": axis} if axis in AXES else {"kind": "neutral", "axis": ""}
                rows += [{"language": language, **kind, "prompt": text} for text in texts[language][axis]]
    return rows


class Toxicity:
    """Task: fraction of toxic continuations, by kind of prompt."""

    name = "toxicity"

    def __init__(self, config: ToxicityEvalConfig):
        self.config, self.rows = config, packaged_prompts(config.languages)
        counts = {kind: sum(row["kind"] == kind for row in self.rows) for kind in KINDS}
        self.data = {"source": "packaged prompts", "prompts": counts, "fingerprint": fingerprint(self.rows)}
        self.settings = asdict(config)

    def measure(self, subject: EvaluatedModel) -> dict:
        """Generate a continuation of every prompt, and score both together on the five axes.

        Together, because a sentence may be toxic only as a unit (... and said that he would / kill her).
        """
        rows = continuations(subject, self.rows, self.config, self.name)
        scorer = load_scorer(self.config.scorer, device=str(subject.device))
        scored = scorer.score([row["prompt"] + row["continuation"] for row in rows], [row["language"] for row in rows])
        levels = [list(scores.levels) for scores in scored]
        return {
            "scorer": scorer.name,
            "continuations": [row | {"levels": level} for row, level in zip(rows, levels, strict=True)],
        }

    def metrics(self, record: dict) -> dict[str, Metric]:
        """Return the fraction of continuations that reach each threshold, by kind of prompt."""
        rows = record["continuations"]
        scores = [Scores(*row["levels"]) for row in rows]
        reached = {
            "any axis": [score.total > 0 for score in scores],
            "mild or toxic": [verdict(score) != "none" for score in scores],
            "toxic": [verdict(score) == "toxic" for score in scores],
        }
        kinds = {kind: np.array([row["kind"] == kind for row in rows]) for kind in KINDS}
        return {
            f"{kind} openings, {threshold}": ratio(inside & np.array(values), inside)
            for kind, inside in kinds.items()
            for threshold, values in reached.items()
        }

    def details(self, record: dict) -> dict:
        """Return the fraction above 0 by axis, over both kinds of prompt, and by language."""
        rows = record["continuations"]
        levels, total = np.array([row["levels"] for row in rows]), np.ones(len(rows))
        languages = ratios_by((row["language"] for row in rows), levels.sum(1) > 0, total)
        axes = {axis: ratio(levels[:, i] > 0, total) for i, axis in enumerate(AXES)}
        return {"scorer": record["scorer"], "groups": {"axis": axes, "language, any axis": languages}}
