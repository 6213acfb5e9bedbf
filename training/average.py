"""Average the weights of two models of one architecture and tokenizer.

    python -m training.average runs/A/model runs/B/model --out runs/MEAN/model

The result is a model folder like `model/` of a run: the mean is computed in float32 and stored in the dtype of A, with
the tokenizer of A. `average.json` records the command and the sha256 of both models' files.
"""

if not __package__:  # run by path; same as `python -m training.average`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modeling_pleias  # noqa: F401 (registers the model classes)

from .common.config import InputError, run_main
from .common.escaping import shell_line
from .common.files import atomic_folder, model_sha256, write_json

# Equal tensors mean the same function only if these settings are equal, too.
SETTINGS = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")


@torch.no_grad()
def average(folders: tuple[Path, Path], out: Path, command: str) -> None:
    """Write the mean of the models in two folders to a new folder.

    Raises:
        InputError: If a folder contains no model, `out` exists, or architecture or tokenizer differ.
    """
    with atomic_folder(out) as temporary:
        _write_mean(folders, temporary, command)


def _write_mean(folders: tuple[Path, Path], temporary: Path, command: str) -> None:
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is not a model folder: it has no config.json.")
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    weights, others = (model.state_dict() for model in models)
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (weights, others)]
    settings = [[getattr(model.config, key) for key in SETTINGS] for model in models]
    if shapes[0] != shapes[1] or settings[0] != settings[1]:
        raise InputError(f"{folders[0]} and {folders[1]} differ in architecture, so they have no mean.")
    hashes = [model_sha256(folder) for folder in folders]
    if hashes[0].get("tokenizer.json") != hashes[1].get("tokenizer.json"):
        raise InputError(f"{folders[0]} and {folders[1]} differ in tokenizer.json, so their mean has no tokenizer.")
    mean = AutoModelForCausalLM.from_pretrained(folders[0], dtype="auto")
    for name, tensor in mean.state_dict().items():
        tensor.copy_((weights[name] + others[name]) / 2)
    mean.save_pretrained(temporary)
    for path in (*folders[0].glob("tokenizer*.json"), *folders[0].rglob("*.jinja")):  # also further chat templates
        target = temporary / path.relative_to(folders[0])
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    inputs = [{"path": str(folder), "sha256": digests} for folder, digests in zip(folders, hashes, strict=True)]
    write_json(temporary / "average.json", {"command": command, "models": inputs})


def main() -> None:
    """`python -m training.average`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("first", metavar="A", type=Path, help="Model folder. Its dtype and tokenizer are kept.")
    parser.add_argument("second", metavar="B", type=Path, help="Folder of the other model.")
    parser.add_argument("--out", type=Path, required=True, help="New folder for the averaged model.")
    args = parser.parse_args()
    average((args.first, args.second), args.out, shell_line(["python", "-m", "training.average", *sys.argv[1:]]))
    print(args.out)


if __name__ == "__main__":
    run_main(main)
