"""Whatever happens while a checkpoint is written, a valid one is found, and a run resumes from it bit for bit."""

import errno
import json
import os
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from programs import run_program
from safetensors import safe_open

from training.common.config import InputError
from training.run import checkpoint
from training.run.checkpoint import Checkpoint, CheckpointSaver, TensorShard
from training.step.loss import next_token_loss

REPOSITORY = Path(__file__).parents[2]


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors that a tiny run would save at a step; they differ between steps."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(31, 2, generator=generator), "n.weight": torch.full((2,), 0.1).bfloat16()},
        "optimizer": {"w/exp_avg": torch.randn(31, 2, generator=generator), "w/step": torch.tensor(float(step))},
    }


def share(step: int, rank: int, writers: int) -> checkpoint.Tensors:
    """Return the part of these tensors that one of several processes stores under FSDP."""
    parts = {part: {} for part in checkpoint.PARTS}
    for part, all_of_them in tensors(step).items():
        for name, full in all_of_them.items():
            if full.dim() == 0:
                if rank == 0:
                    parts[part][name] = TensorShard(full, (), ())
                continue
            rows = -(-len(full) // writers)
            begin = min(rank * rows, len(full))
            piece = TensorShard(full[begin : begin + rows], tuple(full.shape), (begin, 0)[: full.dim()])
            parts[part][name] = piece
    return parts


def save(folder: Path, step: int, *, keep: int = 2, rank: int = 0, writers: int = 1):
    """Write one process's part of a checkpoint; return its folder."""
    state = {"loss_sum": step / 7}
    checkpoint.write_checkpoint(
        folder, step, share(step, rank, writers), state=state, keep=keep, rank=rank, writers=writers
    )
    return folder / f"step-{step}"


def save_cut(folder: Path, step: int, *, writers: int, keep: int = 2) -> Path:
    """Write a checkpoint of a sharded model, the first process last."""
    return [save(folder, step, keep=keep, rank=rank, writers=writers) for rank in reversed(range(writers))][-1]


def assert_holds(folder: Path, step: int):
    """Check that the checkpoint exists and is bit-identical to what was saved."""
    saved = Checkpoint(folder, step)
    assert saved.state == {"step": step, "loss_sum": step / 7}
    for part, expected in tensors(step).items():
        assert saved.tensors[part].keys() == expected.keys()
        for name, tensor in expected.items():
            loaded = saved.read(part, name)
            assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)


class Tiny(torch.nn.Module):
    """Model with the weights of a step, and an optimizer with its state."""

    def __init__(self, step: int):
        super().__init__()
        self.w, self.n = torch.nn.Parameter(torch.zeros(31, 2)), torch.nn.Module()
        self.n.weight = torch.nn.Parameter(torch.zeros(2).bfloat16())
        self.optimizer = torch.optim.SGD([self.w, self.n.weight])
        self.train_to(step)

    def train_to(self, step: int) -> None:
        """Set the weights and the state of a step in place, as an optimizer would."""
        values = tensors(step)
        with torch.no_grad():
            self.w.copy_(values["model"]["w"])
            self.n.weight.copy_(values["model"]["n.weight"])
        for key in ("exp_avg", "step"):
            self.optimizer.state[self.w].setdefault(key, torch.zeros_like(values["optimizer"][f"w/{key}"]))
            self.optimizer.state[self.w][key].copy_(values["optimizer"][f"w/{key}"])

    def saver(self, folder: Path, **how) -> CheckpointSaver:
        return CheckpointSaver(folder, self, self.optimizer, **{"keep": 2, **how})


# Resuming --------------------------------------------------------------------------------------------


def run(seed: int):
    from modeling_pleias import PleiasConfig, PleiasForCausalLM  # slow, and not needed by the processes below

    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = PleiasForCausalLM(PleiasConfig(**shape, num_key_value_heads=1, vocab_size=50))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01, fused=True)


