"""The checks of a release: each has a name, a result and a pass or fail; and the checks of the two variants."""

import copy
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_pleias import cpu_compute_dtype

from ..files import ReleaseError, read_json, write_json
from ..signals import end_with_parent
from . import load_probe
from .variants import AUTO_MAP, ReleaseSource, load_tokenizer

NEW_TOKENS = 64
TEXTS = read_json(Path(__file__).parents[1] / "templates/texts.json")


@dataclass
class Check:
    """One line of the table.

    Args:
        part: Folder of the release that is checked.
        name: Property that is checked.
        figure: Result as text.
        passed: Whether the check passed.
        values: Result as numbers and strings by name.
    """

    part: str
    name: str
    figure: str
    passed: bool
    values: dict


class Checks:
    """Collect checks and print the result of each."""

    def __init__(self):
        self.results: list[Check] = []

    def add(self, part: str, name: str, figure: str, passed: bool, **values) -> None:
        """Record a check and print its line."""
        self.results.append(Check(part, name, figure, bool(passed), values))
        print(f"{'pass' if passed else 'FAIL'}  {part:9} {name:62} {figure}", flush=True)

    def equal(self, part: str, name: str, actual: list, expected: list, **values) -> None:
        """Record how many items of two lists are equal; the check passes if all are."""
        same, total = sum(a == b for a, b in zip(actual, expected, strict=True)), len(expected)
        self.add(part, name, f"{same} of {total} equal", same == total, equal=same, of=total, **values)

    def at_most(self, part: str, name: str, value: float, limit: float) -> None:
        """Record a number that must be finite and must not exceed a limit."""
        passed = math.isfinite(value) and value <= limit
        self.add(part, name, f"{value:.2g} (at most {limit:.2g})", passed, found=value, limit=limit)

    def to_json(self) -> list[dict]:
        """Return the checks as release.json stores them."""
        return [asdict(check) for check in self.results]

    def raise_on_failure(self) -> None:
        """Stop the release if a check failed.

        Raises:
            ReleaseError: If a check failed; the message lists the failed checks.
        """
        failed = [f"{check.part}: {check.name} ({check.figure})" for check in self.results if not check.passed]
        if failed:
            raise ReleaseError(f"No release was made, because a check failed: {'; '.join(failed)}.")


def strings() -> list[str]:
    """Return the texts whose token ids are compared."""
    return [language["passage"] for language in TEXTS["languages"].values()] + TEXTS["strings"]


def prompts() -> dict[str, str]:
    """Return one prompt per language."""
    return {code: language["prompt"] for code, language in TEXTS["languages"].items()}


class ReferenceModel:
    """Outputs of the source of a release, with which every variant and format is compared.

    `ids` come from the tokenizers library and the source's tokenizer.json, without a tokenizer class of transformers
    or of this project.

    Raises:
        ReleaseError: If the context is too short for the checks.
    """

    def __init__(self, source: ReleaseSource):
        self.source = source
        self.tokenizer = load_tokenizer(source.folder / "tokenizer.json")
        self.context = context = source.model.config.max_position_embeddings
        self.ids = [self.tokenizer.encode(text).ids for text in strings()]
        self.prompts = {code: self.tokenizer.encode(text).ids for code, text in prompts().items()}
        longest = max(map(len, self.prompts.values()))
        if longest + NEW_TOKENS > context:
            raise ReleaseError(
                f"The context of {context} tokens is too short for the checks, which need {longest + NEW_TOKENS}: the "
                f"longest prompt and {NEW_TOKENS} new tokens."
            )
        self.questions = {
            "texts": strings(),
            # Pleias classes add up the products of a single token in another order than Llama.
            "rows": [row[:context] for row in self.ids if len(row) > 1],
            "prompts": list(self.prompts.values()),
            "prompt_texts": list(prompts().values()),
            "new_tokens": NEW_TOKENS,
        }
        # Bits are compared in the dtype in which this CPU is fast. Widening the stored weights is lossless.
        dtype = torch.promote_types(source.model.dtype, cpu_compute_dtype())
        self.questions["dtype"] = str(dtype).removeprefix("torch.")
        model = source.model if source.model.dtype == dtype else copy.deepcopy(source.model).to(dtype)
        self.outputs = load_probe.measure_outputs(model, self.questions)
        llama = as_llama(model)  # generates token by token, which may differ in the order of equal scores
        self.generated = {
            "custom": self.outputs["generated"],
            "llama": load_probe.generate_ids(llama, self.questions),
        }

    def continued(self, variant: str) -> list[str]:
        """Return the text of each prompt with the ids that a variant must generate."""
        return [
            self.tokenizer.decode([*prompt, *new], skip_special_tokens=True)
            for prompt, new in zip(self.questions["prompts"], self.generated[variant], strict=True)
        ]


