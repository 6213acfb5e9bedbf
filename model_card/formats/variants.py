"""Export the two variants of a model: `custom`, which includes its code, and `llama`, which needs none."""

import inspect
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from tokenizers import Tokenizer

import modeling_pleias
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS

from ..facts import LANGUAGE_NAMES, collect_corpora, languages
from ..files import ReleaseError, follow_umask, read_json, write_json, write_text
from ..hub import LISTS
from ..run import Run

MODULES = (modeling_pleias.configuration_pleias, modeling_pleias.modeling_pleias, modeling_pleias.tokenization_pleias)
AUTO_MAP = {
    "AutoConfig": "configuration_pleias.PleiasConfig",
    "AutoModel": "modeling_pleias.PleiasModel",
    "AutoModelForCausalLM": "modeling_pleias.PleiasForCausalLM",
    "AutoModelForSequenceClassification": "modeling_pleias.PleiasForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_pleias.PleiasForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_pleias.PleiasForQuestionAnswering",
}
TEMPLATE, FURTHER_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# Keys that transformers adds to a tokenizer's settings, and that state how it was loaded and last used.
NO_SETTINGS = ("is_local", "local_files_only", "backend", "auto_map", "tokenizer_file", "name_or_path")
NO_SETTINGS += ("max_length", "pad_to_multiple_of", "stride", "truncation_strategy")


@dataclass
class ReleaseSource:
    """Model from which a release is exported.

    Args:
        folder: Folder with config.json, weights and tokenizer.
        run: Run folder; None for a folder of model type `llama`.
        model: Model in its stored precision, in evaluation mode.
        languages: Codes of the languages of the training text.
    """

    folder: Path
    run: Run | None
    model: PleiasForCausalLM
    languages: list[str]

    @property
    def keeps_tokenizer_class(self) -> bool:
        """Return whether the tokenizer is a PleiasTokenizer: another one keeps its own pre-tokenizer and ids."""
        return read_json(self.folder / "tokenizer_config.json").get("tokenizer_class") == PleiasTokenizer.__name__


def open_run(run: Run) -> ReleaseSource:
    """Check that a run is finished, and load its model.

    Raises:
        ReleaseError: If the folder contains no finished run.
    """
    config, model_folder = run.config, run.folder / "model"
    if not (model_folder / "config.json").is_file():
        raise ReleaseError(
            f"{run.folder} has no model/ yet. Repeat the command that started the run, and let it finish."
        )
    model = load_complete_model(model_folder)
    codes = languages(collect_corpora(run), LISTS["languages"].split()) or (config.get("corpus") or {}).get(
        "languages"
    )
    # "und" is the Hub's code for an undetermined language: a fine-tuning on text without a language column.
    return ReleaseSource(model_folder, run, model, list(codes or (["und"] if config.get("task") else LANGUAGE_NAMES)))


