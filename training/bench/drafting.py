"""Measure how much faster OCR corrections are decoded with their input as draft, at batch size 1, with equal output.

    python -m training.bench.drafting --model runs/finetune_ocr/model --data.pairs PAIRS

Every window is decoded with and without draft, in turn. `passes` are forward passes per token of the output.
"""

if not __package__:  # run by path; same as `python -m training.bench.drafting`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rapidfuzz.distance import Levenshtein
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import cpu_compute_dtype  # the import also registers the model with transformers

from ..common.config import parse, run_main
from ..common.generation import complete, fast_weights
from ..tasks import ocr
from ..tasks.ocr.edit_penalty import EDIT_PENALTY, edit_penalty_processor


@dataclass
class DraftingConfig:
    """A model and the texts to correct.

    Args:
        model: Folder of a model fine-tuned for OCR correction.
        data: Data settings; their held-out rows are corrected.
        rows: Number of rows.
        penalties: Edit penalties per changed byte; the higher, the fewer changes.
    """

    model: Path
    data: ocr.OcrData = field(default_factory=ocr.OcrData)
    rows: int = 20
    penalties: list[float] = field(default_factory=lambda: [EDIT_PENALTY, 20.0])


def main() -> None:
    """`python -m training.bench.drafting`."""
    config = parse(DraftingConfig, description="Measure the speed of OCR correction with and without drafts.")
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=cpu_compute_dtype()).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    rows = ocr.rows(config.data)["held_out"][: config.rows]
    characters = sum(len(row["ocr"]) for row in rows)
    print(f"{len(rows)} texts of {characters / len(rows):.0f} characters, {model.dtype}")
    print("penalty  edits  characters/s plain  drafted  ratio  CPU ratio  passes  different outputs")
    with fast_weights(model):  # once, not for every text
        complete(model, tokenizer, [rows[0]["prompt"]], **ocr.DECODING)  # the first call loads libraries
        for penalty in config.penalties:
            near = {**ocr.DECODING, "logits_processor": partial(edit_penalty_processor, penalty=penalty)}
            plain = {name: value for name, value in near.items() if name != "draft"}
            sums: Counter = Counter()
            for row in rows:
                outputs = []
                for name, decoding in (("plain", plain), ("drafted", near)):
                    passes.clear()
                    start, cpu = time.perf_counter(), time.process_time()
                    outputs += complete(model, tokenizer, [row["prompt"]], **decoding)
                    sums[name] += time.perf_counter() - start
                    sums[f"{name} cpu"] += time.process_time() - cpu
                    sums[f"{name} passes"] += len(passes)
                sums["different"] += outputs[0] != outputs[1]
                sums["edits"] += Levenshtein.distance(ocr.parse_correction(outputs[1]), row["ocr"])
            print(
                f"{penalty:7.1f}  {sums['edits']:5}  {characters / sums['plain']:18.0f}  "
                f"{characters / sums['drafted']:7.0f}  {sums['plain'] / sums['drafted']:5.1f}  "
                f"{sums['plain cpu'] / sums['drafted cpu']:9.1f}  "
                f"{sums['drafted passes'] / sums['plain passes']:6.2f}  {sums['different']}"
            )


if __name__ == "__main__":
    run_main(main)
