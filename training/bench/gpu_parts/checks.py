"""Sizes, results and the training step that the parts of training.bench.gpu share.

A check that fails does not stop the next; one that needs a library or a device that is missing is skipped.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

from ...common.files import write_json
from ...step.compute import NextTokenLoss
from ...step.optimizer import OptimizerConfig, build_optimizer
from ...step.step_guard import StepGuard

ROOT = Path(__file__).parents[3]
FEMTO, TOKENIZER = ROOT / "model_card" / "femto", ROOT / "modeling_pleias" / "tokenizer"
HELD_OUT = ROOT / "data" / "femto" / "mixture" / "held_out"  # written by the commands of configs/pretrain/femto.yaml
CONVENTIONS = {"none": "MFU 6N", "causal": "MFU causal", "full": "MFU PaLM"}
NEWTON_SCHULZ = {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "eps": 1e-7}  # of torch.optim.Muon
CPU = torch.device("cpu")


class SkipError(Exception):
    """A check that this device cannot run; the message states what it needs."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the workloads.

    Args:
        small: Shape of the model of most parts; femto's weights are used if it is femto's.
        large: Shape of the model of the training step.
        length: Tokens per window of the large model.
        micro_batches: Windows per micro batch that the training step tries, in this order.
        steps: Timed steps of each, after a warm-up of two.
        batch: Windows and tokens of the parity checks.
        loss: Positions and width in the checks of the loss, whose vocabulary is the small model's.
        square: Rows of the square matmul.
        generate: Tokens of a prompt, and new tokens.
        pretrain: Steps of each of two stages, sequences per step, tokens per sequence, windows per micro batch.
        documents: Documents of 500 words in the text of the pretraining part.
    """

    small: PleiasConfig
    large: PleiasConfig
    length: int
    micro_batches: tuple[int, ...]
    steps: int
    batch: tuple[int, int]
    loss: tuple[int, int]
    square: int
    generate: tuple[int, int]
    pretrain: tuple[int, int, int, int]
    documents: int


def sizes(device: torch.device) -> Sizes:
    """Return the sizes for a device."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tiny = PleiasConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, max_position_embeddings=512, **heads
    )
    if device.type == "cuda":
        femto, nano = PleiasConfig.from_pretrained(FEMTO), PleiasConfig.nano_1_2b()
        work = {"loss": (1500, 384), "square": 8192, "generate": (512, 128), "pretrain": (6, 256, 1024, 128)}
        return Sizes(femto, nano, 2048, (4, 8, 16, 32), 5, (2, 256), documents=500, **work)
    large = PleiasConfig(**tiny.to_diff_dict() | {"vocab_size": 512})
    work = {"loss": (70, 16), "square": 128, "generate": (16, 4), "pretrain": (4, 4, 64, 2)}
    return Sizes(tiny, large, 64, (1, 2), 2, (2, 32), documents=20, **work)


class Checks:
    """Results of a part, written to a JSON file after each check; one that fails does not stop the next.

    Args:
        path: JSON file: a list of {"check", "status", "seconds", "values"}, with "error" unless it passed.
    """

    def __init__(self, path: Path):
        self.path, self.rows = path, []

    def run(self, name: str, function: Callable[..., dict | None], *arguments) -> dict:
        """Run a check and store the values that it returns; it fails if `deviation` is not at most `limit`."""
        start, row = time.perf_counter(), {"check": name, "status": "passed"}
        try:
            row["values"] = values = function(*arguments) or {}
            if "limit" in values and not values["deviation"] <= values["limit"]:  # also NaN
                row |= {"status": "failed", "error": f"deviation {values['deviation']:.3g} above {values['limit']:g}"}
        except (SkipError, ModuleNotFoundError) as error:
            library = (getattr(error, "name", None) or "").partition(".")[0]
            if library in ("training", "modeling_pleias"):
                raise
            row |= {"status": "skipped", "error": f"needs {library or error}"}
        except Exception as error:
            traceback.print_exc()
            row |= {"status": "failed", "error": last_line(error)}
        row["seconds"] = round(time.perf_counter() - start, 2)
        self.rows.append(row)
        write_json(self.path, self.rows)
        print(f"{name}: {row['status']} in {row['seconds']} s {row.get('error', row.get('values', ''))}", flush=True)
        return row.get("values", {})


def last_line(error: BaseException) -> str:
    """Return type and last line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:300] if lines else ''}"


def deviation(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference relative to the reference's, in double precision."""
    a, b = result.detach().cpu().double(), reference.detach().cpu().double()
    return ((a - b).norm() / b.norm()).item()


def synchronize(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """Return the time of a call, the median of `calls` after two of warm-up, each waited for."""
    times = []
    for _ in range(calls + 2):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[2:])


def model_folder(size: Sizes, folder: Path) -> Path:
    """Return the folder of the small model with a tokenizer: femto, or a random one, which is written."""
    if size.small.to_dict() == PleiasConfig.from_pretrained(FEMTO).to_dict():
        return FEMTO
    torch.manual_seed(0)
    PleiasForCausalLM(size.small).save_pretrained(folder / "model")
    PleiasTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "model")
    return folder / "model"


def load_model(folder: Path, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> PleiasForCausalLM:
    """Load a model for inference."""
    options = {"dtype": dtype, "attn_implementation": attention}
    return PleiasForCausalLM.from_pretrained(folder, **options).to(device).eval()


def random_windows(vocab_size: int, batch: int, tokens: int) -> torch.Tensor:
    """Return (B, T) random ids, always the same."""
    return torch.randint(4, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(1))


def gradient(module: torch.nn.Module) -> torch.Tensor:
    """Return all gradients of a module as one vector in double precision."""
    return torch.cat([parameter.grad.detach().cpu().double().flatten() for parameter in module.parameters()])


class Trainer:
    """Training steps of a model on a device, as in pretraining."""

    def __init__(self, model: PleiasForCausalLM, name: str, device: torch.device, dtype: torch.dtype):
        from accelerate import Accelerator

        from ...pretrain import train_step  # brings the libraries of the data

        self.accelerator, self.train_step = Accelerator(mixed_precision="no", cpu=device.type == "cpu"), train_step
        self.model, self.guard = model.train(), StepGuard(100, device)
        self.optimizer = self.accelerator.prepare(build_optimizer(OptimizerConfig(name=name), model))
        self.loss = self.accelerator.prepare(NextTokenLoss(model, dtype))

    def step(self, micro_batches: list) -> torch.Tensor:
        """Train one step on micro batches (arrays of ids); return the loss without waiting for it."""
        return self.train_step(self.accelerator, self.loss, self.optimizer, micro_batches, clip=1.0, guard=self.guard)[
            0
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of weights and optimizer state."""
        state = self.optimizer.optimizer.state
        tensors = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{name}/{key}": value.clone() for key, value in state[parameter].items()}
        return tensors
