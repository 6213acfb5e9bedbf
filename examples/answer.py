"""RAG: print the answer of a fine-tuned model to a question with sources, and which of its quotes are verbatim.

python examples/answer.py runs/finetune_rag/model ["QUESTION" SOURCE.txt ...]
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import cpu_compute_dtype
from modeling_pleias.training.tasks import rag

QUESTION = "What is a sextant?"
SOURCES = {
    "astrolabe": "Astrolabe\nAn astrolabe is an instrument that shows where the stars stand at a given hour.",
    "sextant": "Sextant\nA sextant is an instrument that measures the angle between two things that can be seen.",
    "compass": "Compass\nA compass is an instrument whose needle points to the north.",
}

folder, *arguments = sys.argv[1:] or ["runs/finetune_rag/model"]
question = arguments[0] if arguments else QUESTION
sources = {Path(name).stem: Path(name).read_text(encoding="utf-8") for name in arguments[1:]} or SOURCES
model = AutoModelForCausalLM.from_pretrained(folder, dtype=cpu_compute_dtype())  # fp32 unless bf16 is fast
tokenizer = AutoTokenizer.from_pretrained(folder)

for constrain in (False, True):  # without and with citations constrained to the sources
    answer = rag.answer(model, tokenizer, question, sources, constrain=constrain)
    print("refused:" if answer.refused else "answered:", answer.plain)
    for citation, valid in answer.citations:
        print(f'  {"in" if valid else "NOT in"} {citation.source}: "{citation.quote}"')
