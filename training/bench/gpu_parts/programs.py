"""Pretraining with kill and resume, fine-tuning with every packaged config, and evaluation on a device."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from modeling_pleias import PleiasTokenizer

from ...common.environment import peak_memory
from ...common.signals import end_with_parent
from ...run.metrics import read_metrics
from ...step.compute import compute_dtype
from .checks import CPU, ROOT, TOKENIZER, Checks, SkipError, deviation, load_model, model_folder, sizes

HELD_OUT = ROOT / "data" / "femto" / "mixture" / "held_out"  # written by the commands of configs/pretrain/femto.yaml


def evaluate(checks: Checks, device: torch.device, folder: Path) -> None:
    """Evaluate the small model on held-out text, and compare its bits per byte with the CPU's."""
    from ...pretraining.samples import PROMPTS

    path, text = model_folder(sizes(device), folder), HELD_OUT
    if not text.exists():
        text = folder / "text"
        text.mkdir()
        for language, words in PROMPTS.items():
            (text / f"{language}.txt").write_text(f"{words} . " * 8, encoding="utf-8")

    def same_bits() -> dict:
        from ...evaluation.bits_per_byte import token_nats

        tokenizer = PleiasTokenizer.from_pretrained(path)
        sequences = [tokenizer(words).input_ids for words in PROMPTS.values()]
        nats = [
            torch.cat(
                [
                    torch.from_numpy(row)
                    for row in token_nats(load_model(path, place, dtype), sequences, window=256, stride=128)
                ]
            )
            for place, dtype in ((CPU, torch.float32), (device, compute_dtype("auto", device)))
        ]
        return {"deviation": deviation(nats[1].mean(), nats[0].mean()), "limit": 5e-3}

    def suite(name: str) -> dict:
        from ... import evaluate as program

        few = ["--data.bytes_per_language", "20000", "--adherence.prompts", "8", "--adherence.new_tokens"]
        few += [str(sizes(device).generate[1]), "--speed.new_tokens", "8", "--speed.rounds", "2"]
        out = ["--suite", name, "--data.path", str(text), "--out", str(folder / "eval"), "--device", device.type]
        program.main(["--model", str(path), *out, *few])
        metrics = json.loads((folder / "eval" / f"{name}.json").read_text(encoding="utf-8"))["metrics"]
        means = {key: value["value"] if isinstance(value, dict) else value for key, value in metrics.items()}
        return {"text": "femto's held-out text" if text == HELD_OUT else "eight prompts"} | dict(
            list(means.items())[:3]
        )

    checks.run("bits per byte, compared with the CPU", same_bits)
    for name in ("bits_per_byte", "language_adherence", "speed"):
        checks.run(name, suite, name)


def sentences(language: str, count: int, words: int) -> list[str]:
    """Return texts of random words in the order of a seed."""
    from ...pretraining.samples import PROMPTS

    draw = random.Random(language)
    vocabulary = [word.strip(",") for word in PROMPTS[language].split()]
    return [" ".join(draw.choices(vocabulary, k=words)) + "." for _ in range(count)]


