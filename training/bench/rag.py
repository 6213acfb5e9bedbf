"""Measure what it does to answers that quotations are held to the sources (training.tasks.rag_quotes).

python -m training.bench.rag --model runs/finetune_rag/model --out runs/finetune_rag/eval
"""

if not __package__:  # run by path; same as `python -m training.bench.rag`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config import InputError, parse, program
from ..evaluation.models import Subject
from ..files import fingerprint
from ..generation import complete
from ..intervals import difference, interval
from ..results import write_result
from ..tasks import rag


@dataclass
class RagBench:
    """Which model answers what.

    Args:
        model: a model fine-tuned for answers from sources.
        data: where the questions are from; as it was fine-tuned, so that those held out are.
        rows: most questions, of those held out.
        device: cpu, cuda, ...
        out: folder for rag_constrained.json.
    """

    model: str
    data: rag.RagData = field(default_factory=rag.RagData)
    rows: int = 200
    device: str = "cpu"
    out: Path = Path("eval")


def measure(config: RagBench) -> dict[str, dict[str, float]]:
    """Each metric of the task as the model answers by itself (NAME), held to the sources (NAME_constrained), and the
    difference (NAME_change), with 95% intervals; `citation_validity_N_sources`, by itself, by how many there are.

    Raises:
        InputError: when no row is asked for, or the data or the model cannot be read.
    """
    if config.rows < 1:
        raise InputError(f"rows is {config.rows}: one question at least is needed.")
    rows = rag.rows(config.data)["held_out"][: config.rows]
    subject = Subject(config.model, device=config.device)
    prompts = [row["prompt"] for row in rows]
    free, held = (
        complete(subject.model, subject.tokenizer, prompts, **decoding, progress=title)
        for title, decoding in (("by itself", rag.DECODING), ("held to the sources", rag.CONSTRAINED))
    )
    alone, constrained = rag.score(rows, free), rag.score(rows, held)
    metrics = {}
    for name, metric in alone.items():
        metrics[name] = interval(metric)
        metrics[f"{name}_constrained"] = interval(constrained[name])
        metrics[f"{name}_change"] = difference(constrained[name], metric)
    for count in sorted({len(row["sources"]) for row in rows}):
        some = [i for i, row in enumerate(rows) if len(row["sources"]) == count]
        scores = rag.score([rows[i] for i in some], [free[i] for i in some])
        metrics[f"citation_validity_{count}_sources"] = interval(scores["citation_validity"])
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
            {"prompt": row["prompt"], "right": row["completion"], "by_itself": a, "held_to_the_sources": b}
            for row, a, b in zip(rows[:5], free, held, strict=False)
        ],
    )
    return metrics


def main() -> None:
    """`python -m training.bench.rag`."""
    config = parse(RagBench, description="Answers from sources, by the model itself and held to the sources.")
    for name, one in measure(config).items():
        print(f"{name:<36}{one['value']:>8.3f}  [{one['low']:.3f}, {one['high']:.3f}]")


if __name__ == "__main__":
    program(main)