def train(model, optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        windows = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(step))
        loss = next_token_loss(model, windows, dtype=torch.float32)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_restored_model_and_optimizer_continue_bit_for_bit(tmp_path):
    model, optimizer = run(seed=0)
    losses = train(model, optimizer, range(3))
    saver = CheckpointSaver(tmp_path, model, optimizer, keep=1)
    saver.save(3, {"losses": losses})
    expected = train(model, optimizer, range(3, 8))  # while it is written
    saver.wait()

    other, other_optimizer = run(seed=1)
    saved = Checkpoint(tmp_path, checkpoint.latest_step(tmp_path))
    assert saved.state == {"step": 3, "losses": losses}  # floats round-trip through JSON
    saved.restore(other, other_optimizer)
    assert train(other, other_optimizer, range(3, 8)) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name
    pairs = ((model, optimizer), (other, other_optimizer))
    first, second = (checkpoint.local_shards(*pair)["optimizer"] for pair in pairs)
    assert first.keys() == second.keys() and len(first) == 3 * len(list(model.parameters()))
    for name, piece in first.items():
        assert torch.equal(piece.tensor, second[name].tensor) and piece.tensor.dtype == second[name].tensor.dtype, name
    # Tied embeddings are one tensor, on disk too.
    assert "lm_head.weight" not in saved.tensors["model"] and "model.embed_tokens.weight" in saved.tensors["model"]


def test_restoring_before_the_first_step_of_the_optimizer_works(tmp_path):
    model, optimizer = run(seed=0)
    assert checkpoint.local_shards(model, optimizer)["optimizer"] == {}
    CheckpointSaver(tmp_path, model, optimizer, keep=1, background=False).save(0, {})
    other, other_optimizer = run(seed=1)
    Checkpoint(tmp_path, 0).restore(other, other_optimizer)
    assert train(model, optimizer, range(3)) == train(other, other_optimizer, range(3))


def test_weights_of_another_shape_are_rejected(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match="other names or shapes than the model of this config"):
        Checkpoint(tmp_path, 1).restore(*run(seed=0))


