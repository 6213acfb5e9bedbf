"""The public summary of training content of Article 53(1)(d) of the AI Act, and the Model Documentation Form.

    python -m model_card.public_summary --run runs/NAME --provider provider.yaml --out DIR

writes `public_summary` and `model_documentation_form`, each as .md, .json and a standalone .html that prints as PDF.
Sections and fields are those of the Commission's template (24 July 2025; adopted as C(2025) 8311 on 5 December 2025).
What the run's files say is taken from them; what only the provider can attest comes from provider.yaml, where every
field is required. Nothing is guessed.
"""

if not __package__:  # run by path; same as `python -m model_card.public_summary`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import math
from pathlib import Path

from . import documentation_form
from .attested import EXAMPLE, NONE, in_range, nothing, or_none, read_provider, read_run, rows_by, yes_no
from .documents import document, markdown, page
from .files import ReleaseError, program, sha256, write_json
from .run import Run

LINK = (
    "https://digital-strategy.ec.europa.eu/en/library/"
    "explanatory-notice-and-template-public-summary-training-content-general-purpose-ai-models"
)
# Section 1.3: from how many tokens on a range holds.
TEXT_SIZES = (
    (0, "Less than 1 billion tokens"),
    (10**9, "1 billion to 10 trillion tokens"),
    (10**13, "More than 10 trillion tokens"),
)
OTHER_MODALITIES = ("Image", "Audio", "Video", "Other")
LARGE = 0.03  # section 2.1: a dataset is large above this share of all publicly available datasets of its modality
# Section 2.3: the share of domain names to list, by content scraped; small providers at most 1,000 of them.
DOMAINS, DOMAINS_SME, DOMAINS_SME_MOST = 0.1, 0.05, 1000


def sources_of(run: dict, public) -> tuple[list[dict], list[dict]]:
    """The datasets of all corpora, each once: the public ones, with their share of those, and the rest.

    Args:
        run: as `read_run` gives it.
        public: `all`, or the names of those that are publicly available.

    Raises:
        ReleaseError: when a name is not that of a dataset.
    """
    found = {(source["name"], source["version"]): source for corpus in run["corpora"] for source in corpus["sources"]}
    names = {name for name, _ in found}
    chosen = names if public == "all" else set() if nothing(public) else set(public)
    if chosen - names:
        raise ReleaseError(
            f"data.publicly_available: the manifests name no source {', '.join(sorted(chosen - names))}."
        )
    ordered = sorted(found.values(), key=lambda source: (-source["bytes"], source["name"]))
    parts = [[one for one in ordered if (one["name"] in chosen) == is_public] for is_public in (True, False)]
    return tuple([{**one, "share": one["bytes"] / sum(o["bytes"] for o in part)} for one in part] for part in parts)


