"""Compute the derived numbers of a run for the model card and the public summary.

`data.json` contains, for each corpus that the run read, its manifest without the list of shards; `lineage.json` what
each run cost that the weights come from; `facts.json` what follows from these and `release.json`. The validator
computes `facts.json` again.
"""

import json
import re
from collections import Counter
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path

from .escaping import mask_passwords
from .files import ReleaseError, read_json
from .run import Run

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
UNKNOWN = "unknown"  # the licence in an account of text without a recorded licence
OWN_FILES = ("path", "pairs")  # settings of a task's data that name the user's files
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
ROWS = 12  # of a table on a card; the smaller ones are added up
NAMES = 4  # collections of a source; a table of sources counts the others


def collect_corpora(run: Run) -> list[dict]:
    """Return the content of data.json: one entry per corpus that the run or a run before it read.

    Raises:
        ReleaseError: If a manifest is missing, or is not the one that the run read.
    """
    corpora: dict[str, dict] = {}
    for earlier in run.lineage:
        for corpus in gather_one(earlier):
            known = corpora.setdefault(corpus["fingerprint"], corpus)
            if known is not corpus:
                known["stages"] = [*known["stages"], *corpus["stages"]]
    return list(corpora.values())


def gather_one(run: Run) -> list[dict]:
    """Return the entries of one run alone; see `gather`."""
    fingerprints, corpora = {fingerprint for session in run.sessions for fingerprint in session.get("data", [])}, []
    for stages, path, manifest in run.manifests:
        if manifest["fingerprint"] not in fingerprints:
            raise ReleaseError(
                f"{path} is not the manifest that {run.folder} read, because its shards were rebuilt after the run."
            )
        entry = {key: manifest[key] for key in ("fingerprint", "command", "tokenizer", "validation", "account")}
        entry |= {key: manifest[key] for key in ("by_source",) if key in manifest}
        entry |= {key: value for key, value in manifest["corpus"].items() if key in ("sources", "curation")}
        entry["not_open"] = sorted({UNKNOWN, *manifest.get("not_open", [])})
        if stages == [run.config.get("task")]:
            entry["own_answers"] = own_answers(run.config, run.folder)
            entry["own_data"] = own_data(run.config.get("data") or {})
        corpora.append({"stages": stages, **run.relative(entry)})
    return corpora


def own_answers(config: dict, run: Path) -> dict | None:
    """Return the model whose own completions a run was trained on, and their number if it is recorded, or None."""
    if config.get("method") not in ("dpo", "grpo"):
        return None
    path = run / "answers" / "own.json"
    return {"model": base_of(config, run), "documents": len(read_json(path)["value"]) if path.is_file() else None}


def own_data(settings: dict) -> bool:
    """Return whether the settings of a task's data name files of the user, at any depth."""
    return any(
        own_data(value) if isinstance(value, dict) else value is not None and key in OWN_FILES
        for key, value in settings.items()
    )


def base_of(config: dict, run: Path) -> str | None:
    """Return the Hub name of the model that a run started from, or None if it was a folder or there was none."""
    name = str(config.get("base_model") or config.get("init_from") or "")
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/", name):  # in the cache of the Hub's client
        return "/".join(cached.groups())
    folder = config.get("init_from") or Path(name).exists() or (run.parent.parent / name).exists()
    return name if HUB_NAME.fullmatch(name) and not folder else None


def training_origin(config: dict, sessions: list[dict]) -> str:
    """Return how a run began: `fine-tuning` or `continued` pretraining of a model, or pretraining from `scratch`.

    A model that no step has trained (training.embeddings) is scratch.
    """
    if config.get("base_model"):
        return "fine-tuning"
    untrained = bool(sessions) and sessions[0].get("init_untrained", False)
    return "continued" if config.get("init_from") and not untrained else "scratch"


