"""A sharded model trains like the unsharded one, and its checkpoints open on any number of processes.

Processes are forked, communicate over gloo, and run the code that GPUs run.
"""

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from training_runs import as_yaml

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training import pretrain
from training.common.config import InputError
from training.pretraining.recipe import IntervalConfig, PretrainConfig, Stage
from training.run import checkpoint
from training.run.checkpoint import Checkpoint, CheckpointSaver
from training.run.metrics import read_metrics
from training.run.stopping import EXIT_RESUMABLE
from training.step import parallel
from training.step.compute import NextTokenLoss
from training.step.optimizer import OptimizerConfig
from training.step.parallel import ParallelLayout

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

# 101 and 33 divide by nothing here: FSDP's shares are uneven, and at four processes the norms' are as well.
SHAPE = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
ALONE = ParallelLayout()
CUT = {
    "FSDP on 2": ParallelLayout(shard=2, sharded=True),
    "FSDP on 4": ParallelLayout(shard=4, sharded=True),
    "HSDP on 2 x 2": ParallelLayout(replicate=2, shard=2, sharded=True),
    "TP on 2": ParallelLayout(tensor=2, sharded=True),
    "FSDP x TP on 2 x 2": ParallelLayout(shard=2, tensor=2, sharded=True),
}
BATCH, STEPS = 8, 6


def in_processes(number: int, work, *arguments) -> list:
    """Return the results of `work(rank, *arguments)` in each of `number` forked processes; all end if one fails."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int, pipe) -> None:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": number,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ |= {name: str(value) for name, value in place.items()}
        try:
            pipe.send(("done", work(rank, *arguments)))
        except SystemExit as stop:
            pipe.send(("done", stop.code))
        except BaseException:
            pipe.send(("failed", traceback.format_exc()))
        finally:
            pipe.close()
            os._exit(0)

    pipes, children = [], []
    for rank in range(number):
        ours, theirs = context.Pipe(duplex=False)
        children.append(context.Process(target=child, args=(rank, theirs), daemon=True))
        children[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        results = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(300), f"process {rank} of {number} did not answer"
            outcome, result = pipe.recv()
            assert outcome == "done", result
            results.append(result)
        return results
    finally:
        for process in children:
            process.kill()
            process.join()


@contextmanager
def gloo(layout: ParallelLayout, rank: int):
    """Set up the process group; yield the layout of this process."""
    dist.init_process_group("gloo")
    yield replace(layout, rank=rank)
    dist.destroy_process_group()


def build(layout: ParallelLayout, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Return a model, sharded by the layout, and its optimizer."""
    torch.manual_seed(seed)
    loss_model = NextTokenLoss(PleiasForCausalLM(PleiasConfig(**SHAPE)), dtype)
    if layout.sharded:
        layout.shard_model(loss_model, dtype)
    return loss_model, torch.optim.AdamW(loss_model.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.01, fused=True)