@pytest.mark.parametrize("writers", [1, 2])
def test_nothing_in_a_checkpoint_is_a_pickle(writers, tmp_path):
    path = save_cut(tmp_path, 1, writers=writers)
    suffixes = [""] if writers == 1 else ["-00000", "-00001"]
    files = {f"{part}{suffix}.safetensors" for part in checkpoint.PARTS for suffix in suffixes}
    assert set(os.listdir(path)) == files | {"MANIFEST.json", "tensors.json", "state.json"}
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        else:
            with safe_open(file, "pt") as opened:
                header = int.from_bytes(file.read_bytes()[:8], "little")
                data = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
            assert file.stat().st_size == 8 + header + data  # the header is JSON, and nothing else is in the file


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_determines_who_may_read_a_checkpoint(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(FILES, mode)


# Sharded models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", [1, 2, 4])
def test_any_slice_of_a_tensor_is_read_whatever_files_contain_it(writers, tmp_path):
    save_cut(tmp_path, 1, writers=writers)  # n.weight has two rows: two of four processes store none of it
    assert_holds(tmp_path, 1)
    saved, full = Checkpoint(tmp_path, 1), tensors(1)["model"]["w"]
    for begin in range(0, 32, 3):
        for size in (0, 1, 7, 8, 31):
            expected = full[begin : begin + size, 1:]
            assert torch.equal(saved.read("model", "w", (begin, 1), tuple(expected.shape)), expected)


def test_a_part_that_cannot_be_written_ends_the_first_process_with_the_reason(tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(InputError, match="step-2 could not be written .*No space left.*model-00001"):
            save(tmp_path, 2, rank=1, writers=2)
    with pytest.raises(InputError, match=rf"No space left.*model-00001.*resume from {tmp_path / 'step-1'}"):
        save(tmp_path, 2, rank=0, writers=2)
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-1"]


def test_a_missing_part_or_one_of_an_earlier_session_makes_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_TIMEOUT_SECONDS", 0.2)
    how = {"keep": 2, "writers": 2, "state": {}}
    checkpoint.write_checkpoint(tmp_path, 1, share(1, 1, 2), rank=1, session="earlier", **how)
    with pytest.raises(InputError, match="share-00001.json of another process was not written within 0.2 s"):
        checkpoint.write_checkpoint(tmp_path, 1, share(1, 0, 2), rank=0, session="this", **how)
    assert checkpoint.steps(tmp_path) == []
    checkpoint.clear_unfinished(tmp_path)
    assert os.listdir(tmp_path) == []


# In the background -----------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Event without which no file is written."""
    opened, save_file = threading.Event(), checkpoint.save_file

    def when_open(tensors, path):
        assert opened.wait(60)
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", when_open)
    return opened


def test_training_continues_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path, gate):
    tiny = Tiny(step=1)
    saver = tiny.saver(tmp_path)
    saver.save(1, {"loss_sum": 1 / 7})
    for step in (2, 3):
        tiny.train_to(step)
        saver.check()
    assert checkpoint.steps(tmp_path) == []
    gate.set()
    saver.wait()
    assert_holds(tmp_path, 1)


def test_the_next_save_waits_for_the_previous_one_and_reuses_its_memory(tmp_path, gate):
    tiny = Tiny(step=1)
    saver = tiny.saver(tmp_path)
    saver.save(1, {"loss_sum": 1 / 7})
    memory = {name: copy.data_ptr() for name, copy in saver.copies.items()}
    tiny.train_to(2)
    threading.Timer(0.3, gate.set).start()
    start = time.monotonic()
    saver.save(2, {"loss_sum": 2 / 7})
    assert time.monotonic() - start > 0.25 and checkpoint.find_corruption(tmp_path / "step-1") is None
    saver.wait()
    assert_holds(tmp_path, 1)
    assert_holds(tmp_path, 2)
    assert {name: copy.data_ptr() for name, copy in saver.copies.items()} == memory


@pytest.mark.parametrize("moment", ["check", "wait", "save"])
def test_an_error_in_the_background_is_raised_once_in_training(moment, tmp_path):
    tiny, folder = Tiny(step=1), tmp_path / "checkpoints"
    saver = tiny.saver(folder)
    folder.write_text("not a folder")
    saver.save(1, {"loss_sum": 1 / 7})
    if moment == "check":
        saver.thread.join()
    with pytest.raises(InputError, match=r"/checkpoints/step-1 could not be written \(.*again to start over"):
        saver.save(2, {}) if moment == "save" else getattr(saver, moment)()
    folder.unlink()
    saver.check()
    saver.save(1, {"loss_sum": 1 / 7})
    saver.wait()
    assert_holds(folder, 1)


# Retention -------------------------------------------------------------------------------------------


def test_the_latest_few_are_kept_and_latest_contains_the_name_of_the_last(tmp_path):
    for step in (2, 10, 9, 100):  # by number and not by name
        save(tmp_path, step, keep=2)
        assert (tmp_path / "LATEST").read_text() == f"step-{step}\n"
    assert checkpoint.steps(tmp_path) == [10, 100]
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-10", "step-100"]


def test_a_corrupt_later_checkpoint_does_not_replace_the_only_valid_one(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 5) / "state.json").unlink()
    assert checkpoint.latest_step(tmp_path) == 1
    save(tmp_path, 2, keep=1)
    assert checkpoint.latest_step(tmp_path) == 2
    save(tmp_path, 5, keep=1)  # the run reaches it again
    assert checkpoint.steps(tmp_path) == [5] and checkpoint.latest_step(tmp_path) == 5
    assert_holds(tmp_path, 5)


def test_folders_that_are_no_checkpoints_are_ignored(tmp_path):
    (tmp_path / "step-2-copy").mkdir()
    (tmp_path / "step-9").write_text("a file")
    save(tmp_path, 1, keep=1)
    assert checkpoint.steps(tmp_path) == [1] and checkpoint.latest_step(tmp_path) == 1
    assert (tmp_path / "step-2-copy").is_dir()


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.latest_step(tmp_path) is None
    assert checkpoint.latest_step(tmp_path / "absent") is None
    checkpoint.clear_unfinished(tmp_path / "absent")


# Corruption ------------------------------------------------------------------------------------------

