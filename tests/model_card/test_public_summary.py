"""The AI Act documents state what the manifests and the provider state, with the source of each, and guess nothing."""

import copy
import json
import shutil
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt

from model_card import facts, public_summary, release
from model_card.disclosure import documentation_form
from model_card.disclosure.ai_act_inputs import (
    EXAMPLE,
    in_range,
    questions,
    read_provider,
    read_run,
    thin_answers,
)
from model_card.disclosure.form_writers import printed_summary, to_html, to_markdown
from model_card.disclosure.summary_form import TEXT_SIZES, fill_summary, legal_basis
from model_card.disclosure.summary_template import FIELDS, SCHEMA, SECTIONS
from model_card.files import ReleaseError, read_json, sha256, write_json
from model_card.provenance import resolve_pointer
from model_card.run import Run
from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.common.files import model_sha256
from training.shards import ShardsConfig, build_shards

# Bytes of five sources, 1,000 in total: three are above 3%, one is 3% exactly.
SOURCES = {"library": 600, "gazette": 300, "manuals": 50, "edge": 30, "notes": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_corpus, tiny_tokenizer):
    """Folder of a run on real shards whose corpus was curated with a language model."""
    root = tmp_path_factory.mktemp("act")
    corpus, folder = root / "corpus", root / "runs" / "tiny"
    write_corpus(corpus / "fr.parquet", [{"text": "la vieille maison", "language": "French"}] * 30)
    write_corpus(corpus / "en.parquet", [{"text": "the old house", "license": "CC-BY-4.0"}] * 20)
    sources = [
        {
            "name": name,
            "version": "1.0",
            "url": f"https://{name}.example/1.0",
            "collection": f"{name} books",
            "licence": "CC0-1.0",
            "retrieved": f"2026-0{i}-01",
            "documents": i,
            "bytes": size,
            "languages": {"fr": i},
        }
        for i, (name, size) in enumerate(SOURCES.items(), 1)
    ]
    origin = {"settings": {"megabytes": 2.0}, "dropped": {"short": 3}, "sources": sources}
    write_json(corpus / "sources.json", origin)
    curation = {
        "settings": {"endpoint": {"model": "mistral-small"}},
        "input": {"documents": 57, "bytes": 2345},
        "kept": {"documents": 50, "bytes": 1111},
        "reasons": {"toxic": {"documents": 7, "words": 9, "bytes": 1234}},
        "changes": {"documents with rewrite": 4, "documents with warn": 2, "documents with pii": 65},
    }
    write_json(corpus / "curation.json", curation)
    shards = root / "data" / "tiny" / "shards"
    manifest = build_shards(
        ShardsConfig(corpus=corpus, tokenizer=tiny_tokenizer, out=shards, validation_share=0.2, workers=1)
    )
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PleiasForCausalLM(PleiasConfig(vocab_size=400, num_key_value_heads=1, **shape))
    model.save_pretrained(folder / "model", max_shard_size="100KB")
    settings = {
        "stages": [{"name": "base", "steps": 10, "sequences": 4, "shards": None}],
        "data": {"folder": "data/tiny"},
        "optimizer": {"learning_rate": 0.002},
        "sequence_length": 256,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    session = {
        "command": "/opt/python -m training.pretrain",
        "hardware": {"cpu": "A processor", "gpus": ["NVIDIA H100", "NVIDIA H100"]},
        "processes": 2,
        "data": [manifest["fingerprint"]],
    }
    write_json(folder / "run.json", {"sessions": [session]})
    write_json(folder / "emissions.json", {"seconds": 7200, "kwh": 14.0, "source": "codecarbon"})
    return folder


def provider_with(tmp_path: Path, **changes) -> Path:
    """Write the example provider.yaml with some fields ("section__key") set or, with ..., removed."""
    content = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for name, value in changes.items():
        section, key = name.split("__")
        content[section][key] = value
        if value is ...:
            del content[section][key]
    path = tmp_path / "provider.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def answers(out: Path) -> dict:
    """Key of a field -> its answer in the summary."""
    return {key: field["answer"] for key, field in read_json(out / "public_summary.json")["fields"].items()}


def form_fields(out: Path) -> dict:
    """Section -> field -> answer or table, from the Model Documentation Form."""
    return {
        section["title"]: {field["field"]: field.get("answer", field.get("table")) for field in section["fields"]}
        for section in read_json(out / "model_documentation_form.json")["sections"]
    }


def write_both(run: Path, provider: Path, out: Path) -> Path:
    """Write both documents of a run."""
    public_summary.write_documents(public_summary.fill_documents(Run(run), provider), out)
    return out


@pytest.fixture
def write_documents(run, tmp_path):
    """Function (changes to the provider) that returns the folder with both documents."""
    return lambda **changes: write_both(run, provider_with(tmp_path, **changes), tmp_path / "out")


def test_headings_and_fields_are_those_of_the_commission_s_template_in_its_order(write_documents):
    out = write_documents()
    content, text = read_json(out / "public_summary.json"), (out / "public_summary.md").read_text(encoding="utf-8")
    assert list(content["fields"]) == list(FIELDS) == sorted(FIELDS, key=lambda key: key.split("."))
    titles = [f"{'#' * (number.count('.') + 2)} {number}. {name}" for number, name in SECTIONS.items()]
    positions = [text.index(f"\n{title}\n") for title in titles]
    assert positions == sorted(positions)
    comments = [key for key, field in content["fields"].items() if field["label"] == "Additional comments (optional)"]
    assert [key[:-2] for key in comments] == "1.3 2.1 2.2.2 2.3 2.4 2.5 2.6 3.1".split()
    assert all(f"**{field['label']}**" in text for field in content["fields"].values())


def test_datasets_above_three_percent_are_listed_with_licence_and_date_and_the_rest_described(write_documents):
    fields = answers(write_documents())
    large, small = fields["2.1.c"], fields["2.1.d.1"]
    assert large["columns"] == small["columns"]
    names = [column["name"] for column in large["columns"]]
    rows = [dict(zip(names, row, strict=True)) for row in large["rows"]]
    assert [row["Dataset"] for row in rows] == ["library 1.0", "gazette 1.0", "manuals 1.0"]
    assert rows[0] == {
        **dict.fromkeys(names),
        **{"Dataset": "library 1.0", "Link": "https://library.example/1.0", "Modality": "Text", "Languages": "fr"},
        **{"Nature of the content": "library books", "Licence": "CC0-1.0", "Period of collection": "2026-01"},
        **{"Documents before curation": 1, "Bytes before curation": 600, "Share of bytes": 0.6},
    }
    assert [row[0] for row in small["rows"]] == ["edge 1.0", "notes 1.0"]
    assert fields["2.1.d"] == (
        "2 datasets of text, together 5.0% of the bytes, in fr; listed below. "
        "Nature of the content: edge books, notes books."
    )


def test_the_size_is_a_range_of_the_template_and_the_other_modalities_are_none(write_documents, run):
    fields = answers(write_documents())
    text = fields["1.3.a"]["rows"][0][1]
    tokens = sum(row["tokens"] for row in facts.of_corpus(read_run(Run(run))["data"][0])["by_language"])
    assert text == f"Less than 1 billion tokens ({tokens:,} tokens, each document counted once)"
    assert [row[1:] for row in fields["1.3.a"]["rows"][1:]] == [[None, None]] * 4
    assert fields["1.3.b"] == "2026-05"
    assert sum(row[3] for row in fields["1.3.e.1"]["rows"]) == tokens
    assert sum(row[3] for row in fields["1.3.e.2"]["rows"]) == tokens


@pytest.mark.parametrize("tokens, index", [(10**9 - 1, 0), (10**9, 1), (10**13 - 1, 1), (10**13, 2)])
def test_the_ranges_begin_where_the_template_says(tokens, index):
    assert in_range(tokens, TEXT_SIZES) == TEXT_SIZES[index][1]


@pytest.mark.parametrize("flop, required", [(9.9e22, False), (1e23, False), (1.01e23, True)])
def test_a_summary_is_required_only_above_the_indicative_computation(flop, required):
    basis = legal_basis(flop)
    assert basis["required"] is required
    law = "Article 53(1)(d) of Regulation (EU) 2024/1689 (AI Act): "
    assert basis["text"].startswith(("Required by " if required else "Voluntary, not required by ") + law)


def test_synthetic_text_is_reported_with_the_model_that_generated_it(write_documents):
    fields = answers(write_documents())
    assert fields["2.5.a"] is True and fields["2.5.b"] == "Text" and fields["2.5.d"] is None
    assert fields["2.5.c"]["rows"] == [["mistral-small", 4, 2]]


def test_a_model_that_is_not_on_the_market_is_reported_apart(write_documents):
    fields = answers(write_documents(data__synthetic_models_not_on_market={"mistral-small": "A model of our own."}))
    assert fields["2.5.a"] is True and fields["2.5.c"] is None
    assert fields["2.5.d"]["rows"] == [["mistral-small", 6, "A model of our own."]]


def test_quality_filters_and_counts_before_and_after_curation_are_reported_with_the_datasets(write_documents):
    fields = answers(write_documents(processing__illegal_content="none"))
    assert fields["2.1.e.2"]["rows"] == [["toxic", 7, 1234]] and fields["3.2.a"] is None
    names = [column["name"] for column in fields["2.1.e.1"]["columns"]]
    (row,) = fields["2.1.e.1"]["rows"]
    stage = dict(zip(names, row, strict=True))
    assert stage["Stage"] == "base"
    assert [stage[f"Documents {time} curation"] for time in ("before", "after")] == [57, 50]
    assert stage["Documents of training"] + stage["Documents held out"] == 50
    assert fields["2.1.e"] == (
        "At most 2 MB of text per language was taken from the datasets. Paragraphs and documents not taken from them: "
        "3 (short). 20.0% of the documents, chosen by a hash of the identifier, were held out of training for "
        "evaluation. Curation kept 50 of 57 documents; see the reasons below."
    )


def test_a_field_does_not_apply_if_the_answer_before_it_is_no(write_documents):
    content = read_json(write_documents() / "public_summary.json")["fields"]
    for number in ("2.2.1", "2.2.2", "2.3", "2.4"):
        first, *others = (field for key, field in content.items() if key.startswith(f"{number}."))
        assert first["type"] == "yes_no" and first["answer"] is False
        assert {field["type"] for field in others} <= {"not_applicable", "yes_no"}


def test_a_source_that_is_not_public_is_listed_under_other_sources(write_documents):
    fields = answers(write_documents(data__publicly_available=["library", "gazette"]))
    assert fields["2.6.a"] is True
    assert [row[0] for row in fields["2.6.b.1"]["rows"]] == ["manuals 1.0", "edge 1.0", "notes 1.0"]
    assert [row[-1] for row in fields["2.1.c"]["rows"]] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_a_public_source_that_no_manifest_lists_is_refused(write_documents):
    with pytest.raises(ReleaseError, match="no manifest lists a source libary"):
        write_documents(data__publicly_available=["libary"])


CRAWLERS = {
    **{key: f"{key} of the crawler" for key in ("names", "purposes", "behaviour", "content")},
    **{"from": date(2025, 2, 1), "to": date(2026, 1, 31), "domains": [f"site{i}.example" for i in range(40)]},
}


@pytest.mark.parametrize("sme, count", [(True, 2), (False, 4)])
def test_crawled_domains_are_the_share_that_the_template_requires_of_each_kind_of_provider(
    write_documents, sme, count
):
    out = write_documents(data__crawlers=CRAWLERS, provider__sme=sme)
    field = read_json(out / "public_summary.json")["fields"]["2.3.h"]
    assert field["answer"]["rows"] == [[name] for name in CRAWLERS["domains"][:count]]
    assert field["comment"] == f"The top {count} of 40 by size of the content."
    assert answers(out)["2.3.e"] == "02/2025 to 01/2026"


def test_every_field_that_the_provider_omitted_is_listed_and_nothing_is_written(run, tmp_path):
    changes = {"provider__contact": ..., "data__crawlers": "", "summary__version": None}
    provider = provider_with(tmp_path, **changes)
    with pytest.raises(ReleaseError, match="missing: data.crawlers, provider.contact, summary.version"):
        write_both(run, provider, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_field_of_the_example_is_required_and_states_what_the_forms_ask(tmp_path):
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    names = [f"{section}.{key}" for section, keys in example.items() for key in keys]
    assert list(questions()) == names and all(len(text.split()) > 3 for text in questions().values())
    for name in names:
        with pytest.raises(ReleaseError, match=f"missing: {name} "):
            read_provider(provider_with(tmp_path, **{name.replace(".", "__"): ...}))


def test_thin_answers_are_named_with_what_the_forms_ask_and_the_example_has_none(tmp_path):
    assert list(thin_answers(read_provider(EXAMPLE))) == []
    changes = {
        "data__content": "Text.",
        "processing__rights_reservations": "none",
        "data__crawlers": CRAWLERS,
        "model__dependencies": "Some-Model 1.0",
        "model__documentation": "none",
        "summary__changes": "The date of placement.",
    }
    warnings = list(thin_answers(read_provider(provider_with(tmp_path, **changes))))
    named = [warning.split()[0] for warning in warnings]
    crawled = [f"data.crawlers.{key}" for key in ("purposes", "behaviour", "content")]
    assert named == [
        *("data.content", "processing.rights_reservations", *crawled, "model.documentation", "model.dependencies"),
        "summary.changes",
    ]
    assert warnings[0].startswith("data.content has 1 word. It must state: 1.3 Types of content: kinds of text,")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"provider__smee": True}, "unknown: provider.smee"),
        ({"provider__sme": "yes"}, "provider.sme must be true or false"),
        ({"summary__date": "soon"}, "summary.date must be a date"),
        ({"data__crawlers": {"names": "x"}}, "data.crawlers must be none, or a mapping of behaviour, content"),
        ({"model__names": "none"}, "model.names must not be none"),
        ({"data__crawlers": CRAWLERS | {"domains": "a.example"}}, "domains of data.crawlers must be none, or a list"),
        ({"data__crawlers": CRAWLERS | {"from": "May"}}, "from and to of data.crawlers must be dates"),
        ({"summary__previous_versions": ["0.9"]}, "summary.previous_versions must be none, or a list of"),
        ({"data__synthetic_models_not_on_market": "x"}, "must be none, or {name: description}"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path, change, message):
    with pytest.raises(ReleaseError, match=message):
        read_provider(provider_with(tmp_path, **change))


