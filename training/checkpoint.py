"""Checkpoints that are whole or not there: safetensors and JSON, written beside, flushed, renamed, then pointed to.

`step-N/` holds the tensors, `tensors.json` (the shape of each, and the files and offsets of its pieces), `state.json`,
and `MANIFEST.json` with the size and sha256 of each file; `LATEST` names the newest. Where every process holds the
whole model the first writes `model.safetensors` and `optimizer.safetensors`. Where the model is cut each process
writes its part, `model-00003.safetensors`, and any other number of processes can read it. A kill at any moment leaves
the older checkpoints untouched and at most a `.step-N.*.tmp` that the next run removes.
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

from .config import InputError
from .files import atomic, read_json, sha256, sync_folder, write_json
from .parallel import like, local, offset, writers, writes

PARTS = ("model", "optimizer")
FACTS = ("tensors.json", "state.json")
PATIENCE = 1800  # seconds that the first process waits for the others' files: what collectives wait, too


class Piece(NamedTuple):
    """What one process holds of a tensor.

    Args:
        tensor: its part.
        shape: of the whole.
        offset: of the part in the whole; zeros where the part is the whole.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


Tensors = dict[str, dict[str, Piece]]  # by PARTS, then by name


# A run's state, in and out -----------------------------------------------------------------------------------------


def pieces(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """What this process has to write of a run's tensors; the optimizer's are named `parameter name/state name`."""
    found: Tensors = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        if not writes(parameter):
            continue
        shape, start = tuple(parameter.shape), offset(parameter)
        found["model"][name] = Piece(local(parameter.detach()), shape, start)
        for key, value in optimizer.state.get(parameter, {}).items():
            if value.shape == parameter.shape:
                found["optimizer"][f"{name}/{key}"] = Piece(local(value), shape, start)
            elif not any(start):  # a count of steps: whole on every process, so whoever has the first part writes it
                found["optimizer"][f"{name}/{key}"] = Piece(value, tuple(value.shape), (0,) * value.dim())
    return found


class Checkpoint:
    """A whole checkpoint, opened: its state, and any stretch of any of its tensors, in whatever files they lie."""

    def __init__(self, folder: Path, step: int):
        self.path, self.files = folder / f"step-{step}", {}
        self.state, self.tensors = (read_json(self.path / name) for name in ("state.json", "tensors.json"))

    def read(self, part: str, name: str, start: Sequence[int] = (), shape: Sequence[int] | None = None):
        """The stretch of a tensor that begins at `start` and has this shape; all of it when neither is given."""
        facts = self.tensors[part][name]
        shape = facts["shape"] if shape is None else shape
        start, result = start or [0] * len(shape), None
        for file, begins in facts["pieces"].items():
            if file not in self.files:
                self.files[file] = safe_open(self.path / file, "pt")
            piece = self.files[file].get_slice(name)
            ends = [begin + size for begin, size in zip(begins, piece.get_shape(), strict=True)]
            low = [max(one, other) for one, other in zip(begins, start, strict=True)]
            high = [min(end, one + size) for end, one, size in zip(ends, start, shape, strict=True)]
            stretch = piece[tuple(slice(a - b, max(a, c) - b) for a, b, c in zip(low, begins, high, strict=True))]
            if result is None:
                result = torch.empty(tuple(shape), dtype=stretch.dtype)
            if all(a < b for a, b in zip(low, high, strict=True)):
                result[tuple(slice(a - b, c - b) for a, b, c in zip(low, start, high, strict=True))] = stretch
        return result

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors into a model and its optimizer, to each process its part.

        Raises:
            InputError: when names or shapes are not those of the model.
        """
        parameters = dict(model.named_parameters())
        saved = {name: facts["shape"] for name, facts in self.tensors["model"].items()}
        if {name: list(p.shape) for name, p in parameters.items()} != saved:
            raise InputError("The checkpoint's weights have other names or shapes than the model of this config.")
        for name, parameter in parameters.items():
            mine = local(parameter.detach())
            mine.copy_(self.read("model", name, offset(parameter), mine.shape))
        entries: dict[str, dict[str, torch.Tensor]] = {}
        for full_name, facts in self.tensors["optimizer"].items():
            name, key = full_name.rsplit("/", 1)
            parameter, entry = parameters[name], entries.setdefault(name, {})
            if facts["shape"] == list(parameter.shape):
                value = self.read("optimizer", full_name, offset(parameter), local(parameter).shape)
                entry[key] = like(value, parameter)
            else:
                entry[key] = self.read("optimizer", full_name)
        # The optimizer's own loader knows which of its values live where; it counts parameters in group order.
        names = {parameter: name for name, parameter in parameters.items()}
        state = optimizer.state_dict()
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state["state"] = {i: entries[names[p]] for i, p in enumerate(order) if names[p] in entries}
        optimizer.load_state_dict(state)


class Saver:
    """Writes a run's checkpoints in the background; every process has one.

    Training waits while the tensors are copied to host memory, and no longer: a thread does the rest. The copies are
    made once and used again, so a process that writes keeps as much host memory as its weights and moments take (12
    bytes a parameter, 14.3 GB for the 1.2b on one process). At most one checkpoint is being written: the next waits.

    Args:
        folder: of the checkpoints.
        model: whole, or cut by `training.parallel`.
        optimizer: of its parameters.
        keep: newest checkpoints that stay.
        permanent: a checkpoint whose step is a multiple of it stays for good.
        background: if not, `save` returns when all is written, and needs no copies of tensors in host memory.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int,
        permanent: int | None = None,
        background: bool = True,
    ):
        self.folder, self.model, self.optimizer, self.background = folder, model, optimizer, background
        self.copies: dict[str, torch.Tensor] = {}
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        # A process that outlived an earlier session of this run must not write into what this one is writing.
        session, rank = [str(time.time_ns())], 0
        if dist.is_initialized():
            dist.broadcast_object_list(session)
            rank = dist.get_rank()
        self.how = {"keep": keep, "permanent": permanent, "session": session[0]}
        self.how |= {"rank": rank, "writers": writers(model)}

    def save(self, step: int, state: dict) -> None:
        """Copy the tensors and write them, and on the first process what else the run needs to go on (JSON).

        Raises:
            InputError: when an earlier checkpoint could not be written, or this one, if it is not for the background.
        """
        self.wait()
        if self.how["rank"] >= self.how["writers"]:
            return
        assert writers(self.model) == self.how["writers"], "a part of the model is not as it was cut"
        tensors = pieces(self.model, self.optimizer)
        if not self.background:
            return write(self.folder, step, tensors, state=state, **self.how)
        for part, found in tensors.items():
            tensors[part] = {name: self._copied(f"{part}:{name}", piece) for name, piece in found.items()}
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        # A daemon: when training fails the process must end, even if the others' parts of a checkpoint never come.
        self.thread = threading.Thread(target=self._write, args=(step, tensors, state), daemon=True)
        self.thread.start()

    def _copied(self, key: str, piece: Piece) -> Piece:
        if key not in self.copies:
            # From page-locked memory the copies of all tensors are under way at once, at the bus's full rate.
            self.copies[key] = torch.empty(
                piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=piece.tensor.is_cuda
            )
        self.copies[key].copy_(piece.tensor, non_blocking=True)
        return piece._replace(tensor=self.copies[key])

    def _write(self, *arguments) -> None:
        try:
            write(self.folder, *arguments[:2], state=arguments[2], **self.how)
        except Exception as error:  # for the training thread, where it can end the program with a sentence
            self.error = error

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did; waits for nothing."""
        if self.thread and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until what is being written is on disk.

        Raises:
            InputError: when it could not be written.
        """
        if self.thread:
            self.thread.join()
            self.thread = None
        if self.error:
            error, self.error = self.error, None
            raise error


