"""OCR correction: print a page as corrected by a fine-tuned model.

python examples/correct_ocr.py runs/finetune_ocr/model [PAGE.txt] [WINDOW]
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import cpu_compute_dtype
from modeling_pleias.training.tasks import ocr

PAGE = """It was the beft of times, it was tbe worst of tirnes, it was
the age of wifdom, it was the age of foolifhness, it was tlie epoch
of belief, it was the epocb of incredulity."""

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/finetune_ocr/model"
page = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else PAGE
window = int(sys.argv[3]) if len(sys.argv) > 3 else 60  # characters per window, as in finetune_ocr
model = AutoModelForCausalLM.from_pretrained(folder, dtype=cpu_compute_dtype())  # fp32 unless bf16 is fast
tokenizer = AutoTokenizer.from_pretrained(folder)
print(ocr.correct(model, tokenizer, page, window=window))  # a page of any length: windows overlap
