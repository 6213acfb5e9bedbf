"""Export what accompanies the weights of a run: the folder runs/ of a variant, samples, and results of baselines.

runs/NAME/ of each pretraining run that the weights come from contains

    config.yaml, run.json, emissions.json, summary.txt, loss.png     unchanged, if they exist
    mixture.yaml              rules by which the corpora were mixed (training.mixture), if they were
    metrics.jsonl             every validation and event; at most LINES lines of training, evenly chosen, including the
                              first and the last
    manifests/STAGES.json     of the shards that the stages read, without the statistics per shard, whose sums it
                              contains; of more than MANY shards also without the names and hashes of shards and corpus
                              files, whose number and hash are in `left_out`

Omitted are weights, checkpoints, and samples.jsonl, whose last step is evidence of the card. Paths of the machine that
trained are made relative (Run.relative).
"""

import json
import re
import shutil
from pathlib import Path

import yaml

from .files import ReleaseError, inside, read_json, sha256, write_json, write_text
from .run import Run, json_lines, json_sha256, manifest_shards

LINES = 200  # of training, in metrics.jsonl
MANY = 200  # shards; with the corpus files each takes half a kB
MODEL_FILES = ("*.safetensors", "*.bin", "*config.json")
MODEL_FILES += ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def downsample_metrics(lines: list[str]) -> list[str]:
    """Return the lines of metrics.jsonl: at most LINES of training, evenly chosen, and all others."""
    training = [i for i, line in enumerate(lines) if "loss" in json.loads(line)]
    if len(training) > LINES:
        chosen = {training[round(i * (len(training) - 1) / (LINES - 1))] for i in range(LINES)}
        dropped = set(training) - chosen
        lines = [line for i, line in enumerate(lines) if i not in dropped]
    return lines


def trim_manifest(manifest: dict) -> dict:
    """Return a manifest without what does not concern the origin of the text, or adds up elsewhere in it."""
    shards = manifest_shards(manifest)
    if len(shards) <= MANY:
        return manifest | {"shards": shards}
    corpus = {key: value for key, value in manifest["corpus"].items() if key != "files"}
    files = manifest["corpus"]["files"]
    counts = {"shards": len(shards), "files": len(files)}
    counts["sha256"] = {"shards": json_sha256(shards), "files": json_sha256(files)}  # for the fingerprint
    return {key: value for key, value in manifest.items() if key != "shards"} | {"corpus": corpus, "left_out": counts}


def write_run(run: Run, folder: Path) -> None:
    """Write FOLDER/runs with each pretraining run of the lineage; nothing of other runs."""
    for earlier in run.lineage:
        if earlier.config.get("stages"):
            write_one(earlier, folder / "runs" / earlier.folder.name)


def write_one(run: Run, out: Path) -> None:
    """Write what is exported of one run alone."""
    out.mkdir(parents=True)
    write_yaml(out / "config.yaml", run.relative(run.config))
    for name, content in (("run.json", run.record), ("emissions.json", run.emissions)):
        if content is not None:
            write_json(out / name, run.relative(content))
    source = run.folder
    if (source / "summary.txt").is_file():
        lines = (source / "summary.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        # The cells of its table contain the model's words.
        lines = [line if "│" in line else run.relative(line) for line in lines]
        write_text(out / "summary.txt", "\n".join(lines) + "\n")
    if (source / "loss.png").is_file():
        shutil.copyfile(source / "loss.png", out / "loss.png")
    if run.metrics:
        text = "".join(f"{line}\n" for line in downsample_metrics(run.metrics))
        write_text(out / "metrics.jsonl", text)
    for stages, _, manifest in run.manifests:
        path = inside(out / "manifests", f"{'-'.join(stages)}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run.relative(trim_manifest(manifest)))
        if mixed := (manifest["corpus"].get("sources") or {}).get("mixture"):
            rules = {
                name: [{key: value for key, value in rule.items() if value not in (None, "*")} for rule in rules]
                for name, rules in mixed["mixtures"].items()
            }
            write_yaml(out / "mixture.yaml", {"held_out": mixed["held_out"], "mixtures": rules})


def write_yaml(path: Path, value: dict) -> None:
    """Write settings as YAML."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def last_samples(run: Run) -> dict | None:
    """Return the content of evidence/samples.json: the continuations of the last step in samples.jsonl, unedited.

    Returns:
        {"step", "repetition_penalty", "samples": [{"language", "prompt", "continuation"}]}, or None if there are none.
        The penalty is that of the lines, else the one in summary.txt, else None.
    """
    path, summary = run.folder / "samples.jsonl", run.folder / "summary.txt"
    lines = [json.loads(line) for line in json_lines(path)]
    if not lines:
        return None
    step = lines[-1]["step"]
    last = [line for line in lines if line["step"] == step]
    text = summary.read_text(encoding="utf-8") if summary.exists() else ""
    stated = re.search(r"repetition penalty (\d+\.\d+)", text)
    penalty = last[0].get("repetition_penalty", float(stated[1]) if stated else None)
    samples = [{key: line[key] for key in ("language", "prompt", "continuation")} for line in last]
    return {"step": step, "repetition_penalty": penalty, "samples": samples}


def model_fingerprint(folder: Path) -> str:
    """Return the fingerprint by which training.evaluate identifies a model folder."""
    files = {file.name: sha256(file) for pattern in MODEL_FILES for file in folder.glob(pattern)}
    return json_sha256(files)


def read_comparison(folder: Path, run: Run) -> dict | None:
    """Return the content of evidence/comparison.json: results of the run and of other models (training.evaluate).

    Returns:
        comparison.json without paths of the machine, or None if it does not exist or has no bits per byte.

    Raises:
        ReleaseError: If its first model has other weights than the run.
    """
    path = folder / "comparison.json"
    content = read_json(path) if path.is_file() else {}
    if "bits_per_byte" not in content.get("tasks", {}):
        return None
    if content["models"][0]["fingerprint"] != model_fingerprint(run.folder / "model"):
        raise ReleaseError(
            f"The first model of {path} is not the model of {run.folder}: compare again, with "
            f"`--model {run.folder}` before the others."
        )
    return run.relative(content)
