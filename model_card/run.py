"""A run folder, opened once: its settings, sessions, metrics, manifests, and the runs that its weights come from."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

from .files import ReleaseError, inside, read_config, read_json, relativize_paths, sha256

AVERAGE = "average.json"  # of training.average, in a folder model/


def path_roots(folder: Path) -> tuple[Path, ...]:
    """Return the folders that paths in a card are relative to: the working directory, and the parent of `runs/`."""
    roots = (Path.cwd(), folder.resolve().parent.parent)
    return tuple(root for root in roots if root != root.parent)


def json_sha256(value) -> str:
    """Return the hex sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def json_lines(path: Path) -> list[str]:
    """Return the lines of a JSON Lines file, each an object; none if it does not exist.

    Raises:
        ReleaseError: If a line is not UTF-8 or not an object in JSON.
    """
    lines = []
    # Not splitlines(): JSON does not escape every line separator.
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), 1):
        try:
            if line and not isinstance(json.loads(line), dict):
                raise ValueError("no object")
            lines += [line.decode()] if line else []
        except (ValueError, RecursionError) as error:
            raise ReleaseError(f"Line {number} of {path} is not a record in JSON ({error}): remove it.") from None
    return lines


def manifest_shards(manifest: dict) -> list[dict]:
    """Return the records of the shards of a manifest without their statistics, whose sums are in the manifest."""
    statistics = ("account", "by_source")
    return [{key: value for key, value in shard.items() if key not in statistics} for shard in manifest["shards"]]


def manifest_fingerprint(manifest: dict) -> str:
    """Compute the fingerprint of a manifest from its content, as training.data.shard_files does.

    A manifest of an earlier version has the hash of its tokens alone; a fine-tuning's, and one that was exported
    without its shards, cannot be computed again.
    """
    content = {key: value for key, value in manifest.items() if key not in ("fingerprint", "command", "left_out")}
    hashes = manifest.get("left_out", {}).get("sha256", {})
    if "shards" in manifest:
        if not all("sidecars" in shard for shard in manifest["shards"]):
            files = [[shard["file"], shard["sha256"]] for shard in manifest["shards"]]
            return json_sha256([manifest["tokenizer"]["sha256"], files])
        content["shards"] = json_sha256(manifest_shards(manifest))
    elif hashes:
        content["shards"] = hashes["shards"]
    elif "examples" not in manifest:
        return manifest["fingerprint"]
    files = hashes["files"] if hashes else json_sha256(manifest["corpus"]["files"])
    content["corpus"] = manifest["corpus"] | {"files": files}
    return json_sha256(content)


def read_manifest(path: Path) -> dict:
    """Read a manifest.

    Raises:
        ReleaseError: If its content does not have its fingerprint.
    """
    manifest = read_json(path)
    try:
        valid = manifest_fingerprint(manifest) == manifest["fingerprint"]
    except (LookupError, TypeError, AttributeError):  # not a manifest
        valid = False
    if not valid:
        raise ReleaseError(
            f"{path} was altered after it was written, but the card must state what the run read: restore it, or "
            "build the shards again and train on them."
        )
    return manifest