def write_corpus(folder: Path, documents: int, words: int) -> Path:
    """Write a corpus of random words in English and French."""
    import pyarrow as pa

    from ...common.language import LANGUAGES
    from ...data.documents import SCHEMA, write_parquet

    for code in ("en", "fr"):
        empty = {name: 0 if name.endswith("count") else "" for name in SCHEMA.names}
        rows = [
            empty | {"identifier": f"{code}/{i}", "text": text, "creator": f"author {i % 9}", "collection": "words"}
            for i, text in enumerate(sentences(code, documents, words))
        ]
        rows = [row | {"language": LANGUAGES[code], "license": "CC0-1.0"} for row in rows]
        folder.mkdir(exist_ok=True)
        write_parquet(folder / f"{code}.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    return folder


def train(config, kill_step: int | None, deterministic: bool) -> None:
    """Pretrain in this process. At `kill_step` it kills itself, once it has a checkpoint."""
    from ...pretrain import pretrain
    from ...pretraining.recipe import PretrainConfig

    end_with_parent()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    learning_rate = PretrainConfig.learning_rate

    def rate_or_kill(self, number: int) -> float:
        if number == kill_step:
            for _ in range(600):
                if (self.folder / "checkpoints" / "LATEST").exists():
                    break
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(self, number)

    PretrainConfig.learning_rate = rate_or_kill
    pretrain(config)


def pretraining(checks: Checks, device: torch.device, folder: Path) -> None:
    """Kill a run of configs/pretrain/femto_gpu.yaml, resume it, and compare it with one that was not killed."""
    from safetensors.torch import load_file

    steps, sequences, length, micro_batch = sizes(device).pretrain
    prepared = {}

    def prepare() -> dict:
        from ...common.config import parse
        from ...pretraining.prepare import DataConfig
        from ...pretraining.recipe import IntervalConfig, PretrainConfig, Stage
        from ...shards import ShardsConfig, build_shards

        corpus, shards = write_corpus(folder / "corpus", sizes(device).documents, 500), folder / "shards"
        build_shards(ShardsConfig(corpus=corpus, tokenizer=TOKENIZER, out=shards, validation_share=0.1, workers=2))
        config = parse(PretrainConfig, ["--config", "femto_gpu"], description="")
        known = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        stages = [Stage("base", steps, sequences, shards, candidates=8192), Stage("anneal", steps, sequences, shards)]
        prepared["config"] = replace(
            config,
            init_from=None,
            model={name: getattr(sizes(device).small, name) for name in known},
            stages=stages,
            data=DataConfig(folder=folder, tokenizer=TOKENIZER),
            optimizer=replace(config.optimizer, warmup_steps=2, decay_steps=steps),
            every=IntervalConfig(log=1, validate=1000, checkpoint=2, keep=2 * steps),
            sequence_length=length,
            micro_batch=micro_batch,
            compile=device.type == "cuda",
            validation_tokens=length,
        )
        return {"documents": 2 * sizes(device).documents}

    def kill_and_resume(name: str, deterministic: bool, limit: float) -> dict:
        if not prepared:
            raise SkipError("the data of the check before")
        spawn, runs = get_context("spawn"), {}
        runs = {run: replace(prepared["config"], out=folder / name / run) for run in ("complete", "killed")}

        def start(run: str, kill_step: int | None):
            process = spawn.Process(target=train, args=(runs[run], kill_step, deterministic))
            process.start()
            return process

        complete, killed = start("complete", None), start("killed", steps + 2)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, f"the run to kill ended with status {killed.exitcode}"
        resumed = start("killed", None)
        resumed.join()
        complete.join()
        assert (complete.exitcode, resumed.exitcode) == (0, 0), f"status {complete.exitcode} and {resumed.exitcode}"
        tensors = {}
        for run, config in runs.items():
            last = config.folder / "checkpoints" / f"step-{config.steps}"
            tensors[run] = [load_file(last / f"{part}.safetensors") for part in ("model", "optimizer")]
        equal = all(
            torch.equal(tensor, other[key])
            for part, other in zip(tensors["complete"], tensors["killed"], strict=True)
            for key, tensor in part.items()
        )
        weights = [torch.cat([part[key].flatten() for key in sorted(part)]) for part, _ in tensors.values()]
        log = [line for line in read_metrics(runs["complete"].folder / "metrics.jsonl") if "loss" in line]
        speeds = [line["tokens_per_second"] for line in log]
        values = {"bit-equal": equal, "deviation": deviation(weights[1], weights[0]), "limit": limit}
        values |= {"tokens/s, sampled softmax": median(speeds[2:steps]), "tokens/s": median(speeds[steps + 1 :])}
        return values | {"first loss": log[0]["loss"], "last loss": log[-1]["loss"]}

    checks.run("data", prepare)
    # On CUDA sums by atomic additions have no fixed order, except with PyTorch's deterministic algorithms.
    checks.run("kill and resume", kill_and_resume, "usual", False, 0.01 if device.type == "cuda" else 0.0)
    if device.type == "cuda":
        checks.run("kill and resume, deterministic algorithms", kill_and_resume, "deterministic", True, 0.0)


def task_data(task: str, folder: Path) -> list[str]:
    """Write a few rows of a fine-tuning task; return the options that select them."""
    import pyarrow as pa

    from ...data.documents import write_parquet

    english, french = sentences("en", 60, 8), sentences("fr", 60, 8)
    origin = {"language": "en", "license": "CC0-1.0"}
    if task == "ocr":
        few = ["--data.synthetic_rows", "40", "--data.held_out_rows", "8", "--data.held_out", "0.3"]
        path = write_corpus(folder / "text", 40, 60)
        return ["--data.path", str(path), "--data.languages", "[en,fr]", "--data.copy_rows", "50", *few]
    if task == "translation":
        rows = [
            {"id": str(i), "source": f"page {i % 9}", "license": "CC0-1.0", "en": f"{a} {i}", "fr": f"{b} {i}"}
            for i, (a, b) in enumerate(zip(english, french, strict=True))
        ]
        write_parquet(folder / "segments.parquet", pa.Table.from_pylist(rows))
        limits = ["--data.languages", "[en,fr]", "--data.held_out", "0.3"]
        return ["--data.path", str(folder / "segments.parquet"), *limits]
    if task == "instruct":
        turns = [[("user", text), ("assistant", " ".join(text.split()[::-1]))] for text in english]
        messages = [[{"role": role, "content": text} for role, text in turn] for turn in turns]
        rows = [{"messages": row, "source": "random words", **origin} for row in messages]
        options = ["--data.tasks", "[]"]
    else:
        rows = []
        for i, text in enumerate(english):
            answer = f'It is so <ref name="1">"{text[:-1]}"</ref>.'
            row = {"query": f"What is number {i}?", "sources": [text, french[i]], "answer": answer, "source": str(i)}
            rows.append(row | {"language": "en"})
        options = ["--data.held_out", "0.4", "--data.copy_rows", "0"]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["--data.path", str(path), *options]


def finetuning(name: str, task: str, checks: Checks, device: torch.device, folder: Path) -> None:
    """Fine-tune the small model for two steps with a packaged config, and measure it."""

    def run() -> dict:
        from ...common.config import parse
        from ...finetune import finetune
        from ...finetuning.recipe import FinetuneConfig

        few = ["--max_steps", "2", "--measure.max_new_tokens", "4", "--measure.selection_rows", "2"]
        few += ["--measure.rows", "2", "--max_length", "512", "--preference_prompts", "16"]
        if device.type != "cuda":
            few += ["--trainer.per_device_train_batch_size", "2"]
            if "grpo" in name:
                few += ["--trainer.num_generations", "2", "--trainer.max_completion_length", "4"]
        options = ["--base_model", str(model_folder(sizes(device), folder)), "--out", str(folder / "run")]
        config = parse(FinetuneConfig, ["--config", name, *options, *few, *task_data(task, folder)], description="")
        finetune(config)
        losses = [line["loss"] for line in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in line]
        assert losses and (folder / "run" / "model" / "config.json").is_file(), "the run wrote no model"
        return {"loss": losses[-1], "peak GB": peak_memory(device) / 1e9}

    checks.run("two steps", run)
