"""A small run as training leaves it, its release, and a fine-tuning of its model."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cards import WRITTEN, examples

from model_card import release
from model_card.files import read_json, write_json
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.evaluation.models import EvaluatedModel
from training.finetuning import data_manifest
from training.finetuning.examples import Examples


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_tokenizer, tiny_shards):
    """Folder of a run as training leaves it, over real shards, with a small model and the results of one task.

    Tests must not change it, as those of the release.
    """
    folder = tmp_path_factory.mktemp("card") / "runs" / "tiny"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PleiasConfig(
        vocab_size=len(PleiasTokenizer.from_pretrained(tiny_tokenizer)),
        num_key_value_heads=1,
        max_position_embeddings=256,
        **shape,
    )
    PleiasForCausalLM(config).bfloat16().save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_tokenizer / name, folder / "model" / name)
    settings = {
        "name": "tiny",
        "stages": [
            {"name": "base", "steps": 70, "sequences": 8, "shards": str(tiny_shards)},
            {"name": "annealing", "steps": 5, "sequences": 4, "shards": str(tiny_shards)},
        ],
        "corpus": {"source": "common_corpus", "dataset": "PleIAs/common_corpus", "languages": ["en", "fr"]},
        "data": {"folder": "data/tiny"},
        "optimizer": {"learning_rate": 0.002, "beta1": 0.9, "decay_steps": None},
        "sequence_length": 256,
        "micro_batch": 8,
        "precision": "auto",
        "seed": 42,
        "country": "FRA",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    session = {
        "command": "/home/someone/.venv/bin/python -m training.pretrain --config tiny",
        "commit": "0123456789abcdef",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "A processor", "cpus": 2, "gpus": []},
        "processes": 1,
        "dtype": "torch.bfloat16",
        "data": [read_json(tiny_shards / "manifest.json")["fingerprint"]],
    }
    write_json(folder / "run.json", {"name": "tiny", "sessions": [session]})
    emissions = {"seconds": 190.0, "kwh": 0.0013, "kg_co2eq": 7.3e-05, "source": "codecarbon, electricity of FRA"}
    write_json(folder / "emissions.json", emissions)
    scores = {code: {"loss": 5.5 + i, "bits_per_byte": 2.25 + i} for i, code in enumerate(("en", "fr"))}
    rows = [{"step": step, "loss": 6.0} for step in range(1, 1002)]
    rows[500:500] = [{"step": 500, "event": {"skipped": 1}}, {"step": 500, "validation": scores}]
    rows.append({"step": 75, "validation": scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "loss.png").write_bytes(b"a plot")
    (folder / "summary.txt").write_text("greedy, repetition penalty 1.2\nRun: /home/someone/runs/tiny\n", "utf-8")
    lines = [
        {"step": step, "language": code, "prompt": "Rex 7", "continuation": text if step == 75 else "early"}
        for step in (40, 75)
        for code, text in WRITTEN.items()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    bits = {"tiny": 2.25, "peer-2": {"value": 2.5, "low": 2.375, "high": 2.625}}
    row = {"values": bits, "differences": {"peer-2": {"value": -0.25, "low": -0.5, "high": 0.125}}}
    models = [
        {"name": "tiny", "parameters": 1234, "fingerprint": EvaluatedModel(str(folder)).fingerprint},
        {"name": "peer-2", "parameters": 567890, "source": "/home/someone/peers/peer-2.gguf"},
    ]
    beside = {"models": models, "tasks": {"bits_per_byte": {"mean": row, "la": row}}}
    beside["command"] = "/home/someone/python -m training.evaluate --model runs/tiny --model /home/someone/peer-2.gguf"
    (folder / "comparison").mkdir()
    write_json(folder / "comparison" / "comparison.json", beside)
    metrics = {"character_error_rate": {"value": 0.125, "low": 0.1, "high": 0.15}, "documents": 40}
    (folder / "eval").mkdir()
    write_json(folder / "eval" / "ocr.json", {"task": "ocr", "metrics": metrics, "command": "the command"})
    return folder


@pytest.fixture(scope="session")
def dist(run, tmp_path_factory):
    """Folder of a release of it, without further formats; not for files with a `run` of their own."""
    out = tmp_path_factory.mktemp("dist") / "tiny"
    arguments = ["--run", str(run), "--out", str(out), "--formats"]
    release.build_release(release.options(arguments), "python -m model_card.release --run runs/tiny --out dist/tiny")
    return out


@pytest.fixture
def folder(dist, tmp_path):
    """A copy of the llama variant in its release, to be damaged."""
    shutil.copytree(dist, tmp_path / "tiny")
    return tmp_path / "tiny" / "llama"


@pytest.fixture
def tuned(run, tiny_tokenizer, tmp_path):
    """Function (examples, **config) -> folder of a fine-tuning run as training.finetune leaves it."""

    def make(trained: Examples | None = None, **config) -> Path:
        folder, trained = tmp_path / "runs" / "tuned", trained or examples()
        shutil.copytree(run / "model", folder / "model")
        usual = {"name": "tuned", "task": "ocr", "base_model": "PleIAs/Pleias-Nano", "method": "sft", "data": {}}
        usual |= {"trainer": {"learning_rate": 5e-4}, "replay": {"share": 0.0}, "seed": 42}
        config = usual | config | {"country": "FRA", "precision": "auto"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        manifest = data_manifest.build_manifest(trained, trained, tiny_tokenizer)
        data_manifest.write_data_manifests(folder, {config["task"]: manifest})
        session = read_json(run / "run.json")["sessions"][0] | {"data": [manifest["fingerprint"]], "steps": 70}
        session |= {
            "base_files": {"model.safetensors": "0" * 64},
            "kept": {"step": 60, "metric": "cer", "value": 0.25},
        }
        session |= {
            "trainer": {"learning_rate": 5e-4, "lr_scheduler_type": "cosine", "world_size": 1},
            "trl": "1.16.0",
        }
        write_json(folder / "run.json", {"name": "tuned", "sessions": [session]})
        shutil.copyfile(run / "emissions.json", folder / "emissions.json")
        figures = {"cer": 0.25, "cer_before": 0.75, "cer_change": -0.5}
        metrics = {name: {"value": x, "low": x - 0.125, "high": x + 0.125} for name, x in figures.items()}
        result = {"task": config["task"], "metrics": metrics, "data": {"rows": 200}, "signatures": {"cer": "nrefs:1"}}
        (folder / "eval").mkdir()
        write_json(folder / "eval" / f"{config['task']}.json", result)
        return folder

    return make