FILES = ["model.safetensors", "optimizer.safetensors", "tensors.json", "state.json", "MANIFEST.json"]
CUT_FILES = ["model-00000.safetensors", "model-00001.safetensors", "optimizer-00001.safetensors", *FILES[2:]]


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "longer", "flipped"])
@pytest.mark.parametrize("name", sorted({*FILES, *CUT_FILES}))
def test_a_corrupt_checkpoint_is_reported_and_skipped(tmp_path, capsys, name, harm):
    save(tmp_path, 1)
    file = save_cut(tmp_path, 2, writers=1 if name in FILES else 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "missing":
        file.unlink()
    else:
        data = file.read_bytes()
        harmed = {"empty": b"", "truncated": data[:-1], "longer": data + b"\0", "flipped": bytes(content)}[harm]
        file.write_bytes(harmed)
    if (name, harm) == ("MANIFEST.json", "truncated"):  # of its final line end, which is irrelevant
        assert checkpoint.latest_step(tmp_path) == 2
        return
    assert checkpoint.latest_step(tmp_path) == 1
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path / 'step-2'} is corrupt and skipped: ")
    assert warning.count("\n") == 1 and (name in warning or name == "MANIFEST.json")
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("name, writers", [*((name, 1) for name in FILES), *((name, 2) for name in CUT_FILES)])
def test_no_flipped_bit_goes_unnoticed(tmp_path, name, writers):
    path = save_cut(tmp_path, 1, writers=writers)
    data = (path / name).read_bytes()
    assert checkpoint.find_corruption(path) is None
    for bit in range(0, 8 * len(data), 13):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(flipped)
        assert checkpoint.find_corruption(path), f"bit {bit} of {name}"


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"model.safetensors": 1}', "null"])
def test_a_manifest_that_lists_nothing_is_invalid(tmp_path, content):
    path = save(tmp_path, 1)
    (path / "MANIFEST.json").write_text(content)
    assert checkpoint.find_corruption(path).startswith("MANIFEST.json was altered")


def test_a_manifest_without_a_part_is_invalid(tmp_path):
    path = save_cut(tmp_path, 1, writers=2)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    del manifest["optimizer-00001.safetensors"]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert (
        checkpoint.find_corruption(path) == "MANIFEST.json was altered (it does not list optimizer-00001.safetensors)"
    )


# Kills -----------------------------------------------------------------------------------------------

# One process imports torch once and forks a child for each moment. A child dies by SIGKILL before its n-th event (a
# file opened, created, renamed, removed, listed: what Python audits, and each flush, which it does not), or by SIGXFSZ
# inside a write, at the n-th byte. It is a run that saves and waits ("event", "write"), one that continues while its
# thread writes ("background"), or one of two processes that write their parts ("first", "second").
DYING = """
import os, resource, shutil, signal, sys, time
from pathlib import Path
from test_checkpoint import Tiny, save, save_cut

root, kind = Path(sys.argv[1]), sys.argv[2]
writers = 2 if kind in ("first", "second") else 1
for step in (1, 2):
    save_cut(root / "before", step, writers=writers)

def in_background(folder):
    tiny = Tiny(3)
    saver = tiny.saver(folder)
    saver.save(3, {"loss_sum": 3 / 7})
    tiny.train_to(4)
    saver.wait()

def child(folder, prepare):
    shutil.copytree(root / "before", folder)
    if kind == "first":
        save(folder, 3, rank=1, writers=2)
    if (pid := os.fork()) == 0:
        prepare()
        if kind == "background":
            in_background(folder)
        else:
            save(folder, 3, rank=int(kind == "second"), writers=writers)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if kind == "second":  # the first process waits for it, is killed too, or completes the checkpoint
        if (pid := os.fork()) == 0:
            save(folder, 3, rank=0, writers=2)
            os._exit(0)
        if status:
            time.sleep(0.03)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return status

def die_at(n):
    left = n
    def count(event, arguments=()):
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left == -1:  # only once, because the kill is an event too
                os.kill(os.getpid(), signal.SIGKILL)
    flush = os.fsync
    os.fsync = lambda descriptor: (count("os.fsync"), flush(descriptor))
    sys.addaudithook(count)

def die_after_writing(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

moments = 0
how, death = (die_after_writing, signal.SIGXFSZ) if kind == "write" else (die_at, signal.SIGKILL)
while status := child(root / f"dead-{moments:03}", lambda: how(moments * 40 if kind == "write" else moments)):
    assert os.WTERMSIG(status) == death, status
    moments += 1
"""