def test_a_missing_provider_file_names_the_example(tmp_path):
    with pytest.raises(ReleaseError, match="does not exist. Copy .*provider.yaml"):
        read_provider(tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [b"provider: [", b"\xff\xfe", b"[" * 100_000], ids=["open", "not utf-8", "deep"])
def test_a_provider_file_that_is_not_yaml_is_named(tmp_path, content):
    (tmp_path / "provider.yaml").write_bytes(content)
    with pytest.raises(ReleaseError, match=r"provider\.yaml is not YAML in UTF-8 .*: correct it\."):
        read_provider(tmp_path / "provider.yaml")


def test_a_byte_order_mark_before_a_provider_file_is_skipped(tmp_path):
    path = provider_with(tmp_path)
    before = read_provider(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_provider(path) == before


def test_the_summary_has_status_all_versions_and_the_hashes_of_its_source_files(write_documents, run):
    earlier = {"version": "0.9", "date": date(2026, 10, 5), "link": "https://provider.example/0.9.html"}
    changes = {"changes": "The date of placement.", "previous_versions": [earlier]}
    out = write_documents(
        provider__contact="ai@provider.eu", **{f"summary__{name}": value for name, value in changes.items()}
    )
    content = read_json(out / "public_summary.json")
    assert (content["version"], content["last_update"]) == ("1.0", "2026-11-23")
    assert content["status"] == "Latest version"
    assert content["versions"] == [
        {"version": "0.9", "date": "2026-10-05", "link": earlier["link"]},
        {"version": "1.0", "date": "2026-11-23", "link": content["published_at"]},
    ]
    assert content["title"] == "Public Summary of Training Content for Example-5m" and content["declaration"]
    relative = (run / "run.json").relative_to(run.parent.parent).as_posix()
    assert content["inputs_sha256"][relative] == sha256(run / "run.json")
    assert not any(name.startswith("/") for name in content["inputs_sha256"])
    assert len(content["inputs_sha256"]) == 5 and any("manifest.json" in name for name in content["inputs_sha256"])
    for suffix in ("md", "html"):
        text = (out / f"public_summary.{suffix}").read_text(encoding="utf-8")
        assert all(digest in text for digest in content["inputs_sha256"].values())
        addresses = [row["link"] for row in content["versions"]] + [
            content["template"],
            content["changes_announced_at"],
        ]
        assert all(address in text for address in addresses)
        for printed in (
            "1.0 (latest version on 23/11/26)",
            "05/10/26",
            "05/2026. The model is not",
            "01/2026",
            "23/11/2026",
        ):
            assert printed in text
    form = (out / "model_documentation_form.md").read_text(encoding="utf-8")
    assert content["published_at"] not in form and "23/11/26" in form


@pytest.mark.parametrize(
    "changes, prefix",
    [
        ({}, "Example, not a declaration: "),
        ({"provider__name": "none", "provider__contact": "none"}, "Without a provider, not a declaration: "),
    ],
)
def test_a_summary_of_the_example_or_of_nobody_states_that_it_is_no_declaration(write_documents, changes, prefix):
    out = write_documents(**changes)
    assert f"# {prefix}Public Summary" in (out / "public_summary.md").read_text(encoding="utf-8")
    assert read_json(out / "public_summary.json")["declaration"] is False


def test_the_summary_is_valid_against_the_schema_next_to_it_which_refuses_any_other(write_documents):
    out = write_documents(data__crawlers=CRAWLERS)
    content, schema = read_json(out / "public_summary.json"), read_json(out / SCHEMA)
    assert content["$schema"] == SCHEMA
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert list(validator.iter_errors(content)) == []
    broken = [
        lambda fields: fields.pop("2.1.c"),
        lambda fields: fields.update({"2.1.f": fields["2.1.e"]}),
        lambda fields: fields["1.1.a"].update(label="Name"),
        lambda fields: fields["2.1.a"].update(answer="Yes"),
        lambda fields: fields["2.1.a"].update(type="text", answer="Yes"),
        lambda fields: fields["1.3.b"].update(answer="05/2026"),
        lambda fields: fields["2.1.c"]["answer"]["rows"][0].append([]),
        lambda fields: fields["2.1.c"].update(sources=[]),
    ]
    for damage in broken:
        damaged = copy.deepcopy(content)
        damage(damaged["fields"])
        assert list(validator.iter_errors(damaged)), damage


def test_every_value_is_traced_to_the_document_itself_the_provider_or_a_run_file(write_documents, run, tmp_path):
    out = write_documents(data__crawlers=CRAWLERS, data__publicly_available=["library"])
    read = {".json": read_json, ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8"))}
    summary, form = (read_json(out / f"{name}.json") for name in ("public_summary", "model_documentation_form"))
    fields = [(form, field) for section in form["sections"] for field in section["fields"]]
    folders = (run, tmp_path, run.parent.parent)
    for document, field in [*fields, *((summary, field) for field in summary["fields"].values())]:
        for source in field["sources"]:
            file, pointer = source.split("#")
            path = next((path for path in (folder / file for folder in folders) if path.is_file()), None)
            assert path or not file and document is form
            value = resolve_pointer(read[path.suffix](path) if path else document, pointer)
            if value == "none" and len(field["sources"]) == 1:
                assert not field["answer"] or field["answer"] in ("N/A", "None."), field
            elif isinstance(value, str) and value not in ("none", "all"):
                assert value in str(field), (field, value)
    assert summary["fields"]["1.1.a"]["sources"] == ["provider.yaml#/provider/name", "provider.yaml#/provider/contact"]
    for field in summary["fields"].values():
        assert {source.split("#")[0] for source in field["sources"]} <= summary["inputs_sha256"].keys()


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{2,9}", fullmatch=True)


@pytest.fixture(scope="module")
def run_facts(run):
    return read_run(Run(run))


@settings(max_examples=15, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=4), NAMES)
def test_no_path_of_an_input_is_in_any_output(run_facts, parts, file):
    folder = "/" + "/".join(parts)
    path, provider = f"{folder}/{file}", read_provider(EXAMPLE)
    provider["data"] |= {"content": f"Text in {path}.", "other_sources": path, "licensed_datasets": f"see '{path}'"}
    provider["comments"] |= dict.fromkeys(provider["comments"], f"--out={path}")
    corpus = copy.deepcopy(run_facts["data"][0])
    facts = run_facts | {"inputs": {path: "0" * 64}, "data": [corpus]}
    corpus["stages"] = [path]
    corpus["sources"]["dropped"] = {path: 1}
    corpus["sources"]["sources"][0] |= {"url": f"file://{path}", "collection": path, "version": path, "licence": path}
    corpus["curation"]["reasons"] = {path: {"documents": 1, "bytes": 1}}
    content = fill_summary(provider, facts, "provider.yaml")
    printed = printed_summary(content)
    for text in (json.dumps(content), to_markdown(printed), to_html(printed)):
        assert folder not in text.replace("\\", "")


def test_the_folders_of_a_run_and_of_its_provider_are_in_no_file(run, tmp_path):
    out = write_both(run.resolve(), provider_with(tmp_path), tmp_path / "out")
    files = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    assert len(files) == 7
    for folder in (run.parent.parent, tmp_path, Path.cwd(), EXAMPLE.parent):
        assert not [name for name, text in files.items() if str(folder) in text]


def test_the_summary_of_a_released_folder_has_the_answers_of_its_run(run, tmp_path):
    expected, folder = answers(write_both(run, provider_with(tmp_path), tmp_path / "out")), tmp_path / "dist"
    opened = Run(run)
    parameters = read_run(opened)["parameters"]
    (folder / "evidence").mkdir(parents=True)
    evidence = {"data": facts.collect_corpora(opened), "lineage": facts.lineage(opened)}
    for name, content in {**evidence, "release": {"model": {"parameters": parameters}}}.items():
        write_json(folder / "evidence" / f"{name}.json", content)
    documents = public_summary.fill_documents(folder, tmp_path / "provider.yaml")
    assert list(documents) == ["public_summary"]
    public_summary.write_documents(documents, tmp_path / "released")
    assert answers(tmp_path / "released") == expected
    summary = read_json(tmp_path / "released" / "public_summary.json")
    assert summary["basis"]["training_flop"] == 6 * parameters * 10 * 4 * 256
    names = [f"evidence/{name}.json" for name in ("data", "lineage", "release")]
    assert summary["inputs_sha256"] == {name: sha256(folder / name) for name in names} | {
        "provider.yaml": sha256(tmp_path / "provider.yaml")
    }
    for source in (source for field in summary["fields"].values() for source in field["sources"]):
        file, pointer = source.split("#")
        if file != "provider.yaml":
            resolve_pointer(read_json(folder / file), pointer)


def test_a_value_cannot_add_a_section_or_a_field_or_break_a_table(write_documents):
    name, names = "A\n## 9.9 Title\n**Field**: text", ["a|b", "\ue0000\ue001 {{ x }}"]
    out = write_documents(provider__name=name, model__names=names, data__content="a | b")
    fields, text = answers(out), (out / "public_summary.md").read_text(encoding="utf-8")
    assert fields["1.1.a"].startswith("A ## 9.9 Title **Field**: text; ")
    assert fields["1.2.a"] == ", ".join(names)
    assert "| a \\| b |\n" in text and "\n## 9.9" not in text and "A ## 9.9 Title \\*\\*Field" in text


@pytest.mark.parametrize(
    "from_model, from_services, answer",
    [("none", "none", None), ("chats", "none", "chats"), ("none", "logs", "logs"), ("chats", "logs", "chats logs")],
)
def test_user_data_are_described_once_and_without_none(write_documents, from_model, from_services, answer):
    out = write_documents(data__user_data_model=from_model, data__user_data_services=from_services)
    assert answers(out)["2.4.c"] == answer


class Page(HTMLParser):
    """Collect a page's text, links and the files it loads, and assert that every opened tag is closed."""

    def __init__(self):
        super().__init__()
        self.text, self.loads, self.links, self.open = "", [], [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name == "src"]
        self.links += [value for name, value in attributes if name == "href" and tag == "a"]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_html_page_is_self_contained_well_formed_and_states_what_the_json_states(write_documents):
    comment = "See https://provider.example/a_b?x=1&y=<2>, or javascript:alert(1)."
    out = write_documents(provider__name="B\u00f6hm & <S\u00f6hne>", comments__rights=comment)
    for name in ("public_summary", "model_documentation_form"):
        page = Page()
        page.feed((out / f"{name}.html").read_text(encoding="utf-8"))
        assert page.open == [] and page.loads == [] and "B\u00f6hm & <S\u00f6hne>" in page.text
        if name == "public_summary":
            fields = read_json(out / f"{name}.json")["fields"]
            assert all(field["label"] in page.text for field in fields.values())
            assert all(field["answer"] in page.text for field in fields.values() if field["type"] == "text")
            assert {f"https://{source}.example/1.0" for source in SOURCES} <= set(page.links)
            assert "https://provider.example/a_b?x=1&y=" in page.links
            assert all(link.startswith("https://") for link in page.links)
        else:
            for texts in form_fields(out).values():
                for field, answer in texts.items():
                    cells = [cell for row in answer for cell in row] if isinstance(answer, list) else [answer]
                    assert field in page.text and all(cell in page.text for cell in cells)


def test_the_markdown_has_the_links_of_the_page(write_documents):
    markdown = MarkdownIt("commonmark").enable("table")
    out = write_documents(comments__rights="https://provider.example/a_b~c|d and https://provider.example/(e).")
    page, text = Page(), Page()
    page.feed((out / "public_summary.html").read_text(encoding="utf-8"))
    text.feed(markdown.render((out / "public_summary.md").read_text(encoding="utf-8")))
    assert text.links == page.links and "https://provider.example/a_b~c" in text.links


def test_the_documentation_form_computes_what_it_states(write_documents, run):
    sections = form_fields(write_documents())
    parameters = PleiasForCausalLM.from_pretrained(run / "model").num_parameters()
    size = sections["Model properties"]["Total model size"]
    assert f"({parameters:,})" in size and "range 1-500M" in size
    computed = sections["Computational resources (during training)"]
    assert computed["Amount of computation used for training"] == f"{6 * parameters * 10 * 4 * 256:.1e} FLOP"
    assert computed["Training time"] == "2 hours on 2 process(es), NVIDIA H100"
    energy = sections["Energy consumption (during training and inference)"]
    assert energy["Amount of energy used for training"] == "1.4e-02 MWh"
    hashes = sections["General information"]["Model authenticity"][1:]
    assert len(hashes) > 1 and all(sha256(run / "model" / name) == digest for name, digest in hashes)


def test_the_form_of_a_continued_run_counts_the_earlier_run_too(run, tmp_path):
    first, more = (shutil.copytree(run, tmp_path / "runs" / name) for name in ("first", "more"))
    shutil.copytree(run.parent.parent / "data", tmp_path / "data")
    settings = yaml.safe_load((more / "config.yaml").read_text(encoding="utf-8")) | {"init_from": "runs/first/model"}
    settings |= {"sequence_length": 128, "stages": [{**settings["stages"][0], "name": "more"}]}
    (more / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    sessions = read_json(more / "run.json")
    sessions["sessions"][0]["init_from"] = model_sha256(first / "model")
    write_json(more / "run.json", sessions)
    write_json(more / "emissions.json", {"seconds": 3600, "kwh": 7.0, "source": "a meter"})
    facts = read_run(Run(more))
    assert facts["tokens"] == 10 * 4 * 256 + 10 * 4 * 128 and facts["seconds"] == 10_800 and facts["kwh"] == 21
    assert facts["method"] == "codecarbon; a meter" and "runs/first/config.yaml" in facts["inputs"]
    assert [stage["name"] for stage in facts["stages"]] == ["base", "more"] and facts["foreign"] == []
    out = write_both(more, provider_with(tmp_path), tmp_path / "out")
    form = form_fields(out)
    once = answers(write_both(run, provider_with(tmp_path), tmp_path / "once"))
    assert answers(out)["1.3.e.1"] == once["1.3.e.1"] and answers(out)["2.1.c"] == once["2.1.c"]
    process = form["Training process"]["Design specifications of the training process"]
    assert process.startswith("15,360 tokens in 10 steps (base), then 10 steps (more);")
    assert (
        form["Energy consumption (during training and inference)"]["Amount of energy used for training"]
        == "2.1e-02 MWh"
    )


def test_a_model_of_others_in_the_history_must_be_among_the_dependencies(run, tmp_path):
    tuned = shutil.copytree(run, tmp_path / "runs" / "tuned")
    shutil.copytree(run.parent.parent / "data", tmp_path / "data")
    settings = yaml.safe_load((tuned / "config.yaml").read_text(encoding="utf-8")) | {"init_from": "someone/Model-1b"}
    (tuned / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(ReleaseError, match="dependencies is none, but the run tuned started from a model that no"):
        write_both(tuned, provider_with(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = "Model-1b, https://someone.example/summary"
    out = write_both(tuned, provider_with(tmp_path, model__dependencies=model), tmp_path / "out")
    assert answers(out)["1.2.b"] == model


@pytest.mark.parametrize("count, name", [(5e8 - 1, "1-500M"), (5e8, "500M-5B"), (1e12, ">1T")])
def test_the_form_s_ranges_of_size(count, name):
    assert in_range(count, documentation_form.SIZES) == name


def test_a_run_without_sources_of_its_text_is_refused(run, tmp_path):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("run.json", "emissions.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "stages": []}))
    with pytest.raises(ReleaseError, match="has no shards whose manifest lists its sources"):
        read_run(Run(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "data": {"folder": "gone"}}))
    with pytest.raises(ReleaseError, match="gone/shards/manifest.json does not exist"):
        read_run(Run(tmp_path))


def test_a_fine_tuning_run_is_refused(run, tmp_path):
    """It has no stages, so the tokens and computation of its training are unknown."""
    folder = shutil.copytree(run, tmp_path / "runs" / "tuned")
    manifest = run.parent.parent / "data" / "tiny" / "shards" / "manifest.json"
    (folder / "manifests").mkdir()
    shutil.copyfile(manifest, folder / "manifests" / "ocr.json")
    (folder / "config.yaml").write_text("task: ocr\noptimizer: adamw\n", encoding="utf-8")
    with pytest.raises(ReleaseError, match="tuned is not a pretraining run"):
        write_both(folder, provider_with(tmp_path), tmp_path / "out")
    # A release is refused before it opens the model, of which this folder has no tokenizer.
    options = ["--run", str(folder), "--out", str(tmp_path / "dist"), "--provider", str(tmp_path / "provider.yaml")]
    with pytest.raises(ReleaseError, match="tuned is not a pretraining run"):
        release.build_release(release.options(options), "the command")
    assert not (tmp_path / "dist").exists()
