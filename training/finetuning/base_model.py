"""Base model and tokenizer of a fine-tuning run, from a folder or the Hub, in Pleias or Llama format."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_pleias import PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS

from ..common.config import InputError
from ..common.files import read_json

FILES = ["*.json", "*.jinja", "*.safetensors"]  # everything that is read from a folder; no pickle, no code
FULL = (
    "The original's card does not recommend LoRA at this size, so fine-tuning trains all parameters (for its memory: "
    "training.plan --finetune true)."
)


def resolve_base_model(base_model: str) -> Path:
    """Return the folder of a base model, which is downloaded if `base_model` is an id on the Hub.

    Raises:
        InputError: If there is no such model, it is not a Pleias model, or it is an adapter.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(base_model, allow_patterns=FILES))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"base_model {base_model} is not a folder and could not be downloaded from the Hub "
                f"({str(error).strip().splitlines()[0]}): pass model/ of a run, or a repository that is available."
            ) from None
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"base_model {base_model} is an adapter. {FULL} Merge it into its model first.")
    if not (folder / "config.json").is_file():
        raise InputError(f"base_model {base_model} has no config.json: pass model/ of a complete run.")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ("pleias", "llama"):
        raise InputError(f"base_model {base_model} is of type {kind}, not pleias or llama: pass a Pleias model.")
    return folder


def open_model(folder: Path, dtype: torch.dtype) -> PleiasForCausalLM:
    """Return the model in a folder, in Pleias or Llama format, with all parameters trainable.

    Raises:
        InputError: If the weights cannot be read.
    """
    try:
        return PleiasForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"The weights in {folder} cannot be read: {str(error).splitlines()[0]}") from error


def load_pretrained_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder with transformers.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception, transformers a dozen others
        line = " ".join(str(error).split())
        raise InputError(f"The tokenizer in {folder} cannot be read ({line}): save it again.") from error


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder, with beginning-of-text, end-of-text, padding and all task tokens.

    The original's tokenizer has no task tokens, and declares none of the other three. As in the Pleias releases after
    it, missing tokens replace the last tokens of the vocabulary, so that no weight changes its shape.

    Raises:
        InputError: If the folder has no tokenizer, or it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json: pass a folder with a model and its tokenizer.")
    tokenizer = load_pretrained_tokenizer(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"] | {token["content"]: token["id"] for token in backend["added_tokens"]}
    missing = [token for token in DOCUMENT_TOKENS if token not in vocab]
    if not missing and None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return tokenizer
    special = {token["content"] for token in backend["added_tokens"] if token["special"]} | set(DOCUMENT_TOKENS)
    # A token of one character is a byte, which text may need.
    last = sorted((i for token, i in vocab.items() if token not in special and len(token) > 1), reverse=True)
    replaced = dict(zip(sorted(last[: len(missing)]), missing, strict=True))
    vocab = {replaced.get(i, token): i for token, i in vocab.items()}
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in backend["model"]["merges"]]
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= vocab.keys()]
    return PleiasTokenizer(vocab=vocab, merges=merges)


def check_all_trainable(model: torch.nn.Module) -> None:
    """Check that every parameter is trainable.

    Raises:
        InputError: If a parameter is frozen; the message gives its name.
    """
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise InputError(f"{len(frozen)} parameters are frozen, such as {frozen[0]}. {FULL}")
