"""The checks of a release: names, figures and verdicts; and those that hold the flavours against their source."""

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from modeling_pleias import cpu_compute_dtype

from . import probe
from .files import ReleaseError, read_json, write_json
from .flavours import AUTO_MAP, Source

NEW_TOKENS = 64
TEXTS = read_json(Path(__file__).with_name("texts.json"))


@dataclass
class Check:
    """One line of the table.

    Args:
        part: folder of the release that it is about.
        name: what is claimed.
        figure: what was measured, for people.
        passed: the verdict.
        values: the same for programs: numbers and strings by name.
    """

    part: str
    name: str
    figure: str
    passed: bool
    values: dict


class Checks:
    """Collects checks and prints each as it is made."""

    def __init__(self):
        self.made: list[Check] = []

    def add(self, part: str, name: str, figure: str, passed: bool, **values) -> None:
        """Note a check and print its line."""
        self.made.append(Check(part, name, figure, bool(passed), values))
        print(f"{'pass' if passed else 'FAIL'}  {part:9} {name:62} {figure}", flush=True)

    def equal(self, part: str, name: str, found: list, expected: list) -> None:
        """Note how many items of two lists are equal; all have to be."""
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        figure = f"{same} of {len(expected)} equal"
        self.add(part, name, figure, same == len(expected), equal=same, of=len(expected))

    def at_most(self, part: str, name: str, found: float, limit: float) -> None:
        """Note a number that must not exceed a limit; not-a-number fails."""
        passed = math.isfinite(found) and found <= limit
        self.add(part, name, f"{found:.2g} (at most {limit:.2g})", passed, found=found, limit=limit)

    def to_json(self) -> list[dict]:
        """The checks as release.json has them."""
        return [asdict(check) for check in self.made]

    def raise_on_failure(self) -> None:
        """End the release when a check failed.

        Raises:
            ReleaseError: naming what failed.
        """
        failed = [f"{check.part}: {check.name} ({check.figure})" for check in self.made if not check.passed]
        if failed:
            raise ReleaseError(f"No release was made, because a check failed: {'; '.join(failed)}.")


def strings() -> list[str]:
    """Every text that ids are compared on."""
    return [language["passage"] for language in TEXTS["languages"].values()] + TEXTS["strings"]


def prompts() -> dict[str, str]:
    """The beginning of a text in each language, to be continued."""
    return {code: language["prompt"] for code, language in TEXTS["languages"].items()}


class Reference:
    """What the source of a release answers; every flavour and format is held against it.

    `ids` come from the tokenizers library on the source's own tokenizer.json, so that no class of transformers or of
    ours stands between.

    Raises:
        ReleaseError: when the context is too short for the questions.
    """

    def __init__(self, source: Source):
        self.source = source
        tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
        context = source.model.config.max_position_embeddings
        self.context = context
        self.ids = [tokenizer.encode(text).ids for text in strings()]
        self.prompts = {code: tokenizer.encode(text).ids for code, text in prompts().items()}
        longest = max(map(len, self.prompts.values()))
        if longest + NEW_TOKENS > context:
            raise ReleaseError(
                f"The context of {context} tokens is too short for the checks: the longest prompt has {longest}, and "
                f"{NEW_TOKENS} follow."
            )
        self.questions = {
            "texts": strings(),
            "rows": [row[:context] for row in self.ids if row],
            "prompts": list(self.prompts.values()),
            "prompt_texts": list(prompts().values()),
            "new_tokens": NEW_TOKENS,
        }
        # Bits are compared in the dtype that this machine is fast in; widened weights are the stored ones exactly.
        dtype = torch.promote_types(source.model.dtype, cpu_compute_dtype())
        self.questions["dtype"] = str(dtype).removeprefix("torch.")
        model = source.model if source.model.dtype == dtype else copy.deepcopy(source.model).to(dtype)
        self.answers = probe.measure(model, self.questions)
        self.continued = [
            tokenizer.decode([*prompt, *new], skip_special_tokens=True)
            for prompt, new in zip(self.questions["prompts"], self.answers["generated"], strict=True)
        ]


def ask(folder: Path, questions: dict) -> dict:
    """Answers of a released folder in a fresh interpreter that has transformers, and nothing of this project.

    Raises:
        ReleaseError: when the folder does not load there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "questions.json"), Path(scratch, "answers.json")
        write_json(asked, {**questions, "trust_remote_code": (folder / "modeling_pleias.py").is_file()})
        command = [sys.executable, "-I", probe.__file__, str(folder.absolute()), str(asked), str(answered)]
        # Code that an earlier release left in the cache of dynamic modules must not stand in for this one's.
        # Threads that spin while they wait for each other stall where other programs want the cores.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ReleaseError(f"{folder.name} does not load in a fresh interpreter: {last}")
        return json.loads(answered.read_text(encoding="utf-8"))


def check_flavour(checks: Checks, reference: Reference, folder: Path) -> None:
    """Hold a flavour against the source: tensors, ids, logits, generated ids, tokenizer's settings, classes."""
    flavour, source = folder.name, reference.source
    check_tensors(checks, source, folder)
    answers = ask(folder, reference.questions)
    checks.equal(flavour, "token ids, as the source's tokenizer.json gives them", answers["ids"], reference.ids)
    checks.equal(flavour, "texts that come back exactly from their ids", answers["decoded"], strings())
    checks.equal(flavour, "logits of whole texts, bit for bit", answers["logits"], reference.answers["logits"])
    name = f"{NEW_TOKENS} ids generated in eight languages"
    checks.equal(flavour, name, answers["generated"], reference.answers["generated"])
    checks.equal(flavour, "the same through pipeline()", answers["pipeline"], reference.continued)
    special, limit = answers["special"], answers["model_max_length"]
    ends = [source.model.config.bos_token_id, source.model.config.eos_token_id]
    passed = None not in special and special[1:3] == ends and limit <= reference.context and not answers["cleans_up"]
    name = "tokenizer: unk, bos, eos, pad, length limit, exact decoding"
    checks.add(flavour, name, f"{special}, {limit}", passed, special=special, model_max_length=limit)
    if flavour == "custom":
        expected = {auto: path.partition(".")[2] for auto, path in AUTO_MAP.items()}
        found = [answers["classes"].get(auto) for auto in expected]
        checks.equal(flavour, "classes of auto_map, from the code inside", found, list(expected.values()))
        if source.keeps_tokenizer_class:
            name = answers["tokenizer"]
            checks.add(flavour, "tokenizer class, from the code inside", name, name == "PleiasTokenizer", found=name)
    expected = "transformers_modules.PleiasForCausalLM" if flavour == "custom" else "transformers.LlamaForCausalLM"
    name = f"{answers['code']}.{answers['model']}"
    checks.add(flavour, "class without this package", name, name == expected, found=name)


def check_tensors(checks: Checks, source: Source, folder: Path) -> None:
    """Every tensor on file has the bits of the source's, and none is missing or there twice."""
    expected = {name: probe.digest(tensor) for name, tensor in source.model.state_dict().items()}
    if source.model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found: dict[str, str] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, "pt") as shard:
            found |= {name: probe.digest(shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118 (no mapping)
    name = f"tensors in {len(files)} safetensors file{'s' * (len(files) > 1)}, bit for bit"
    same = sum(found.get(key) == value for key, value in expected.items())
    figure = f"{same} of {len(expected)} equal"
    checks.add(folder.name, name, figure, found == expected, equal=same, of=len(expected), files=len(files))
