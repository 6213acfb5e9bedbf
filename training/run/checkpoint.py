"""Atomic checkpoints in safetensors and JSON: written to a temporary folder, flushed, renamed, then set as LATEST.

`step-N/` contains the tensors, `tensors.json` (shape, files and offsets of each), `state.json`, and `MANIFEST.json`
with the size and sha256 of each file; `LATEST` contains the name of the latest checkpoint. If every process stores the
full model, the first writes `model.safetensors` and `optimizer.safetensors`. If the model is sharded, each process
writes its part, such as `model-00003.safetensors`, and any other number of processes can read it. A kill at any moment
leaves older checkpoints untouched and at most a `.step-N.*.tmp` that the next run removes.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..common.config import InputError
from ..common.escaping import terminal_line
from ..common.files import atomic, read_json, sha256, sync, write_json
from ..step.parallel import distribute_like, is_first_holder, local, offset, writers

PARTS = ("model", "optimizer")
FACTS = ("tensors.json", "state.json")
SHARD_TIMEOUT_SECONDS = (
    1800  # seconds that the first process waits for the others' files, the timeout of collectives too
)


class TensorShard(NamedTuple):
    """Part of a tensor that one process stores.

    Args:
        tensor: The part.
        shape: Shape of the full tensor.
        offset: Offset of the part in the full tensor.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


Tensors = dict[str, dict[str, TensorShard]]  # by PARTS, then by name


# State of a run: collect, save, restore ----------------------------------------------------------------------------


