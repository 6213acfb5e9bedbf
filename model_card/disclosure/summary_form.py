"""Fill in the Commission's template of the public summary of training content, as typed answers with their sources.

    {$schema, title, declaration, basis {required, training_flop, indicative_flop, text}, template, version,
     last_update, status, changes, versions [{version, date, link}], changes_announced_at, published_at,
     sections {number: heading}, fields {key: {label, type, answer, comment, sources}}, inputs_sha256 {file: sha256}}

Headings, fields and types of answers are those of summary_template.py. `sources` lists FILE#POINTER of what an answer
was made from; `inputs_sha256` has each FILE.
"""

import math
import re
from collections import Counter
from datetime import date

from ..facts import (
    distinct_datasets,
    distinct_rows,
    largest,
    left_out,
    synthetic,
    total,
    totals_by,
    training_rows,
    with_spdx,
)
from ..files import ReleaseError
from .ai_act_inputs import in_range, value_of
from .summary_template import FIELDS, LAW, SCHEMA, SECTIONS, TEMPLATE

# Computation of training above which a model is, indicatively, a general-purpose AI model, according to the
# Commission's guidelines on the scope of the obligations for general-purpose AI models (18 July 2025).
INDICATIVE_FLOP = 10**23
TEXT_SIZES = (  # section 1.3: lower bound in tokens, range as the template prints it
    (0, "Less than 1 billion tokens"),
    (10**9, "1billion to 10 trillions tokens"),
    (10**13, "More than 10 trillions tokens"),
)
LARGE = 0.03  # section 2.1: a dataset is large above this share of all publicly available datasets of its modality
# Section 2.3: share of the domain names to list, by size of the content; small providers list at most 1,000.
DOMAINS, DOMAINS_SME, DOMAINS_SME_MAX = 0.1, 0.05, 1000

DATASET_COLUMNS = {
    **{"Dataset": "text", "Link": "link", "Modality": "text", "Nature of the content": "text", "Languages": "text"},
    **{"Licence": "text", "Period of collection": "month"},
    **{"Documents before curation": "integer", "Bytes before curation": "integer"},
    **{f"{kind} after curation and selection": "integer" for kind in ("Documents", "Bytes", "Tokens")},
    "Share of bytes": "share",
}


def table(columns: dict[str, str], rows: list[list]) -> dict:
    """Return a table.

    Args:
        columns: Name -> type.
        rows: Cells in the order of the columns.
    """
    return {"columns": [{"name": name, "type": kind} for name, kind in columns.items()], "rows": rows}