def lineage(run: Run) -> dict:
    """Return the content of lineage.json: the runs that the weights come from, oldest first, with the cost of each.

    A number that is not recorded is None. `origin` is that of `origin`, or `average` for the mean of two models.
    """
    rows = []
    for earlier in run.lineage:
        config, sessions, emissions = earlier.config, earlier.sessions, earlier.emissions or {}
        stages = stages_of(config)
        row = {
            "name": earlier.folder.name,
            "from": [parent.folder.name for parent in earlier.parents],
            "origin": "average" if earlier.average else training_origin(config, sessions),
            "stages": stages,
            "steps": sum(stage["steps"] for stage in stages) if stages else (sessions[-1:] or [{}])[0].get("steps"),
            "tokens": sum(stage["tokens"] for stage in stages),
            **{
                name: None if emissions.get(key) is None else emissions[key] * factor
                for name, key, factor in (
                    ("hours", "seconds", 1 / 3600),
                    ("watt_hours", "kwh", 1000),
                    ("grams_co2eq", "kg_co2eq", 1000),
                )
            },
            "measured_by": emissions.get("source"),
            "country": config.get("country"),
            "hardware": hardware(sessions),
            "command": earlier.average["command"] if earlier.average else command_of(sessions),
            "sha256": earlier.weights,
        }
        rows.append(earlier.relative(row))
    return {"runs": rows}


def hardware(sessions: list[dict]) -> str | None:
    """Return the GPU of a run's first session, or its CPU."""
    devices = sessions[0]["hardware"] if sessions else None
    return devices and (devices["gpus"][0] if devices["gpus"] else devices["cpu"])


def languages(corpora: list[dict], known: list[str]) -> list[str]:
    """Return the ISO codes of the languages of the training text, by descending number of tokens.

    Args:
        corpora: data.json.
        known: Codes that the Hub knows. Other names of languages in a user's text are omitted.
    """
    codes = {name: code for code, name in LANGUAGE_NAMES.items()}
    rows = [row for corpus in corpora for row in training_rows(corpus)]
    names = dict.fromkeys(codes.get(row["language"], row["language"]) for row in totals_by(rows, "language"))
    return [code for code in names if code in known]


def training_rows(corpus: dict) -> list[dict]:
    """Return the rows of a corpus that count its training text."""
    return [row for row in corpus["account"] if row["split"] == "train"]


def with_spdx(rows: list[dict], corpora: list[dict]) -> list[dict]:
    """Return rows with SPDX expressions for the labels of licences, as far as the manifests of corpora map them."""
    counted = [row for corpus in corpora for row in corpus.get("by_source", ()) if "label" in row]
    names = {row["label"]: row["license"] for row in counted}
    return [{**row, "license": names.get(row["license"], row["license"])} for row in rows]


def total(rows: list[dict]) -> dict:
    """Return the sums of documents, bytes and tokens."""
    return {measure: sum(row[measure] for row in rows) for measure in MEASURES}


def totals_by(rows: list[dict], column: str) -> list[dict]:
    """Return the sums by the values of a column, by descending number of tokens, with the share of all tokens."""
    tokens, sums = total(rows)["tokens"], {}
    for row in rows:
        sums.setdefault(row[column], Counter()).update({measure: row[measure] for measure in MEASURES})
    lines = [{column: name, **counts, "share": counts["tokens"] / tokens} for name, counts in sums.items()]
    return sorted(lines, key=lambda line: (-line["tokens"], line[column]))


def table(rows: list[dict], column: str) -> list[dict]:
    """Return the largest rows of `by`, and the sum of the others."""
    lines = totals_by(rows, column)
    if len(lines) <= ROWS:
        return lines
    rest = lines[ROWS - 1 :]
    sums = {measure: sum(line[measure] for line in rest) for measure in (*MEASURES, "share")}
    return [*lines[: ROWS - 1], {column: f"{len(rest)} others", **sums}]