def train(layout: ParallelLayout, loss_model, optimizer, steps: range) -> list[tuple[float, float]]:
    """Train; return loss and gradient norm, over all processes, of each step."""
    results = []
    for step in steps:
        windows = torch.randint(SHAPE["vocab_size"], (BATCH, 17), generator=torch.Generator().manual_seed(step))
        share = BATCH // layout.data_processes
        local = windows[layout.data_rank * share :][:share]
        total = torch.zeros(())
        for micro in local.split(max(1, share // 2)):  # two per step if there are two
            loss = loss_model(micro) * len(micro) / share
            loss.backward()
            total += loss.detach()
        norm = parallel.clip_gradients(loss_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if dist.is_initialized():
            dist.all_reduce(total)
        results.append((total.item() / (layout.data_processes * layout.tensor), norm.item()))
    return results


def processes(layout: ParallelLayout) -> int:
    return layout.replicate * layout.shard * layout.tensor


# Steps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """Losses and norms of a single process, and its checkpoint after three steps."""
    folder = tmp_path_factory.mktemp("alone")
    loss_model, optimizer = build(ALONE)
    steps = train(ALONE, loss_model, optimizer, range(3))
    CheckpointSaver(folder, loss_model.model, optimizer, keep=1, background=False).save(3, {})
    steps += train(ALONE, loss_model, optimizer, range(3, STEPS))
    return {"folder": folder, "steps": steps, "bf16": train(ALONE, *build(ALONE, dtype=torch.bfloat16), range(STEPS))}


def assert_close(steps, expected, *, loss: float = 2e-5, norm: float = 2e-4):
    """Compare losses by absolute and norms by relative difference."""
    for (a, n), (b, m) in zip(steps, expected, strict=True):
        assert a == pytest.approx(b, abs=loss) and n == pytest.approx(m, rel=norm), (steps, expected)


def from_the_start(rank: int, layout: ParallelLayout, dtype: torch.dtype, folder: Path):
    with gloo(layout, rank) as layout:
        loss_model, optimizer = build(layout, dtype=dtype)
        assert all(isinstance(parameter, DTensor) for parameter in loss_model.parameters())
        steps = train(layout, loss_model, optimizer, range(3))
        saver = CheckpointSaver(folder, loss_model.model, optimizer, keep=2)
        saver.save(3, {})
        steps += train(layout, loss_model, optimizer, range(3, STEPS))
        saver.wait()
        dist.barrier()
        held = sum(parallel.local(parameter).numel() for parameter in loss_model.parameters())
        full_model = parallel.gather_full_model(loss_model.model, torch.float32, keep=rank == 0)
        saver.save(STEPS, {})
        saver.wait()
        tensors = {name: p.detach().numpy() for name, p in full_model.named_parameters()} if full_model else None
        return steps, held, tensors


def resumed(rank: int, layout: ParallelLayout, folder: Path, out: Path):
    """Resume from a checkpoint of any layout, and save what was read as another checkpoint."""
    with gloo(layout, rank) as layout:
        loss_model, optimizer = build(layout, seed=1)
        Checkpoint(folder, 3).restore(loss_model.model, optimizer)
        saver = CheckpointSaver(out, loss_model.model, optimizer, keep=1, background=False)
        saver.save(3, {})
        return train(layout, loss_model, optimizer, range(3, STEPS))


def assert_same_tensors(folder: Path, other: Path, step: int = 3):
    first, second = Checkpoint(folder, step), Checkpoint(other, step)
    for part in checkpoint.PARTS:
        assert first.tensors[part].keys() == second.tensors[part].keys() and first.tensors[part]
        for name in first.tensors[part]:
            assert torch.equal(first.read(part, name), second.read(part, name)), name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Function (name in CUT): the results of its processes in a run, and the folder of its checkpoints."""
    known = {}

    def run(name: str):
        if name not in known:
            layout, folder = CUT[name], tmp_path_factory.mktemp("cut")
            known[name] = in_processes(processes(layout), from_the_start, layout, torch.float32, folder), folder
        return known[name]

    return run


@pytest.mark.parametrize("name", CUT)
def test_a_sharded_model_trains_like_an_unsharded_one_and_each_process_stores_its_share(name, alone, written):
    layout, (results, folder) = CUT[name], written(name)
    for steps, _, _ in results:
        assert_close(steps, alone["steps"])
    total = sum(parameter.numel() for parameter in build(ALONE)[0].parameters())
    held = [held for _, held, _ in results]
    if layout.tensor == 1:  # a group stores the full model once
        assert sum(held) == total * layout.replicate
    else:  # each process of `tensor` stores embedding and norms
        matrices = sum(p.numel() for p in build(ALONE)[0].model.model.layers.parameters() if p.dim() == 2)
        assert sum(held) == matrices + (total - matrices) * layout.tensor
    # The last checkpoint combines the parts of the processes.
    last = Checkpoint(folder, STEPS)
    for parameter, tensor in results[0][2].items():
        assert torch.equal(last.read("model", parameter), torch.from_numpy(tensor)), parameter
    assert all(tensor is None for _, _, tensor in results[1:])


def test_each_process_writes_its_part_and_copies_are_written_once(written):
    def files(name):
        return sorted(path.name for path in (written(name)[1] / f"step-{STEPS}").glob("*.safetensors"))

    assert files("FSDP on 4") == [f"{part}-{rank:05}.safetensors" for part in checkpoint.PARTS for rank in range(4)]
    for name in ("FSDP on 2", "HSDP on 2 x 2", "TP on 2"):
        assert files(name) == [f"{part}-{rank:05}.safetensors" for part in checkpoint.PARTS for rank in range(2)]
    sizes = {name: Checkpoint(written(name)[1], STEPS).path for name in CUT}
    stored = {name: sum(f.stat().st_size for f in path.glob("model*")) for name, path in sizes.items()}
    assert max(stored.values()) < 1.15 * min(stored.values()), stored  # headers aside


def test_with_bf16_matmuls_a_sharded_model_trains_like_an_unsharded_one(alone, tmp_path):
    layout = CUT["FSDP x TP on 2 x 2"]
    results = in_processes(4, from_the_start, layout, torch.bfloat16, tmp_path)
    # Weights and norms are gathered in bf16; steps of one process in bf16 and in fp32 differ as much.
    assert_close(results[0][0], alone["bf16"], loss=5e-3, norm=4e-2)
    assert_close(alone["steps"], alone["bf16"], loss=5e-3, norm=4e-2)


@pytest.mark.parametrize(
    "writer, reader",
    [
        (None, "FSDP on 2"),
        (None, "FSDP x TP on 2 x 2"),
        ("FSDP on 2", None),
        ("FSDP on 2", "FSDP on 4"),
        ("FSDP on 4", "TP on 2"),
        ("HSDP on 2 x 2", "FSDP on 4"),
        ("TP on 2", "FSDP on 2"),
        ("FSDP x TP on 2 x 2", None),
    ],
)
def test_a_checkpoint_opens_bit_for_bit_on_any_number_of_processes(writer, reader, alone, written, tmp_path):
    """From sharded to unsharded, the reverse, and between layouts; training then continues unchanged."""
    folder = written(writer)[1] if writer else alone["folder"]
    layout = CUT[reader] if reader else ALONE
    results = in_processes(processes(layout), resumed, layout, folder, tmp_path / "read")
    assert_same_tensors(folder, tmp_path / "read")
    for steps in results:
        assert_close(steps, alone["steps"][3:])


# Requests of the launcher ----------------------------------------------------------------------------

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def launched(monkeypatch, processes: int, **requested: str) -> ParallelLayout:
    for name, value in {"RANK": "3", "WORLD_SIZE": str(processes), **requested}.items():
        monkeypatch.setenv(name, value)
    return ParallelLayout.from_launcher()


def test_the_launcher_specifies_the_layout_and_accelerate_does_not_see_it(monkeypatch):
    assert launched(monkeypatch, 4) == ParallelLayout(rank=3, replicate=4)
    assert launched(monkeypatch, 4, **FSDP2) == ParallelLayout(rank=3, shard=4, sharded=True)
    assert not [name for name in os.environ if name in FSDP2]
    sizes = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "3"}
    sizes |= {"PARALLELISM_CONFIG_TP_SIZE": "4", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    layout = launched(monkeypatch, 24, **FSDP2, **sizes)
    assert layout == ParallelLayout(rank=3, replicate=2, shard=3, tensor=4, sharded=True, reshard=False)
    assert (layout.data_rank, layout.data_processes) == (0, 6)
    assert launched(monkeypatch, 1, **FSDP2) == ParallelLayout(rank=3)  # nothing to shard


@pytest.mark.parametrize(
    "requested, message",
    [
        ({"FSDP_VERSION": "1"}, "requests FSDP 1. Set fsdp_version: 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "requests fsdp_activation_checkpointing: not supported"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "requests cp or sp: not supported"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "3"}, r"1 x 4 x 3 processes .* but there are 4. Change it or --num_processes"),
    ],
)
def test_unsupported_features_are_rejected(requested, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        launched(monkeypatch, 4, **(FSDP2 | requested))


def test_heads_that_do_not_divide_are_rejected():
    def cut(rank: int):
        with gloo(ParallelLayout(tensor=3, sharded=True), rank) as layout:
            with pytest.raises(InputError, match="num_key_value_heads must be a multiple of tp_size 3, got 2"):
                build(layout)
            dist.barrier()  # the first rank, which runs the store, waits for the others

    in_processes(3, cut)


# Runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tiny_shards, tiny_tokenizer, tmp_path_factory) -> PretrainConfig:
    """Twelve steps over the tiny shards."""
    stages = [
        Stage("base", steps=8, sequences=8, shards=tiny_shards),
        Stage("end", steps=4, sequences=4, shards=tiny_shards),
    ]
    config = PretrainConfig(
        name="tiny",
        stages=stages,
        model=SHAPE | {"vocab_size": 400},
        optimizer=OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3),
        every=IntervalConfig(log=1, validate=6, checkpoint=4, keep=2),
        out=tmp_path_factory.mktemp("runs") / "one",
        sequence_length=32,
        micro_batch=2,
        precision="fp32",
        validation_tokens=160,  # five windows, which do not divide among two or four processes
    )
    return replace(config, data=replace(config.data, tokenizer=tiny_tokenizer))


def run(rank: int, config: PretrainConfig, environment: dict[str, str], stop_after: int | None = None) -> None:
    """Run the program; `stop_after` is a step with a SIGTERM."""
    AcceleratorState._reset_state(reset_partial_state=True)  # state of a run in this process before the fork
    GradientState._reset_state()
    os.environ |= environment
    if stop_after:
        rate = PretrainConfig.learning_rate

        def learning_rate(self, step: int) -> float:
            if step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return rate(self, step)

        PretrainConfig.learning_rate = learning_rate
    pretrain.pretrain(config)


def lines(config: PretrainConfig) -> list[dict]:
    return read_metrics(config.folder / "metrics.jsonl")


def assert_same_training(config: PretrainConfig, reference: PretrainConfig):
    """Equal up to the order of sums: another batch would show in the first digits."""
    assert [line["step"] for line in lines(config)] == [line["step"] for line in lines(reference)]
    for line, other in zip(lines(config), lines(reference), strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], abs=1e-3)
            assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-2)
        else:
            for language, held in other["validation"].items():
                assert line["validation"][language]["loss"] == pytest.approx(held["loss"], abs=1e-3)


@pytest.fixture(scope="module")
def reference(config) -> PretrainConfig:
    in_processes(1, run, config, {})
    return config


PAIRS = {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "2"}
SESSIONS = {
    "DDP, on 1, 2 and 4": [(1, {}), (2, {}), (4, {})],
    "DDP, on 4 both times": [(4, {}), (4, {})],
    "FSDP on 2, DDP on 1, FSDP x TP on 4": [(2, FSDP2), (1, {}), (4, FSDP2 | PAIRS)],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "both times" in name else ()) for name in SESSIONS]
)
def test_a_run_resumes_when_the_number_of_processes_or_the_layout_changes(name, config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    sessions = SESSIONS[name]
    for (number, environment), stop_after in zip(sessions, [*(3, 9)[: len(sessions) - 1], None], strict=True):
        codes = in_processes(number, run, config, environment, stop_after)
        assert codes == [EXIT_RESUMABLE if stop_after else None] * number
        assert checkpoint.latest_step(config.folder / "checkpoints") == (stop_after or 12)
    assert_same_training(config, reference)
    tensors, expected = (load_file(run.folder / "model" / "model.safetensors") for run in (config, reference))
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16 and torch.allclose(tensor, expected[key], atol=2e-2), key


def launch(config: PretrainConfig, tmp_path: Path, *settings: str) -> subprocess.Popen:
    """Start the program under `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *settings]
    command += ["-m", "training.pretrain", "--config", str(as_yaml(config, tmp_path / "config.yaml"))]
    log = open(tmp_path / "log", "w")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_accelerate_launch_with_the_packaged_settings_shards_the_model_on_cpus_too(config, reference, tmp_path):
    config = replace(config, out=tmp_path / "run")
    settings = str(ROOT / "training" / "accelerate" / "fsdp2.yaml")
    process = launch(config, tmp_path, "--config_file", settings, "--num_processes", "2")
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    assert_same_training(config, reference)
    files = [path.name for path in (config.folder / "checkpoints" / "step-12").glob("model-*.safetensors")]
    assert sorted(files) == ["model-00000.safetensors", "model-00001.safetensors"]


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigterm_to_accelerate_launch_reaches_the_run_which_saves(number, config, tmp_path):
    every = IntervalConfig(log=1, validate=10_000, checkpoint=10_000)
    stages = [replace(config.stages[0], steps=10_000)]
    config = replace(config, out=tmp_path / "run", stages=stages, every=every)
    process = launch(config, tmp_path, "--num_processes", str(number), "--cpu")
    metrics, give_up = config.folder / "metrics.jsonl", time.monotonic() + 300
    try:
        while not (metrics.exists() and '"loss"' in metrics.read_text()):
            assert time.monotonic() < give_up and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.terminate()
        with open(config.folder / ".lock") as lock:  # the run locks it until it has ended
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < give_up, (tmp_path / "log").read_text()
                    time.sleep(0.1)
        assert 0 < checkpoint.latest_step(config.folder / "checkpoints") < 10_000
        assert process.wait(60) != 0
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