def line(value) -> str | None:
    """Return an answer of the provider on one line, a list with commas; None stays None."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else value
    return None if text is None else " ".join(str(text).split())


def month(text) -> str | None:
    """Return the month of an ISO date, or None for anything else."""
    return text[:7] if isinstance(text, str) and re.match(r"\d{4}-(0\d|1[012])(-|$)", text) else None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def legal_basis(training_flop: float) -> dict:
    """Return whether the summary is required of the provider of a model, from the computation of its training."""
    required = training_flop > INDICATIVE_FLOP
    exceeds = "exceeds" if required else "does not exceed"
    criterion = (
        f"the computation of training, about {training_flop:.2g} FLOP (6 x parameters x tokens), {exceeds} the "
        f"indicative 10^{math.log10(INDICATIVE_FLOP):.0f} FLOP of a general-purpose AI model"
    )
    return {
        "required": required,
        "training_flop": training_flop,
        "indicative_flop": INDICATIVE_FLOP,
        "text": f"Required by {LAW}: {criterion}." if required else f"Voluntary, not required by {LAW}: {criterion}.",
    }


def fill_summary(provider: dict, run: dict, file: str) -> dict:
    """Return the public summary as data.

    Args:
        provider: Result of `read_provider`.
        run: Result of `read_run` or `read_release`; its `inputs` have provider.yaml, too.
        file: Name of provider.yaml in `inputs`.

    Raises:
        ReleaseError: If provider.yaml names a source that no manifest has.
    """
    summary, model, named = provider["summary"], provider["model"], provider["provider"]["name"]
    example = "example.org" in str(provider["provider"]["contact"])
    prefix = "Example, not a declaration: " if example else "" if named else "Without a provider, not a declaration: "
    versions = [*(summary["previous_versions"] or []), {**summary, "link": summary["published_at"]}]
    content = {
        "$schema": SCHEMA,
        "title": f"{prefix}Public Summary of Training Content for {line(model['names'])}",
        "declaration": not prefix,
        "basis": legal_basis(6 * run["parameters"] * run["tokens"]),
        "template": TEMPLATE,
        "version": str(summary["version"]),
        "last_update": str(summary["date"]),
        "status": "Latest version",
        "changes": line(summary["changes"]),
        "versions": [
            {"version": str(row["version"]), "date": str(row["date"]), "link": line(row["link"])} for row in versions
        ],
        "changes_announced_at": line(summary["changes_announced_at"]),
        "published_at": line(summary["published_at"]),
        "sections": SECTIONS,
        "fields": SummaryAnswers(provider, run, file).fields(),
        "inputs_sha256": run["inputs"],
    }
    return run["relative"](content)


class SummaryAnswers:
    """The answers to the fields of the template.

    Args:
        provider: Result of `read_provider`.
        run: Result of `read_run` or `read_release`.
        file: Name of provider.yaml in the summary.
    """

    def __init__(self, provider: dict, run: dict, file: str):
        self.provider, self.run, self.file = provider, run, file
        self.account, self.corpus = run["pointers"]["account"], run["pointers"]["corpus"]
        self.answers: dict[str, dict] = {}

    def fields(self) -> dict[str, dict]:
        """Return all fields, in the order of the template."""
        self.general_information()
        self.public_datasets()
        self.other_data()
        self.processing()
        assert self.answers.keys() == FIELDS.keys(), self.answers.keys() ^ FIELDS.keys()
        return {key: self.answers[key] for key in FIELDS}

    def put(self, key: str, value, *sources: str, comment: str | None = None) -> None:
        """Answer a field.

        Args:
            key: Key of the field.
            value: Truth value, text, date or table; None if the field does not apply.
            sources: FILE#POINTER, or SECTION.KEY of provider.yaml.
            comment: Words after the answer.
        """
        kinds = {bool: "yes_no", str: "text", date: "date", dict: "table", type(None): "not_applicable"}
        kind = "date" if FIELDS[key][1].startswith("date") and value is not None else kinds[type(value)]
        pointers = [
            source if "#" in source else f"{self.file}#/{source.replace('.', '/')}"
            for source in dict.fromkeys(sources)
        ]
        self.answers[key] = {
            "label": FIELDS[key][0],
            "type": kind,
            "answer": str(value) if isinstance(value, date) else value,
            **({"comment": comment} if comment else {}),
            "sources": pointers,
        }

    def put_provider(self, key: str, *names: str) -> None:
        """Answer a field with what the provider states in fields of provider.yaml."""
        texts = dict.fromkeys(filter(None, (line(value_of(self.provider, name)) for name in names)))
        self.put(key, " ".join(texts) or None, *names)

    def general_information(self) -> None:
        """Answer section 1."""
        provider, model, data = (self.provider[section] for section in ("provider", "model", "data"))
        names = ("provider.name", "provider.contact")
        contact = "; ".join(filter(None, (line(value_of(self.provider, name)) for name in names)))
        none = None if provider["name"] else "No provider is named, and nobody declares what this document states."
        self.put("1.1.a", contact or None, *names, comment=none)
        self.put_provider("1.1.b", "provider.authorised_representative")
        self.put_provider("1.2.a", "model.names")
        links = model["documentation"] or []
        links = links if isinstance(links, list) else [links]
        documents = table({"Link": "link"}, [[line(link)] for link in links]) if links else None
        self.put("1.2.a.1", documents, "model.documentation")
        self.put_provider("1.2.b", "model.dependencies")
        placed = model["placed_on_union_market"]
        comment = None if placed else "No placement on the Union market is stated."
        self.put("1.2.c", placed, "model.placed_on_union_market", comment=comment)
        rows = with_spdx(distinct_rows(self.run["data"]), self.run["data"])
        tokens, exact = total(rows)["tokens"], all(row["exact"] for row in rows)
        bound = "" if exact else "at least "
        size = f"{in_range(tokens, TEXT_SIZES)} ({bound}{tokens:,} tokens, each document counted once)"
        kinds = [
            ["Text", size, line(data["content"])],
            *([name, None, None] for name in "Image Audio Video Other".split()),
        ]
        columns = {"Modality": "text", "Training data size": "text", "Types of content": "text"}
        self.put("1.3.a", table(columns, kinds), *self.account, "data.content")
        sources = [source for source in distinct_datasets(self.run["data"]) if source["documents"]]
        dated = [text for text in (month(source["retrieved"]) for source in sources) if text]
        after = "is" if data["continuously_trained"] else "is not"
        comment = f"The model {after} continuously trained on new data after this date."
        if undated := len(sources) - len(dated):
            comment += f" The date is not recorded for {undated:,} of {counted(len(sources), 'dataset')}."
        self.put("1.3.b", max(dated, default=None), *self.corpus, "data.continuously_trained", comment=comment)
        languages, licences = (totals_by(rows, column) for column in ("language", "license"))
        shares = ", ".join(f"{row['language']} {row['share']:.1%}" for row in languages)
        self.put("1.3.c", f"{counted(len(languages), 'language')}; share of tokens: {shares}.", *self.account)
        self.put_provider("1.3.d", "data.other_characteristics")
        vocabularies = {corpus["tokenizer"]["sha256"]: corpus["tokenizer"] for corpus in self.run["data"]}
        tokenizers = " and ".join(
            f"the model's tokenizer of {facts['entries']:,} entries (sha256 {digest})"
            if "entries" in facts
            else f"the model's tokenizer (sha256 {digest})"
            for digest, facts in vocabularies.items()
        )
        steps = sum(stage["tokens"] for stage in self.run["stages"])
        comments = [
            f"Tokens are those of {tokenizers}, with two for the ends of a document.",
            "A document in the text of several stages counts once.",
            *([] if exact else ["Mixtures repeat some documents, so the numbers of tokens are lower bounds."]),
            f"Training read {steps:,} tokens in {counted(len(self.run['stages']), 'stage')}, repetitions included.",
            *([f"Personal data: {line(data['personal_data'])}"] if data["personal_data"] else []),
            *filter(None, [line(self.provider["comments"]["training_data"])]),
        ]
        self.put("1.3.e", " ".join(comments), *self.account, "data.personal_data", "comments.training_data")
        for key, column, name, rows in (
            ("1.3.e.1", "language", "Language", languages),
            ("1.3.e.2", "license", "Licence", licences),
        ):
            columns = {name: "text", "Documents": "integer", "Bytes": "integer", "Tokens": "integer", "Share": "share"}
            cells = [
                [row[column] or None, row["documents"], row["bytes"], row["tokens"], row["share"]] for row in rows
            ]
            self.put(key, table(columns, cells), *self.account)

    def split_datasets(self) -> tuple[list[dict], list[dict]]:
        """Return the public and the other datasets of all corpora, each with its share of the bytes of its group.

        Raises:
            ReleaseError: If no dataset has a name that the provider lists.
        """
        sources, public = distinct_datasets(self.run["data"]), self.provider["data"]["publicly_available"]
        names = {source["name"] for source in sources}
        chosen = names if public == "all" else set(public or ())
        if unknown := chosen - names:
            raise ReleaseError(f"data.publicly_available: no manifest lists a source {', '.join(sorted(unknown))}.")
        groups = [
            [entry for entry in sources if (entry["name"] in chosen) == is_public] for is_public in (True, False)
        ]
        totals = [sum(entry["bytes"] for entry in group) for group in groups]
        return tuple(
            [{**entry, "share": entry["bytes"] / total} for entry in group]
            for group, total in zip(groups, totals, strict=True)
        )

    @staticmethod
    def dataset_table(rows: list[dict]) -> dict | None:
        """Return the table of some datasets, or None for none."""
        cells = []
        for row in rows:
            before, counts = row["collected"], row["tokens"] is not None
            name = f"{row['name']} {row['version']}" if row["version"] else row["name"]
            about = [name, row["url"], "Text", row["collection"], row["languages"] or None, row["license"] or None]
            after = [row["documents"], row["bytes"], row["tokens"]] if counts else [None] * 3
            cells.append([*about, month(row["retrieved"]), before["documents"], before["bytes"], *after, row["share"]])
        return table(DATASET_COLUMNS, cells) if cells else None

    def public_datasets(self) -> None:
        """Answer section 2.1, and the datasets of 2.6."""
        public, private = self.split_datasets()
        large, small = ([row for row in public if (row["share"] > LARGE) == above] for above in (True, False))
        sources = (*self.corpus, "data.publicly_available")
        self.put("2.1.a", bool(public), *sources)
        self.put("2.1.b", "Text" if public else None, *sources)
        comment = f"Large: more than {LARGE:.0%} of the bytes of all publicly available datasets."
        self.put("2.1.c", self.dataset_table(large), *sources, comment=comment if large else None)
        used, kinds = [row for row in small if row["documents"]], Counter()
        for row in filter(lambda row: row["collection"], used):
            kinds[row["collection"]] += row["bytes"]
        languages = sorted({code for row in used for code in row["languages"].split()})
        share = sum(row["share"] for row in used)
        description = [
            f"{counted(len(used), 'dataset')} of text, together {share:.1%} of the bytes",
            *([f"in {', '.join(languages)}"] if languages else []),
        ]
        nature = f" Nature of the content: {largest(kinds)}." if kinds else ""
        if unused := len(small) - len(used):
            nature += f" No document was selected from {counted(unused, 'further dataset')}."
        self.put("2.1.d", f"{', '.join(description)}; listed below.{nature}" if small else None, *sources)
        self.put("2.1.d.1", self.dataset_table(small), *sources)
        self.put("2.6.b.1", self.dataset_table(private), *sources)
        comments = [*self.selection(), *filter(None, [line(self.provider["comments"]["public_datasets"])])]
        self.put("2.1.e", " ".join(comments) or None, *self.corpus, "comments.public_datasets")
        self.put("2.1.e.1", self.stage_table(), *self.account, *self.corpus)
        dropped: dict[str, list[int]] = {}
        for curation in self.curations():
            for row in left_out({"curation": curation}):
                counts = dropped.setdefault(row["reason"], [0, 0])
                counts[:] = [counts[0] + row["documents"], counts[1] + row["bytes"]]
        columns = {"Reason": "text", "Documents": "integer", "Bytes": "integer"}
        rows = [[reason, *counts] for reason, counts in dropped.items()]
        self.put("2.1.e.2", table(columns, rows) if rows else None, *self.corpus)

    def curations(self) -> list[dict]:
        """Return the different curation.json of the corpora."""
        records = [corpus["curation"] for corpus in self.run["data"] if corpus.get("curation")]
        return [record for i, record in enumerate(records) if record not in records[:i]]

    def selection(self) -> list[str]:
        """Return sentences about the parts of the datasets that became training text."""
        sentences, epochs = [], {1}
        for corpus in self.run["data"]:
            origin, validation = corpus.get("sources") or {}, corpus["validation"]
            if megabytes := (origin.get("settings") or {}).get("megabytes"):
                sentences.append(f"At most {megabytes:g} MB of text per language was taken from the datasets.")
            if dropped := origin.get("dropped"):
                reasons = ", ".join(f"{number:,} ({reason})" for reason, number in dropped.items())
                sentences.append(f"Paragraphs and documents not taken from them: {reasons}.")
            share, chosen = validation.get("share"), f"chosen by a hash of the {validation.get('by', 'identifier')}"
            if mixture := origin.get("mixture"):
                epochs |= {rule["epochs"] for rule in mixture["mixtures"].get(mixture["name"]) or []}
                share, chosen = mixture["held_out"], "complete authors of each dataset"
            if share:
                sentences.append(f"{share:.1%} of the documents, {chosen}, were held out of training for evaluation.")
        if len(epochs) > 1:
            sentences.append(
                f"By rules on language, collection, type and licence, a stage read documents {min(epochs):g} to "
                f"{max(epochs):g} times (0.5: half of them, chosen by a hash of the identifier)."
            )
        if max(epochs) > 1:
            sentences.append("So the numbers of a dataset after selection are upper bounds.")
        for curation in self.curations():
            if {"input", "kept"} <= curation.keys():
                before, after = (curation[key]["documents"] for key in ("input", "kept"))
                sentences.append(f"Curation kept {after:,} of {counted(before, 'document')}; see the reasons below.")
        return list(dict.fromkeys(sentences))

    def stage_table(self) -> dict:
        """Return the numbers of documents of each corpus before and after curation, after selection, and held out."""
        rows = []
        for corpus in self.run["data"]:
            listed = (corpus.get("sources") or {}).get("sources", [])
            named = [source for source in listed if isinstance(source, dict) and source.get("bytes")]
            curation = corpus.get("curation") or {}
            sums = {key: sum(source[key] for source in named) for key in ("documents", "bytes")} if named else {}
            before, after = curation.get("input") or sums, curation.get("kept") or {}
            trained = total(training_rows(corpus))
            held_out = total([row for row in corpus["account"] if row["split"] != "train"])
            rows.append(
                [
                    " and ".join(corpus["stages"]),
                    *(counts.get(key) for counts in (before, after) for key in ("documents", "bytes")),
                    *(trained[key] for key in ("documents", "bytes", "tokens")),
                    *(held_out[key] for key in ("documents", "tokens")),
                ]
            )
        columns = {
            "Stage": "text",
            **{
                f"{kind} {time} curation": "integer" for time in ("before", "after") for kind in ("Documents", "Bytes")
            },
            **{f"{kind} of training": "integer" for kind in ("Documents", "Bytes", "Tokens")},
            **{f"{kind} held out": "integer" for kind in ("Documents", "Tokens")},
        }
        return table(columns, rows)

    def other_data(self) -> None:
        """Answer sections 2.2 to 2.6."""
        data = self.provider["data"]
        self.put("2.2.1.a", bool(data["licensed_datasets"]), "data.licensed_datasets")
        licensed = line(data["licensed_datasets"])
        self.put("2.2.1.b", licensed and "Text", "data.licensed_datasets", comment=licensed)
        names = ("data.private_datasets_known", "data.private_datasets_other")
        private = any(value_of(self.provider, name) for name in names)
        self.put("2.2.2.a", private, *names)
        self.put("2.2.2.b", "Text" if private else None, *names)
        self.put_provider("2.2.2.c", names[0])
        self.put_provider("2.2.2.d", names[1])
        self.put_provider("2.2.2.e", "comments.private_datasets")
        self.crawled_data()
        users = ("data.user_data_model", "data.user_data_services")
        for key, name in zip(("2.4.a", "2.4.b"), users, strict=True):
            self.put(key, bool(value_of(self.provider, name)), name)
        self.put_provider("2.4.c", *users)
        self.put("2.4.d", "Text" if self.answers["2.4.c"]["answer"] else None, *users)
        self.put_provider("2.4.e", "comments.user_data")
        self.synthetic_data()
        others = self.answers["2.6.b.1"]["answer"]
        self.put("2.6.a", bool(others or data["other_sources"]), *self.corpus, "data.other_sources")
        listed = "Datasets that are not publicly available; see the table." if others else None
        self.put("2.6.b", line(data["other_sources"]) or listed, *self.corpus, "data.other_sources")
        self.put_provider("2.6.c", "comments.other_sources")

    def crawled_data(self) -> None:
        """Answer section 2.3."""
        crawlers, source = self.provider["data"]["crawlers"], "data.crawlers"
        self.put("2.3.a", bool(crawlers), source)
        for key, name in zip("bcdf", ("names", "purposes", "behaviour", "content"), strict=True):
            self.put(f"2.3.{key}", line(crawlers[name]) if crawlers else None, source)
        period = f"{crawlers['from']:%m/%Y} to {crawlers['to']:%m/%Y}" if crawlers else None
        self.put("2.3.e", period, source)
        self.put("2.3.g", "Text" if crawlers else None, source)
        domains = (crawlers["domains"] or []) if crawlers else []  # largest first
        small = self.provider["provider"]["sme"]
        count = math.ceil(len(domains) * (DOMAINS_SME if small else DOMAINS))
        count = min(count, DOMAINS_SME_MAX) if small else count
        names = table({"Domain name": "text"}, [[line(name)] for name in domains[:count]]) if domains else None
        comment = f"The top {count:,} of {len(domains):,} by size of the content." if domains else None
        self.put("2.3.h", names, source, "provider.sme", comment=comment)
        self.put_provider("2.3.i", "comments.crawling")

    def synthetic_data(self) -> None:
        """Answer section 2.5."""
        recorded = [row for row in map(synthetic, self.run["data"]) if row]
        recorded = [row for i, row in enumerate(recorded) if row not in recorded[:i]]  # stages of one corpus
        off_market = self.provider["data"]["synthetic_models_not_on_market"] or {}
        names = ("data.synthetic_models_not_on_market", "data.synthetic_beyond_curation")
        used = bool(recorded or off_market or value_of(self.provider, names[1]))
        self.put("2.5.a", used, *self.corpus, *names)
        self.put("2.5.b", "Text" if used else None, *self.corpus, *names)
        columns = {"Model": "text", "Documents rewritten": "integer", "Documents with a content warning": "integer"}
        rows = [[row["model"], row["rewritten"], row["warned"]] for row in recorded if row["model"] not in off_market]
        self.put("2.5.c", table(columns, rows) if rows else None, *self.corpus, names[0])
        counts = {row["model"]: row["documents"] for row in recorded}
        rows = [[str(name), counts.get(name), line(text)] for name, text in off_market.items()]
        columns = {"Model": "text", "Documents written": "integer", "Description": "text"}
        self.put("2.5.d", table(columns, rows) if rows else None, *self.corpus, names[0])
        self.put_provider("2.5.e", names[1], "comments.synthetic_data")

    def processing(self) -> None:
        """Answer section 3."""
        signatory = "processing.code_of_practice_signatory"
        self.put("3.1.a", value_of(self.provider, signatory), signatory)
        self.put_provider("3.1.b", "processing.rights_reservations")
        policy, comment = (
            line(self.provider["processing"]["copyright_policy"]),
            line(self.provider["comments"]["rights"]),
        )
        texts = [policy and f"Copyright policy: {policy}", comment]
        sources = ("processing.copyright_policy", "comments.rights")
        self.put("3.1.c", " ".join(filter(None, texts)) or None, *sources)
        self.put_provider("3.2.a", "processing.illegal_content")
        self.put_provider("3.3.a", "processing.other")
