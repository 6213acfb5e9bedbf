"""Sessions of a run: which checkpoint is resumed, what may change in between, and the model folder."""

import json
import shutil

import pytest
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.common.config import InputError
from training.run import checkpoint
from training.run.checkpoint import TensorShard
from training.run.session import exit_stopped, open_checkpoint, save_model
from training.run.stopping import EXIT_RESUMABLE

IDENTITY = {"model": {"width": 8}, "seed": 1, "steps": (4, 2)}


@pytest.fixture
def run(tmp_path):
    """Run folder with checkpoints of steps 2 and 4."""
    PartialState(cpu=True)
    tensors = {part: {"w": TensorShard(torch.ones(2), (2,), (0,))} for part in checkpoint.PARTS}
    for step in (2, 4):
        checkpoint.write_checkpoint(tmp_path / "checkpoints", step, tensors, state={"identity": IDENTITY}, keep=2)
    (tmp_path / "checkpoints" / ".step-6.0.tmp").mkdir()
    return tmp_path


def test_the_latest_valid_checkpoint_is_opened_and_unfinished_ones_are_removed(run, tmp_path):
    assert open_checkpoint(tmp_path / "other", IDENTITY, main=True) is None
    assert open_checkpoint(run, IDENTITY, main=True).step == 4
    assert not list((run / "checkpoints").glob(".step-*"))
    (run / "checkpoints" / "step-4" / "state.json").unlink()
    assert open_checkpoint(run, IDENTITY, main=True).step == 2


def test_only_what_was_not_used_yet_may_change(run):
    with pytest.raises(InputError, match=r"Cannot resume from .*/step-4: seed and steps changed\. Use another --out"):
        open_checkpoint(run, IDENTITY | {"seed": 2, "steps": [4, 3]}, main=True)
    with pytest.raises(InputError, match=r"step-4: optimizer changed"):
        open_checkpoint(run, IDENTITY | {"optimizer": "muon"}, main=True)

    def used_until(identity, step):
        return identity | {"steps": [steps for steps in identity["steps"] if steps <= step][:1]}

    later = IDENTITY | {"steps": [4, 3, 3]}
    assert open_checkpoint(run, later, main=True, used_until=used_until).step == 4


def test_the_model_folder_replaces_an_earlier_one_at_once(base_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(base_model, folder)
    (folder / "old.json").write_text("{}")
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base_model)

    def fail(path):
        raise OSError("no space")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(tokenizer, "save_pretrained", fail)
        save_model(model, tokenizer, folder)
    assert (folder / "old.json").is_file()
    save_model(model, tokenizer, folder, {"best.json": {"step": 3}})
    assert json.loads((folder / "best.json").read_text()) == {"step": 3}
    assert not (folder / "old.json").exists() and [path.name for path in tmp_path.iterdir()] == ["model"]
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))


@pytest.mark.parametrize("main", [True, False])
def test_a_stop_has_its_own_status_and_one_message(main, capsys):
    with pytest.raises(SystemExit) as stop:
        exit_stopped("SIGTERM", 7, main=main)
    assert stop.value.code == EXIT_RESUMABLE
    assert capsys.readouterr().out == "Stopped by SIGTERM after step 7. Run the same command again to resume.\n" * main
