"""What follows from the files of a run by arithmetic: the figures that no file states, and that card and summary need.

`data.json` holds, for each corpus that the run read, what its manifest says without the list of shards; `facts.json`
what is computed from `release.json` and `data.json`. Who validates a card computes it again.
"""

import re
from collections import Counter
from pathlib import Path

from .files import ReleaseError, portable, read_config, read_json, sha256

MEASURES = ("documents", "bytes", "tokens")
COLUMNS = ("language", "license", "collection")
LANGUAGE_NAMES = {
    "en": "English",
    "fr": "French",
    "es": "Spanish",
    "de": "German",
    "it": "Italian",
    "nl": "Dutch",
    "la": "Latin",
    "pt": "Portuguese",
}
UNKNOWN = "unknown"  # the licence in an account of text that came without one
OWN_FILES = ("path", "pairs")  # settings of a task's data that name files of the user's
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME


def roots(run: Path) -> tuple[Path, ...]:
    """Folders that paths in a card are seen from: this one, and the one that holds `runs/`."""
    found = (Path.cwd(), run.resolve().parent.parent)
    return tuple(root for root in found if root != root.parent)


def history(run: Path) -> list[Path]:
    """The runs that made a model, the oldest first and `run` last: before each those whose model/ it went on from.

    `init_from` and `average_with` are seen from this folder, or from the one that holds `runs/`; a model that lies in
    no run's folder, or whose hashes are not on file, ends the history.

    Raises:
        ReleaseError: when the model there is no longer the one that was gone on from.
    """
    behind = filter(None, (run_behind(run, key) for key in ("init_from", "average_with")))
    before = {one.resolve(): one for found in behind for one in history(found)}
    return [*before.values(), run]


def run_behind(run: Path, key: str) -> Path | None:
    """The run whose model/ a key of another run's config names; see `history`."""
    given = read_config(run).get(key)
    sessions = read_json(run / "run.json")["sessions"] if given else []
    hashes = sessions[0].get(key) if sessions else None
    for model in (Path(given), run.parent.parent / given) if hashes else ():
        if model.name != "model" or not (model.parent / "config.yaml").is_file():
            continue
        for name, known in hashes.items():
            if not (model / name).is_file() or sha256(model / name) != known:
                raise ReleaseError(
                    f"{model / name} is not the file that {run} went on from, and the card accounts for all that the "
                    f"model has read: put back the folder of that run, or take {model.parent / 'config.yaml'} away."
                )
        return model.parent
    return None


def manifests(config: dict, run: Path) -> list[tuple[list[str], Path]]:
    """The manifests of the shards that a run read, each with the names of the stages that read it.

    A manifest lies with its shards, whose folder the config gives as seen from where the run was started: this folder,
    or the one that holds `runs/`. Where the shards are no more, RUN/manifests/STAGE.json stands in. A run without
    stages, as of fine-tuning, has read what RUN/manifests/ accounts for.

    Raises:
        ReleaseError: when one is in none of these places.
    """
    data, found = config.get("data") or {}, {}
    for stage in config.get("stages") or []:
        shards = stage.get("shards") or (f"{data['folder']}/shards" if data.get("folder") else None)
        if shards is None:
            continue
        name = f"{stage['name']}.json"
        places = [
            Path(shards, "manifest.json"),
            run.parent.parent / shards / "manifest.json",
            run / "manifests" / name,
        ]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise ReleaseError(
                f"{shards}/manifest.json is not there, and the card accounts for the text by it: start this where the "
                f"run was started, or copy the manifest to {run / 'manifests' / name}."
            )
        found.setdefault(path.resolve(), ([], path))[0].append(stage["name"])
    if not config.get("stages"):
        return [([path.stem], path) for path in sorted((run / "manifests").glob("*.json"))]
    return list(found.values())


def gather(run: Path) -> list[dict]:
    """The content of data.json: one entry for each corpus that the run in a folder, or one before it, read.

    Raises:
        ReleaseError: when a manifest is missing, or is not the one that the run read.
    """
    found: dict[str, dict] = {}
    for one in history(run):
        for corpus in gather_one(one):
            known = found.setdefault(corpus["fingerprint"], corpus)
            if known is not corpus:
                known["stages"] = [*known["stages"], *corpus["stages"]]
    return list(found.values())


def gather_one(run: Path) -> list[dict]:
    """The entries of one run by itself; see `gather`."""
    config = read_config(run)
    sessions, corpora = read_json(run / "run.json")["sessions"], []
    read = {fingerprint for session in sessions for fingerprint in session.get("data", [])}
    for stages, path in manifests(config, run):
        manifest = read_json(path)
        if manifest["fingerprint"] not in read:
            raise ReleaseError(f"{path} is not the manifest that {run} read: its shards were made anew since.")
        kept = {key: manifest[key] for key in ("fingerprint", "command", "tokenizer", "validation", "account")}
        carried = {key: value for key, value in manifest["corpus"].items() if key in ("sources", "curation")}
        carried["not_open"] = sorted({UNKNOWN, *manifest.get("not_open", [])})
        if stages == [config.get("task")]:
            carried |= {"own_answers": own_answers(config, run), "own_data": own_data(config.get("data") or {})}
        corpora.append({"stages": stages, **portable(kept | carried, *roots(run))})
    return corpora


