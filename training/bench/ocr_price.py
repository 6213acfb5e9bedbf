"""Measure an OCR correction model's error rates on training rows at several edit penalties, to choose the best.

    python -m training.bench.ocr_price --model runs/finetune_ocr/model --data.pairs PAIRS

The penalty is chosen on rows that the model was trained on, so that held-out rows remain unseen. Pass it to `correct`
as `edit_penalty`; the default is training.tasks.ocr.edit_penalty.EDIT_PENALTY.
"""

if not __package__:  # run by path; same as `python -m training.bench.ocr_price`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import cpu_compute_dtype  # the import also registers the model with transformers

from ..common.config import parse, run_main
from ..common.generation import complete
from ..common.intervals import bootstrap_interval
from ..tasks import ocr
from ..tasks.ocr.edit_penalty import edit_penalty_processor


@dataclass
class PriceConfig:
    """A model and the edit penalties to compare.

    Args:
        model: Folder of a model fine-tuned for OCR correction.
        data: Data settings that it was fine-tuned with.
        penalties: Edit penalties per changed byte, in unchanged bytes.
        rows: Number of training rows to correct.
    """

    model: Path
    data: ocr.OcrData = field(default_factory=ocr.OcrData)
    penalties: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    rows: int = 200


def main() -> None:
    """`python -m training.bench.ocr_price`."""
    config = parse(PriceConfig, description="Measure a model's error rates at several edit penalties.")
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=cpu_compute_dtype()).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    rows = ocr.rows(config.data)["train"][: config.rows]
    prompts = [row["prompt"] for row in rows]
    print("penalty    cer    wer  error reduction          over-correction")
    for penalty in config.penalties:
        decoding = {**ocr.DECODING, "logits_processor": partial(edit_penalty_processor, penalty=penalty)}
        outputs = complete(model, tokenizer, prompts, **decoding, progress=f"penalty {penalty}")
        metrics = {name: bootstrap_interval(metric) for name, metric in ocr.score(rows, outputs).items()}
        gain, added = metrics["error_reduction"], metrics.get("over_correction", {"value": 0.0})["value"]
        reduction = f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        print(
            f"{penalty:7.1f}  {metrics['cer']['value']:.3f}  {metrics['wer']['value']:.3f}  {reduction}  {added:.4f}"
        )


if __name__ == "__main__":
    run_main(main)
