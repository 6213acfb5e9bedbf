"""The mean of two models is exact, and models without a mean are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.average import average
from training.common.config import InputError
from training.common.files import model_sha256


def save(base_model: Path, out: Path, dtype: torch.dtype, **changes) -> Path:
    """A model folder of the base's architecture (with `changes`) and tokenizer, with other weights."""
    torch.manual_seed(1)
    config = PleiasConfig.from_pretrained(base_model, **changes)
    PleiasForCausalLM(config).to(dtype).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base_model / name, out / name)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_mean_is_that_of_the_state_dicts_in_float32_stored_in_the_first_model_s_dtype(base_model, tmp_path, dtype):
    first = save(base_model, tmp_path / "first", dtype)
    command = [sys.executable, "-m", "training.average", first, base_model, "--out", tmp_path / "runs" / "mean"]
    subprocess.run(list(map(str, command)), check=True, cwd=Path(__file__).parents[2], capture_output=True)
    a, b, mean = (load_file(f / "model.safetensors") for f in (first, base_model, tmp_path / "runs" / "mean"))
    assert a.keys() == b.keys() == mean.keys() and not any(torch.equal(a[k], b[k]) for k in a if a[k].dim() > 1)
    for name, tensor in mean.items():
        expected = (a[name].float() + b[name].float()) / 2
        assert tensor.dtype == dtype and torch.equal(tensor, expected.to(dtype)), name
    record = json.loads((tmp_path / "runs" / "mean" / "average.json").read_text())
    assert [model["sha256"] for model in record["models"]] == [model_sha256(first), model_sha256(base_model)]
    assert record["command"].startswith("python -m training.average ") and record["command"].endswith("mean")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "mean")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "runs" / "mean")
    assert type(model) is PleiasForCausalLM and tokenizer("the old house").input_ids[0] == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mean"]


def test_models_without_a_mean_are_refused(base_model, tmp_path):
    narrow = save(base_model, tmp_path / "narrow", torch.float32, intermediate_size=48)
    heads = save(
        base_model, tmp_path / "heads", torch.float32, num_attention_heads=2, num_key_value_heads=1, head_dim=16
    )
    turned = save(base_model, tmp_path / "turned", torch.float32, rms_norm_eps=1e-3)
    for other in (narrow, heads, turned):
        with pytest.raises(InputError, match="differ in architecture, so they have no mean"):
            average((base_model, other), tmp_path / "out", "")
    other = save(base_model, tmp_path / "other", torch.float32)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    with pytest.raises(InputError, match="differ in tokenizer.json"):
        average((base_model, other), tmp_path / "out", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is not a model folder: it has no config.json"):
        average((base_model, tmp_path / "empty"), tmp_path / "out", "")
    with pytest.raises(InputError, match="other exists: delete it, or use another --out"):
        average((base_model, base_model), other, "")
    assert not (tmp_path / "out").exists()
