"""A model cut over processes trains as the whole one does, and its checkpoints open on any number of processes.

Processes are forked, meet over gloo, and run the very code that GPUs run.
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
from training import checkpoint, parallel, pretrain
from training.checkpoint import Checkpoint, Saver
from training.compute import NextTokenLoss
from training.config import InputError
from training.metrics import read_metrics
from training.parallel import Layout
from training.recipe import EveryConfig, OptimizerConfig, PretrainConfig, Stage

ROOT = Path(__file__).parent.parent
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
ALONE = Layout()
CUT = {
    "FSDP on 2": Layout(shard=2, sharded=True),
    "FSDP on 4": Layout(shard=4, sharded=True),
    "HSDP on 2 x 2": Layout(replicate=2, shard=2, sharded=True),
    "TP on 2": Layout(tensor=2, sharded=True),
    "FSDP x TP on 2 x 2": Layout(shard=2, tensor=2, sharded=True),
}
BATCH, STEPS = 8, 6


def in_processes(number: int, work, *arguments) -> list:
    """What `work(rank, *arguments)` returns in each of `number` forked processes; all end when one fails."""
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
            assert pipe.poll(300), f"process {rank} of {number} said nothing"
            outcome, result = pipe.recv()
            assert outcome == "done", result
            results.append(result)
        return results
    finally:
        for one in children:
            one.kill()
            one.join()


@contextmanager
def gloo(layout: Layout, rank: int):
    """The process group, and this process's layout."""
    dist.init_process_group("gloo")
    yield replace(layout, rank=rank)
    dist.destroy_process_group()