def not_open(rows: list[dict], corpora: list[dict]) -> list[dict]:
    """Return the sums by licence for the licences that are unknown or not open."""
    names = {name for corpus in corpora for name in corpus.get("not_open", [UNKNOWN])}
    return [line for line in totals_by(rows, "license") if line["license"] in names]


def of_corpus(corpus: dict) -> dict:
    """Return the numbers of one entry of data.json."""
    rows = with_spdx(training_rows(corpus), [corpus])
    return {
        "stages": " and ".join(corpus["stages"]),
        "train": total(rows),
        "held_out": total([row for row in corpus["account"] if row["split"] == "validation"]),
        **{f"by_{column}": totals_by(rows, column) for column in COLUMNS},
        "not_open": not_open(rows, [corpus]),
        "left_out": left_out(corpus),
        "synthetic": synthetic(corpus),
        "own_data": corpus.get("own_data", False),
        "fingerprint": corpus["fingerprint"],
    }


def repetitions(row: dict, rules: list[dict]) -> int:
    """Return how often a mixture contains a document of a row at most; its first matching rule decides."""
    epochs = []
    for rule in rules:
        if all(fnmatchcase(row[column], rule.get(column) or "*") for column in COLUMNS):
            epochs.append(rule["epochs"])
            # Rows do not state these columns, so a rule that restricts them may match some of the documents.
            if all(rule.get(column) in (None, "*") for column in ("open_type", "language_type")):
                break
    return max(1, ceil(max(epochs, default=1)))


