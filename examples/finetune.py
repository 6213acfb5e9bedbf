"""Full fine-tuning with TRL in a few lines: prompt and completion in, a folder that loads out.

python examples/finetune.py runs/demo/model runs/capitals
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import modeling_pleias  # noqa: F401  (registers the model with transformers)

base, out = sys.argv[1:3]
CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Portugal": "Lisbon", "Germany": "Berlin"}
data = Dataset.from_list(
    [{"prompt": f"The capital of {country} is", "completion": f" {city}."} for country, city in CAPITALS.items()]
)

# TRL is handed a model, not a path: it looks a path's class up in transformers alone, where Pleias does not stand.
model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
trainer = SFTTrainer(
    model=model,
    processing_class=AutoTokenizer.from_pretrained(base),
    train_dataset=data,
    args=SFTConfig(
        out,
        num_train_epochs=10,
        learning_rate=3e-4,
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