def as_llama(model: PreTrainedModel) -> LlamaForCausalLM:
    """Return transformers' Llama with the tensors of a model."""
    settings = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    llama = LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig.from_dict(settings), state_dict=model.state_dict(), dtype=model.dtype
    )
    llama.generation_config = model.generation_config
    return llama


def run_probe(folder: Path, questions: dict) -> dict:
    """Run load_probe.py on a released folder, in a fresh interpreter without this project; return its outputs.

    Raises:
        ReleaseError: If the folder does not load there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "questions.json"), Path(scratch, "outputs.json")
        write_json(inputs, {**questions, "trust_remote_code": (folder / "modeling_pleias.py").is_file()})
        command = [sys.executable, "-I", load_probe.__file__, str(folder.absolute()), str(inputs), str(outputs)]
        # Code of an earlier release in the cache of dynamic modules must not replace the code of this one.
        # Threads that spin while they wait for each other stall if other programs use the cores.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        options = {"capture_output": True, "text": True, "preexec_fn": end_with_parent}
        done = subprocess.run(command, cwd=scratch, env=environment, check=False, **options)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ReleaseError(f"{folder.name} does not load in a fresh interpreter: {last}")
        return read_json(outputs)


def check_variant(checks: Checks, reference: ReferenceModel, folder: Path) -> None:
    """Compare a variant with the source: tensors, ids, logits, generated ids, tokenizer settings, classes."""
    variant, source = folder.name, reference.source
    check_tensors(checks, source, folder)
    outputs = run_probe(folder, reference.questions)
    checks.equal(variant, "token ids, as from the source's tokenizer.json", outputs["ids"], reference.ids)
    checks.equal(variant, "texts decoded exactly from their ids", outputs["decoded"], strings())
    checks.equal(variant, "logits of full texts, bit for bit", outputs["logits"], reference.outputs["logits"])
    name = f"{NEW_TOKENS} ids generated in eight languages"
    checks.equal(variant, name, outputs["generated"], reference.generated[variant])
    checks.equal(variant, "the same text through pipeline()", outputs["pipeline"], reference.continued(variant))
    special, limit = outputs["special"], outputs["model_max_length"]
    ends = [source.model.config.bos_token_id, source.model.config.eos_token_id]
    passed = None not in special and special[1:3] == ends and limit <= reference.context and not outputs["cleans_up"]
    name = "tokenizer: unk, bos, eos, pad, length limit, exact decoding"
    checks.add(variant, name, f"{special}, {limit}", passed, special=special, model_max_length=limit)
    if variant == "custom":
        expected = {auto: path.partition(".")[2] for auto, path in AUTO_MAP.items()}
        classes = [outputs["classes"].get(auto) for auto in expected]
        checks.equal(variant, "classes of auto_map, from the folder's code", classes, list(expected.values()))
        if source.keeps_tokenizer_class:
            name = outputs["tokenizer"]
            checks.add(variant, "tokenizer class, from the folder's code", name, name == "PleiasTokenizer", found=name)
    expected = "transformers_modules.PleiasForCausalLM" if variant == "custom" else "transformers.LlamaForCausalLM"
    name = f"{outputs['code']}.{outputs['model']}"
    checks.add(variant, "class without this package", name, name == expected, found=name)


def check_tensors(checks: Checks, source: ReleaseSource, folder: Path) -> None:
    """Check that a folder's safetensors files contain the source's tensors, bit for bit, and no others."""
    expected = {name: load_probe.digest(tensor) for name, tensor in source.model.state_dict().items()}
    if source.model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    stored: dict[str, str] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, "pt") as shard:
            stored |= {name: load_probe.digest(shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118 (no mapping)
    label = f"tensors in {len(files)} safetensors file{'s' * (len(files) > 1)}, bit for bit"
    digests = zip(*((stored.get(name), expected.get(name)) for name in stored.keys() | expected.keys()), strict=True)
    checks.equal(folder.name, label, *map(list, digests), files=len(files))