def made(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A model, cut if the layout says so, and its optimizer."""
    torch.manual_seed(seed)
    loss_model = NextTokenLoss(PleiasForCausalLM(PleiasConfig(**SHAPE)), dtype)
    if layout.sharded:
        layout.cut(loss_model, dtype)
    return loss_model, torch.optim.AdamW(loss_model.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.01, fused=True)


def train(layout: Layout, loss_model, optimizer, steps: range) -> list[tuple[float, float]]:
    """Loss and gradient norm, over all processes, of each step."""
    told = []
    for step in steps:
        windows = torch.randint(SHAPE["vocab_size"], (BATCH, 17), generator=torch.Generator().manual_seed(step))
        share = BATCH // layout.data_processes
        mine = windows[layout.data_rank * share :][:share]
        total = torch.zeros(())
        for micro in mine.split(max(1, share // 2)):  # two a step, where there are two
            loss = loss_model(micro) * len(micro) / share
            loss.backward()
            total += loss.detach()
        norm = parallel.clip_gradients(loss_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if dist.is_initialized():
            dist.all_reduce(total)
        told.append((total.item() / (layout.data_processes * layout.tensor), norm.item()))
    return told


def processes(layout: Layout) -> int:
    return layout.replicate * layout.shard * layout.tensor


# Steps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """What one process does: its losses and norms, and a checkpoint after three steps."""
    folder = tmp_path_factory.mktemp("alone")
    loss_model, optimizer = made(ALONE)
    told = train(ALONE, loss_model, optimizer, range(3))
    Saver(folder, loss_model.model, optimizer, keep=1, background=False).save(3, {})
    told += train(ALONE, loss_model, optimizer, range(3, STEPS))
    return {"folder": folder, "told": told, "bf16": train(ALONE, *made(ALONE, dtype=torch.bfloat16), range(STEPS))}


def assert_close(told, expected, *, loss: float = 2e-5, norm: float = 2e-4):
    """Absolute difference of the losses, relative difference of the norms."""
    for (a, n), (b, m) in zip(told, expected, strict=True):
        assert a == pytest.approx(b, abs=loss) and n == pytest.approx(m, rel=norm), (told, expected)


def from_the_start(rank: int, layout: Layout, dtype: torch.dtype, folder: Path):
    with gloo(layout, rank) as layout:
        loss_model, optimizer = made(layout, dtype=dtype)
        assert all(isinstance(parameter, DTensor) for parameter in loss_model.parameters())
        told = train(layout, loss_model, optimizer, range(3))
        saver = Saver(folder, loss_model.model, optimizer, keep=2)
        saver.save(3, {})
        told += train(layout, loss_model, optimizer, range(3, STEPS))
        saver.wait()
        dist.barrier()
        held = sum(parallel.local(parameter).numel() for parameter in loss_model.parameters())
        whole = parallel.gathered(loss_model.model, torch.float32, keep=rank == 0)
        saver.save(STEPS, {})
        saver.wait()
        tensors = {name: p.detach().numpy() for name, p in whole.named_parameters()} if whole else None
        return told, held, tensors


def resumed(rank: int, layout: Layout, folder: Path, out: Path):
    """Go on from a checkpoint, whoever wrote it, and write what was read as another."""
    with gloo(layout, rank) as layout:
        loss_model, optimizer = made(layout, seed=1)
        Checkpoint(folder, 3).restore(loss_model.model, optimizer)
        saver = Saver(out, loss_model.model, optimizer, keep=1, background=False)
        saver.save(3, {})
        return train(layout, loss_model, optimizer, range(3, STEPS))


def assert_same_tensors(folder: Path, other: Path, step: int = 3):
    one, two = Checkpoint(folder, step), Checkpoint(other, step)
    for part in checkpoint.PARTS:
        assert one.tensors[part].keys() == two.tensors[part].keys() and one.tensors[part]
        for name in one.tensors[part]:
            assert torch.equal(one.read(part, name), two.read(part, name)), name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Function (name in CUT): what its processes told of a run from the start, and where its checkpoints lie."""
    known = {}

    def run(name: str):
        if name not in known:
            layout, folder = CUT[name], tmp_path_factory.mktemp("cut")
            known[name] = in_processes(processes(layout), from_the_start, layout, torch.float32, folder), folder
        return known[name]

    return run


@pytest.mark.parametrize("name", CUT)
def test_a_cut_model_trains_as_a_whole_one_and_each_process_holds_its_share(name, alone, written):
    layout, (results, folder) = CUT[name], written(name)
    for told, _, _ in results:
        assert_close(told, alone["told"])
    total = sum(parameter.numel() for parameter in made(ALONE)[0].parameters())
    held = [held for _, held, _ in results]
    if layout.tensor == 1:  # a group holds the whole once
        assert sum(held) == total * layout.replicate
    else:  # embedding and norms are held by each of `tensor`
        matrices = sum(p.numel() for p in made(ALONE)[0].model.model.layers.parameters() if p.dim() == 2)
        assert sum(held) == matrices + (total - matrices) * layout.tensor
    # The last checkpoint is what the processes hold, put together.
    last = Checkpoint(folder, STEPS)
    for parameter, whole in results[0][2].items():
        assert torch.equal(last.read("model", parameter), torch.from_numpy(whole)), parameter
    assert all(whole is None for _, _, whole in results[1:])


def test_each_process_writes_its_part_and_a_copy_of_the_whole_is_written_once(written):
    def files(name):
        return sorted(path.name for path in (written(name)[1] / f"step-{STEPS}").glob("*.safetensors"))

    assert files("FSDP on 4") == [f"{part}-{rank:05}.safetensors" for part in checkpoint.PARTS for rank in range(4)]
    for name in ("FSDP on 2", "HSDP on 2 x 2", "TP on 2"):
        assert files(name) == [f"{part}-{rank:05}.safetensors" for part in checkpoint.PARTS for rank in range(2)]
    sizes = {name: Checkpoint(written(name)[1], STEPS).path for name in CUT}
    stored = {name: sum(f.stat().st_size for f in path.glob("model*")) for name, path in sizes.items()}
    assert max(stored.values()) < 1.15 * min(stored.values()), stored  # headers aside


def test_with_bf16_products_a_cut_model_trains_as_a_whole_one(alone, tmp_path):
    layout = CUT["FSDP x TP on 2 x 2"]
    results = in_processes(4, from_the_start, layout, torch.bfloat16, tmp_path)
    # Weights travel in bf16, norms too; steps of one process in bf16 and in fp32 are this far apart, too.
    assert_close(results[0][0], alone["bf16"], loss=5e-3, norm=4e-2)
    assert_close(alone["told"], alone["bf16"], loss=5e-3, norm=4e-2)


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
    """Sharded to whole, whole to sharded, and one sharding to another; then training goes on as it would have."""
    folder = written(writer)[1] if writer else alone["folder"]
    layout = CUT[reader] if reader else ALONE
    results = in_processes(processes(layout), resumed, layout, folder, tmp_path / "read")
    assert_same_tensors(folder, tmp_path / "read")
    for told in results:
        assert_close(told, alone["told"][3:])


# What the launcher asks for --------------------------------------------------------------------------

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def launched(monkeypatch, processes: int, **asked: str) -> Layout:
    for name, value in {"RANK": "3", "WORLD_SIZE": str(processes), **asked}.items():
        monkeypatch.setenv(name, value)
    return Layout.from_launcher()


def test_the_launcher_says_what_is_cut_and_accelerate_does_not_hear_of_it(monkeypatch):
    assert launched(monkeypatch, 4) == Layout(rank=3, replicate=4)
    assert launched(monkeypatch, 4, **FSDP2) == Layout(rank=3, shard=4, sharded=True)
    assert not [name for name in os.environ if name in FSDP2]
    sizes = {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "3"}
    sizes |= {"PARALLELISM_CONFIG_TP_SIZE": "4", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    layout = launched(monkeypatch, 24, **FSDP2, **sizes)
    assert layout == Layout(rank=3, replicate=2, shard=3, tensor=4, sharded=True, reshard=False)
    assert (layout.data_rank, layout.data_processes) == (0, 6)
    assert launched(monkeypatch, 1, **FSDP2) == Layout(rank=3)  # nothing to cut


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"FSDP_VERSION": "1"}, "asks for FSDP 1; set fsdp_version: 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "asks for fsdp_activation_checkpointing, which is not done"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "cp or sp, which is not done"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "3"}, r"1 x 4 x 3 processes .* and there are 4; change it or --num_processes"),
    ],
)
def test_what_is_not_done_here_is_refused(asked, said, monkeypatch):
    with pytest.raises(InputError, match=said):
        launched(monkeypatch, 4, **(FSDP2 | asked))


