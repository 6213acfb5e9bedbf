"""Full fine-tuning with TRL in a few lines: prompt and completion in, a folder that loads out.

python examples/finetune.py model_card/femto runs/capitals
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from trl import SFTConfig, SFTTrainer

import modeling_pleias  # noqa: F401  (registers the model with transformers)

base, out = sys.argv[1:3]
CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Portugal": "Lisbon", "Germany": "Berlin"}
data = Dataset.from_list(
    [{"prompt": f"The capital of {country} is", "completion": f" {city}."} for country, city in CAPITALS.items()]
)

# TRL gets a model, not a path: it looks up the class of a path in transformers alone, which has no Pleias.
model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
trainer = SFTTrainer(
    model=model,
    processing_class=AutoTokenizer.from_pretrained(base),
    train_dataset=data,
    args=SFTConfig(
        out,
        num_train_epochs=15,
        learning_rate=1e-3,
        per_device_train_batch_size=5,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=5,
    ),
)
trainer.train()
trainer.save_model(out)

complete = pipeline("text-generation", model=out, max_new_tokens=8)
for prompt in data["prompt"]:
    print(complete(prompt)[0]["generated_text"])
