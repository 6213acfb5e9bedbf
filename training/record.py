"""Record of a run next to its weights: config.yaml, run.json, emissions.json, and the lock of its folder."""

import fcntl
import logging
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from codecarbon import OfflineEmissionsTracker
from codecarbon.output import BaseOutput, EmissionsData

from .config import InputError
from .files import atomic, read_json, write_json

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


def hardware() -> dict:
    """Return CPU, memory and GPUs of this machine."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str | None:
    """Return the commit of the checkout that contains this file; None for an installed package."""
    command = ["git", "-C", Path(__file__).parent, "rev-parse", "--verify", "--quiet", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict:
    """Return the command, commit, package versions and hardware of this process."""
    return {
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "hardware": hardware(),
    }


class _Emissions(BaseOutput):
    """Codecarbon output that keeps the latest measurement."""

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        self.session = {"seconds": total.duration, "kwh": total.energy_consumed, "kg_co2eq": total.emissions}


class RunRecord:
    """Lock of a run folder and its record for one session; does nothing on processes other than the main one.

    Raises:
        InputError: If the folder cannot be written or another session has locked it.
    """

    def __init__(self, config, *, main: bool):
        self.config, self.folder, self.main, self.tracker = config, config.folder, main, None
        if not main:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / ".lock", "w")
        except OSError as error:
            raise InputError(f"The run folder {self.folder} is not writable ({error}). Use another --out.") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"Another run is writing to {self.folder}. Wait for it, or use another --out.") from error

    def start(self, **facts) -> None:
        """Write config and session with `facts`, and start to measure; until then an earlier record is unchanged."""
        if not self.main:
            return
        with atomic(self.folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(plain(asdict(self.config)), sort_keys=False, allow_unicode=True))
        run, emissions = self.folder / "run.json", self.folder / "emissions.json"
        earlier = read_json(run)["sessions"] if run.exists() else []
        self.run = {
            "name": self.config.name,
            "sessions": [*earlier, {**provenance(), "start": _now(), "end": None, **facts}],
        }
        self.past = read_json(emissions)["sessions"] if emissions.exists() else []
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self.emissions = _Emissions()
        self.tracker = OfflineEmissionsTracker(
            country_iso_code=self.config.country,
            output_methods=[],
            log_level="critical",
            output_handlers=[self.emissions],
        )
        self.tracker.start()
        self.write()

    def write(self, **facts) -> None:
        """Update run.json and emissions.json; `facts` are added to this session."""
        if not self.main:
            return
        self.run["sessions"][-1] |= {"end": _now(), **facts}
        write_json(self.folder / "run.json", self.run)
        self.tracker.flush()
        sessions = [*self.past, self.emissions.session]
        total = {key: sum(session[key] for session in sessions) for key in self.emissions.session}
        source = f"codecarbon {version('codecarbon')}, offline, electricity of {self.config.country}"
        write_json(self.folder / "emissions.json", {**total, "source": source, "sessions": sessions})

    def close(self) -> None:
        """Stop measuring and unlock the folder."""
        if self.tracker:
            self.tracker.stop()
        if self.main:
            self.lock.close()


def plain(value):
    """Convert paths to strings for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
