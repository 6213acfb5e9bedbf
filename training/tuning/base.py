"""The model and tokenizer that a fine-tuning starts from, whichever way their folder is labelled."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_pleias import PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS

from ..config import InputError
from ..files import read_json
from .recipe import LORA

FILES = ["*.json", "*.safetensors"]  # all that is ever read of a folder; no pickle, no code


def folder_of(base_model: str) -> Path:
    """The folder of a base: the one named, or what the Hub has under that name.

    Raises:
        InputError: when there is no such thing, or it is not a Pleias model.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(base_model, allow_patterns=FILES))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"base_model {base_model} is neither a folder nor to be had from the Hub "
                f"({str(error).strip().splitlines()[0]}): give model/ of a run, or a repository that can be reached."
            ) from None
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"base_model {base_model} is an adapter, and {LORA}; merge it into its model first.")
    if not (folder / "config.json").is_file():
        raise InputError(f"base_model {base_model} has no config.json: give model/ of a run that is complete.")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ("pleias", "llama"):
        raise InputError(f"base_model {base_model} is of type {kind}, not pleias or llama: give a Pleias model.")
    return folder


def open_model(folder: Path, dtype: torch.dtype) -> PleiasForCausalLM:
    """The weights of a folder of either flavour, all of them trainable.

    Raises:
        InputError: when they cannot be read.
    """
    try:
        return PleiasForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} holds no weights that can be read: {str(error).splitlines()[0]}") from error


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with beginning, end, padding and all task tokens.

    The original's has no task tokens, and names none of the other three. As in the Pleias releases after it, those
    that are missing take the place of the last entries of the vocabulary, so that no weight changes its shape.

    Raises:
        InputError: when the folder has none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json: give a folder that holds a model and its tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"] | {token["content"]: token["id"] for token in backend["added_tokens"]}
    missing = [token for token in DOCUMENT_TOKENS if token not in vocab]
    if not missing and None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return tokenizer
    special = {token["content"] for token in backend["added_tokens"] if token["special"]} | set(DOCUMENT_TOKENS)
    last = sorted((i for token, i in vocab.items() if token not in special and len(token) > 1), reverse=True)
    taken = dict(zip(sorted(last[: len(missing)]), missing, strict=True))  # one sign is a byte, which text may need
    vocab = {taken.get(i, token): i for token, i in vocab.items()}
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in backend["model"]["merges"]]
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= vocab.keys()]
    return PleiasTokenizer(vocab=vocab, merges=merges)


def refuse_frozen(model: torch.nn.Module) -> None:
    """Make sure that every parameter will be trained.

    Raises:
        InputError: naming one that will not.
    """
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise InputError(f"{len(frozen)} parameters are frozen ({frozen[0]}), and {LORA}.")
