"""Whatever happens while a checkpoint is written, a whole one is found, and a run goes on from it bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from training import checkpoint
from training.config import InputError
from training.loss import next_token_loss

REPOSITORY = Path(__file__).parent.parent


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    """What a tiny run would save at a step; every step's differ."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(31, generator=generator), "n.weight": torch.full((2,), 0.1).bfloat16()},
        "optimizer": {"w/exp_avg": torch.randn(31, generator=generator), "w/step": torch.tensor(float(step))},
    }


def save(folder: Path, step: int, *, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, tensors=tensors(step), state={"loss_sum": step / 7}, keep=keep)


def assert_holds(folder: Path, step: int):
    """The checkpoint is there with the very bits that were saved."""
    loaded, state = checkpoint.load(folder, step)
    assert state == {"step": step, "loss_sum": step / 7}
    for part, expected in tensors(step).items():
        assert loaded[part].keys() == expected.keys()
        for name, tensor in expected.items():
            assert loaded[part][name].dtype == tensor.dtype and torch.equal(loaded[part][name], tensor)


# A run goes on ---------------------------------------------------------------------------------------


def run(seed: int):
    from modeling_pleias import PleiasConfig, PleiasForCausalLM  # the processes below do without these seconds

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


def test_a_restored_model_and_optimizer_train_on_bit_for_bit(tmp_path):
    model, optimizer = run(seed=0)
    losses = train(model, optimizer, range(3))
    at_three = {"model": dict(model.named_parameters()), "optimizer": checkpoint.optimizer_tensors(model, optimizer)}
    state = {"losses": losses}
    checkpoint.save(tmp_path, 3, tensors=at_three, state=state, keep=1)
    expected = train(model, optimizer, range(3, 8))

    other, other_optimizer = run(seed=1)
    loaded, state = checkpoint.load(tmp_path, checkpoint.latest_step(tmp_path))
    assert state == {"step": 3, "losses": losses}  # floats come back from JSON as they were
    checkpoint.restore(loaded, other, other_optimizer)
    assert train(other, other_optimizer, range(3, 8)) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name
    mine, theirs = (checkpoint.optimizer_tensors(*one) for one in ((model, optimizer), (other, other_optimizer)))
    assert mine.keys() == theirs.keys() and len(mine) == 3 * len(list(model.parameters()))
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype, name
    # Tied embeddings are one tensor, on disk too.
    assert "lm_head.weight" not in loaded["model"] and "model.embed_tokens.weight" in loaded["model"]


def test_restoring_before_the_first_step_of_the_optimizer_works(tmp_path):
    model, optimizer = run(seed=0)
    empty = {"model": dict(model.named_parameters()), "optimizer": checkpoint.optimizer_tensors(model, optimizer)}
    assert empty["optimizer"] == {}
    checkpoint.save(tmp_path, 0, tensors=empty, state={}, keep=1)
    other, other_optimizer = run(seed=1)
    checkpoint.restore(checkpoint.load(tmp_path, 0)[0], other, other_optimizer)
    assert train(model, optimizer, range(3)) == train(other, other_optimizer, range(3))


def test_weights_of_another_shape_are_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match="other names or shapes than the model of this config"):
        checkpoint.restore(checkpoint.load(tmp_path, 1)[0], *run(seed=0))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(os.listdir(path)) == ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        else:
            with safe_open(file, "pt") as opened:
                header = int.from_bytes(file.read_bytes()[:8], "little")
                data = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
            assert file.stat().st_size == 8 + header + data  # the header is JSON, and nothing else is in the file


# Which ones stay -------------------------------------------------------------------------------------


def test_the_newest_few_stay_and_latest_names_the_newest(tmp_path):
    for step in (2, 10, 9, 100):  # by number and not by name
        save(tmp_path, step, keep=2)
        assert (tmp_path / "LATEST").read_text() == f"step-{step}\n"
    assert checkpoint.steps(tmp_path) == [10, 100]
    assert sorted(os.listdir(tmp_path)) == ["LATEST", "step-10", "step-100"]


def test_a_damaged_later_one_does_not_push_out_the_only_whole_one(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 5) / "state.json").unlink()
    assert checkpoint.latest_step(tmp_path) == 1
    save(tmp_path, 2, keep=1)
    assert checkpoint.latest_step(tmp_path) == 2
    save(tmp_path, 5, keep=1)  # the run passes it again
    assert checkpoint.steps(tmp_path) == [5] and checkpoint.latest_step(tmp_path) == 5
    assert_holds(tmp_path, 5)


def test_folders_that_are_no_checkpoints_are_left_alone(tmp_path):
    (tmp_path / "step-2-copy").mkdir()
    (tmp_path / "step-9").write_text("a file")
    save(tmp_path, 1, keep=1)
    assert checkpoint.steps(tmp_path) == [1] and checkpoint.latest_step(tmp_path) == 1
    assert (tmp_path / "step-2-copy").is_dir()


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.latest_step(tmp_path) is None
    assert checkpoint.latest_step(tmp_path / "absent") is None
    checkpoint.clear_unfinished(tmp_path / "absent")