def distinct_rows(corpora: list[dict]) -> list[dict]:
    """Return the rows of all corpora by language, licence and collection, each document counted once.

    Mixtures of one corpus choose documents by one hash, so the smaller share of a row is part of the larger. The
    largest count of a row is taken, divided by how often its mixture repeats a document at most: a lower bound, and
    `exact` if the mixture repeats none and treats the documents of a row alike.
    """
    counts: dict[tuple, dict] = {}
    for corpus in corpora:
        recipe = (corpus.get("sources") or {}).get("mixture") or {}
        rules = (recipe.get("mixtures") or {}).get(recipe.get("name"), [])
        origin = json.dumps(recipe["files"], sort_keys=True) if recipe else corpus["fingerprint"]
        for row in training_rows(corpus):
            times = repetitions(row, rules)
            count = {column: row[column] for column in COLUMNS} | {key: row[key] // times for key in MEASURES}
            count["exact"] = times == 1
            key = (origin, *(row[column] for column in COLUMNS))
            counts[key] = max(counts.get(key, count), count, key=lambda count: count["documents"])
    return list(counts.values())


def text_of(corpora: list[dict]) -> dict:
    """Return the training text of all stages by language and by licence, each document counted once."""
    rows = with_spdx(distinct_rows(corpora), corpora)
    tables = {f"by_{column}": table(rows, column) for column in ("language", "license")}
    exact = all(row["exact"] for row in rows)
    return {"train": total(rows), "exact": exact, **tables, "not_open": not_open(rows, corpora)}


def left_out(corpus: dict) -> list[dict]:
    """Return what curation dropped, by reason, according to its curation.json."""
    reasons = (corpus.get("curation") or {}).get("reasons") or {}
    return [
        {"reason": reason, "documents": counts["documents"], "bytes": counts["bytes"]}
        for reason, counts in reasons.items()
    ]


def datasets(corpus: dict) -> list[dict]:
    """Return the sources of a corpus, with their share of its bytes, the largest first.

    The numbers are those of the training text, from the manifest: 0 for a source of which no document was selected.
    If it does not count by source, or names others than sources.json, they are those of sources.json, without tokens.
    `collected` has those of sources.json, before curation and selection.
    """
    # A source without statistics of its own is a folder's name.
    named = [source for source in (corpus.get("sources") or {}).get("sources", []) if isinstance(source, dict)]
    sources = [{**source, "collected": source} for source in named if source.get("bytes")]
    known = {source_key(source): source for source in named}
    counted = [row for row in corpus.get("by_source", ()) if row["split"] == "train"]
    if counted and (not sources or all(row["source"] in known for row in counted)):
        licences: dict[str, Counter] = {row["source"]: Counter() for row in counted}
        for row in counted:  # one licence may have several labels
            licences[row["source"]][row["license"]] += row["documents"]
        sources = [
            {
                **known.get(line["source"], split_source(line["source"])),
                "licences": licences[line["source"]],
                "collected": known.get(line["source"]),
                **line,
            }
            for line in totals_by(counted, "source")
        ]
        used = {row["source"] for row in counted}
        nothing = {"tokens": 0, "documents": 0, "bytes": 0}
        sources += [
            {**source, "collected": source, **nothing}
            for key, source in known.items()
            if key not in used and source.get("bytes")
        ]
    size = sum(source["bytes"] for source in sources)
    lines = [
        {
            "name": source["name"],
            "version": source.get("version"),
            "url": source.get("url"),
            "license": source.get("license") or source.get("licence") or " and ".join(source.get("licences", {})),
            "collection": source.get("collection") or largest(source.get("collections", {})),
            "retrieved": source.get("retrieved"),
            "documents": source["documents"],
            "bytes": source["bytes"],
            "tokens": source.get("tokens"),
            "languages": " ".join(source.get("languages", {})),
            "collected": {key: (source["collected"] or {}).get(key) for key in ("documents", "bytes")},
            "share": source["bytes"] / size,
        }
        for source in sources
    ]
    return sorted(lines, key=lambda line: (-line["bytes"], line["name"]))


def largest(counts: dict[str, int]) -> str:
    """Return the names with the largest counts, and the number of the others."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    others = [f"{len(names) - NAMES:,} others"] if len(names) > NAMES else []
    return ", ".join([*names[:NAMES], *others])


def distinct_datasets(corpora: list[dict]) -> list[dict]:
    """Return the sources of all corpora, each once, the largest first.

    Mixtures of one corpus choose documents by one hash, so the largest count includes the others. It is at most the
    number collected, because a mixture may repeat documents.
    """
    lines: dict[tuple, dict] = {}
    for line in (line for corpus in corpora for line in datasets(corpus)):
        known = lines.setdefault((line["name"], line["version"]), line)
        if line["documents"] > known["documents"]:
            lines[line["name"], line["version"]] = line
    for line in lines.values():
        if (documents := line["collected"]["documents"]) and documents < line["documents"]:
            line["bytes"] = min(line["bytes"], line["collected"]["bytes"] or line["bytes"])
            line["tokens"] = line["tokens"] and round(line["tokens"] * documents / line["documents"])
            line["documents"] = documents
    return sorted(lines.values(), key=lambda line: (-line["bytes"], line["name"]))


def split_source(text: str) -> dict:
    """Return kind, name and version of a source in a manifest, written KIND:NAME@VERSION."""
    kind, _, rest = text.partition(":")
    name, _, version = rest.rpartition("@") if "@" in rest[1:] else (rest, "", "")
    return {"kind": kind, "name": name, "version": version or None}


def source_key(source: dict) -> str:
    """Return a source of sources.json as a manifest writes it."""
    version = source.get("version")
    return f"{source.get('kind')}:{source['name']}" + (f"@{version}" if version else "")


def synthetic(corpus: dict) -> dict | None:
    """Return the number of documents that a language model wrote or rewrote, and its name, or None for none.

    `answers`, completions of the trained model itself, is None if they were not counted.
    """
    if answers := corpus.get("own_answers"):
        counts = {"rewritten": 0, "warned": 0, "answers": answers["documents"], "documents": answers["documents"] or 0}
        return {"model": answers["model"] or "the model that the run started from", **counts}
    curation = corpus.get("curation") or {}
    endpoint = (curation.get("settings") or {}).get("endpoint")
    if not endpoint:
        return None
    changes = curation.get("changes") or {}
    rewritten, warned = (changes.get(f"documents with {action}", 0) for action in ("rewrite", "warn"))
    counts = {"rewritten": rewritten, "warned": warned, "documents": rewritten + warned}
    return {"model": endpoint["model"], "answers": 0, **counts}


def command_of(sessions: list[dict]) -> str | None:
    """Return the last command of a run, whose settings config.yaml has, without the folder of the interpreter."""
    return by_name(sessions[-1]["command"]) if sessions else None


def by_name(command: str) -> str:
    """Return a command without the folder of its program and without passwords in addresses."""
    return re.sub(r"^\S*/", "", mask_passwords(command))


def commands(data: list[dict], runs: list[str | None]) -> list[str]:
    """Return the recorded commands of a run and of its data, in order.

    Args:
        data: data.json.
        runs: The commands of the runs, the oldest first.
    """
    recorded = []
    for corpus in data:
        sources, curation = corpus.get("sources") or {}, corpus.get("curation") or {}
        recorded += [record.get("command") for record in (sources, sources.get("mixture") or {}, curation, corpus)]
    return list(dict.fromkeys(by_name(command) for command in [*recorded, *runs] if command))


def stages_of(config: dict) -> list[dict]:
    """Return the stages of a run's config, each with its number of training tokens."""
    stages = config.get("stages") or []
    return [{**stage, "tokens": stage["steps"] * stage["sequences"] * config["sequence_length"]} for stage in stages]


def total_emissions(runs: list[dict], key: str) -> float | None:
    """Return the sum of a cost over the runs of lineage.json, or None if a run of training has not recorded it."""
    values = [run[key] for run in runs if run[key] is not None or run["origin"] != "average"]
    return None if None in values else sum(values)


def settings_of(config: dict, sessions: list[dict]) -> dict:
    """Return the trainer's settings of a fine-tuning: the recorded ones, or else those of its config."""
    recorded = (session["trainer"] for session in sessions if session.get("trainer"))
    settings = next(recorded, config.get("trainer") or {})
    return {key: value for key, value in settings.items() if isinstance(value, int | float | str)}


def facts(release: dict, data: list[dict], lineage: dict) -> dict:
    """Return the content of facts.json.

    Args:
        release: release.json.
        data: data.json.
        lineage: lineage.json.
    """
    run, runs = (release["source"] or {}).get("run") or {}, lineage["runs"]
    config, sessions = run.get("config") or {}, (run.get("run") or {}).get("sessions") or []
    stages = [stage for earlier in runs for stage in earlier["stages"]]
    tokens = sum(earlier["tokens"] for earlier in runs)
    bits = [score["bits_per_byte"] for score in ((run.get("validation") or {}).get("validation") or {}).values()]
    began = runs[0]["origin"] if runs else None
    corpora = [of_corpus(corpus) for corpus in data]
    steps = [earlier["steps"] for earlier in runs]
    return {
        "command": runs[-1]["command"] if runs else None,
        "commands": commands(data, [earlier["command"] for earlier in runs]) if stages else [],
        "origin": "continued" if began == "average" else began,
        **{key: config.get(key) for key in ("task", "method")},
        "kept": next((session["kept"] for session in reversed(sessions) if session.get("kept")), None),
        "settings": settings_of(config, sessions),
        "stages": stages,
        "steps": sum(filter(None, steps)) if any(step is not None for step in steps) else None,
        "tokens": tokens,
        "text": text_of(data),
        "corpora": corpora,
        "bits_per_byte": sum(bits) / len(bits) if bits else None,
        **{key: total_emissions(runs, key) if runs else None for key in ("grams_co2eq", "watt_hours", "hours")},
        "flops": 6 * release["model"]["parameters"] * tokens,
        "checks": len(release["checks"]),
        "checks_passed": sum(check["passed"] for check in release["checks"]),
    }
