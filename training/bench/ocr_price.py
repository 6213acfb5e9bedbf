"""What a change has to cost a model that corrects OCR: its error rates on training rows at several prices.

    python -m training.bench.ocr_price --model runs/finetune_ocr/model --data.pairs PAIRS

The price is chosen on rows that the model was trained on, so that the held-out ones stay unseen; `correct` takes it as
`price`, and training.tasks.ocr.EDIT_PRICE is what it is without.
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

from ..config import parse, program
from ..generation import complete
from ..intervals import interval
from ..tasks import ocr


@dataclass
class PriceConfig:
    """Which model, and which prices.

    Args:
        model: folder of a model fine-tuned for OCR correction.
        data: the data that it was fine-tuned on.
        prices: of a changed byte, in bytes that are left as they are.
        rows: of the training part.
    """

    model: Path
    data: ocr.OcrData = field(default_factory=ocr.OcrData)
    prices: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    rows: int = 200


def main() -> None:
    """`python -m training.bench.ocr_price`."""
    config = parse(PriceConfig, description="Error rates of a model at several prices of a change.")
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=cpu_compute_dtype()).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    rows = ocr.rows(config.data)["train"][: config.rows]
    prompts = [row["prompt"] for row in rows]
    print("price    cer    wer  error reduction          over-correction")
    for price in config.prices:
        decoding = {**ocr.DECODING, "guide": partial(ocr.near_input, price=price)}
        outputs = complete(model, tokenizer, prompts, **decoding, progress=f"price {price}")
        found = {name: interval(metric) for name, metric in ocr.score(rows, outputs).items()}
        gain, added = found["error_reduction"], found.get("over_correction", {"value": 0.0})["value"]
        shown = f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        print(f"{price:5.1f}  {found['cer']['value']:.3f}  {found['wer']['value']:.3f}  {shown}  {added:.4f}")


if __name__ == "__main__":
    program(main)
