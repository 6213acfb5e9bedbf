"""Translation: translate a sentence of a program's help from English into the other seven languages.

python examples/translate.py runs/finetune_translation/model ["TEXT"]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import cpu_compute_dtype
from modeling_pleias.training.tasks import translation

HELP = "Opens a dialog in which you can choose the format of the selected table."

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/finetune_translation/model"
text = sys.argv[2] if len(sys.argv) > 2 else HELP
model = AutoModelForCausalLM.from_pretrained(folder, dtype=cpu_compute_dtype())  # fp32 unless bf16 is fast
tokenizer = AutoTokenizer.from_pretrained(folder)
print(f"en  {text}")
for target in ("fr", "es", "de", "it", "nl", "la", "pt"):
    print(f"{target}  {translation.translate(model, tokenizer, text, target=target, source='en')}")
