"""The AI Act documents state what the manifests and the provider state, with the source of each, and guess nothing."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from model_card import public_summary, release
from model_card.disclosure import documentation_form
from model_card.disclosure.ai_act_inputs import EXAMPLE, in_range, read_provider, read_run
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
            "licence": "CC0-1.0",
            "retrieved": f"2026-0{i}-01",
            "documents": i,
            "bytes": size,
            "languages": {"fr": i},
        }
        for i, (name, size) in enumerate(SOURCES.items(), 1)
    ]
    write_json(corpus / "sources.json", {"sources": sources})
    curation = {
        "settings": {"endpoint": {"model": "mistral-small"}},
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


def fields(out: Path, name: str = "public_summary") -> dict:
    """Section -> field -> answer or table, from the .json."""
    return {
        section["title"]: {field["field"]: field.get("answer", field.get("table")) for field in section["fields"]}
        for section in read_json(out / f"{name}.json")["sections"]
    }


@pytest.fixture
def write_documents(run, tmp_path):
    """Function (changes to the provider) that returns the folder with both documents."""

    def make(**changes) -> Path:
        public_summary.write(Run(run), provider_with(tmp_path, **changes), tmp_path / "out")
        return tmp_path / "out"

    return make


def test_the_sections_are_those_of_the_commission_s_template_in_its_order(write_documents):
    numbers = [title.split()[0] for title in fields(write_documents())]
    expected = "1.1 1.2 1.3 2.1 2.2.1 2.2.2 2.3 2.4 2.5 2.6 3.1 3.2 3.3".split()
    assert numbers == expected


def test_datasets_above_three_percent_are_listed_with_licence_and_date_and_the_rest_described(write_documents):
    section = next(value for title, value in fields(write_documents()).items() if title.startswith("2.1"))
    head, *rows = section["List of large publicly available datasets (above 3%)"]
    assert [row[0] for row in rows] == ["library", "gazette", "manuals"]
    assert rows[0] == ["library", "1.0", "not recorded", "CC0-1.0", "fr", "2026-01-01", "1", "600", "60.0%"]
    rest = section["General description of other publicly available datasets not listed above"]
    assert rest == "2 of the same kind, 5.0% of the bytes: edge, notes."


def test_the_size_is_a_range_of_the_template_and_the_other_modalities_are_none(write_documents, run):
    section = next(value for title, value in fields(write_documents()).items() if title.startswith("1.3"))
    _, text, *others = section["Modalities"]
    tokens = sum(row["tokens"] for row in read_run(Run(run))["corpora"][0]["by_language"])
    assert text[1] == f"Less than 1 billion tokens ({tokens:,} tokens in the corpora of all stages)"
    assert [row[1] for row in others] == ["None."] * 4
    assert section["Latest date of data acquisition/collection for model training"].startswith("2026-05-01. ")


@pytest.mark.parametrize(
    "tokens, name",
    [
        (10**9 - 1, "Less than 1 billion tokens"),
        (10**9, "1 billion to 10 trillion tokens"),
        (10**13 - 1, "1 billion to 10 trillion tokens"),
        (10**13, "More than 10 trillion tokens"),
    ],
)
def test_the_ranges_begin_where_the_template_says(tokens, name):
    assert in_range(tokens, public_summary.TEXT_SIZES) == name


def test_synthetic_text_is_reported_with_the_model_that_generated_it(write_documents):
    section = next(value for title, value in fields(write_documents()).items() if title.startswith("2.5"))
    assert section["AI model(s) used to generate the synthetic data"][1] == ["mistral-small", "4", "2"]
    assert (
        section["Was synthetic AI-generated data created by the provider or on their behalf to train the model?"]
        == "Yes"
    )


def test_documents_dropped_by_curation_are_reported_under_the_removal_of_illegal_content(write_documents):
    section = next(value for title, value in fields(write_documents()).items() if title.startswith("3.2"))
    assert section["Documents excluded by curation"][1:] == [["toxic", "7", "1,234"]]


def test_none_is_written_if_nothing_applies(write_documents):
    for title, answers in fields(write_documents()).items():
        if title[:3] in ("2.2", "2.4"):
            assert "No" in answers.values() and "None." in answers.values()


def test_a_source_that_is_not_public_is_listed_under_other_sources(write_documents):
    sections = fields(write_documents(data__publicly_available=["library", "gazette"]))
    other = next(value for title, value in sections.items() if title.startswith("2.6"))
    assert [row[0] for row in other["Datasets that are not publicly available"][1:]] == ["manuals", "edge", "notes"]
    public = next(value for title, value in sections.items() if title.startswith("2.1"))
    assert [row[8] for row in public["List of large publicly available datasets (above 3%)"][1:]] == ["66.7%", "33.3%"]


def test_a_public_source_that_no_manifest_lists_is_refused(write_documents):
    with pytest.raises(ReleaseError, match="no manifest lists a source libary"):
        write_documents(data__publicly_available=["libary"])


@pytest.mark.parametrize("sme, count", [(True, 2), (False, 4)])
def test_crawled_domains_are_the_share_that_the_template_requires_of_each_kind_of_provider(
    write_documents, sme, count
):
    names = {key: "text" for key in ("names", "purposes", "behaviour", "period", "content")}
    domains = [f"site{i}.example" for i in range(40)]
    sections = fields(write_documents(data__crawlers={**names, "domains": domains}, provider__sme=sme))
    section = next(value for title, value in sections.items() if title.startswith("2.3"))
    listed = section["Summary of the most relevant domain names crawled"]
    assert listed == f"the top {count} of 40 by size of the content: {', '.join(domains[:count])}"


def test_every_field_that_the_provider_omitted_is_listed_and_nothing_is_written(run, tmp_path):
    changes = {"provider__contact": ..., "data__crawlers": "", "summary__version": None}
    provider = provider_with(tmp_path, **changes)
    with pytest.raises(ReleaseError, match="missing: data.crawlers, provider.contact, summary.version"):
        public_summary.write(Run(run), provider, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_field_of_the_example_is_required(tmp_path):
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for section, keys in example.items():
        for key in keys:
            with pytest.raises(ReleaseError, match=f"missing: {section}.{key} "):
                read_provider(provider_with(tmp_path, **{f"{section}__{key}": ...}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"provider__smee": True}, "unknown: provider.smee"),
        ({"provider__sme": "yes"}, "provider.sme must be true or false"),
        ({"summary__date": "soon"}, "summary.date must be a date"),
        ({"data__crawlers": {"names": "x"}}, "data.crawlers must be none, or a mapping of behaviour, content"),
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


def test_the_documents_contain_version_date_changes_link_and_the_hashes_of_their_source_files(write_documents, run):
    out = write_documents(summary__changes="The date of placement.", provider__contact="ai@provider.eu")
    content = read_json(out / "public_summary.json")
    assert (content["version"], content["last_update"]) == ("1.0", "2026-11-23")
    assert content["changes_from_previous_version"] == "The date of placement."
    assert content["title"] == "Public Summary of Training Content for Example-5m"
    relative = (run / "run.json").relative_to(run.parent.parent).as_posix()
    assert content["inputs_sha256"][relative] == sha256(run / "run.json")
    assert not any(name.startswith("/") for name in content["inputs_sha256"])
    assert content["template"].startswith(
        "https://digital-strategy.ec.europa.eu/en/library/explanatory-notice-and-temp"
    )
    assert len(content["inputs_sha256"]) == 5 and any("manifest.json" in name for name in content["inputs_sha256"])
    for suffix in ("md", "html"):
        text = (out / f"public_summary.{suffix}").read_text(encoding="utf-8")
        assert all(digest in text for digest in content["inputs_sha256"].values())
        assert content["published_at"] in text and content["template"] in text


def test_documents_of_the_example_state_that_they_are_no_declaration(write_documents):
    assert "# Example, not a declaration: " in (write_documents() / "public_summary.md").read_text(encoding="utf-8")


def test_every_value_is_traced_to_the_document_itself_the_provider_or_a_run_file(write_documents, run, tmp_path):
    crawlers = dict.fromkeys(("names", "purposes", "behaviour", "period", "content"), "text")
    out = write_documents(data__crawlers={**crawlers, "domains": ["a.example"]}, data__publicly_available=["library"])
    read = {".json": read_json, ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8"))}
    for name in ("public_summary", "model_documentation_form"):
        document = read_json(out / f"{name}.json")
        for field in (field for section in document["sections"] for field in section["fields"]):
            for source in field["sources"]:
                file, pointer = source.split("#")
                path = next((path for path in (run / file, tmp_path / file) if path.is_file()), None)
                value = resolve_pointer(read[path.suffix](path) if path else document, pointer)
                if isinstance(value, str):
                    assert value in str(field) or value == "none" and "No" in str(field), (field, value)
    sources = read_json(out / "public_summary.json")["sections"][0]["fields"][0]["sources"]
    assert sources == ["provider.yaml#/provider/name", "provider.yaml#/provider/contact"]


def test_a_value_cannot_add_a_section_or_a_field_or_break_a_table(write_documents):
    name, names = "A\n## 9.9 Title\n**Field**: text", ["a|b", "\ue0000\ue001 {{ x }}"]
    out = write_documents(provider__name=name, model__names=names, data__content="a | b")
    assert [title.split()[0] for title in fields(out)][-1] == "3.3"
    section = fields(out)["1.1 Provider identification"]
    assert section["Provider name and contact details"].startswith("A ## 9.9 Title **Field**: text; ")
    assert fields(out)["1.2 Model identification"]["Versioned model name(s)"] == ", ".join(names)
    assert "| a \\| b |\n" in (out / "public_summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "from_model, from_services, answer",
    [("none", "none", "None."), ("chats", "none", "chats"), ("none", "logs", "logs"), ("chats", "logs", "chats logs")],
)
def test_user_data_are_described_once_and_without_none(write_documents, from_model, from_services, answer):
    out = write_documents(data__user_data_model=from_model, data__user_data_services=from_services)
    section = fields(out)["2.4 User data"]
    assert section["If yes, services or products, modality(ies) and description"] == answer


class Page(HTMLParser):
    """Collect a page's text and the files it loads, and assert that every opened tag is closed."""

    def __init__(self):
        super().__init__()
        self.text, self.loads, self.open = "", [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name == "src"]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_html_page_is_self_contained_well_formed_and_states_what_the_json_states(write_documents):
    out = write_documents(provider__name="Böhm & <Söhne>")
    for name in ("public_summary", "model_documentation_form"):
        page = Page()
        page.feed((out / f"{name}.html").read_text(encoding="utf-8"))
        assert page.open == [] and page.loads == [] and "Böhm & <Söhne>" in page.text
        for answers in fields(out, name).values():
            for field, answer in answers.items():
                cells = [cell for row in answer for cell in row] if isinstance(answer, list) else [answer]
                assert field in page.text and all(cell in page.text for cell in cells)


def test_the_documentation_form_computes_what_it_states(write_documents, run):
    sections = fields(write_documents(), "model_documentation_form")
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
    assert facts["method"] == "codecarbon; a meter" and str(first / "config.yaml") in facts["inputs"]
    assert [stage["name"] for stage in facts["stages"]] == ["base", "more"]
    public_summary.write(Run(more), provider_with(tmp_path), tmp_path / "out")
    form = fields(tmp_path / "out", "model_documentation_form")
    process = form["Training process"]["Design specifications of the training process"]
    assert process.startswith("15,360 tokens in 10 steps (base), then 10 steps (more);")
    assert (
        form["Energy consumption (during training and inference)"]["Amount of energy used for training"]
        == "2.1e-02 MWh"
    )


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
        public_summary.write(Run(folder), provider_with(tmp_path), tmp_path / "out")
    # A release is refused before it opens the model, of which this folder has no tokenizer.
    options = ["--run", str(folder), "--out", str(tmp_path / "dist"), "--provider", str(tmp_path / "provider.yaml")]
    with pytest.raises(ReleaseError, match="tuned is not a pretraining run"):
        release.build(release.options(options), "the command")
    assert not (tmp_path / "dist").exists()