def fill(provider: dict, run: dict) -> list[tuple[str, list]]:
    """Sections and fields of the Commission's template."""
    who, model, data, processing = (provider[name] for name in ("provider", "model", "data", "processing"))
    sources, private = sources_of(run, data["publicly_available"])
    languages, licences = rows_by(run, "language"), rows_by(run, "license")
    tokens = sum(languages.values())
    large = [source for source in sources if source["share"] > LARGE]
    small = [source for source in sources if source["share"] <= LARGE]
    dates = [source["retrieved"] for source in [*sources, *private] if source["retrieved"]]
    undated = [source["name"] for source in [*sources, *private] if not source["retrieved"]]
    synthetic = [corpus["synthetic"] for corpus in run["corpora"] if corpus["synthetic"]]
    size = in_range(tokens, TEXT_SIZES)
    shares = ", ".join(f"{name} {count / tokens:.1%}" for name, count in languages.items())
    latest = max(dates, default="Not on file") + (f" (none on file for {', '.join(undated)})" if undated else "")
    return [
        (
            "1.1 Provider identification",
            [
                ("Provider name and contact details", f"{who['name']}; {who['contact']}"),
                ("Authorised representative name and contact details", or_none(who["authorised_representative"])),
            ],
        ),
        (
            "1.2 Model identification",
            [
                ("Versioned model name(s)", or_none(model["names"])),
                ("Model dependencies", or_none(model["dependencies"])),
                ("Date of placement of the model on the Union market", str(model["placed_on_union_market"])),
            ],
        ),
        (
            "1.3 Modalities, overall training data size and other characteristics",
            [
                (
                    "Modalities",
                    [
                        ("Modality", "Training data size", "Types of content"),
                        ("Text", f"{size} ({tokens:,} tokens in the corpora of all stages)", or_none(data["content"])),
                        *((name, NONE, NONE) for name in OTHER_MODALITIES),
                    ],
                ),
                (
                    "Latest date of data acquisition/collection for model training",
                    f"{latest}. Trained on data that comes in after it: {yes_no(data['continuously_trained'])}.",
                ),
                (
                    "Linguistic characteristics of the overall training data",
                    f"{len(languages)} languages; share of tokens: {shares}.",
                ),
                (
                    "Tokens by language",
                    [("Language", "Tokens"), *((name, f"{count:,}") for name, count in languages.items())],
                ),
                (
                    "Tokens by licence",
                    [("Licence", "Tokens"), *((name, f"{count:,}") for name, count in licences.items())],
                ),
                (
                    "Other relevant characteristics of the overall training data",
                    or_none(data["other_characteristics"]),
                ),
                ("Personal data", or_none(data["personal_data"])),
            ],
        ),
        (
            "2.1 Publicly available datasets",
            [
                ("Have you used publicly available datasets to train the model?", "Yes" if sources else "No"),
                ("Modality(ies) of the content covered by the datasets concerned", "Text" if sources else NONE),
                (f"List of large publicly available datasets (above {LARGE:.0%})", table_of(large) or NONE),
                (
                    "General description of other publicly available datasets not listed above",
                    f"{len(small)} of the same kind, {sum(one['share'] for one in small):.1%} of the bytes: "
                    f"{', '.join(one['name'] for one in small)}."
                    if small
                    else NONE,
                ),
            ],
        ),
        (
            "2.2.1 Datasets commercially licensed by rightsholders or their representatives",
            [
                (
                    "Have you concluded transactional commercial licensing agreement(s) with rightsholder(s) or with "
                    "their representatives?",
                    yes_no(data["licensed_datasets"]),
                ),
                ("If yes, modality(ies) and description", or_none(data["licensed_datasets"])),
            ],
        ),
        (
            "2.2.2 Private datasets obtained from other third parties",
            [
                (
                    "Have you obtained private datasets from third parties that are not licensed as described in "
                    "Section 2.2.1?",
                    yes_no(data["private_datasets"]),
                ),
                ("If yes, modality(ies) and description", or_none(data["private_datasets"])),
            ],
        ),
        ("2.3 Data crawled and scraped from online sources", crawled(data["crawlers"], sme=who["sme"])),
        (
            "2.4 User data",
            [
                (
                    "Was data from user interactions with the AI model used to train the model?",
                    yes_no(data["user_data_model"]),
                ),
                (
                    "Was data collected from user interactions with the provider's other services or products used to "
                    "train the model?",
                    yes_no(data["user_data_services"]),
                ),
                (
                    "If yes, services or products, modality(ies) and description",
                    " ".join(dict.fromkeys((or_none(data["user_data_model"]), or_none(data["user_data_services"])))),
                ),
            ],
        ),
        (
            "2.5 Synthetic data",
            [
                (
                    "Was synthetic AI-generated data created by the provider or on their behalf to train the model?",
                    "Yes" if synthetic else yes_no(data["synthetic_beyond_curation"]),
                ),
                ("Modality of the synthetic data", "Text" if synthetic else NONE),
                (
                    "AI model(s) used to generate the synthetic data",
                    [
                        ("Model", "Documents rewritten", "Documents with a content warning"),
                        *((one["model"], f"{one['rewritten']:,}", f"{one['warned']:,}") for one in synthetic),
                    ]
                    if synthetic
                    else NONE,
                ),
                ("Other synthetic data, and the models used", or_none(data["synthetic_beyond_curation"])),
            ],
        ),
        (
            "2.6 Other sources of data",
            [
                (
                    "Have data sources other than those described in Sections 2.1 to 2.5 been used?",
                    "Yes" if private else yes_no(data["other_sources"]),
                ),
                ("If yes, narrative description", or_none(data["other_sources"])),
                ("Datasets that are not publicly available", table_of(private) or NONE),
            ],
        ),
        (
            "3.1 Respect of reservation of rights from text and data mining exception or limitation",
            [
                (
                    "Are you a Signatory to the Code of Practice for general-purpose AI models?",
                    yes_no(processing["code_of_practice_signatory"]),
                ),
                ("Measures implemented before and during data collection", or_none(processing["rights_reservations"])),
            ],
        ),
        (
            "3.2 Removal of illegal content",
            [("General description of measures taken", or_none(processing["illegal_content"])), *left_out(run)],
        ),
        (
            "3.3 Other information (optional)",
            [("Other relevant information about data processing", or_none(processing["other"]))],
        ),
    ]


