"""Load a causal language model and its tokenizer from a folder, a GGUF file or the Hub."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_pleias import PleiasConfig  # noqa: F401 (registers the model with transformers, also under `pleias`)
from modeling_pleias.tokenization_pleias import PATTERN

from ..common.config import InputError
from ..common.files import fingerprint, read_json, sha256
from ..step.compute import compute_dtype

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")
WEIGHTS = ("*.safetensors", "*.bin")
USUAL_CONTEXT = 2048  # if the config has no context length

# llama.cpp's pre-tokenizers by `tokenizer.ggml.pre`. transformers reads the vocabulary of a GGUF file but ignores this
# key and uses GPT-2's; these entries correct it for the models that this project compares with.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "llama-bpe": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), _BYTES]),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


class EvaluatedModel:
    """A model under evaluation. Weights and tokenizer are loaded on first use.

    Args:
        name: A model folder, a run folder, a .gguf file, or OWNER/NAME on the Hub.
        device: Torch device, such as cpu or cuda.
        precision: Dtype of the weights. auto is bf16 on a GPU that supports it, else fp32.

    Raises:
        InputError: If it is none of these, or lacks weights, a config or a tokenizer.
    """

    def __init__(self, name: str, *, device: str = "cpu", precision: Literal["auto", "bf16", "fp32"] = "auto"):
        self.reference, self.device, self.gguf = name, torch.device(device), None
        path = Path(name)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError(f"--model {name} does not exist: pass the path of a GGUF file.")
            self.source, self.gguf, self.name = path.parent, path.name, path.stem
        elif path.is_dir():
            if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
                path = path / "model"  # a run folder
            self.source, self.name = path, path.resolve().name
            if self.run:
                self.name = self.run.resolve().name
            _check_folder(path)
        elif name.count("/") == 1 and not name.startswith((".", "/")) and not path.parent.is_dir():
            self.source, self.name = name, path.name
        else:
            raise InputError(f"--model {name} is not a folder: pass a model folder, a .gguf file, or OWNER/NAME.")
        if precision == "auto":
            self.dtype = compute_dtype("auto", self.device) if self.device.type == "cuda" else torch.float32
        else:
            self.dtype = compute_dtype(precision, self.device)

    @property
    def run(self) -> Path | None:
        """Folder of the run that produced the model, if the model is inside it."""
        folder = Path(self.source)
        in_run = self.gguf is None and folder.name == "model" and (folder.parent / "config.yaml").is_file()
        return folder.parent if in_run else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, config and tokenizer, or of name and commit for a model on the Hub."""
        if self.gguf:
            return sha256(Path(self.source) / self.gguf)
        if isinstance(self.source, str):
            return fingerprint([self.source, getattr(self.model.config, "_commit_hash", None)])
        patterns = (*WEIGHTS, "*config.json", *TOKENIZER_FILES)
        files = {file for pattern in patterns for file in self.source.glob(pattern)}
        return fingerprint({file.name: sha256(file) for file in files})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        tokenizer = self._load(AutoTokenizer, "tokenizer")
        if self.gguf and (pre := self._pre_tokenizer()) in PRE_TOKENIZERS:
            tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
            tokenizer.backend_tokenizer.model.ignore_merges = pre == "llama-bpe"
        return tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        """Model in eval mode, on the device, in `dtype`."""
        model = self._load(AutoModelForCausalLM, "causal language model", dtype=self.dtype).to(self.device).eval()
        vocab_size = model.get_input_embeddings().weight.shape[0]
        added = self.tokenizer.get_added_vocab()  # transformers adds a token to a GGUF file's; no text contains it
        if (
            largest := max(id for token, id in self.tokenizer.get_vocab().items() if token not in added)
        ) >= vocab_size:
            raise InputError(
                f"{self.reference} has a tokenizer with ids up to {largest:,} and a model with a vocabulary of "
                f"{vocab_size:,}: pass a model with its own tokenizer."
            )
        return model

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or USUAL_CONTEXT

    @property
    def start(self) -> tuple[str, int]:
        """Role and id of the token before a text: beginning-of-text, or end-of-text if there is none.

        Raises:
            InputError: If the tokenizer has neither.
        """
        tokenizer = self.tokenizer
        for role, token in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
            if token is not None:
                return role, token
        raise InputError(
            f"{self.reference} has neither a bos_token nor an eos_token, which must precede the first scored token: "
            "set one in tokenizer_config.json."
        )

    @property
    def facts(self) -> dict:
        """Description of the model in results."""
        return {
            "name": self.name,
            "source": self.reference,
            "fingerprint": self.fingerprint,
            "parameters": self.model.num_parameters(),
            "entries": len(self.tokenizer),
            "context": self.context,
            "weights": str(self.dtype).removeprefix("torch."),
        }

    def release(self) -> None:
        """Free the weights; the next use loads them again."""
        self.__dict__.pop("model", None)

    def _load(self, auto_class, what: str, **options):
        file = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            return auto_class.from_pretrained(self.source, **file, **options)
        except Exception as error:  # tokenizers raises bare Exception, transformers a dozen others
            raise InputError(f"{self.reference}: the {what} could not be loaded ({first_line(error)})") from error

    def _pre_tokenizer(self) -> str | None:
        from gguf import GGUFReader  # lazy import: transformers also needs it for such a file only

        field = GGUFReader(Path(self.source) / self.gguf).get_field("tokenizer.ggml.pre")
        return field.contents() if field else None


def _check_folder(path: Path) -> None:
    """Reject a folder in which transformers would use defaults, or fail with an unclear error."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json: pass a model folder, such as RUN/model.")
    read_json(path / "config.json")
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        raise InputError(f"{path} has no weights (*.safetensors): pass a model folder, such as RUN/model.")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{path} has no tokenizer: put tokenizer.json and tokenizer_config.json next to the weights.")


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
