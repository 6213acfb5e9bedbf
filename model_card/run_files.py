"""Of a run, what goes out with its weights: the folder run/ of a flavour, what it wrote, and what peers measured.

run/ of a pretraining run holds

    config.yaml, run.json, emissions.json, summary.txt, loss.png     as they are, where they are there
    metrics.jsonl             every validation and event; of the lines of training at most LINES, evenly chosen, with
                              the first and the last
    manifests/STAGES.json     of the shards that the stages read, without each shard's own account, whose sum is there;
                              of more than MANY shards also without their names and hashes and those of the corpus
                              files, whose numbers stand in `left_out`

and in run/before/ the same of the run whose model it went on from, where that is at hand (facts.history).

Left out are the weights, which lie beside it, the checkpoints, and samples.jsonl, the last step of which is the card's
evidence. No path leads into the folders of the machine that trained (files.portable).
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import yaml

from .facts import history, manifests, roots
from .files import ReleaseError, portable, read_config, read_json, sha256, write_json

LINES = 200  # of training, in metrics.jsonl
MANY = 200  # shards; with the corpus files they take half a kB each
MODEL_FILES = ("*.safetensors", "*.bin", "*config.json")
MODEL_FILES += ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def thinned(lines: list[str]) -> list[str]:
    """Lines of metrics.jsonl: those of training at most LINES, evenly chosen, all others kept."""
    training = [i for i, line in enumerate(lines) if "loss" in json.loads(line)]
    if len(training) > LINES:
        chosen = {training[round(i * (len(training) - 1) / (LINES - 1))] for i in range(LINES)}
        dropped = set(training) - chosen
        lines = [line for i, line in enumerate(lines) if i not in dropped]
    return lines


def shortened(manifest: dict) -> dict:
    """A manifest without what is not about the origin of the text, or adds up elsewhere in it."""
    shards = [{key: value for key, value in shard.items() if key != "account"} for shard in manifest["shards"]]
    if len(shards) <= MANY:
        return manifest | {"shards": shards}
    corpus = {key: value for key, value in manifest["corpus"].items() if key != "files"}
    counts = {"shards": len(shards), "files": len(manifest["corpus"]["files"])}
    return {key: value for key, value in manifest.items() if key != "shards"} | {"corpus": corpus, "left_out": counts}


def write_run(run: Path, folder: Path) -> None:
    """Write FOLDER/run, of a run that went through stages and of those before it; nothing of another."""
    out = folder / "run"
    for one in reversed(history(run)):
        write_one(one, out)
        out = out / "before"


def write_one(run: Path, out: Path) -> None:
    """Write what goes out of one run by itself."""
    config = read_config(run)
    if not config.get("stages"):
        return
    where = roots(run)
    (out / "manifests").mkdir(parents=True)
    text = yaml.safe_dump(portable(config, *where), sort_keys=False, allow_unicode=True)
    (out / "config.yaml").write_text(text, encoding="utf-8")
    for name in ("run.json", "emissions.json"):
        if (run / name).is_file():
            write_json(out / name, portable(read_json(run / name), *where))
    if (run / "summary.txt").is_file():
        lines = (run / "summary.txt").read_text(encoding="utf-8").splitlines()
        # In the cells of its table stand the model's words.
        lines = [line if "│" in line else portable(line, *where) for line in lines]
        (out / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if (run / "loss.png").is_file():
        shutil.copyfile(run / "loss.png", out / "loss.png")
    if (run / "metrics.jsonl").is_file():
        lines = thinned((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        (out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for stages, path in manifests(config, run):
        write_json(out / "manifests" / f"{'-'.join(stages)}.json", portable(shortened(read_json(path)), *where))


def last_samples(run: Path) -> dict | None:
    """The content of evidence/samples.json: what the model wrote at the last step of samples.jsonl, unedited.

    Returns:
        {"step", "repetition_penalty", "samples": [{"language", "prompt", "continuation"}]}; None where there are none.
        The penalty is that of the lines, else the one that summary.txt names, else None.
    """
    path, summary = run / "samples.jsonl", run / "summary.txt"
    # Not splitlines(): a continuation may hold a separator of lines that JSON leaves as it is.
    lines = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line] if path.is_file() else []
    if not lines:
        return None
    step = lines[-1]["step"]
    last = [line for line in lines if line["step"] == step]
    told = re.search(r"repetition penalty (\d+\.\d+)", summary.read_text(encoding="utf-8") if summary.exists() else "")
    penalty = last[0].get("repetition_penalty", float(told[1]) if told else None)
    kept = [{key: line[key] for key in ("language", "prompt", "continuation")} for line in last]
    return {"step": step, "repetition_penalty": penalty, "samples": kept}


def model_mark(folder: Path) -> str:
    """What training.evaluate knows a model's folder by."""
    files = {file.name: sha256(file) for pattern in MODEL_FILES for file in folder.glob(pattern)}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def read_comparison(folder: Path, run: Path) -> dict | None:
    """The content of evidence/comparison.json: the run beside other models, as training.evaluate left it in a folder.

    Returns:
        comparison.json without paths of the machine; None where it is not there, or has no bits per byte.

    Raises:
        ReleaseError: when its first model has other weights than the run.
    """
    path = folder / "comparison.json"
    content = read_json(path) if path.is_file() else {}
    if "bits_per_byte" not in content.get("tasks", {}):
        return None
    if content["models"][0]["fingerprint"] != model_mark(run / "model"):
        raise ReleaseError(
            f"The first model of {path} is not that of {run}: compare anew, with `--model {run}` before the others."
        )
    return portable(content, *roots(run))
