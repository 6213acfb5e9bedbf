"""Sessions of a run: resume from the latest checkpoint of the same run, write model/ atomically, stop on a signal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..common.config import InputError
from ..common.files import write_json
from . import checkpoint
from .stopping import EXIT_RESUMABLE


def open_checkpoint(
    run: Path, identity: dict, *, main: bool, used_until: Callable[[dict, int], dict] | None = None
) -> checkpoint.Checkpoint | None:
    """Open the latest valid checkpoint of a run, the same one on every process. All processes must call this.

    Args:
        run: Run folder; its checkpoints are in checkpoints/.
        identity: What must not change between the sessions of a run (JSON), such as model, data and seed.
        main: Whether this is the main process, which removes unfinished checkpoints and reports corrupt ones.
        used_until: Reduces an identity to the part that was used up to a step; the rest may change.

    Returns:
        The checkpoint, or None if the run has none.

    Raises:
        InputError: If the checkpoint has another identity.
    """
    checkpoints, latest = run / "checkpoints", [None]
    if main:
        checkpoint.clear_unfinished(checkpoints)
        latest = [checkpoint.latest_step(checkpoints)]
    step = broadcast_object_list(latest)[0]
    if step is None:
        return None
    earlier = checkpoint.Checkpoint(checkpoints, step)
    current, saved = json.loads(json.dumps(identity)), earlier.state["identity"]
    if used_until is not None:
        current, saved = used_until(current, step), used_until(saved, step)
    if changed := [key for key in current if current[key] != saved.get(key)]:
        raise InputError(
            f"Cannot resume from {earlier.path}: {' and '.join(changed)} changed. Use another --out, or delete the "
            "run folder to start over."
        )
    return earlier


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    json_files: dict[str, dict] | None = None,
    tokenizer_json: Path | None = None,
) -> None:
    """Write a folder that `from_pretrained` loads; it is complete or does not exist. An earlier one is replaced.

    Args:
        model: Model in host memory, in the dtype in which it is stored.
        tokenizer: Its tokenizer.
        folder: Folder to write.
        json_files: Content of additional JSON files by name.
        tokenizer_json: File of the tokenizer, whose hash the shards state; it is copied. Default: none, so that the
            tokenizer is saved without the padding and truncation of its last use.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")  # a kill must not leave a folder that looks complete
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(temporary)
    if tokenizer_json:
        shutil.copyfile(tokenizer_json, temporary / "tokenizer.json")
    for name, content in (json_files or {}).items():
        write_json(temporary / name, content)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def exit_stopped(signal_name: str, step: int, *, main: bool) -> NoReturn:
    """End the process after a saved stop, with the exit status that asks for a restart."""
    if main:
        print(f"Stopped by {signal_name} after step {step}. Run the same command again to resume.", flush=True)
    raise SystemExit(EXIT_RESUMABLE)