def own_answers(config: dict, run: Path) -> dict | None:
    """Answers of the model itself that a run learnt from: how many, where that is on file; None for none."""
    if config.get("method") not in ("dpo", "grpo"):
        return None
    path = run / "answers" / "own.json"
    return {"model": base_of(config, run), "documents": len(read_json(path)["value"]) if path.is_file() else None}


def own_data(settings: dict) -> bool:
    """Whether the settings of a task's data name files of the user's, at any depth."""
    return any(
        own_data(value) if isinstance(value, dict) else value is not None and key in OWN_FILES
        for key, value in settings.items()
    )


def base_of(config: dict, run: Path) -> str | None:
    """The name on the Hub of the model that a run started from; None where it was a folder, or there was none."""
    given = str(config.get("base_model") or config.get("init_from") or "")
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/", given):  # where the Hub's client keeps it
        return "/".join(cached.groups())
    folder = config.get("init_from") or Path(given).exists() or (run.parent.parent / given).exists()
    return given if HUB_NAME.fullmatch(given) and not folder else None


def origin(config: dict, sessions: list[dict]) -> str:
    """How a run began: `fine-tuning` or `continued` pretraining of a model, or pretraining from `scratch`.

    A model of which no step has trained anything (training.embeddings) is scratch.
    """
    if config.get("base_model"):
        return "fine-tuning"
    untrained = bool(sessions) and sessions[0].get("init_untrained", False)
    return "continued" if config.get("init_from") and not untrained else "scratch"


def languages(corpora: list[dict], known: list[str]) -> list[str]:
    """ISO codes of the languages that the text learnt is in, the most tokens first.

    Args:
        corpora: data.json.
        known: codes that the Hub knows; what else a user's text calls its language is left out.
    """
    codes = {name: code for code, name in LANGUAGE_NAMES.items()}
    rows = [row for corpus in corpora for row in corpus["account"] if row["split"] == "train"]
    found = dict.fromkeys(codes.get(line["language"], line["language"]) for line in by(rows, "language"))
    return [code for code in found if code in known]


def total(rows: list[dict]) -> dict:
    """Sums of the measures over rows of an account."""
    return {measure: sum(row[measure] for row in rows) for measure in MEASURES}


def by(rows: list[dict], column: str) -> list[dict]:
    """The rows of an account added up by a column, the largest first, with the share of all tokens."""
    whole, sums = total(rows)["tokens"], {}
    for row in rows:
        sums.setdefault(row[column], Counter()).update({measure: row[measure] for measure in MEASURES})
    lines = [{column: name, **counts, "share": counts["tokens"] / whole} for name, counts in sums.items()]
    return sorted(lines, key=lambda line: (-line["tokens"], line[column]))


def of_corpus(corpus: dict) -> dict:
    """The figures of one entry of data.json."""
    rows = [row for row in corpus["account"] if row["split"] == "train"]
    held = [row for row in corpus["account"] if row["split"] == "validation"]
    return {
        "stages": " and ".join(corpus["stages"]),
        "train": total(rows),
        "held_out": total(held),
        "rows": sorted(rows, key=lambda row: [row[column] for column in COLUMNS]),
        **{f"by_{column}": by(rows, column) for column in COLUMNS},
        "not_open": [row for row in by(rows, "license") if row["license"] in corpus.get("not_open", [UNKNOWN])],
        "sources": datasets(corpus),
        "left_out": left_out(corpus),
        "synthetic": synthetic(corpus),
        "own_data": corpus.get("own_data", False),
        "fingerprint": corpus["fingerprint"],
        "mixture": mixture(corpus),
    }


def mixture(corpus: dict) -> dict | None:
    """How a corpus was mixed from a larger one (training.mixture), as its sources.json says; None where it was not."""
    made = (corpus.get("sources") or {}).get("mixture")
    if not made:
        return None
    rules = []
    for rule in made["mixtures"].get(made["name"], []):  # what is held out has no rules
        of = [f"{key} {value}" for key, value in rule.items() if key != "epochs" and value not in (None, "*")]
        rules.append({"documents": ", ".join(of), "epochs": rule["epochs"]})
    return {"name": made["name"], "held_out": made["held_out"], "files": len(made["files"]), "rules": rules}


def left_out(corpus: dict) -> list[dict]:
    """What curation dropped, by reason, as its curation.json has it."""
    reasons = (corpus.get("curation") or {}).get("reasons") or {}
    return [
        {"reason": reason, "documents": one["documents"], "bytes": one["bytes"]} for reason, one in reasons.items()
    ]


