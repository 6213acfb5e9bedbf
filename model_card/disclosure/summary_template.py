"""Headings and fields of the Commission's template of the public summary of training content, and its JSON Schema.

The template is the annex of the Explanatory Notice of 24 July 2025, adopted as C(2025) 8311 on 5 December 2025; its
headings and labels are unchanged. The key of a field is the number of its section and a letter by position; with a
further number it is a table of this project, which the template does not have. Types of answers:

    yes_no          true or false             date            YYYY-MM-DD, or YYYY-MM
    text            a line                    not_applicable  null, if the answer to the question before it is no
    table           {columns [{name, type: text, integer, share, month or link}], rows [[cells; null: not recorded]]}
"""

SCHEMA = "public_summary.schema.json"
TEMPLATE = (
    "https://digital-strategy.ec.europa.eu/en/library/"
    "explanatory-notice-and-template-public-summary-training-content-general-purpose-ai-models"
)
LAW = "Article 53(1)(d) of Regulation (EU) 2024/1689 (AI Act)"
SECTIONS = {
    "1": "General information",
    "1.1": "Provider identification",
    "1.2": "Model identification",
    "1.3": "Modalities, overall training data size and other characteristics",
    "2": "List of data sources",
    "2.1": "Publicly available datasets",
    "2.2": "Private non-publicly available datasets obtained from third parties",
    "2.2.1": "Datasets commercially licensed by rightsholders or their representatives",
    "2.2.2": "Private datasets obtained from other third parties",
    "2.3": "Data crawled and scraped from online sources",
    "2.4": "User data",
    "2.5": "Synthetic data",
    "2.6": "Other sources of data",
    "3": "Data processing aspects",
    "3.1": "Respect of reservation of rights from text and data mining exception or limitation",
    "3.2": "Removal of illegal content",
    "3.3": "Other information (optional)",
}
MODALITIES = "If yes, specify the modality(ies) of the content covered by the datasets concerned"
COMMENTS = "Additional comments (optional)"
FIELDS = {  # key -> label, types of answers
    "1.1.a": ("Provider name and contact details", "text not_applicable"),
    "1.1.b": ("Authorised representative name and contact details", "text not_applicable"),
    "1.2.a": ("Versioned model name(s)", "text"),
    "1.2.a.1": ("Model documentation", "table not_applicable"),
    "1.2.b": ("Model dependencies", "text not_applicable"),
    "1.2.c": ("Date of placement of the model on the Union market", "date not_applicable"),
    "1.3.a": ("Modalities", "table"),
    "1.3.b": ("Latest date of data acquisition/collection for model training", "date not_applicable"),
    "1.3.c": ("Description of the linguistic characteristics of the overall training data", "text"),
    "1.3.d": ("Other relevant characteristics of the overall training data", "text not_applicable"),
    "1.3.e": (COMMENTS, "text"),
    "1.3.e.1": ("Tokens by language", "table"),
    "1.3.e.2": ("Tokens by licence", "table"),
    "2.1.a": ("Have you used publicly available datasets to train the model?", "yes_no"),
    "2.1.b": (MODALITIES, "text not_applicable"),
    "2.1.c": ("List of large publicly available datasets", "table not_applicable"),
    "2.1.d": ("General description of other publicly available datasets not listed above", "text not_applicable"),
    "2.1.d.1": ("Other publicly available datasets", "table not_applicable"),
    "2.1.e": (COMMENTS, "text not_applicable"),
    "2.1.e.1": ("Text before and after curation and selection, by stage of training", "table"),
    "2.1.e.2": ("Documents excluded by the quality filters of curation", "table not_applicable"),
    "2.2.1.a": (
        "Have you concluded transactional commercial licensing agreement(s) with rightsholder(s) or with their "
        "representatives?",
        "yes_no",
    ),
    "2.2.1.b": (MODALITIES, "text not_applicable"),
    "2.2.2.a": (
        "Have you obtained private datasets from third parties that are not licensed as described in Section 2.2.1, "
        "such as data obtained from providers of private databases, or data intermediaries?",
        "yes_no",
    ),
    "2.2.2.b": (MODALITIES, "text not_applicable"),
    "2.2.2.c": ("If publicly known, list private datasets obtained from other third parties", "text not_applicable"),
    "2.2.2.d": (
        "General description of non-publicly known private datasets obtained from third parties",
        "text not_applicable",
    ),
    "2.2.2.e": (COMMENTS, "text not_applicable"),
    "2.3.a": ("Were crawlers used by the provider or on behalf of?", "yes_no"),
    "2.3.b": ("If yes, specify crawler name(s)/identifier(s)", "text not_applicable"),
    "2.3.c": ("Purposes of the crawler(s)", "text not_applicable"),
    "2.3.d": ("General description of crawler behaviour", "text not_applicable"),
    "2.3.e": ("Period of data collection", "text not_applicable"),
    "2.3.f": (
        "Comprehensive description of the type of content and online sources crawled",
        "text not_applicable",
    ),
    "2.3.g": ("Type of modality covered", "text not_applicable"),
    "2.3.h": ("Summary of the most relevant domain names crawled", "table not_applicable"),
    "2.3.i": (COMMENTS, "text not_applicable"),
    "2.4.a": (
        "Was data from user interactions with the AI model (e.g. user input and prompts) used to train the model?",
        "yes_no",
    ),
    "2.4.b": (
        "Was data collected from user interactions with the provider's other services or products used to train the "
        "model?",
        "yes_no",
    ),
    "2.4.c": (
        "If yes, provide a general description of the provider's services or products that were used to collect the "
        "user data",
        "text not_applicable",
    ),
    "2.4.d": ("Type of modality covered", "text not_applicable"),
    "2.4.e": (COMMENTS, "text not_applicable"),
    "2.5.a": (
        "Was synthetic AI-generated data created by the provider or on their behalf to train the model?",
        "yes_no",
    ),
    "2.5.b": ("If yes, modality of the synthetic data", "text not_applicable"),
    "2.5.c": (
        "If yes, specify the general-purpose AI model(s) used to generate the synthetic data if available on the "
        "market",
        "table not_applicable",
    ),
    "2.5.d": (
        "Information about other AI models, including provider's own AI model(s) not available on the market, used to "
        "generate synthetic data to train the model",
        "table not_applicable",
    ),
    "2.5.e": (COMMENTS, "text not_applicable"),
    "2.6.a": (
        "Have data sources other than those described in Sections 2.1 to 2.5 been used to train the model?",
        "yes_no",
    ),
    "2.6.b": (
        "If yes, provide a narrative description of these data sources and the data",
        "text not_applicable",
    ),
    "2.6.b.1": ("Datasets that are not publicly available", "table not_applicable"),
    "2.6.c": (COMMENTS, "text not_applicable"),
    "3.1.a": (
        "Are you a Signatory to the Code of Practice for general-purpose AI models that includes commitments to "
        "respect reservations of rights from the TDM exception or limitation?",
        "yes_no",
    ),
    "3.1.b": (
        "Describe the measures implemented before model training to respect reservations of rights from the TDM "
        "exception or limitation before and during data collection, including the opt-out protocols and solutions "
        "honoured by the provider or, as applicable, by third parties from which datasets have been obtained",
        "text not_applicable",
    ),
    "3.1.c": (COMMENTS, "text not_applicable"),
    "3.2.a": ("General description of measures taken", "text not_applicable"),
    "3.3.a": ("Other relevant information about data processing (optional)", "text not_applicable"),
}