def table_of(sources: list[dict]) -> list[tuple]:
    """A table of datasets; empty for none."""
    head = ("Name", "Version", "Licence", "Languages", "Acquired", "Documents", "Bytes", "Share")
    rows = [
        (
            one["name"],
            one["version"] or "not on file",
            one["license"],
            one["languages"],
            one["retrieved"] or "not on file",
            f"{one['documents']:,}",
            f"{one['bytes']:,}",
            f"{one['share']:.1%}",
        )
        for one in sources
    ]
    return [head, *rows] if rows else []


def crawled(crawlers, *, sme: bool) -> list[tuple]:
    """The fields of section 2.3; the domains come by size, the largest first."""
    fields = [("Were crawlers used by the provider or on behalf of the provider?", yes_no(crawlers))]
    if nothing(crawlers):
        return [*fields, ("Crawlers, content, period and domain names", NONE)]
    domains = crawlers["domains"]
    count = math.ceil(len(domains) * (DOMAINS_SME if sme else DOMAINS))
    count = min(count, DOMAINS_SME_MOST) if sme else count
    titles = {
        "names": "Crawler name(s)/identifier(s)",
        "purposes": "Purposes of the crawler(s)",
        "behaviour": "General description of crawler behaviour",
        "period": "Period of data collection",
        "content": "Comprehensive description of the type of content and online sources crawled",
    }
    fields += [(title, or_none(crawlers[key])) for key, title in titles.items()]
    listed = f"the top {count:,} of {len(domains):,} by size of the content: {', '.join(domains[:count])}"
    return [
        *fields,
        ("Type of modality covered", "Text"),
        ("Summary of the most relevant domain names crawled", listed),
    ]


def left_out(run: dict) -> list[tuple]:
    """What curation dropped, as a field, where there was curation."""
    rows = [row for corpus in run["corpora"] for row in corpus["left_out"]]
    table = [(row["reason"], f"{row['documents']:,}", f"{row['bytes']:,}") for row in rows]
    return [("Documents left out by curation", [("Reason", "Documents", "Bytes"), *table])] if rows else []


def write(run: Run, provider_file: Path, out: Path) -> list[Path]:
    """Write both documents; returns their files.

    Raises:
        ReleaseError: when provider.yaml or a file of the run is not whole.
    """
    provider, run = read_provider(provider_file), read_run(run)
    inputs, names = {**run["inputs"], str(provider_file): sha256(provider_file)}, or_none(provider["model"]["names"])
    documents = {
        "public_summary": document(
            f"Public Summary of Training Content for {names}",
            "Required by Article 53(1)(d) of Regulation (EU) 2024/1689 (AI Act).",
            LINK,
            fill(provider, run),
            provider,
            inputs,
        ),
        "model_documentation_form": document(
            f"Model Documentation Form for {names}",
            "After the Transparency Chapter of the Code of Practice for general-purpose AI models, Measure 1.1.",
            documentation_form.LINK,
            documentation_form.fill(provider, run),
            provider,
            inputs,
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in documents.items():
        files += [out / f"{name}{suffix}" for suffix in (".md", ".json", ".html")]
        (out / f"{name}.md").write_text(markdown(content), encoding="utf-8")
        write_json(out / f"{name}.json", content)
        (out / f"{name}.html").write_text(page(content), encoding="utf-8")
    return files


def main() -> None:
    """`python -m model_card.public_summary`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument(
        "--provider", type=Path, required=True, help=f"what only the provider can attest; see {EXAMPLE}"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the documents")
    args = parser.parse_args()
    for path in write(Run(args.run), args.provider, args.out):
        print(path)


if __name__ == "__main__":
    program(main)
