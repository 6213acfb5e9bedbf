"""What is evaluated: a causal language model and its tokenizer, from a folder, a GGUF file or the Hub."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_pleias import PleiasConfig  # noqa: F401 (registers the model with transformers, also under `pleias`)
from modeling_pleias.tokenization_pleias import PATTERN

from ..compute import compute_dtype
from ..config import InputError
from ..files import fingerprint, read_json, sha256

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")
WEIGHTS = ("*.safetensors", "*.bin")
USUAL_CONTEXT = 2048  # of a config that names none

# How llama.cpp cuts text before merging, by `tokenizer.ggml.pre`. transformers reads the vocabulary of a GGUF file but
# not this, and cuts as GPT-2 does; the entries are those for which that is wrong and which our comparisons meet.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "llama-bpe": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), _BYTES]),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


class Subject:
    """One model under evaluation; weights and tokenizer are read when first asked for.

    Args:
        name: a model folder, a run's folder, a .gguf file, or OWNER/NAME on the Hub.
        device: cpu, cuda, ...
        precision: of the weights. auto is bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        InputError: when it is none of these, or lacks weights, a config or a tokenizer.
    """

    def __init__(self, name: str, *, device: str = "cpu", precision: Literal["auto", "bf16", "fp32"] = "auto"):
        self.given, self.device, self.gguf = name, torch.device(device), None
        path = Path(name)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError(f"--model {name} is not there: give the path of a GGUF file.")
            self.source, self.gguf, self.name = path.parent, path.name, path.stem
        elif path.is_dir():
            if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
                path = path / "model"  # a run's folder was given
            self.source, self.name = path, path.resolve().name
            if self.run:
                self.name = self.run.resolve().name
            _check_folder(path)
        elif name.count("/") == 1 and not name.startswith((".", "/")) and not path.parent.is_dir():
            self.source, self.name = name, path.name
        else:
            raise InputError(f"--model {name} is no folder: give a model's folder, a .gguf file, or OWNER/NAME.")
        if precision == "auto":
            self.dtype = compute_dtype("auto", self.device) if self.device.type == "cuda" else torch.float32
        else:
            self.dtype = compute_dtype(precision, self.device)

    @property
    def run(self) -> Path | None:
        """The folder of the run that made the model, where its account lies beside it."""
        folder = Path(self.source)
        made_here = self.gguf is None and folder.name == "model" and (folder.parent / "config.yaml").is_file()
        return folder.parent if made_here else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, config and tokenizer; of the name and commit for a model on the Hub."""
        if self.gguf:
            return sha256(Path(self.source) / self.gguf)
        if isinstance(self.source, str):
            return fingerprint([self.source, getattr(self.model.config, "_commit_hash", None)])
        patterns = (*WEIGHTS, "*config.json", *TOKENIZER_FILES)
        files = {file for pattern in patterns for file in self.source.glob(pattern)}
        return fingerprint({file.name: sha256(file) for file in files})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        tokenizer = self._load(AutoTokenizer, "tokenizer")
        if self.gguf and (pre := self._pre_tokenizer()) in PRE_TOKENIZERS:
            tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
            tokenizer.backend_tokenizer.model.ignore_merges = pre == "llama-bpe"
        return tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        """In eval mode, on the device, in `dtype`."""
        model = self._load(AutoModelForCausalLM, "causal language model", dtype=self.dtype).to(self.device).eval()
        entries = model.get_input_embeddings().weight.shape[0]
        added = self.tokenizer.get_added_vocab()  # transformers adds one of its own to a GGUF file's; no text gives it
        if (largest := max(id for token, id in self.tokenizer.get_vocab().items() if token not in added)) >= entries:
            raise InputError(
                f"{self.given} has a tokenizer with ids up to {largest:,} and a model of {entries:,} entries: the two "
                "do not belong together."
            )
        return model

    @property
    def context(self) -> int:
        """Tokens that it reads at once."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or USUAL_CONTEXT

    @property
    def start(self) -> tuple[str, int]:
        """What stands before a text: the beginning-of-text token, or the end-of-text token where there is none.

        Raises:
            InputError: when the tokenizer has neither.
        """
        tokenizer = self.tokenizer
        for role, token in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
            if token is not None:
                return role, token
        raise InputError(
            f"{self.given} has neither a bos_token nor an eos_token, and a text's first token is scored after one: "
            "name one in tokenizer_config.json."
        )

    @property
    def facts(self) -> dict:
        """What results say of it."""
        return {
            "name": self.name,
            "source": self.given,
            "fingerprint": self.fingerprint,
            "parameters": self.model.num_parameters(),
            "entries": len(self.tokenizer),
            "context": self.context,
            "weights": str(self.dtype).removeprefix("torch."),
        }

    def release(self) -> None:
        """Give the weights' memory free; they are read again when asked for."""
        self.__dict__.pop("model", None)

    def _load(self, auto_class, what: str, **options):
        where = {"gguf_file": self.gguf} if self.gguf else {}
        try:
            return auto_class.from_pretrained(self.source, **where, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:  # what transformers raises, of many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{self.given} gives no {what} ({reason})") from error

    def _pre_tokenizer(self) -> str | None:
        from gguf import GGUFReader  # transformers needs it as well to read such a file

        field = GGUFReader(Path(self.source) / self.gguf).get_field("tokenizer.ggml.pre")
        return field.contents() if field else None


def _check_folder(path: Path) -> None:
    """Refuse a folder that transformers would fill up with defaults, or fail on with an error of its own."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json: give the folder of a model, as RUN/model.")
    read_json(path / "config.json")
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        raise InputError(f"{path} has no weights (*.safetensors): give the folder of a model, as RUN/model.")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{path} has no tokenizer: put tokenizer.json and tokenizer_config.json beside the weights.")
