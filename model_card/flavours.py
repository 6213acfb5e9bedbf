"""Two flavours of the same tensors: `custom`, with its code inside, and `llama`, which needs none."""

import inspect
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

import modeling_pleias
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS

from .facts import LANGUAGE_NAMES, gather, languages
from .files import ReleaseError, follow_umask, read_json, write_json
from .run import Run
from .validate import LISTS

MODULES = (modeling_pleias.configuration_pleias, modeling_pleias.modeling_pleias, modeling_pleias.tokenization_pleias)
AUTO_MAP = {
    "AutoConfig": "configuration_pleias.PleiasConfig",
    "AutoModel": "modeling_pleias.PleiasModel",
    "AutoModelForCausalLM": "modeling_pleias.PleiasForCausalLM",
    "AutoModelForSequenceClassification": "modeling_pleias.PleiasForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_pleias.PleiasForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_pleias.PleiasForQuestionAnswering",
}
TEMPLATE = "chat_template.jinja"
# What transformers notes in a tokenizer's settings of how it was loaded.
NO_SETTINGS = ("is_local", "local_files_only", "backend", "auto_map", "tokenizer_file", "name_or_path")


@dataclass
class Source:
    """What a release is made from.

    Args:
        folder: the folder with config.json, weights and tokenizer.
        run: run folder, None for a folder labelled `llama`.
        model: the weights, in the precision they are stored in, ready for inference.
        languages: codes of the languages that the text was in.
    """

    folder: Path
    run: Run | None
    model: PleiasForCausalLM
    languages: list[str]

    @property
    def keeps_tokenizer_class(self) -> bool:
        """Whether the tokenizer is ours: another one's folder keeps its own rules for cutting text, and its ids."""
        return read_json(self.folder / "tokenizer_config.json").get("tokenizer_class") == PleiasTokenizer.__name__


def open_run(run: Run) -> Source:
    """The finished run in a folder.

    Raises:
        ReleaseError: when the folder holds no finished run.
    """
    config, model_folder = run.config, run.folder / "model"
    if not (model_folder / "config.json").is_file():
        raise ReleaseError(f"{run.folder} has no model/ yet: let the run finish, with the command that started it.")
    model = load(model_folder)
    read = languages(gather(run), LISTS["languages"].split()) or (config.get("corpus") or {}).get("languages")
    # Of a fine-tuning on text that names no language nobody knows it: that is the Hub's code for it.
    return Source(model_folder, run, model, list(read or (["und"] if config.get("task") else LANGUAGE_NAMES)))


def open_llama(folder: Path) -> Source:
    """An existing folder labelled `llama`, such as the original's.

    Raises:
        ReleaseError: when the folder is no such model.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise ReleaseError(f"{folder}/config.json says model_type {config.get('model_type')!r}, not 'llama'.")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    return Source(folder, None, load(folder), list(LANGUAGE_NAMES))


def load(folder: Path) -> PleiasForCausalLM:
    """Load the model of a folder in the dtype in which its config says it is stored, float32 if it says nothing.

    Raises:
        ReleaseError: when weights are missing, or are there that the model has no place for.
    """
    dtype = PleiasConfig.from_pretrained(folder).dtype or torch.float32
    model, info = PleiasForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise ReleaseError(f"The weights in {folder} are not those of its config.json: {wrong}.")
    return model.eval()


def write_flavours(source: Source, out: Path, *, max_shard_size: str) -> None:
    """Write `out`/custom and `out`/llama, without cards and hashes."""
    custom, llama = out / "custom", out / "llama"
    source.model.save_pretrained(custom, max_shard_size=max_shard_size)
    shutil.copytree(custom, llama)
    config = read_json(custom / "config.json")
    config = {key: value for key, value in config.items() if key != "auto_map"}
    generation = read_json(custom / "generation_config.json")
    # What generate() knows anyway, and the note that the file was derived from config.json, whose values would win.
    noise = ("_from_model_config", "output_attentions", "output_hidden_states", "use_cache")
    generation = {key: value for key, value in generation.items() if key not in noise}
    plain = {key: value for key, value in config.items() if key != "pretraining_init_std"}
    write_json(custom / "config.json", {**config, "auto_map": AUTO_MAP})
    write_json(llama / "config.json", {**plain, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    settings = mended(source)
    ours = {
        "tokenizer_class": "PleiasTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_pleias.PleiasTokenizer"]},
    }
    write_json(custom / "tokenizer_config.json", settings | (ours if source.keeps_tokenizer_class else {}))
    # transformers 4 knows the list of further special tokens by its older name alone; 5 reads both.
    extra = settings.pop("extra_special_tokens", None)
    write_json(llama / "tokenizer_config.json", settings | ({"additional_special_tokens": extra} if extra else {}))
    for flavour in (custom, llama):
        write_json(flavour / "generation_config.json", generation)
        shutil.copyfile(source.folder / "tokenizer.json", flavour / "tokenizer.json")
        if (source.folder / TEMPLATE).is_file():  # of a model that was tuned on conversations
            shutil.copyfile(source.folder / TEMPLATE, flavour / TEMPLATE)
    for module in MODULES:
        shutil.copyfile(inspect.getsourcefile(module), custom / Path(module.__file__).name)
    (custom / "LICENSE").write_text(licence_text(), encoding="utf-8")
    follow_umask(out)


def mended(source: Source) -> dict:
    """The tokenizer's settings for a plain fast tokenizer, with what the original's files leave out.

    The original names no bos, eos, unk and pad, no length limit, and cleans spaces up when decoding. What is named is
    kept; no id changes, because ids come from tokenizer.json, which is copied as it is.
    """
    settings = read_json(source.folder / "tokenizer_config.json")
    settings = {key: value for key, value in settings.items() if key not in NO_SETTINGS}
    vocabulary = read_json(source.folder / "tokenizer.json")["model"]["vocab"]
    for name, token in zip(("unk_token", "bos_token", "eos_token", "pad_token"), BASE_TOKENS, strict=True):
        if settings.get(name) is None and token in vocabulary:
            settings[name] = token
    context = source.model.config.max_position_embeddings
    settings["model_max_length"] = min(settings.get("model_max_length") or context, context)
    settings["clean_up_tokenization_spaces"] = False
    settings.setdefault("padding_side", "left")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    return dict(sorted(settings.items()))


def licence_text() -> str:
    """The Apache-2.0 text that the copied code files refer to."""
    beside = Path(modeling_pleias.__file__).parent.parent / "LICENSE"
    if beside.is_file():  # a checkout
        return beside.read_text(encoding="utf-8")
    try:
        return distribution("modeling-pleias").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        raise ReleaseError(f"There is no {beside}, and modeling-pleias is not installed: install it.") from None