def local_shards(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the tensors of a run that this process must write, optimizer state as `parameter name/state name`."""
    tensors: Tensors = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        if not is_first_holder(parameter):
            continue
        shape, start = tuple(parameter.shape), offset(parameter)
        tensors["model"][name] = TensorShard(local(parameter.detach()), shape, start)
        for key, value in optimizer.state.get(parameter, {}).items():
            if value.shape == parameter.shape:
                tensors["optimizer"][f"{name}/{key}"] = TensorShard(local(value), shape, start)
            elif not any(start):  # a step count, the same on every process: written with the first part
                tensors["optimizer"][f"{name}/{key}"] = TensorShard(value, tuple(value.shape), (0,) * value.dim())
    return tensors


class Checkpoint:
    """An opened checkpoint: its state, and any slice of its tensors, whatever files contain it."""

    def __init__(self, folder: Path, step: int):
        self.step, self.path, self.files = step, folder / f"step-{step}", {}
        self.state, self.tensors = (read_json(self.path / name) for name in ("state.json", "tensors.json"))

    def read(self, part: str, name: str, start: Sequence[int] = (), shape: Sequence[int] | None = None):
        """Read the slice of a tensor with this start and shape. Default: the full tensor."""
        facts = self.tensors[part][name]
        shape = facts["shape"] if shape is None else shape
        start, result = start or [0] * len(shape), None
        for file, begins in facts["pieces"].items():
            if file not in self.files:
                self.files[file] = safe_open(self.path / file, "pt")
            piece = self.files[file].get_slice(name)
            ends = [begin + size for begin, size in zip(begins, piece.get_shape(), strict=True)]
            low = [max(pair) for pair in zip(begins, start, strict=True)]
            high = [min(end, first + size) for end, first, size in zip(ends, start, shape, strict=True)]
            part = piece[tuple(slice(a - b, max(a, c) - b) for a, b, c in zip(low, begins, high, strict=True))]
            if result is None:
                result = torch.empty(tuple(shape), dtype=part.dtype)
            if all(a < b for a, b in zip(low, high, strict=True)):
                result[tuple(slice(a - b, c - b) for a, b, c in zip(low, start, high, strict=True))] = part
        return result

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the tensors into a model and its optimizer, on each process its part.

        Raises:
            InputError: If names or shapes differ from those of the model.
        """
        parameters = dict(model.named_parameters())
        saved = {name: facts["shape"] for name, facts in self.tensors["model"].items()}
        if {name: list(p.shape) for name, p in parameters.items()} != saved:
            raise InputError(f"{self.path}: the weights have other names or shapes than the model of this config.")
        for name, parameter in parameters.items():
            part = local(parameter.detach())
            part.copy_(self.read("model", name, offset(parameter), part.shape))
        entries: dict[str, dict[str, torch.Tensor]] = {}
        for full_name, facts in self.tensors["optimizer"].items():
            name, key = full_name.rsplit("/", 1)
            parameter, entry = parameters[name], entries.setdefault(name, {})
            if facts["shape"] == list(parameter.shape):
                value = self.read("optimizer", full_name, offset(parameter), local(parameter).shape)
                entry[key] = distribute_like(value, parameter)
            else:
                entry[key] = self.read("optimizer", full_name)
        # The optimizer's own loader moves values to their devices; it numbers parameters in group order.
        names = {parameter: name for name, parameter in parameters.items()}
        state = optimizer.state_dict()
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state["state"] = {i: entries[names[p]] for i, p in enumerate(order) if names[p] in entries}
        optimizer.load_state_dict(state)


class CheckpointSaver:
    """Writer of a run's checkpoints, in the background. Every process needs one.

    Training waits only while tensors are copied to host memory; a thread does the rest. The memory of the copies is
    reused, so that a writing process permanently needs host memory for its weights and optimizer state (12 bytes per
    parameter, 14.3 GB for the 1.2b on one process). A save waits until the previous checkpoint is written.

    Args:
        folder: Folder of the checkpoints.
        model: Model, unsharded or sharded by `training.step.parallel`.
        optimizer: Optimizer of its parameters.
        keep: Number of latest checkpoints to keep.
        background: If false, `save` returns after writing, and needs no copies of tensors in host memory.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int,
        background: bool = True,
    ):
        self.folder, self.model, self.optimizer, self.background = folder, model, optimizer, background
        self.copies: dict[str, torch.Tensor] = {}
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        # A process that survived an earlier session of this run must not write into the files of this session.
        session, rank = [str(time.time_ns())], 0
        if dist.is_initialized():
            dist.broadcast_object_list(session)
            rank = dist.get_rank()
        self.how = {"keep": keep, "session": session[0], "rank": rank, "writers": writers(model)}

    def save(self, step: int, state: dict) -> None:
        """Save the tensors, and on the first process the other state that the run needs to resume (JSON).

        Raises:
            InputError: If an earlier checkpoint, or without `background` this one, could not be written.
        """
        self.wait()
        if self.how["rank"] >= self.how["writers"]:
            return
        assert writers(self.model) == self.how["writers"], "the sharding of the model changed"
        tensors = local_shards(self.model, self.optimizer)
        if not self.background:
            return write_checkpoint(self.folder, step, tensors, state=state, **self.how)
        for part, named in tensors.items():
            tensors[part] = {name: self._copied(f"{part}:{name}", piece) for name, piece in named.items()}
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        # A daemon: if training fails the process must end, even if other processes never write their parts.
        self.thread = threading.Thread(target=self._write, args=(step, tensors, state), daemon=True)
        self.thread.start()

    def _copied(self, key: str, piece: TensorShard) -> TensorShard:
        if key not in self.copies:
            # Copies to page-locked memory run concurrently, at the full rate of the bus.
            self.copies[key] = torch.empty(
                piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=piece.tensor.is_cuda
            )
        self.copies[key].copy_(piece.tensor, non_blocking=True)
        return piece._replace(tensor=self.copies[key])

    def _write(self, *arguments) -> None:
        try:
            write_checkpoint(self.folder, *arguments[:2], state=arguments[2], **self.how)
        except Exception as error:  # raised in the training thread, where it ends the program with its message
            self.error = error

    def check(self) -> None:
        """Raise the error of a background save, if any, without waiting."""
        if self.thread and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the current save is on disk.

        Raises:
            InputError: If it could not be written.
        """
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, None
            raise error


# Files -------------------------------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Tensors,
    *,
    state: dict,
    keep: int,
    rank: int = 0,
    writers: int = 1,
    session: str = "0",
) -> None:
    """Write this process's part of `folder/step-N`; the first process then waits for the others and completes it.

    It writes facts and manifest, renames the folder, updates LATEST, and only then removes older checkpoints.

    Raises:
        InputError: If the disk fails (the message gives the latest valid checkpoint).
    """
    final, temporary = folder / f"step-{step}", folder / f".step-{step}.{session}.tmp"
    suffix = f"-{rank:05}" if writers > 1 else ""
    try:
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            share = _write_share(temporary, tensors, suffix)
        except (OSError, SafetensorError) as error:
            if rank:
                with suppress(OSError):  # or the first process would wait in vain
                    write_json(temporary / f"share{suffix}.json", {"error": str(error)})
            raise
        if rank:
            return write_json(temporary / f"share{suffix}.json", share)
        shares = [share, *(_await_share(temporary / f"share-{other:05}.json") for other in range(1, writers))]
        _write_facts(temporary, {"step": step, **state}, shares)
        if final.exists():  # a corrupt checkpoint of the same step, which the run has reached again
            _remove(final)
        os.replace(temporary, final)
        sync(folder)
        with atomic(folder / "LATEST") as latest:
            latest.write_text(final.name + "\n")
        # Later steps can only be corrupt ones, which the run will reach again: they do not count as latest.
        for old in [known for known in steps(folder) if known <= step][:-keep]:
            _remove(folder / f"step-{old}")
    except (OSError, SafetensorError) as error:
        if not rank:
            shutil.rmtree(temporary, ignore_errors=True)
        good = latest_step(folder)
        raise InputError(
            f"{final} could not be written ({error}). Free space or make the folder writable, then run the command "
            + (f"again to resume from {folder / f'step-{good}'}." if good is not None else "again to start over.")
        ) from error