def open_llama(folder: Path) -> ReleaseSource:
    """Open a folder of model type `llama`, such as the original's.

    Raises:
        ReleaseError: If the folder has another model type, or a file is missing.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise ReleaseError(f"model_type in {folder}/config.json must be 'llama', got {config.get('model_type')!r}.")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder / name)
    return ReleaseSource(folder, None, load_complete_model(folder), list(LANGUAGE_NAMES))


def load_complete_model(folder: Path) -> PleiasForCausalLM:
    """Load the model of a folder in the dtype that its config specifies, else in float32.

    Raises:
        ReleaseError: If weights are missing, unexpected, or of another shape.
    """
    dtype = PleiasConfig.from_pretrained(folder).dtype or torch.float32
    model, info = PleiasForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise ReleaseError(f"The weights in {folder} do not match its config.json: {wrong}.")
    return model.eval()


def export_variants(source: ReleaseSource, out: Path, *, max_shard_size: str) -> None:
    """Write `out`/custom and `out`/llama, without cards and hashes."""
    custom, llama = out / "custom", out / "llama"
    source.model.save_pretrained(custom, max_shard_size=max_shard_size)
    shutil.copytree(custom, llama)
    config = read_json(custom / "config.json")
    config = {key: value for key, value in config.items() if key != "auto_map"}
    generation = read_json(custom / "generation_config.json")
    # Defaults of generate(), and a marker that the file was derived from config.json, whose values would then win.
    noise = ("_from_model_config", "output_attentions", "output_hidden_states", "use_cache")
    generation = {key: value for key, value in generation.items() if key not in noise}
    plain = {key: value for key, value in config.items() if key != "pretraining_init_std"}
    write_json(custom / "config.json", {**config, "auto_map": AUTO_MAP})
    write_json(llama / "config.json", {**plain, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    settings = complete_tokenizer_config(source)
    own_class = {
        "tokenizer_class": "PleiasTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_pleias.PleiasTokenizer"]},
    }
    write_json(custom / "tokenizer_config.json", settings | (own_class if source.keeps_tokenizer_class else {}))
    # transformers 4 reads the list of further special tokens only under its older name; 5 reads both.
    extra = settings.pop("extra_special_tokens", None)
    write_json(llama / "tokenizer_config.json", settings | ({"additional_special_tokens": extra} if extra else {}))
    for variant in (custom, llama):
        write_json(variant / "generation_config.json", generation)
        write_tokenizer(source.folder / "tokenizer.json", variant / "tokenizer.json")
        copy_chat_templates(source.folder, variant)
    for module in MODULES:
        shutil.copyfile(inspect.getsourcefile(module), custom / Path(module.__file__).name)
    write_text(custom / "LICENSE", licence_text())
    follow_umask(out)


def write_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer.json, without the padding and truncation of its last use, which would apply to every text."""
    spec = read_json(source)
    if spec.get("padding") is None and spec.get("truncation") is None:
        shutil.copyfile(source, target)
    else:
        write_json(target, spec | {"padding": None, "truncation": None})


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json, without the padding and truncation of its last use."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def copy_chat_templates(source: Path, target: Path) -> None:
    """Copy the files with the chat templates of a model that was fine-tuned on conversations."""
    if (source / TEMPLATE).is_file():
        shutil.copyfile(source / TEMPLATE, target / TEMPLATE)
    if (source / FURTHER_TEMPLATES).is_dir():
        shutil.copytree(source / FURTHER_TEMPLATES, target / FURTHER_TEMPLATES)


def chat_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates of a folder by name, from their files, else from tokenizer_config.json."""
    paths = [*folder.glob(TEMPLATE), *sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))]
    if paths:
        names = ("default" if path.name == TEMPLATE else path.stem for path in paths)
        return {name: path.read_text(encoding="utf-8") for name, path in zip(names, paths, strict=True)}
    setting = read_json(folder / "tokenizer_config.json").get("chat_template") or []
    if isinstance(setting, str):
        return {"default": setting}
    return {entry["name"]: entry["template"] for entry in setting}


def complete_tokenizer_config(source: ReleaseSource) -> dict:
    """Return the settings of a plain fast tokenizer, with those that the original's files lack.

    The original specifies no bos, eos, unk and pad token and no length limit, and cleans up spaces when decoding.
    Existing values are kept. No id changes, because ids come from tokenizer.json (see `write_tokenizer`).
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


def write_licences(source: ReleaseSource, out: Path, license: str) -> None:
    """Write the text of the weights' licence into each folder of a release, as LICENSE.

    Only the text of Apache-2.0 comes with this package; that of another licence is the file LICENSE of the model's
    folder or run. In `custom`, where LICENSE is that of the code, it is LICENSE.weights.
    """
    places = [folder / "LICENSE" for folder in (source.folder, source.run and source.run.folder) if folder]
    texts = [path.read_text(encoding="utf-8") for path in places if path.is_file()]
    same = license == "apache-2.0"
    text = licence_text() if same else next(iter(texts), None)
    if text is None:
        print(f"skip  LICENSE: put the text of {license} into {places[0]}.")
        return
    for folder in (path for path in out.iterdir() if path.is_dir()):
        write_text(folder / ("LICENSE.weights" if folder.name == "custom" and not same else "LICENSE"), text)


def licence_text() -> str:
    """Return the Apache-2.0 text to which the copied code files refer."""
    path = Path(modeling_pleias.__file__).parent.parent / "LICENSE"
    if path.is_file():  # a checkout
        return path.read_text(encoding="utf-8")
    try:
        return distribution("modeling-pleias").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        raise ReleaseError(f"{path} does not exist, and modeling-pleias is not installed: install it.") from None
