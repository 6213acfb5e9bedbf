"""Measure the effect of constrained citations (training.tasks.rag.constrained) on a model's answers.

python -m training.bench.rag --model runs/finetune_rag/model --out runs/finetune_rag/eval
"""

if not __package__:  # run by path; same as `python -m training.bench.rag`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.config import InputError, parse, run_main
from ..common.files import fingerprint
from ..common.generation import complete
from ..common.intervals import bootstrap_interval, paired_difference
from ..evaluation.models import EvaluatedModel
from ..run.results import write_result
from ..tasks import rag


@dataclass
class RagBench:
    """A model and its questions.

    Args:
        model: Model fine-tuned for RAG.
        data: Data settings that it was fine-tuned with, so that the held-out questions are the same.
        rows: Maximum number of held-out questions.
        device: cpu, cuda, ...
        out: Folder for rag_constrained.json.
    """

    model: str
    data: rag.RagData = field(default_factory=rag.RagData)
    rows: int = 200
    device: str = "cpu"
    out: Path = Path("eval")


def measure_rag(config: RagBench) -> dict[str, dict[str, float]]:
    """Return each metric without constraint (NAME), with it (NAME_constrained) and the difference (NAME_change).

    All have 95% intervals. `citation_validity_N_sources` is the validity without constraint per number of sources.

    Raises:
        InputError: If `rows` is below 1, or the data or the model cannot be read.
    """
    if config.rows < 1:
        raise InputError(f"rows must be at least 1, got {config.rows}.")
    rows = rag.rows(config.data)["held_out"][: config.rows]
    subject = EvaluatedModel(config.model, device=config.device)
    prompts = [row["prompt"] for row in rows]
    free, constrained = (
        complete(subject.model, subject.tokenizer, prompts, **decoding, progress=title)
        for title, decoding in (("unconstrained", rag.DECODING), ("constrained", rag.CONSTRAINED))
    )
    constrained_metrics, metrics = rag.score(rows, constrained), {}
    for name, metric in rag.score(rows, free).items():
        metrics[name] = bootstrap_interval(metric)
        metrics[f"{name}_constrained"] = bootstrap_interval(constrained_metrics[name])
        metrics[f"{name}_change"] = paired_difference(constrained_metrics[name], metric)
    for count in sorted({len(row["sources"]) for row in rows}):
        some = [i for i, row in enumerate(rows) if len(row["sources"]) == count]
        scores = rag.score([rows[i] for i in some], [free[i] for i in some])
        metrics[f"citation_validity_{count}_sources"] = bootstrap_interval(scores["citation_validity"])
    write_result(
        config.out,
        "rag_constrained",
        metrics,
        data={"fingerprint": fingerprint(rows), "rows": len(rows)},
        model=subject.facts,
        settings={
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(config.data).items()
        },
        examples=[
            {"prompt": row["prompt"], "right": row["completion"], "unconstrained": a, "constrained": b}
            for row, a, b in zip(rows[:5], free, constrained, strict=False)
        ],
    )
    return metrics


def main() -> None:
    """`python -m training.bench.rag`."""
    config = parse(RagBench, description="Compare RAG with and without constrained citations.")
    for name, value in measure_rag(config).items():
        print(f"{name:<36}{value['value']:>8.3f}  [{value['low']:.3f}, {value['high']:.3f}]")


if __name__ == "__main__":
    run_main(main)