def summary_schema() -> dict:
    """Return the JSON Schema of a summary."""
    text, date = {"type": "string", "minLength": 1}, {"$ref": "#/$defs/date"}
    answers = {
        "yes_no": {"type": "boolean"},
        "text": text,
        "date": date,
        "table": {"$ref": "#/$defs/table"},
        "not_applicable": {"type": "null"},
    }

    def record(properties: dict, optional: tuple = ()) -> dict:
        required = [name for name in properties if name not in optional]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    sources = {"type": "array", "items": {"type": "string", "pattern": "^[^#]+#(/.*)?$"}, "minItems": 1}
    field = {"label": text, "type": {"enum": list(answers)}, "answer": True, "comment": text, "sources": sources}
    kinds = [{"properties": {"type": {"const": kind}, "answer": answer}} for kind, answer in answers.items()]
    column = record({"name": text, "type": {"enum": ["text", "integer", "share", "month", "link"]}})
    row = {"type": "array", "items": {"type": ["string", "number", "null"]}}
    rows = {"columns": {"type": "array", "items": column, "minItems": 1}, "rows": {"type": "array", "items": row}}
    fields = {
        key: {
            "$ref": "#/$defs/field",
            "properties": {"label": {"const": label}, "type": {"enum": types.split()}},
        }
        for key, (label, types) in FIELDS.items()
    }
    version = record({"version": text, "date": date, "link": {"type": ["string", "null"]}})
    flop = {"training_flop": {"type": "number"}, "indicative_flop": {"type": "number"}}
    hashes = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Public summary of training content, {LAW}",
        "$defs": {
            "date": {"type": "string", "pattern": r"^\d{4}-\d{2}(-\d{2})?$"},
            "table": record(rows),
            "field": record(field, ("comment",)) | {"oneOf": kinds},
        },
        **record(
            {
                "$schema": {"const": SCHEMA},
                "title": text,
                "declaration": {"type": "boolean"},
                "basis": record({"required": {"type": "boolean"}, **flop, "text": text}),
                "template": {"const": TEMPLATE},
                "version": text,
                "last_update": date,
                "status": {"const": "Latest version"},
                "changes": {"type": ["string", "null"]},
                "versions": {"type": "array", "items": version, "minItems": 1},
                "changes_announced_at": {"type": ["string", "null"]},
                "published_at": {"type": ["string", "null"]},
                "sections": record({number: {"const": heading} for number, heading in SECTIONS.items()}),
                "fields": record(fields),
                "inputs_sha256": hashes,
            }
        ),
    }