# Files -------------------------------------------------------------------------------------------------------------


def write(
    folder: Path,
    step: int,
    tensors: Tensors,
    *,
    state: dict,
    keep: int,
    permanent: int | None = None,
    rank: int = 0,
    writers: int = 1,
    session: str = "0",
) -> None:
    """Write this process's part of `folder/step-N`; the first then waits for the others' and makes it a checkpoint.

    That is: facts and manifest, the folder's name, LATEST; and only then are older checkpoints removed.

    Raises:
        InputError: when the disk refuses; names what is still good.
    """
    final, temporary = folder / f"step-{step}", folder / f".step-{step}.{session}.tmp"
    suffix = f"-{rank:05}" if writers > 1 else ""
    try:
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            share = _write_share(temporary, tensors, suffix)
        except (OSError, SafetensorError) as error:
            if rank:
                with suppress(OSError):  # the first process would have to wait for it in vain
                    write_json(temporary / f"share{suffix}.json", {"error": str(error)})
            raise
        if rank:
            return write_json(temporary / f"share{suffix}.json", share)
        shares = [share, *(_await_share(temporary / f"share-{other:05}.json") for other in range(1, writers))]
        _write_facts(temporary, {"step": step, **state}, shares)
        if final.exists():  # a damaged checkpoint of the same step that the run has passed again
            _remove(final)
        os.replace(temporary, final)
        sync_folder(folder)
        with atomic(folder / "LATEST") as latest:
            latest.write_text(final.name + "\n")
        # Later steps can only be damaged ones, which the run has yet to pass again: they are not among the newest.
        for old in [known for known in steps(folder) if known <= step][:-keep]:
            if not permanent or old % permanent:
                _remove(folder / f"step-{old}")
    except (OSError, SafetensorError) as error:
        if not rank:
            shutil.rmtree(temporary, ignore_errors=True)
        good = latest_step(folder)
        raise InputError(
            f"{final} could not be written ({error}); "
            + (f"the run can resume from {folder / f'step-{good}'}" if good is not None else "the run can start again")
            + " once there is room and the folder can be written to."
        ) from error


def _write_share(folder: Path, tensors: Tensors, suffix: str) -> dict:
    """Write and flush one process's tensors; returns the facts of its files and where its pieces lie."""
    files, places = {}, {}
    for part in PARTS:
        path = folder / f"{part}{suffix}.safetensors"
        save_file({name: piece.tensor.cpu().contiguous() for name, piece in tensors[part].items()}, path)
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets nobody else read them; the umask decides
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = _facts(path)
        places[part] = {name: (piece.shape, path.name, piece.offset) for name, piece in tensors[part].items()}
    return {"files": files, "places": places}


def _await_share(path: Path) -> dict:
    """What another process says of its part, once that is on disk."""
    give_up = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{path.name} of another process did not come within {PATIENCE} s")
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
    """Remove a checkpoint; a kill in between must not leave half of one under its name."""
    aside = path.with_name(f".{path.name}.removed.tmp")
    os.replace(path, aside)
    shutil.rmtree(aside)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or damaged, oldest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when its files have the size and sha256 of its MANIFEST.json."""
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
            return f"MANIFEST.json was altered (it does not name {missing[0]})"
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


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)