def test_heads_that_do_not_divide_are_refused():
    def cut(rank: int):
        with gloo(Layout(tensor=3, sharded=True), rank) as layout:
            with pytest.raises(InputError, match="num_key_value_heads 2 does not divide by tp_size 3"):
                made(layout)
            dist.barrier()  # the first rank, which holds the store, waits for the others

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
        every=EveryConfig(log=1, validate=6, checkpoint=4, keep=2),
        out=tmp_path_factory.mktemp("runs") / "one",
        sequence_length=32,
        micro_batch=2,
        precision="fp32",
        validation_tokens=160,  # five windows, which do not divide among two or four processes
    )
    return replace(config, data=replace(config.data, tokenizer=tiny_tokenizer))


def run(rank: int, config: PretrainConfig, environment: dict[str, str], stop_after: int | None = None) -> None:
    """The whole program; a `stop_after` is a SIGTERM in that step."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of a run in this process before it was forked
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


def assert_same_training(config: PretrainConfig, whole: PretrainConfig):
    """Equal up to the order of sums: another batch would show in the first digits."""
    assert [line["step"] for line in lines(config)] == [line["step"] for line in lines(whole)]
    for mine, other in zip(lines(config), lines(whole), strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(other["loss"], abs=1e-3)
            assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-2)
        else:
            for language, held in other["validation"].items():
                assert mine["validation"][language]["loss"] == pytest.approx(held["loss"], abs=1e-3)


@pytest.fixture(scope="module")
def whole(config) -> PretrainConfig:
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
def test_a_run_goes_on_when_the_number_of_processes_or_what_they_hold_changes(name, config, whole, tmp_path):
    config = replace(config, out=tmp_path / "run")
    sessions = SESSIONS[name]
    for (number, environment), stop_after in zip(sessions, [*(3, 9)[: len(sessions) - 1], None], strict=True):
        codes = in_processes(number, run, config, environment, stop_after)
        assert codes == [pretrain.STOPPED if stop_after else None] * number
        assert checkpoint.latest_step(config.folder / "checkpoints") == (stop_after or 12)
    assert_same_training(config, whole)
    tensors, expected = (load_file(run.folder / "model" / "model.safetensors") for run in (config, whole))
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16 and torch.allclose(tensor, expected[key], atol=2e-2), key


def launch(config: PretrainConfig, tmp_path: Path, *settings: str) -> subprocess.Popen:
    """The program under `accelerate launch`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *settings]
    command += ["-m", "training.pretrain", "--config", str(as_yaml(config, tmp_path / "config.yaml"))]
    log = open(tmp_path / "log", "w")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_accelerate_launch_with_the_packaged_settings_cuts_the_model_on_cpus_too(config, whole, tmp_path):
    config = replace(config, out=tmp_path / "run")
    settings = str(ROOT / "training" / "accelerate" / "fsdp2.yaml")
    process = launch(config, tmp_path, "--config_file", settings, "--num_processes", "2")
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    assert_same_training(config, whole)
    files = [path.name for path in (config.folder / "checkpoints" / "step-12").glob("model-*.safetensors")]
    assert sorted(files) == ["model-00000.safetensors", "model-00001.safetensors"]


@pytest.mark.parametrize("number", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigterm_to_accelerate_launch_reaches_the_run_which_saves(number, config, tmp_path):
    every = EveryConfig(log=1, validate=10_000, checkpoint=10_000)
    stages = [replace(config.stages[0], steps=10_000)]
    config = replace(config, out=tmp_path / "run", stages=stages, every=every)
    process = launch(config, tmp_path, "--num_processes", str(number), "--cpu")
    metrics, give_up = config.folder / "metrics.jsonl", time.monotonic() + 300
    try:
        while not (metrics.exists() and '"loss"' in metrics.read_text()):
            assert time.monotonic() < give_up and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.terminate()
        with open(config.folder / ".lock") as lock:  # the run holds it until it has ended
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
