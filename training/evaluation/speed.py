"""Speed on this machine: prefill and decode throughput in tokens/s, time to first token, peak memory."""

if not __package__:  # run by path; same as `python -m training.evaluation.speed`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.evaluation"

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from ..common.config import InputError, parse, run_main
from ..common.environment import hardware, peak_memory
from ..common.files import fingerprint
from ..common.generation import fast_weights
from ..common.intervals import Metric, ratio
from ..common.signals import end_with_parent
from .models import EvaluatedModel


@dataclass
class SpeedConfig:
    """Workload of the speed measurement.

    Args:
        prompt_tokens: Tokens of the prompt; fewer if the context is shorter.
        new_tokens: Generated tokens, at batch size 1.
        rounds: Timed rounds, after one warm-up round.
    """

    prompt_tokens: int = 512
    new_tokens: int = 32
    rounds: int = 5


@dataclass
class _Arguments:
    """Arguments of the separate process.

    Args:
        model: Model, as in training.evaluate.
        device: Torch device, such as cpu or cuda.
        precision: bf16 or fp32.
        speed: Workload.
    """

    model: str
    device: str
    precision: str
    speed: SpeedConfig = field(default_factory=SpeedConfig)


@torch.no_grad()
def timed(subject: EvaluatedModel, config: SpeedConfig) -> dict:
    """Return the seconds per round to the first token and to all tokens, the workload, and the peak memory."""
    model = subject.model
    new = min(config.new_tokens, subject.context // 2)
    prompt = min(config.prompt_tokens, subject.context - new)
    ids = torch.arange(prompt, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    options = {"do_sample": False, "num_beams": 1, "eos_token_id": None, "pad_token_id": 0}

    def seconds(count: int) -> float:
        start = _now(model.device)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=count, max_new_tokens=count, **options
        )
        assert out.shape[1] == prompt + count
        return _now(model.device) - start

    with fast_weights(model):  # as the tasks generate
        rounds = [(seconds(1), seconds(1 + new)) for _ in range(config.rounds + 1)][1:]
    return {
        "first": [first for first, _ in rounds],
        "total": [total for _, total in rounds],
        "prompt_tokens": prompt,
        "new_tokens": new,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": hardware()["threads"],
        "peak_memory_bytes": peak_memory(model.device),
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Speed:
    """Task, run in a separate process because peak memory is measured over the lifetime of a process."""

    name = "speed"

    def __init__(self, config: SpeedConfig):
        self.config, self.settings = config, asdict(config)
        machine = hardware()
        self.data = {"source": "this machine", "hardware": machine, "fingerprint": fingerprint(machine)}

    def measure(self, subject: EvaluatedModel) -> dict:
        """Return the result of `timed`."""
        print(f"{subject.name}: speed", file=sys.stderr)
        precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[subject.dtype]
        options = {f"speed.{name}": value for name, value in self.settings.items()}
        options |= {"model": subject.reference, "device": str(subject.device), "precision": precision}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments], capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            raise InputError(f"Measuring {subject.reference} failed: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(done.stdout.splitlines()[-1])

    def metrics(self, record: dict) -> dict[str, Metric | float]:
        """Return rates as tokens over time of all rounds; their intervals are over rounds."""
        first, total = np.array(record["first"]), np.array(record["total"])
        rounds = len(first)
        return {
            "prefill, tokens/s": ratio(np.full(rounds, record["prompt_tokens"]), first),
            "decode, tokens/s": ratio(np.full(rounds, record["new_tokens"]), total - first),
            "time to first token, s": Metric(first),
            "peak memory, GB": record["peak_memory_bytes"] / 1e9,
        }

    def details(self, record: dict) -> dict:
        """Return the workload, dtype and CPU threads."""
        return {"how": {key: record[key] for key in ("prompt_tokens", "new_tokens", "dtype", "threads")}}


def main() -> None:
    """Run `python -m training.evaluation.speed`, which training.evaluate starts: print the measurement as JSON."""
    end_with_parent()
    arguments = parse(_Arguments, description="Time prefill and decode of one model.")
    subject = EvaluatedModel(arguments.model, device=arguments.device, precision=arguments.precision)
    print(json.dumps(timed(subject, arguments.speed)))


if __name__ == "__main__":
    run_main(main)
