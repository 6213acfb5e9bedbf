"""Write the ML-BOM of a release folder (CycloneDX 1.7): the model, its files, the sources of its text, its making.

    FOLDER/bom.cdx.json    components[0] is the model, with its card and files; the others are its training text
                           (sources, shards) and the libraries; formulation lists the commands that made it

Every value comes from a file of the folder, so that the same files give the same bytes. What no file states is
omitted, or "not assessed" among the properties of the SPDX AI profile.
"""

import hashlib
import json
import re
import uuid
from pathlib import Path
from urllib.parse import quote

from ..files import BOM, SIGNATURE, SUMS, ReleaseError, read_json, sha256, write_json
from ..hub import REPOSITORIES
from ..provenance import resolve_pointer
from .attribution import entries_of, licences_of, spdx_expression

TASK = "text-generation"
UNSTATED = "not assessed"
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".bin")
ADDRESS = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?(/([A-Za-z0-9._~/@!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*)?")
TASK_TYPES = {  # program -> type of its task; any other program's is "other"
    "corpus": "copy",
    "mixture": "clean",
    "curation": "clean",
    "average": "merge",
    "evaluate": "test",
    "release": "release",
    **dict.fromkeys(("tokenizer", "shards", "embeddings", "pretrain", "finetune"), "build"),
}


def write_boms(out: Path, repository: str | None) -> None:
    """Write the BOM of each folder of a release whose cards are written.

    Args:
        out: Folder of the release, with release.json.
        repository: OWNER/NAME on the Hub of the `llama` folder, if known.
    """
    for part in read_json(out / "release.json")["folders"]:
        name = repository + REPOSITORIES[part] if repository else None
        write_json(out / part / BOM, BomBuilder(out / part, out / "llama", name).build())


def folder_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file that the BOM of a folder lists: all but BOM, SHA256SUMS and signature."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256(path) for name, path in names.items() if name not in (BOM, SUMS, SIGNATURE)}


def weights_digest(files: dict[str, str]) -> str:
    """Return the sha256 of the weights: of their file, or of the sorted lines `HASH  FILE` if there are several."""
    weights = {name: digest for name, digest in files.items() if name.endswith(WEIGHTS)}
    lines = sorted(f"{digest}  {name}\n" for name, digest in weights.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest() if len(lines) != 1 else next(iter(weights.values()))


def licences(names: list[str]) -> list[dict]:
    """Return the entries of licences: an SPDX identifier, an SPDX expression, or the name that the source gives."""
    entries = []
    for name in dict.fromkeys(filter(None, names)):
        if not (text := spdx_expression(name)):
            entries.append({"license": {"name": name}})
            continue
        single = " " not in text and not text.startswith("LicenseRef-")
        entries.append({"license": {"id": text}} if single else {"expression": text})
    return entries


def properties(values: dict) -> list[dict]:
    """Return properties of CycloneDX; those without a value are omitted."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
        if value not in (None, "", [], {})
    }
    return [{"name": name, "value": value} for name, value in texts.items()]


def stated(**fields) -> dict:
    """Return the fields that have a value; an underscore in a name stands for a hyphen."""
    return {name.replace("_", "-"): value for name, value in fields.items() if value not in (None, "", [], {})}


def hashes(digest: str | None) -> list[dict]:
    """Return the hash of a component, if it is known."""
    return [{"alg": "SHA-256", "content": digest}] if re.fullmatch("[0-9a-f]{64}", digest or "") else []


def python_purl(name: str, version: str) -> str:
    """Return the package URL of a package of PyPI."""
    return f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version, safe='')}"


def uuid_of(text: str) -> str:
    """Return a UUID that depends on a text alone."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


class BomBuilder:
    """Content of the BOM of one folder of a release.

    Args:
        folder: The folder, complete except for BOM, SHA256SUMS and signature.
        llama: Folder of the `llama` variant, whose weights further formats come from.
        repository: OWNER/NAME of the folder on the Hub, if known.

    Raises:
        ReleaseError: If the card or its evidence is missing.
    """

    def __init__(self, folder: Path, llama: Path, repository: str | None):
        self.folder, self.repository = folder, repository
        names = ("release", "data", "lineage", "facts")
        self.release, self.data, lineage, self.facts = (read_json(folder / f"evidence/{name}.json") for name in names)
        self.runs, self.files = lineage["runs"], folder_files(folder)
        if "README.md" not in self.files:
            raise ReleaseError(f"{folder} has no README.md, whose sentences the BOM quotes: write the card.")
        self.card = (folder / "README.md").read_text(encoding="utf-8")
        self.architecture = read_json(llama / "config.json")["architectures"][0]
        self.variant = any(name.endswith(".safetensors") for name in self.files)
        self.run = (self.release["source"] or {}).get("run") or {}
        self.sessions = (self.run.get("run") or {}).get("sessions") or []
        self.evaluations = [read_json(path) for path in sorted((folder / "evidence" / "eval").glob("*.json"))]
        optimizer = (self.run.get("config") or {}).get("optimizer")
        settings = optimizer if isinstance(optimizer, dict) else self.facts["settings"]
        self.hyperparameters = {key: value for key, value in settings.items() if value is not None}
        listed = {name: file["sha256"] for name, file in self.release["folders"]["llama"]["files"].items()}
        self.source_digest, self.digest = weights_digest(listed), weights_digest(self.files)

    def build(self) -> dict:
        """Return the content of the BOM."""
        shards, sources, libraries = self.shards(), self.sources(), self.libraries()
        model = self.model([component["bom-ref"] for component in shards])
        created = self.release["created"]
        links = [
            {"ref": "release", "dependsOn": ["model"]},
            {"ref": "model", "dependsOn": [component["bom-ref"] for component in shards]},
            *({"ref": ref, "dependsOn": rows} for ref, rows in self.sources_of_shards(sources).items()),
        ]
        text = [component["bom-ref"] for component in (*shards, *sources)]
        citations = {
            "evidence/release.json": ["/metadata", "/components/0/modelCard/quantitativeAnalysis"],
            "evidence/lineage.json": ["/components/0/modelCard/considerations/environmentalConsiderations"],
            "evidence/data.json": [f"/components/{i}" for i in range(1, 1 + len(text))],
            "README.md": [
                f"/components/0/{key}" for key in ("description", "modelCard/considerations/technicalLimitations")
            ],
        }
        content = {
            "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.7",
            "serialNumber": f"urn:uuid:{uuid_of(self.files['evidence/release.json'] + self.folder.name)}",
            "version": 1,
            "metadata": self.metadata(),
            "components": [model, *shards, *sources, *libraries],
            "dependencies": links,
            "compositions": [
                {"aggregate": self.completeness(), "assemblies": ["model", *text]},
                {"aggregate": "incomplete", "assemblies": [component["bom-ref"] for component in libraries]},
            ],
            "formulation": [self.formulation()],
        }
        content["citations"] = [
            {"timestamp": created, "pointers": existing, "attributedTo": f"file:{name}"}
            for name, pointers in citations.items()
            if (existing := [pointer for pointer in pointers if has_pointer(content, pointer)])
        ]
        return content

    # The model -------------------------------------------------------------------------------------

    def model(self, shards: list[str]) -> dict:
        """Return the component of the model, with its card and its files."""
        release, address = self.release, f"https://huggingface.co/{self.repository}"
        document = "public_summary.md" if "public_summary.md" in self.files else "README.md"
        links = {"model-card": "README.md", "documentation": document, "evidence": "evidence/facts.json"}
        links |= {"attestation": SIGNATURE} if release.get("signature") else {}
        links |= dict.fromkeys(("website", "distribution", "vcs"), address) if self.repository else {}
        return stated(
            type="machine-learning-model",
            bom_ref="model",
            group=self.repository and self.repository.partition("/")[0],
            name=release["name"],
            version=self.digest[:12],
            description=self.sentence(r"^# .*\n\n(.+)$"),
            hashes=hashes(self.digest),
            licenses=licences([release["license"]]),
            purl=self.repository and f"pkg:huggingface/{quote(self.repository)}",
            externalReferences=[{"type": kind, "url": url} for kind, url in links.items()],
            releaseNotes={"type": "release", "timestamp": release["created"]},
            pedigree=self.pedigree(),
            components=[self.file(name) for name in self.files],
            modelCard=self.model_card(shards),
            properties=properties(
                {
                    "cdx:ai-ml:model:modality": "text",
                    "cdx:ai-ml:model:languages": ",".join(release["languages"]),
                    "pleias:dtype": release["model"]["dtype"],
                    "pleias:context": release["model"]["context"],
                    "pleias:vocabulary": release["model"]["vocabulary"],
                }
            ),
        )

    def file(self, name: str) -> dict:
        """Return the component of a file; weights in a further format are models that come from the variant's."""
        converted = not self.variant and name.endswith(WEIGHTS)
        kind = read_json(self.folder / name)["model"]["type"] if name == "tokenizer.json" else None
        return stated(
            type="machine-learning-model" if converted else "file",
            bom_ref=f"file:{name}",
            name=name,
            hashes=hashes(self.files[name]),
            pedigree=self.pedigree() if converted else None,
            properties=properties({"cdx:ai-ml:model:tokenizer": kind}),
        )

    def pedigree(self) -> dict:
        """Return the models that the weights come from."""
        if not self.variant:
            return {"ancestors": [self.ancestor(self.release["name"], self.source_digest)], "notes": "exported"}
        named = [(row["name"], row["sha256"]) for row in self.runs[:-1]]
        first, base = self.sessions[0] if self.sessions else {}, self.run.get("base_model")
        if base or self.facts["origin"] == "fine-tuning":
            named.append((base or "unknown", first.get("base_files") or first.get("init_from") or {}))
        ancestors = [self.ancestor(name, weights_digest(files) if files else None) for name, files in named]
        notes = self.runs[-1]["origin"] if self.runs else "converted" if not self.run else None
        return stated(ancestors=ancestors, notes=notes)

    def ancestor(self, name: str, digest: str | None) -> dict:
        """Return a model that the weights come from."""
        version = digest and digest[:12]
        return stated(type="machine-learning-model", name=name, version=version, hashes=hashes(digest))

    def model_card(self, shards: list[str]) -> dict:
        """Return the model card of CycloneDX."""
        origin = self.facts["origin"]
        tuned = "reinforcement-learning" if self.facts["method"] == "grpo" else "supervised"
        approach = tuned if origin == "fine-tuning" else "self-supervised" if origin else None
        limits = self.section("Limits and risks")
        out_of_scope = self.sentence(r"^- \*\*(Out of scope\*\*: .+)$")
        tradeoffs = [
            f"{row['format']}: {row['bytes']} bytes, {row['perplexity_ratio']} times the perplexity of fp32"
            for row in (self.release["gguf"] or {}).get("formats", [])
        ]
        return stated(
            modelParameters=stated(
                approach=approach and {"type": approach},
                task=TASK,
                architectureFamily="transformer",
                modelArchitecture=self.architecture,
                datasets=[{"ref": ref} for ref in shards],
                inputs=[{"format": "string"}],
                outputs=[{"format": "string"}],
            ),
            quantitativeAnalysis=stated(performanceMetrics=self.metrics()),
            considerations=stated(
                useCases=[self.sentence(r"^- \*\*Intended use\*\*: (.+)$")],
                technicalLimitations=[*limits[:1], out_of_scope.replace("**", "")],
                performanceTradeoffs=tradeoffs,
                ethicalConsiderations=[{"name": line} for line in limits[1:]],
                environmentalConsiderations=stated(energyConsumptions=self.energy()),
            ),
            properties=properties(
                {"cdx:ai-ml:model:parameter:count": self.release["model"]["parameters"]}
                | {f"cdx:ai-ml:model:hyperparameter:{key}": value for key, value in self.hyperparameters.items()}
            ),
        )

    def sentence(self, pattern: str) -> str:
        """Return the words of the card that a pattern captures."""
        match = re.search(pattern, self.card, re.M)
        return match[1].strip() if match else ""

    def section(self, title: str) -> list[str]:
        """Return the lines of a section of the card."""
        return [line for line in self.sentence(rf"^## {title}\n((?:(?!#).*\n)*)").split("\n") if line]

    def metrics(self) -> list[dict]:
        """Return the results of evaluations and of the last validation; a task with a mean has one per language."""
        scores = ((self.run.get("validation") or {}).get("validation") or {}).items()
        rows = [("bits_per_byte", f"validation, {code}", score["bits_per_byte"]) for code, score in scores]
        for result in self.evaluations:
            task = result["task"]
            for name, value in result["metrics"].items():
                rows.append((task, name, value) if "mean" in result["metrics"] else (name, task, value))
        return [
            stated(
                type=kind,
                slice=part,
                value=str(value["value"] if isinstance(value, dict) else value),
                confidenceInterval={"lowerBound": str(value["low"]), "upperBound": str(value["high"])}
                if isinstance(value, dict) and "low" in value
                else None,
            )
            for kind, part, value in rows
        ]

    def energy(self) -> list[dict]:
        """Return the energy of each run whose energy is recorded."""
        rows = []
        for row in (row for row in self.runs if row["watt_hours"] is not None):
            cost = {"value": row["watt_hours"] / 1000, "unit": "kWh"}
            provider = {"organization": {"name": "unknown"}, "energySource": "unknown", "energyProvided": cost}
            grams = row["grams_co2eq"]
            rows.append(
                stated(
                    activity="fine-tuning" if row["origin"] == "fine-tuning" else "training",
                    energyProviders=[stated(description=row["measured_by"]) | provider],
                    activityEnergyCost=cost,
                    co2CostEquivalent=None if grams is None else {"value": grams / 1e6, "unit": "tCO2eq"},
                    properties=properties({"pleias:run": row["name"], "pleias:country": row["country"]}),
                )
            )
        return rows

    # The text and the libraries --------------------------------------------------------------------

    def shards(self) -> list[dict]:
        """Return the components of the shards that the runs read."""
        paths = sorted((self.folder / "runs").glob("*/manifests/*.json"))
        manifests = {manifest["fingerprint"]: manifest for manifest in map(read_json, paths)}
        components = []
        for corpus in self.data:
            fingerprint, counts = corpus["fingerprint"], {}
            for split, prefix in (("train", ""), ("validation", "held_out_")):
                rows = [row for row in corpus["account"] if row["split"] == split]
                for measure in ("documents", "bytes", "tokens"):
                    counts[f"pleias:{prefix}{measure}"] = sum(row[measure] for row in rows)
            changes = ((corpus.get("curation") or {}).get("changes") or {}).items()
            personal = [f"{name}, in the source text: {number}" for name, number in changes if name.startswith("pii")]
            listed = manifests.get(fingerprint, {}).get("shards", [])
            files = [
                stated(
                    type="file",
                    name=shard["file"],
                    hashes=hashes(shard["sha256"]),
                    properties=properties({"pleias:split": shard["split"], "pleias:tokens": shard["tokens"]}),
                )
                for shard in listed
            ]
            components.append(
                stated(
                    type="data",
                    bom_ref=f"data:shards:{fingerprint[:12]}",
                    name=f"token shards of {' and '.join(corpus['stages'])}",
                    version=fingerprint,
                    components=files,
                    data=[stated(type="dataset", name="token shards", sensitiveData=personal)],
                    properties=properties(counts),
                )
            )
        return components

    def sources(self) -> list[dict]:
        """Return the components of the sources of the text, each once, with its numbers in each corpus."""
        entries: dict[str, dict] = {}
        rows: dict[str, list[dict]] = {}
        counts: dict[str, dict] = {}
        for corpus in self.data:
            entries |= entries_of(corpus)
            for row in corpus.get("by_source", ()):
                key, prefix = row["source"], {"train": "", "validation": "held_out_"}[row["split"]]
                rows.setdefault(key, []).append(row)
                sums = counts.setdefault(key, {})
                for measure in ("documents", "bytes", "tokens"):
                    name = f"pleias:{prefix}{measure}:{corpus['fingerprint'][:12]}"
                    sums[name] = sums.get(name, 0) + row[measure]
        return [self.source(key, entries[key], rows.get(key, []), counts.get(key, {})) for key in sorted(entries)]

    def source(self, key: str, entry: dict, rows: list[dict], counts: dict) -> dict:
        """Return the component of a source.

        Args:
            key: Name of the source in `by_source`.
            entry: Its entry in sources.json.
            rows: Its rows of `by_source` in all corpora.
            counts: Properties that count its text.
        """
        url = entry.get("url") or ""
        address = url if ADDRESS.fullmatch(url) else None
        about = {f"pleias:{name}": entry.get(name) for name in ("kind", "languages", "retrieved", "ground")}
        about["pleias:labels"] = entry.get("labels") or sorted({row["label"] for row in rows if "label" in row})
        return stated(
            type="data",
            bom_ref=f"data:{key}",
            name=entry["name"],
            version=entry.get("version"),
            purl=entry.get("purl"),
            hashes=hashes(entry.get("sha256")),
            licenses=licences(licences_of(entry, rows)),
            data=[
                stated(
                    type="dataset",
                    name=entry.get("collection") or entry["name"],
                    classification="public" if address else None,
                    contents=address and {"url": address},
                )
            ],
            properties=properties(about | {"pleias:url": None if address else url} | counts),
        )

    def sources_of_shards(self, sources: list[dict]) -> dict[str, list[str]]:
        """Return the sources of each corpus."""
        known, links = {component["bom-ref"] for component in sources}, {}
        for corpus in self.data:
            rows = sorted({f"data:{key}" for key in entries_of(corpus)} & known)
            links[f"data:shards:{corpus['fingerprint'][:12]}"] = rows
        return links

    def libraries(self) -> list[dict]:
        """Return the components of the packages that training and release used, as far as they are recorded."""
        used: dict[tuple[str, str], list[str]] = {}
        recorded = [("training", session.get("versions") or {}) for session in self.sessions]
        for when, versions in (*recorded, ("release", self.release["versions"])):
            for name, version in versions.items():
                if name != "python" and version and when not in used.setdefault((name, version), []):
                    used[name, version].append(when)
        return [
            {
                "type": "library",
                "bom-ref": f"library:{name}@{version}",
                "name": name.replace("_", "-"),
                "version": version,
                "purl": python_purl(name, version),
                "properties": properties({"pleias:used_in": ", ".join(when)}),
            }
            for (name, version), when in sorted(used.items())
        ]

    def completeness(self) -> str:
        """Return whether the BOM lists all text that the weights come from."""
        if not self.data or self.facts["origin"] != "scratch" or self.run.get("base_model"):
            return "unknown"
        named = all(corpus.get("by_source") for corpus in self.data)
        return "complete" if named and not self.facts["text"]["not_open"] else "incomplete"

    # How it was made -------------------------------------------------------------------------------

    def formulation(self) -> dict:
        """Return the hardware and the recorded commands, with the shards and models that they read and wrote."""
        hardware = [self.release["hardware"].get("cpu")]
        for session in self.sessions:
            devices = session.get("hardware") or {}
            hardware += devices.get("gpus") or [devices.get("cpu")]
        devices = [
            {"type": "device", "bom-ref": f"device:{i}", "name": name}
            for i, name in enumerate(dict.fromkeys(filter(None, hardware)))
        ]
        python = self.release["versions"]["python"]
        platform = {"type": "platform", "bom-ref": "platform:python", "name": "Python", "version": python}
        tasks = self.tasks()
        makers = {ref["resource"]["ref"]: task["bom-ref"] for task in tasks for ref in task.get("outputs", [])}
        needs = {
            task["bom-ref"]: [
                makers[ref] for entry in task.get("inputs", []) if (ref := entry["resource"]["ref"]) in makers
            ]
            for task in tasks
        }
        workflow = {
            "bom-ref": "workflow",
            "uid": uuid_of("workflow"),
            "name": "From text to release",
            "taskTypes": list(dict.fromkeys(kind for task in tasks for kind in task["taskTypes"])),
            "tasks": tasks,
            "taskDependencies": [{"ref": ref, "dependsOn": refs} for ref, refs in needs.items() if refs],
            "runtimeTopology": [
                {"ref": "platform:python", "dependsOn": [device["bom-ref"] for device in devices]},
            ],
        }
        return {"components": [platform, *devices], "workflows": [workflow]}

    def tasks(self) -> list[dict]:
        """Return the recorded commands in order, each once."""
        shards = {corpus["fingerprint"]: f"data:shards:{corpus['fingerprint'][:12]}" for corpus in self.data}
        rows: dict[str, dict] = {}
        for corpus in self.data:
            sources, curation = corpus.get("sources") or {}, corpus.get("curation") or {}
            for record in (sources, sources.get("mixture") or {}, curation):
                rows.setdefault(record.get("command"), {})
            outputs = rows.setdefault(corpus["command"], {}).setdefault("outputs", [])
            outputs.append(shards[corpus["fingerprint"]])
        for row in self.runs:
            last = row is self.runs[-1]
            record = self.folder / "runs" / row["name"] / "run.json"
            sessions = self.sessions if last else read_json(record)["sessions"] if record.is_file() else []
            read = {print_ for session in sessions for print_ in session.get("data", [])}
            rows[row["command"]] = stated(
                inputs=[shards[print_] for print_ in shards if print_ in read],
                outputs=["model"] if last else [],
                timeStart=sessions[0].get("start") if sessions else None,
                timeEnd=sessions[-1].get("end") if sessions else None,
            )
        for command in [*(result.get("command") for result in self.evaluations), self.release["command"]]:
            rows.setdefault(command, {"inputs": ["model"]})
        tasks = []
        for i, (command, fields) in enumerate((command, fields) for command, fields in rows.items() if command):
            program = re.search(r"(?:training|model_card|pleias)[. ](\w+)", command)
            name = program[1] if program else "command"
            resources = {
                key: [{"resource": {"ref": ref}} for ref in dict.fromkeys(fields[key])]
                for key in ("inputs", "outputs")
                if key in fields
            }
            tasks.append(
                {
                    "bom-ref": f"task:{i}:{name}",
                    "uid": uuid_of(f"task:{i}:{name}"),
                    "name": name,
                    "taskTypes": [TASK_TYPES.get(name, "other")],
                    "steps": [{"commands": [{"executed": command}]}],
                    **{key: value for key, value in fields.items() if key not in resources},
                    **resources,
                }
            )
        return tasks

    # The document ----------------------------------------------------------------------------------

    def metadata(self) -> dict:
        """Return the metadata of the BOM, with the properties of the SPDX AI profile."""
        provider, release = self.release.get("provider") or {}, self.release
        contact = provider.get("contact") or ""
        mail = re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", contact, re.A)
        person = {"email": contact} if mail else stated(name=contact)
        commit = next((session["commit"] for session in reversed(self.sessions) if session.get("commit")), None)
        tool = stated(
            type="application",
            name="modeling-pleias",
            version=release["versions"].get("modeling_pleias"),
            pedigree=commit and {"commits": [{"uid": commit}]},
        )
        return stated(
            timestamp=release["created"],
            lifecycles=[{"phase": "build"}],
            tools={"components": [tool]},
            authors=[{"name": provider["name"]} | (person if mail else {})] if provider else None,
            supplier=stated(name=provider.get("name"), contact=[person]) if provider else None,
            component={
                "type": "application",
                "bom-ref": "release",
                "name": f"{release['name']} ({self.folder.name})",
                "version": self.digest[:12],
            },
            properties=properties({f"spdx:{name}": value for name, value in self.spdx(provider).items()}),
        )

    def spdx(self, provider: dict) -> dict:
        """Return the properties of the SPDX AI profile; one without a value in the files says so."""
        facts, data = self.facts, self.data
        energy = facts["watt_hours"]
        measured = [f"{row['type']} ({row['slice']}): {row['value']}" for row in self.metrics()]
        changes = [(corpus.get("curation") or {}).get("changes") or {} for corpus in data]
        personal = {
            name.removeprefix("pii: "): sum(counts.get(name, 0) for counts in changes)
            for name in sorted({name for counts in changes for name in counts if name.startswith("pii: ")})
        }
        dropped = [f"{row['reason']}: {row['documents']}" for corpus in facts["corpora"] for row in corpus["left_out"]]
        toxicity = any(result["task"] == "toxicity" for result in self.evaluations)
        training = f"{facts['origin']}, {facts['tokens']} tokens, {facts['steps']} steps" if facts["origin"] else None
        return {
            "primaryPurpose": TASK,
            "suppliedBy": provider.get("name"),
            "standardCompliance": UNSTATED,
            "domain": f"text in the languages {', '.join(self.release['languages'])}",
            "autonomyType": UNSTATED,
            "external_references": f"https://huggingface.co/{self.repository}" if self.repository else "README.md",
            "hyperparameter": self.hyperparameters or "not recorded",
            "typeOfModel": f"transformer, {self.architecture}",
            "intendedUse": self.sentence(r"^- \*\*Intended use\*\*: (.+)$"),
            "energyConsumption": "not recorded" if energy is None else "training: evidence/lineage.json",
            "energyQuantity": "not recorded" if energy is None else energy / 1000,
            "energyUnit": "kWh",
            "safetyRiskAssessment": "toxicity: evidence/eval/toxicity.json" if toxicity else UNSTATED,
            "modelExplainability": UNSTATED,
            "informationAboutTraining": training or "not recorded",
            "informationAboutApplication": self.sentence(r"^- \*\*Out of scope\*\*: (.+)$"),
            "metric": "; ".join(measured) or "none measured",
            "metricDecisionThreshold": "none defined",
            "modelDataPreprocessing": f"documents dropped: {'; '.join(dropped)}" if dropped else "none recorded",
            "useSensitivePersonalInformation": {"replaced in curation": personal} if personal else UNSTATED,
        }


def has_pointer(content: dict, pointer: str) -> bool:
    """Return whether a JSON pointer leads to a value."""
    try:
        resolve_pointer(content, pointer)
    except KeyError:
        return False
    return True
