"""Record of a run next to its weights: config.yaml, run.json, emissions.json, and the lock of its folder."""

import logging
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import yaml

from ..common.config import InputError
from ..common.environment import PACKAGES, environment
from ..common.escaping import mask_passwords, shell_line
from ..common.files import atomic, lock_folder, read_json, write_json


class RunRecord:
    """Lock of a run folder and its record for one session; does nothing on processes other than the main one.

    Raises:
        InputError: If the folder cannot be written or another session has locked it.
    """

    def __init__(self, config, *, main: bool):
        self.config, self.folder, self.main, self.tracker = config, config.folder, main, None
        if not main:
            return
        self.lock = ExitStack()
        try:
            self.lock.enter_context(lock_folder(self.folder))
        except OSError as error:
            raise InputError(f"The run folder {self.folder} is not writable ({error}). Use another --out.") from error

    def start(self, **facts) -> None:
        """Write config and session with `facts`, and start to measure; until then an earlier record is unchanged."""
        if not self.main:
            return
        with atomic(self.folder / "config.yaml") as path:
            path.write_text(
                yaml.safe_dump(mask_passwords(plain(asdict(self.config))), sort_keys=False, allow_unicode=True),
                encoding="utf-8",
            )
        run, emissions = self.folder / "run.json", self.folder / "emissions.json"
        earlier = read_json(run)["sessions"] if run.exists() else []
        session = {
            "command": shell_line(sys.orig_argv),
            **environment((*PACKAGES, "codecarbon")),
            "start": _now(),
            "end": None,
            **facts,
        }
        self.run = {"name": self.config.name, "sessions": [*earlier, session]}
        self.past = read_json(emissions)["sessions"] if emissions.exists() else []
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self.emissions, self.tracker = _emissions_tracker(self.config.country)
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


def _emissions_tracker(country: str) -> tuple:
    """Return a codecarbon output that keeps the latest measurement as `session`, and the tracker that writes to it."""
    from codecarbon import OfflineEmissionsTracker  # lazy import: images of rented GPUs lack it
    from codecarbon.output import BaseOutput

    class Emissions(BaseOutput):
        def out(self, total, delta) -> None:
            self.session = {"seconds": total.duration, "kwh": total.energy_consumed, "kg_co2eq": total.emissions}

    output, quiet = Emissions(), {"output_methods": [], "log_level": "critical"}
    return output, OfflineEmissionsTracker(country_iso_code=country, output_handlers=[output], **quiet)


def plain(value):
    """Convert paths to strings for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