def datasets(corpus: dict) -> list[dict]:
    """The sources of a corpus as its sources.json names them, with their share of its bytes, the largest first."""
    # A source without an account of its own is a folder's name.
    named = [source for source in (corpus.get("sources") or {}).get("sources", []) if isinstance(source, dict)]
    sources = [source for source in named if source.get("bytes")]
    whole = sum(source["bytes"] for source in sources)
    lines = [
        {
            "name": source["name"],
            "version": source.get("version"),
            "license": source.get("licence") or source.get("license") or " and ".join(source.get("licences", {})),
            "retrieved": source.get("retrieved"),
            "documents": source["documents"],
            "bytes": source["bytes"],
            "languages": " ".join(source.get("languages", {})),
            "share": source["bytes"] / whole,
        }
        for source in sources
    ]
    return sorted(lines, key=lambda line: (-line["bytes"], line["name"]))


def synthetic(corpus: dict) -> dict | None:
    """Documents that a language model wrote or rewrote, with its name; None where no model was at hand.

    `answers`, those of the model in training to learn from, are None where nobody counted them.
    """
    if own := corpus.get("own_answers"):
        counts = {"rewritten": 0, "warned": 0, "answers": own["documents"], "documents": own["documents"] or 0}
        return {"model": own["model"] or "the model that the run started from", **counts}
    curation = corpus.get("curation") or {}
    endpoint = (curation.get("settings") or {}).get("endpoint")
    if not endpoint:
        return None
    changes = curation.get("changes") or {}
    rewritten, warned = (changes.get(f"documents with {action}", 0) for action in ("rewrite", "warn"))
    counts = {"rewritten": rewritten, "warned": warned, "documents": rewritten + warned}
    return {"model": endpoint["model"], "answers": 0, **counts}


def command_of(sessions: list[dict]) -> str | None:
    """The last command of a run, the one whose settings config.yaml has, without the folder of the interpreter."""
    return by_name(sessions[-1]["command"]) if sessions else None


def by_name(command: str) -> str:
    """A command without the folder of its program."""
    return re.sub(r"^\S*/", "", command)


def commands(data: list[dict], own: list[str | None]) -> list[str]:
    """The commands that a run can be repeated by, in their order, as far as the files tell them.

    Args:
        data: data.json.
        own: those of the runs, the oldest first.
    """
    found = []
    for corpus in data:
        sources, curation = corpus.get("sources") or {}, corpus.get("curation") or {}
        found += [one.get("command") for one in (sources, sources.get("mixture") or {}, curation, corpus)]
    return list(dict.fromkeys(by_name(command) for command in [*found, *own] if command))


def stages_of(config: dict) -> list[dict]:
    """The stages of a run's config, each with the tokens that it read."""
    stages = config.get("stages") or []
    return [{**one, "tokens": one["steps"] * one["sequences"] * config["sequence_length"]} for one in stages]


def spent(runs: list[dict], key: str, factor: float) -> float | None:
    """A figure of emissions.json of all runs, times a factor; None where one of them has it not on file."""
    figures = [(run.get("emissions") or {}).get(key) for run in runs]
    return None if None in figures else sum(figures) * factor


def settings_of(config: dict, sessions: list[dict]) -> dict:
    """The trainer's settings of a fine-tuning: those that the run recorded, else those that its config gives."""
    found = next((session["trainer"] for session in sessions if session.get("trainer")), config.get("trainer") or {})
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}


def facts(release: dict, data: list[dict]) -> dict:
    """The content of facts.json.

    Args:
        release: release.json.
        data: data.json.
    """
    source = release["source"] or {}
    run = source.get("run") or {}
    runs = [*source.get("earlier", []), run]
    config = run.get("config") or {}
    stages = [stage for one in runs for stage in stages_of(one.get("config") or {})]
    tokens = sum(stage["tokens"] for stage in stages)
    scores = (run.get("validation") or {}).get("validation") or {}
    first, sessions = ((one.get("run") or {}).get("sessions") or [] for one in (runs[0], run))
    told = [command_of((one.get("run") or {}).get("sessions") or []) for one in runs]
    bits = [score["bits_per_byte"] for score in scores.values()]
    tuning = {
        "origin": origin(runs[0].get("config") or {}, first) if run else None,
        **{key: config.get(key) for key in ("task", "method")},
        "kept": next((one["kept"] for one in reversed(sessions) if one.get("kept")), None),
        "settings": settings_of(config, sessions),
    }
    return {
        "command": command_of(sessions),
        "run_commands": told,
        "commands": commands(data, told) if stages else [],
        **tuning,
        "stages": stages,
        "steps": sum(stage["steps"] for stage in stages) if stages else (sessions[-1:] or [{}])[0].get("steps"),
        "tokens": tokens,
        "corpora": [of_corpus(corpus) for corpus in data],
        "bits_per_byte": sum(bits) / len(bits) if bits else None,
        "grams_co2eq": spent(runs, "kg_co2eq", 1000),
        "watt_hours": spent(runs, "kwh", 1000),
        "minutes": spent(runs, "seconds", 1 / 60),
        "flops": 6 * release["model"]["parameters"] * tokens,
        "checks": len(release["checks"]),
        "checks_passed": sum(check["passed"] for check in release["checks"]),
    }
