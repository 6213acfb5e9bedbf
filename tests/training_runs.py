"""Helpers for tests of training programs: runs in this process, configs as files, checkpoints, task data."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file

from training.common.files import read_json, write_json
from training.data.shard_files import tokens_fingerprint
from training.finetuning.recipe import FinetuneConfig
from training.pretraining.recipe import PretrainConfig
from training.run import checkpoint
from training.run.record import plain
from training.run.stopping import SIGNALS

WORDS = "the old house stood by the river and nobody came until the spring when bells rang over the hills".split()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the signal handlers, which a run replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def as_yaml(config: PretrainConfig | FinetuneConfig, path: Path) -> Path:
    """Write the config as a YAML file, as a user would."""
    path.write_text(yaml.safe_dump(plain(asdict(config))))
    return path


def state(config: PretrainConfig | FinetuneConfig, step: int) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint."""
    folder = config.folder / "checkpoints" / f"step-{step}"
    return {
        f"{part}:{k}": v for part in checkpoint.PARTS for k, v in load_file(folder / f"{part}.safetensors").items()
    }


def forget_sidecars(shards: Path) -> None:
    """Make the manifest of shards that of an earlier version, without the hashes of their sidecars."""
    manifest = read_json(shards / "manifest.json")
    for shard in manifest["shards"]:
        del shard["sidecars"]
    write_json(shards / "manifest.json", manifest | {"fingerprint": tokens_fingerprint(manifest)})


def local_data(task: str, folder: Path, chat: Path, corpus: Path) -> list[str]:
    """Return options that limit a packaged config to a few rows of local data."""
    if task == "instruct":
        return ["--data.path", str(chat), "--data.tasks", "[]"]
    if task == "ocr":
        few = ["--data.synthetic_rows", "40", "--data.held_out_rows", "8", "--data.held_out", "0.3"]
        return ["--data.path", str(corpus), "--data.languages", "[en,fr]", *few]
    if task == "rag":
        lines = []
        for i, word in enumerate(WORDS):
            sources = [f"The {word} number {i} came home in the spring.", "Nobody came to the river."]
            answer = f'It came home <ref name="1">"{sources[0][:-1]}"</ref>.'
            query = f"When did the {word} come home?"
            lines.append(
                json.dumps({"query": query, "sources": sources, "answer": answer, "language": "en", "source": str(i)})
            )
        (folder / "questions.jsonl").write_text("\n".join(lines))
        return ["--data.path", str(folder / "questions.jsonl"), "--data.held_out", "0.4"]
    segments = [
        {
            "id": str(i),
            "source": f"page {i % 9}",
            "license": "CC0-1.0",
            "en": f"The bells of house {i} rang when nobody came.",
            "fr": f"Les cloches de la maison {i} sonnaient quand personne ne venait.",
        }
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(segments), folder / "segments.parquet")
    return ["--data.path", str(folder / "segments.parquet"), "--data.languages", "[en,fr]", "--data.held_out", "0.3"]
