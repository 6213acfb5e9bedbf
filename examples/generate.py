"""Generate a greedy continuation of a prompt in each of the eight languages.

python examples/generate.py                    with femto, the model in this checkout
python examples/generate.py runs/demo/model    with another model
"""

import sys
from pathlib import Path

from transformers import pipeline

from modeling_pleias import cpu_compute_dtype  # the import also registers the model with transformers

PROMPTS = [
    "It was a dark and stormy night; the",
    "Longtemps, je me suis couché de bonne",
    "En un lugar de la Mancha, de cuyo",
    "Es war einmal ein König, der",
    "Nel mezzo del cammin di nostra",
    "Ik ben makelaar in koffie, en",
    "In principio creavit Deus",
    "No princípio criou Deus",
]

folder = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "model_card" / "femto"
# The model's default is greedy decoding with a repetition penalty of 1.2.
generate = pipeline("text-generation", model=str(folder), dtype=cpu_compute_dtype(), max_new_tokens=40)
for prompt in PROMPTS:
    print(generate(prompt)[0]["generated_text"], end="\n\n")