@pytest.mark.parametrize("kind", ["event", "write", "background", "first", "second"])
def test_after_a_kill_at_any_moment_of_a_save_the_latest_valid_checkpoint_is_found(kind, tmp_path, capsys):
    result = run_program(None, tmp_path, kind, prelude=DYING, log=tmp_path / "log")
    assert result.returncode == 0, result.stderr
    killed, latest = sorted(tmp_path.glob("dead-*")), []
    assert len(killed) > {"write": 5, "second": 15}.get(kind, 40)
    for folder in killed:
        newest = checkpoint.latest_step(folder)
        assert newest in (2, 3), folder.name
        assert_holds(folder, newest)
        # Nothing was removed for a checkpoint that did not exist yet, and nothing is partial.
        assert newest == 3 or checkpoint.steps(folder) == [1, 2], folder.name
        assert all(checkpoint.find_corruption(folder / f"step-{step}") is None for step in checkpoint.steps(folder)), (
            folder.name
        )
        assert checkpoint.find_corruption(folder / (folder / "LATEST").read_text().strip()) is None, folder.name
        checkpoint.clear_unfinished(folder)
        assert all(file.name.startswith(("step-", "LATEST", ".LATEST")) for file in folder.iterdir()), folder.name
        latest.append(newest)
    if kind != "second":  # there the first process is killed too, before or after it completes the checkpoint
        assert latest == sorted(latest)  # once it exists it is kept
        assert set(latest) == {2, 3}
    # The next save works with what the kill left.
    for folder in killed[:: len(killed) // 5]:
        save(folder, 3)
        assert checkpoint.latest_step(folder) == 3 and checkpoint.steps(folder) == [2, 3]
    assert "corrupt" not in capsys.readouterr().err


# Full and read-only disks ----------------------------------------------------------------------------

FULL = """
import json, os, resource, signal, sys
from pathlib import Path
from test_checkpoint import checkpoint, save
from training.common.config import InputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: the write fails, as on a full disk
folder = Path(sys.argv[1])
save(folder, 1)
results = {}
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        save(folder, 2, keep=1)
        failure = None
    except InputError as error:
        failure = str(error)
    results[size] = [failure, sorted(os.listdir(folder)), checkpoint.latest_step(folder)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save(folder, 2, keep=1)
print(json.dumps(results))
"""


def test_a_full_disk_gives_a_message_keeps_the_earlier_checkpoint_and_leaves_no_part_of_the_new_one(tmp_path):
    sizes = [file.stat().st_size for file in save(tmp_path / "measure", 2).iterdir()]
    refused = [0, 1, *(size - 1 for size in sizes)]
    result = run_program(None, tmp_path / "run", *refused, prelude=FULL, log=tmp_path / "log")
    assert result.returncode == 0, result.stderr
    for failure, files, newest in json.loads(result.stdout).values():
        assert (
            failure.startswith(f"{tmp_path / 'run' / 'step-2'} could not be written (") and "File too large" in failure
        )
        assert failure.endswith(f"run the command again to resume from {tmp_path / 'run' / 'step-1'}.")
        assert files == ["LATEST", "step-1"] and newest == 1
    # With free space the same save works.
    assert checkpoint.steps(tmp_path / "run") == [2]
    assert_holds(tmp_path / "run", 2)


def test_a_folder_that_cannot_be_written_gives_a_message(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        InputError, match=r"/file/checkpoints/step-1 could not be written \(.*Not a directory.*start over"
    ):
        save(tmp_path / "file" / "checkpoints", 1)


@contextmanager
def as_nobody(folder: Path):
    """Run the block as another user, because root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("background", [False, True])
def test_a_read_only_folder_gives_a_message_and_keeps_its_checkpoint(background):
    with tempfile.TemporaryDirectory() as temporary:  # other users cannot read pytest's folder
        Path(temporary).chmod(0o755)
        folder = Path(temporary) / "checkpoints"
        save(folder, 1)
        folder.chmod(0o555)
        saver = Tiny(step=2).saver(folder, background=background)
        with as_nobody(folder):
            with pytest.raises(InputError, match=rf"Permission denied.*resume from {folder / 'step-1'}"):
                saver.save(2, {})
                saver.wait()
            assert_holds(folder, 1)
        assert sorted(os.listdir(folder)) == ["LATEST", "step-1"]


def test_a_moved_checkpoint_is_valid(tmp_path):
    shutil.move(save(tmp_path / "here", 4), (tmp_path / "there").mkdir() or tmp_path / "there")
    assert checkpoint.latest_step(tmp_path / "there") == 4
    assert_holds(tmp_path / "there", 4)