class Run:
    """A finished run of pretraining or fine-tuning, or the mean of two models (training.average).

    A mean has no settings and no sessions of its own. Files are read when they are first needed, and only once.

    Args:
        folder: The run folder.
        opened: Runs that are open already, by resolved folder.

    Raises:
        ReleaseError: If the folder contains neither config.yaml nor a mean.
    """

    def __init__(self, folder: Path, opened: dict[Path, "Run"] | None = None):
        self.folder, self.opened = folder, {} if opened is None else opened
        self.opened[folder.resolve()] = self
        average = folder / "model" / AVERAGE
        self.average = read_json(average) if average.is_file() and not (folder / "config.yaml").is_file() else None
        self.config = {} if self.average else read_config(folder)
        self.hashes: dict[str, str] = {}

    @cached_property
    def record(self) -> dict:
        """run.json; of a mean, no sessions."""
        return {"sessions": []} if self.average else read_json(self.folder / "run.json")

    @property
    def sessions(self) -> list[dict]:
        """The sessions of run.json."""
        return self.record["sessions"]

    @cached_property
    def emissions(self) -> dict | None:
        """emissions.json, if it exists."""
        path = self.folder / "emissions.json"
        return read_json(path) if path.is_file() else None

    @cached_property
    def metrics(self) -> list[str]:
        """The lines of metrics.jsonl."""
        return json_lines(self.folder / "metrics.jsonl")

    @property
    def validation(self) -> dict | None:
        """The last validation in metrics.jsonl."""
        return next((json.loads(line) for line in reversed(self.metrics) if '"validation"' in line), None)

    def relative(self, value):
        """Return a JSON value without the folders of the machine that trained."""
        return relativize_paths(value, *path_roots(self.folder))

    def sha256(self, name: str) -> str | None:
        """Return the sha256 of a file in model/, or None if it does not exist."""
        path = self.folder / "model" / name
        if name not in self.hashes and path.is_file():
            self.hashes[name] = sha256(path)
        return self.hashes.get(name)

    @property
    def weights(self) -> dict[str, str]:
        """The sha256 of each file of weights in model/."""
        return {path.name: self.sha256(path.name) for path in sorted((self.folder / "model").glob("*.safetensors"))}

    @cached_property
    def manifests(self) -> list[tuple[list[str], Path, dict]]:
        """Names of the stages that read a corpus, the path of its manifest, and the manifest.

        A manifest is stored with its shards, whose folder in config.yaml is relative to the working directory or to
        the parent of `runs/`. If the shards are gone, RUN/manifests/STAGE.json is used. A run without stages, such as
        a fine-tuning, has read the corpora of RUN/manifests/.

        Raises:
            ReleaseError: If a manifest is in none of these places, or was altered.
        """
        data, corpora = self.config.get("data") or {}, {}
        for stage in self.config.get("stages") or []:
            shards = stage.get("shards") or (f"{data['folder']}/shards" if data.get("folder") else None)
            if shards is None:
                continue
            copy = inside(self.folder / "manifests", f"{stage['name']}.json")
            places = [Path(shards, "manifest.json"), self.folder.parent.parent / shards / "manifest.json", copy]
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                raise ReleaseError(
                    f"{shards}/manifest.json does not exist, and the card's training data come from it: run this in "
                    f"the folder in which the run was started, or copy the manifest to {copy}."
                )
            corpora.setdefault(path.resolve(), ([], path))[0].append(stage["name"])
        if not self.config.get("stages"):
            paths = sorted((self.folder / "manifests").glob("*.json"))
            corpora = {path: ([path.stem], path) for path in paths}
        return [(stages, path, read_manifest(path)) for stages, path in corpora.values()]

    @cached_property
    def parents(self) -> list["Run"]:
        """The runs whose models this run started from, or of which it is the mean.

        Their paths are relative to the working directory or to the parent of `runs/`. A model that is not in a run
        folder, or whose hashes are not recorded, has no run.

        Raises:
            ReleaseError: If a model is no longer the one that was used.
        """
        if self.average:
            used = [(model["path"], model["sha256"]) for model in self.average["models"]]
        else:
            path = self.config.get("init_from")
            used = [(path, self.sessions[0].get("init_from"))] if path and self.sessions else []
        runs = [self._run_of(path, hashes) for path, hashes in used if hashes]
        return [run for run in runs if run]

    def _run_of(self, path: str, hashes: dict[str, str]) -> "Run | None":
        """Return the run whose model/ a path names, with its files compared with the recorded hashes."""
        for model in (Path(path), self.folder.parent.parent / path):
            settings, average = model.parent / "config.yaml", model / AVERAGE
            if model.name != "model" or not (settings.is_file() or average.is_file()):
                continue
            run = self.opened.get(model.parent.resolve()) or Run(model.parent, self.opened)
            for name, known in hashes.items():
                if run.sha256(name) != known:
                    raise ReleaseError(
                        f"{model / name} is not the file that {self.folder} started from, and the card must include "
                        f"all training data: restore the folder of that run, or remove "
                        f"{settings if settings.is_file() else average}."
                    )
            return run
        return None

    @cached_property
    def lineage(self) -> list["Run"]:
        """The runs that the weights come from, each once: the oldest first, this one last."""
        runs = {run.folder.resolve(): run for parent in self.parents for run in parent.lineage}
        return [*runs.values(), self]
