"""Checkpoints that are whole or not there: safetensors and JSON, written beside, flushed, renamed, then pointed to.

`step-N/` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and `MANIFEST.json` with the size and sha256
of each; `LATEST` names the newest. A kill at any moment leaves the older checkpoints untouched and at most a
`.step-N.tmp` that the next run removes.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .config import InputError
from .files import atomic, read_json, sha256, sync_folder, write_json

PARTS = ("model", "optimizer")
FILES = (*(f"{part}.safetensors" for part in PARTS), "state.json")


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state under `parameter name/state name`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore(
    tensors: dict[str, dict[str, torch.Tensor]], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put a checkpoint's tensors into a model and its optimizer.

    Raises:
        InputError: when names or shapes are not those of the model.
    """
    parameters = dict(model.named_parameters())
    saved = tensors["model"]
    if {name: p.shape for name, p in parameters.items()} != {name: t.shape for name, t in saved.items()}:
        raise InputError("The checkpoint's weights have other names or shapes than the model of this config.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors["optimizer"].items():
        name, key = name.rsplit("/", 1)
        entries.setdefault(name, {})[key] = value
    # The optimizer's own loader knows which of its values live on which device; it counts parameters in group order.
    names = {parameter: name for name, parameter in parameters.items()}
    state = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {i: entries[names[p]] for i, p in enumerate(order) if names[p] in entries}
    optimizer.load_state_dict(state)


def save(folder: Path, step: int, *, tensors: dict[str, dict[str, torch.Tensor]], state: dict, keep: int) -> Path:
    """Write `folder/step-N`, point LATEST to it, and only then remove all but the newest `keep`.

    Args:
        tensors: {"model": {name: tensor}, "optimizer": {name: tensor}}.
        state: what else the run needs to go on; JSON.

    Raises:
        InputError: when the disk refuses; names what is still good.
    """
    final, temporary = folder / f"step-{step}", folder / f".step-{step}.tmp"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            path = temporary / f"{part}.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors[part].items()}, path)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        write_json(temporary / "state.json", {"step": step, **state})
        files = [temporary / name for name in FILES]
        facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
        write_json(temporary / "MANIFEST.json", facts)
        if final.exists():  # a damaged checkpoint of the same step that the run has passed again
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync_folder(folder)
        with atomic(folder / "LATEST") as latest:
            latest.write_text(final.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        good = latest_step(folder)
        raise InputError(
            f"{final} could not be written ({error}); "
            + (f"the run can resume from {folder / f'step-{good}'}" if good is not None else "the run can start again")
            + " once there is room and the folder can be written to."
        ) from error
    # Later steps can only be damaged ones, which the run has yet to pass again: they are not among the newest.
    for old in [known for known in steps(folder) if known <= step][:-keep]:
        shutil.rmtree(folder / f"step-{old}")
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or damaged, oldest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when its files have the size and sha256 of its MANIFEST.json."""
    try:
        manifest = read_json(path / "MANIFEST.json")
        for name in FILES:
            size, known = (path / name).stat().st_size, manifest[name]
            if size != known["bytes"]:
                return f"{name} has {size:,} bytes instead of {known['bytes']:,}"
            if sha256(path / name) != known["sha256"]:
                return f"{name} was altered (sha256 differs)"
    except (OSError, InputError) as error:
        return str(error)
    except (LookupError, TypeError, ValueError) as error:
        return f"MANIFEST.json was altered ({error!r})"
    return None


def latest_step(folder: Path) -> int | None:
    """The newest whole checkpoint; damaged ones are named on stderr and passed over."""
    for step in reversed(steps(folder)):
        if (problem := damage(folder / f"step-{step}")) is None:
            return step
        print(f"warning: {folder / f'step-{step}'} is damaged and passed over: {problem}", file=sys.stderr)
    return None


def load(folder: Path, step: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Tensors and state of `folder/step-N`, as `save` took them."""
    path = folder / f"step-{step}"
    return {part: load_file(path / f"{part}.safetensors") for part in PARTS}, read_json(path / "state.json")


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)