def _write_share(folder: Path, tensors: Tensors, suffix: str) -> dict:
    """Write and flush one process's tensors; return the facts of its files and the location of each part."""
    files, places = {}, {}
    for part in PARTS:
        path = folder / f"{part}{suffix}.safetensors"
        save_file({name: piece.tensor.cpu().contiguous() for name, piece in tensors[part].items()}, path)
        with suppress(PermissionError):  # a file system without modes
            path.chmod(folder.stat().st_mode & 0o666)  # safetensors denies others access; follow the umask instead
        sync(path)
        files[path.name] = _facts(path)
        places[part] = {name: (piece.shape, path.name, piece.offset) for name, piece in tensors[part].items()}
    return {"files": files, "places": places}


def _await_share(path: Path) -> dict:
    """Wait for another process's part; return its facts."""
    give_up = time.monotonic() + SHARD_TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{path.name} of another process was not written within {SHARD_TIMEOUT_SECONDS} s")
        time.sleep(0.02)
    share = read_json(path)
    path.unlink()
    if "error" in share:
        raise OSError(share["error"])
    return share


def _write_facts(folder: Path, state: dict, shares: list[dict]) -> None:
    """Write tensors.json, state.json and, last, the manifest of all files."""
    manifest, tensors = {}, {part: {} for part in PARTS}
    for share in shares:
        manifest |= share["files"]
        for part in PARTS:
            for name, (shape, file, start) in share["places"][part].items():
                tensors[part].setdefault(name, {"shape": shape, "pieces": {}})["pieces"][file] = start
    for name, value in zip(FACTS, (tensors, state), strict=True):
        write_json(folder / name, value)
        manifest[name] = _facts(folder / name)
    write_json(folder / "MANIFEST.json", manifest)


def _facts(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _remove(path: Path) -> None:
    """Remove a checkpoint atomically: a kill must not leave a partial one under its name."""
    aside = path.with_name(f".{path.name}.removed.tmp")
    os.replace(path, aside)
    shutil.rmtree(aside)


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, valid or corrupt, in order."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def find_corruption(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if its files match size and sha256 in its MANIFEST.json."""
    try:
        manifest = read_json(path / "MANIFEST.json")
        for name in {**dict.fromkeys(FACTS), **manifest}:
            size, known = (path / name).stat().st_size, manifest[name]
            if size != known["bytes"]:
                return f"{name} has {size:,} bytes instead of {known['bytes']:,}"
            if sha256(path / name) != known["sha256"]:
                return f"{name} was altered (sha256 differs)"
        tensors = read_json(path / "tensors.json")
        needed = {file for part in PARTS for facts in tensors[part].values() for file in facts["pieces"]}
        if missing := sorted(needed - set(manifest)):
            return f"MANIFEST.json was altered (it does not list {missing[0]})"
    except (OSError, InputError) as error:
        return str(error)
    except (LookupError, TypeError, ValueError) as error:
        return f"MANIFEST.json was altered ({error!r})"
    return None


def latest_step(folder: Path) -> int | None:
    """Return the latest valid step; report corrupt checkpoints on stderr and skip them."""
    for step in reversed(steps(folder)):
        if (problem := find_corruption(folder / f"step-{step}")) is None:
            return step
        warning = f"warning: {folder / f'step-{step}'} is corrupt and skipped: {problem}"
        print(terminal_line(warning), file=sys.stderr)
    return None


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary folders of killed saves."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)
