"""Load a released folder as a user does, and write its outputs: run by path, with transformers alone.

`python -I load_probe.py FOLDER QUESTIONS.json OUTPUTS.json`; a release runs it on each variant in a fresh interpreter,
and calls `measure_outputs` itself on the source of the release.
"""

import hashlib
import json
import sys
import warnings

import torch


def digest(tensor: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bits."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@torch.no_grad()
def measure_outputs(model, questions: dict) -> dict:
    """Return the sha256 of the logits (T, V) of each row of ids, and the ids that `generate` returns for each prompt.

    Args:
        model: Causal language model, in the precision in which it was loaded.
        questions: `rows` and `prompts`, lists of lists of ids, and `new_tokens`.
    """
    logits = [digest(model(torch.tensor([row])).logits) for row in questions["rows"]]
    return {"logits": logits, "generated": generate_ids(model, questions)}


@torch.no_grad()
def generate_ids(model, questions: dict) -> list[list[int]]:
    """Return the ids that `generate` returns for each prompt; see `measure_outputs`."""
    generated = []
    for prompt in questions["prompts"]:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=questions["new_tokens"])
        generated.append(out[0, len(prompt) :].tolist())
    return generated


def main() -> None:
    """Load the folder and write its outputs; see the docstring of this file."""
    folder, questions_file, answers_file = sys.argv[1:]
    sys.modules["modeling_pleias"] = None  # an import of the installed package fails: the folder must load without it
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with open(questions_file, encoding="utf-8") as file:
        questions = json.load(file)
    code = questions["trust_remote_code"]
    dtype = questions["dtype"]
    generate = transformers.pipeline("text-generation", model=folder, dtype=dtype, trust_remote_code=code)
    model, tokenizer = generate.model, generate.tokenizer
    classes = {}
    for name in model.config.to_dict().get("auto_map", {}):
        auto = getattr(transformers, name)
        if name not in ("AutoConfig", "AutoTokenizer"):
            with torch.device("meta"):
                classes[name] = type(auto.from_config(model.config, trust_remote_code=code)).__name__
        else:
            classes[name] = type(auto.from_pretrained(folder, trust_remote_code=code)).__name__
    texts = questions["texts"]
    ids = [tokenizer.encode(text) for text in texts]
    outputs = {
        "model": type(model).__name__,
        "code": type(model).__module__.partition(".")[0],
        "tokenizer": type(tokenizer).__name__,
        "classes": classes,
        "ids": ids,
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "special": [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "model_max_length": tokenizer.model_max_length,
        # transformers 5 ignores it for byte-level BPE; 4 drops the space of " ?" if it is set.
        "cleans_up": tokenizer.clean_up_tokenization_spaces,
        "pipeline": [
            out[0]["generated_text"]
            for out in generate(questions["prompt_texts"], max_new_tokens=questions["new_tokens"], batch_size=1)
        ],
        **measure_outputs(model, questions),
    }
    with open(answers_file, "w", encoding="utf-8") as file:
        json.dump(outputs, file)


if __name__ == "__main__":
    main()