# Damage ----------------------------------------------------------------------------------------------

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "longer", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, capsys, name, harm):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "missing":
        file.unlink()
    else:
        whole = file.read_bytes()
        harmed = {"empty": b"", "truncated": whole[:-1], "longer": whole + b"\0", "flipped": bytes(content)}[harm]
        file.write_bytes(harmed)
    if (name, harm) == ("MANIFEST.json", "truncated"):  # of its final line end, which says nothing
        assert checkpoint.latest_step(tmp_path) == 2
        return
    assert checkpoint.latest_step(tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path / 'step-2'} is damaged and passed over: ")
    assert said.count("\n") == 1 and (name in said or name == "MANIFEST.json")
    assert_holds(tmp_path, 1)


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_goes_unnoticed(tmp_path, name):
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    assert checkpoint.damage(path) is None
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(flipped)
        assert checkpoint.damage(path), f"bit {bit} of {name}"


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"model.safetensors": 1}', "null"])
def test_a_manifest_that_names_nothing_vouches_for_nothing(tmp_path, content):
    path = save(tmp_path, 1)
    (path / "MANIFEST.json").write_text(content)
    assert checkpoint.damage(path).startswith("MANIFEST.json was altered")


# Kills -----------------------------------------------------------------------------------------------

# One process imports torch once; then a child for each moment. A child dies by SIGKILL before its n-th event (a file
# opened, made, renamed, removed, listed: what Python audits, and each flush, which it does not), or by SIGXFSZ inside
# a write, at the n-th byte.
DYING = """
import os, resource, shutil, signal, sys
from pathlib import Path
from test_checkpoint import save

root = Path(sys.argv[1])
save(root / "before", 1), save(root / "before", 2)

def child(folder, prepare):
    shutil.copytree(root / "before", folder)
    if (pid := os.fork()) == 0:
        prepare()
        save(folder, 3)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def die_at(n):
    left = n
    def count(event, arguments=()):
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left == -1:  # once: kill is an event, too
                os.kill(os.getpid(), signal.SIGKILL)
    flush = os.fsync
    os.fsync = lambda descriptor: (count("os.fsync"), flush(descriptor))
    sys.addaudithook(count)

def die_after_writing(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

events = 0
while status := child(root / f"event-{events:03}", lambda: die_at(events)):
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    events += 1
sizes = 0
while status := child(root / f"write-{sizes:03}", lambda: die_after_writing(sizes * 40)):
    assert os.WTERMSIG(status) == signal.SIGXFSZ, status
    sizes += 1
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run code in a process of its own that finds the checkout and this file."""
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_kill_at_any_moment_of_a_save_leaves_the_newest_whole_checkpoint_to_be_found(tmp_path, capsys):
    result = python(DYING, tmp_path)
    assert result.returncode == 0, result.stderr
    folders = {kind: sorted(tmp_path.glob(f"{kind}-*")) for kind in ("event", "write")}
    assert len(folders["event"]) > 40 and len(folders["write"]) > 5
    for kind, killed in folders.items():
        found = []
        for folder in killed:
            newest = checkpoint.latest_step(folder)
            assert newest in (2, 3), folder.name
            assert_holds(folder, newest)
            # Nothing was removed for a checkpoint that was not there yet.
            assert newest == 3 or checkpoint.damage(folder / "step-1") is None, folder.name
            assert checkpoint.damage(folder / (folder / "LATEST").read_text().strip()) is None, folder.name
            checkpoint.clear_unfinished(folder)
            assert all(file.name.startswith(("step-", "LATEST", ".LATEST")) for file in folder.iterdir()), folder.name
            found.append(newest)
        assert found == sorted(found)  # once it is there it stays
        assert set(found) == {2, 3}, kind
        # The next save takes what was left behind in its stride.
        for folder in killed[:: len(killed) // 5]:
            save(folder, 3)
            assert checkpoint.latest_step(folder) == 3 and checkpoint.steps(folder) == [2, 3]
    assert "damaged" not in capsys.readouterr().err


# Disks that refuse -----------------------------------------------------------------------------------

FULL = """
import json, os, resource, signal, sys
from pathlib import Path
from test_checkpoint import checkpoint, save
from training.config import InputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: the write fails, as on a full disk
folder = Path(sys.argv[1])
save(folder, 1)
said = {}
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        save(folder, 2, keep=1)
        failure = None
    except InputError as error:
        failure = str(error)
    said[size] = [failure, sorted(os.listdir(folder)), checkpoint.latest_step(folder)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save(folder, 2, keep=1)
print(json.dumps(said))
"""


def test_a_full_disk_ends_in_a_sentence_and_the_earlier_checkpoint_and_no_rest_of_the_new_one(tmp_path):
    sizes = [file.stat().st_size for file in save(tmp_path / "measure", 2).iterdir()]
    refused = [0, 1, *(size - 1 for size in sizes)]
    result = python(FULL, tmp_path / "run", *refused)
    assert result.returncode == 0, result.stderr
    for failure, files, newest in json.loads(result.stdout).values():
        assert (
            failure.startswith(f"{tmp_path / 'run' / 'step-2'} could not be written (") and "File too large" in failure
        )
        assert f"the run can resume from {tmp_path / 'run' / 'step-1'} once there is room" in failure
        assert files == ["LATEST", "step-1"] and newest == 1
    # And with room again the same save works.
    assert checkpoint.steps(tmp_path / "run") == [2]
    assert_holds(tmp_path / "run", 2)


def test_a_folder_that_cannot_be_written_ends_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        InputError, match=r"/file/checkpoints/step-1 could not be written \(.*Not a directory.*start again"
    ):
        save(tmp_path / "file" / "checkpoints", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_ends_in_a_sentence_and_keeps_its_checkpoint(tmp_path):
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=rf"Permission denied.*resume from {tmp_path / 'step-1'}"):
            save(tmp_path, 2)
        assert_holds(tmp_path, 1)
    finally:
        tmp_path.chmod(0o700)


def test_a_copy_of_a_checkpoint_elsewhere_is_as_good(tmp_path):
    shutil.move(save(tmp_path / "here", 4), (tmp_path / "there").mkdir() or tmp_path / "there")
    assert checkpoint.latest_step(tmp_path / "there") == 4
    assert_holds(tmp_path / "there", 4)
