"""The BOM of a release folder is valid, true to its files, and as complete as they are."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from model_card import card, public_summary, release
from model_card.disclosure import ai_act_inputs, bom
from model_card.facts import split_source
from model_card.files import BOM, read_json, sha256, verify_sums, write_json
from model_card.formats import gguf_writer, variants
from model_card.provenance import resolve_pointer
from model_card.run import Run
from model_card.run_export import trim_manifest

HUB = ("--push_to_hub", "someone/tiny")
PROVIDER = ("--provider", str(ai_act_inputs.EXAMPLE))


@pytest.fixture(scope="module")
def build():
    """Function (out, arguments) -> a release without further formats and without the checks of its variants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "check_variant", lambda *arguments: None)  # test_release.py runs them

        def make(out: Path, *arguments: object) -> Path:
            words = ["--out", str(out), "--formats", *map(str, arguments)]
            release.build_release(release.options(words), "python -m model_card.release --run runs/tiny")
            return out

        yield make


@pytest.fixture(scope="module")
def released(build, run, tmp_path_factory):
    """A release of the run with a provider and an address on the Hub; tests must not change it."""
    return build(tmp_path_factory.mktemp("dist") / "tiny", "--run", run, *PROVIDER, *HUB)


def test_the_public_summary_is_in_every_published_folder_and_the_documentation_form_in_none(released):
    for part in read_json(released / "release.json")["folders"]:
        names = {path.name for path in (released / part).iterdir()}
        assert names >= set(public_summary.PUBLISHED) and not any("documentation_form" in name for name in names)
        assert "(public_summary.md)" in (released / part / "README.md").read_text(encoding="utf-8")
    assert (released / "model_documentation_form.md").is_file()


def nodes(value):
    """Every object of a JSON value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(item)


def named(rows: list[dict]) -> dict[str, str]:
    """Properties by name."""
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row["value"] for row in rows}


def problems(content: dict) -> list[str]:
    """Errors of the strict schema."""
    schema = pytest.importorskip("cyclonedx.schema", reason="pip install '.[release]'")
    validation = pytest.importorskip("cyclonedx.validation.json", reason="pip install '.[release]'")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_7)
    errors = validator.validate_str(json.dumps(content), all_errors=True)
    return [str(error) for error in errors or ()]


def check_references(content: dict, folder: Path) -> None:
    """Check what the schema does not: references, hashes of files, and sums of tokens."""
    identifiers = [node["bom-ref"] for node in nodes(content) if "bom-ref" in node]
    assert [name for name, count in Counter(identifiers).items() if count > 1] == []
    used = [node["ref"] for node in nodes(content) if isinstance(node.get("ref"), str)]
    lists = [node[key] for node in nodes(content) for key in ("dependsOn", "assemblies") if key in node]
    used += [ref for refs in lists for ref in refs] + [row["attributedTo"] for row in content["citations"]]
    assert set(used) <= set(identifiers) and used
    for row in content["citations"]:
        assert all(bom.has_pointer(content, pointer) for pointer in row["pointers"])
    files = {part["name"]: part["hashes"][0]["content"] for part in content["components"][0]["components"]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files.keys() == there - {BOM, "SHA256SUMS"}
    assert all(sha256(folder / name) == digest for name, digest in files.items())
    data = [named(part.get("properties", [])) for part in content["components"] if part["type"] == "data"]
    by_source = {corpus["fingerprint"] for corpus in read_json(folder / "evidence/data.json") if "by_source" in corpus}
    for corpus in read_json(folder / "evidence" / "facts.json")["corpora"]:
        key = corpus["fingerprint"][:12]
        for split, prefix in (("train", ""), ("held_out", "held_out_")) if corpus["fingerprint"] in by_source else ():
            for measure in ("documents", "bytes", "tokens"):
                name = f"pleias:{prefix}{measure}"
                assert sum(int(part.get(f"{name}:{key}", 0)) for part in data) == corpus[split][measure]
        assert str(corpus["train"]["tokens"]) in [part.get("pleias:tokens") for part in data]


# Rule of the OWASP AIBOM generator: each category counts by the share of its fields that are present.
SPDX = """external_references hyperparameter typeOfModel intendedUse energyConsumption energyQuantity energyUnit
safetyRiskAssessment modelExplainability informationAboutTraining informationAboutApplication metric
metricDecisionThreshold modelDataPreprocessing useSensitivePersonalInformation""".split()


def score(content: dict) -> tuple[float, bool]:
    """Completeness of 100, and whether what the profile Advanced asks for is present."""
    model, stated = content["components"][0], named(content["metadata"]["properties"])
    links = {link["type"] for link in model["externalReferences"]}
    considerations, risks = model["modelCard"]["considerations"], ("technicalLimitations", "ethicalConsiderations")
    metadata = ("primaryPurpose", "suppliedBy", "standardCompliance", "domain", "autonomyType")
    component = ("name", "type", "version", "purl", "description", "licenses", "hashes")
    categories = [
        (20, [content.get(name) for name in ("bomFormat", "specVersion", "serialNumber", "version")]),
        (20, [stated.get(f"spdx:{name}") for name in metadata]),
        (20, [model.get(name) for name in component]),
        (30, [stated.get(f"spdx:{name}") for name in SPDX] + [considerations.get(name) for name in risks]),
        (10, [kind in links for kind in ("documentation", "vcs", "website", "distribution")]),
    ]
    assert [len(fields) for _, fields in categories] == [4, 5, 7, 17, 4]
    points = sum(weight * sum(map(bool, fields)) / len(fields) for weight, fields in categories)
    advanced = (
        model["type"] == "machine-learning-model" and {"spdx:hyperparameter", "spdx:typeOfModel"} <= stated.keys()
    )
    return round(points, 1), advanced


def test_the_bom_of_seven_runs_on_seven_corpora_is_valid_and_true_to_its_files():
    folder = Path(card.__file__).parent / "femto"
    content = bom.BomBuilder(folder, folder, None).build()
    assert content == read_json(folder / BOM)
    check_references(content, folder)
    assert problems(content) == []
    model, facts = content["components"][0], read_json(folder / "evidence" / "facts.json")
    energy = model["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    assert len(model["modelCard"]["modelParameters"]["datasets"]) == 7 and len(model["pedigree"]["ancestors"]) == 6
    assert sum(row["activityEnergyCost"]["value"] for row in energy) == pytest.approx(facts["watt_hours"] / 1000)


@pytest.mark.parametrize("part", ["llama", "custom"])
def test_the_bom_of_a_run_is_valid_and_true_to_its_files(released, part):
    folder = released / part
    check_references(content := read_json(folder / BOM), folder)
    assert problems(content) == []
    assert all(
        name in (folder / "SHA256SUMS").read_text() for name in (BOM, "ATTRIBUTION.md", "evidence/sources.json")
    )
    verify_sums(released)


def test_the_bom_names_sources_shards_libraries_and_commands(released):
    content = read_json(released / "llama" / BOM)
    parts = {part["bom-ref"]: part for part in content["components"]}
    model, weights = parts["model"], sha256(released / "llama" / "model.safetensors")
    assert content["components"][0] is model and model["hashes"] == [{"alg": "SHA-256", "content": weights}]
    assert (model["version"], model["purl"]) == (weights[:12], "pkg:huggingface/someone/tiny")
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (corpus,) = read_json(released / "llama" / "evidence" / "data.json")
    assert corpus["by_source"]
    shards = parts[f"data:shards:{corpus['fingerprint'][:12]}"]
    manifest = read_json(released / "llama" / "runs" / "tiny" / "manifests" / "base-annealing.json")
    listed = {(part["name"], part["hashes"][0]["content"]) for part in shards["components"]}
    assert listed == {(shard["file"], shard["sha256"]) for shard in manifest["shards"]}
    source = parts[f"data:{corpus['by_source'][0]['source']}"]
    assert source["licenses"] == [
        {"license": {"id": "CC-BY-4.0"}},
        {"expression": "LicenseRef-scancode-public-domain"},
    ]
    assert named(source["properties"])["pleias:labels"] == '["CC-BY-4.0", "Public Domain"]'
    assert parts["library:torch@2.13.0"]["purl"] == "pkg:pypi/torch@2.13.0"
    tasks = content["formulation"][0]["workflows"][0]["tasks"]
    trained = next(task for task in tasks if task["name"] == "pretrain")
    assert trained["inputs"] == [{"resource": {"ref": shards["bom-ref"]}}]
    energy = model["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    assert [row["activityEnergyCost"]["value"] for row in energy] == [0.0013]
    assert energy[0]["co2CostEquivalent"] == {"value": pytest.approx(7.3e-08), "unit": "tCO2eq"}


def test_each_folder_describes_the_shards_in_croissant_and_its_bom_lists_the_file(released):
    pytest.importorskip("mlcroissant", reason="pip install '.[release]'")
    (corpus,) = read_json(released / "llama" / "evidence" / "data.json")
    name = f"evidence/croissant/base-annealing-{corpus['fingerprint'][:12]}.json"
    for part in ("llama", "custom"):
        assert read_json(released / part / name)["url"] == "https://huggingface.co/someone/tiny"
        assert name in [file["name"] for file in read_json(released / part / BOM)["components"][0]["components"]]


def test_a_manifest_of_hundreds_of_shards_is_in_the_bom_without_their_names(released, tmp_path):
    out = shutil.copytree(released, tmp_path / "tiny")
    (path,) = (out / "llama" / "runs").glob("*/manifests/*.json")
    manifest = read_json(path)
    shards = [shard | {"file": f"{i}/{shard['file']}"} for i in range(400) for shard in manifest["shards"][:1]]
    manifest = trim_manifest(manifest | {"shards": shards, "fingerprint": "0" * 64})
    assert manifest["left_out"]["shards"] == 400
    write_json(path, manifest)
    for part in ("llama", "custom"):
        (corpus,) = read_json(out / part / "evidence" / "data.json")
        write_json(out / part / "evidence" / "data.json", [corpus | {"fingerprint": "0" * 64}])
    bom.write_boms(out, None)
    content = read_json(out / "llama" / BOM)
    assert problems(content) == []
    (component,) = [part for part in content["components"] if part["bom-ref"].startswith("data:shards")]
    assert component["version"] == "0" * 64 and "components" not in component
    assert int(named(component["properties"])["pleias:tokens"]) > 0


def test_the_same_files_give_the_same_bytes_and_no_path_of_the_machine(released, tmp_path):
    copy = shutil.copytree(released, tmp_path / "elsewhere")
    (copy / "llama" / BOM).unlink()
    bom.write_boms(copy, "someone/tiny")
    text = (copy / "llama" / BOM).read_bytes()
    assert text == (released / "llama" / BOM).read_bytes()
    assert b"/home/" not in text and str(released.parent).encode() not in text


def test_the_score_is_whole_with_provider_and_address_and_falls_as_measured_without(released, tmp_path):
    assert score(read_json(released / "llama" / BOM)) == (100, True)
    copy = shutil.copytree(released, tmp_path / "tiny")
    scores = {}
    for provider in (True, False):
        for part in ("llama", "custom"):
            content = read_json(copy / part / "evidence" / "release.json")
            write_json(copy / part / "evidence" / "release.json", content | ({} if provider else {"provider": None}))
        for repository in ("someone/tiny", None):
            bom.write_boms(copy, repository)
            scores[provider, bool(repository)] = score(read_json(copy / "llama" / BOM))[0]
    # Measured with the tool of OWASP.
    assert scores == {(True, True): 100, (False, True): 96.0, (True, False): 89.6, (False, False): 85.6}


CARD, FLOW = "/components/0/modelCard", "/formulation/0/workflows/0/tasks"
# "SBOM for AI: Minimum Elements" of the G7 (12 May 2026): the place of each element, or the reason why it has none.
# Fields in braces are the index of a component of that kind.
G7 = {
    "metadata": {
        "author": "/metadata/authors/0/name",
        "author signature": "none in the file: model.sig signs it with all others",
        "version": "/version",
        "data format name": "/bomFormat",
        "data format version": "/specVersion",
        "tool name": "/metadata/tools/components/0/name",
        "tool version": "/metadata/tools/components/0/version",
        "generation context": "/metadata/lifecycles/0/phase",
        "timestamp": "/metadata/timestamp",
        "dependency relationships": "/dependencies/0/dependsOn/0",
    },
    "system": {
        "name": "/metadata/component/name",
        "components": "/components/0",
        "producer": "/metadata/supplier/name",
        "version": "/metadata/component/version",
        "timestamp": "/metadata/timestamp",
        "data flow": f"{FLOW}/0/steps/0/commands/0/executed",
        "data usage": f"{CARD}/considerations/useCases/0",
        "application area": f"{CARD}/considerations/useCases/0",
        "input and output": f"{CARD}/modelParameters/inputs/0/format",
    },
    "models": {
        "name": "/components/0/name",
        "identifier": "/components/0/purl",
        "version": "/components/0/version",
        "timestamp": "/components/0/releaseNotes/timestamp",
        "producer": "/components/0/group",
        "description": "/components/0/description",
        "hash value": "/components/0/hashes/0/content",
        "hash algorithm": "/components/0/hashes/0/alg",
        "properties": f"{CARD}/properties/0/value",
        "input and output": f"{CARD}/modelParameters/outputs/0/format",
        "training properties": f"{CARD}/modelParameters/approach/type",
        "licence": "/components/0/licenses/0/license/id",
        "external references": "/components/0/externalReferences/0/url",
    },
    "datasets": {
        "name": "/components/{source}/name",
        "description": "/components/{source}/data/0/name",
        "content": "/components/{source}/data/0/contents/url",
        "identifier": "/components/{source}/purl",
        "hash": "/components/{source}/hashes/0/content",
        "provenance": "/components/{source}/properties/0/value",
        "statistics": "/components/{shards}/properties/0/value",
        "sensitivity": "/components/{shards}/data/0/sensitiveData/0",
        "dependency": f"{CARD}/modelParameters/datasets/0/ref",
        "licence": "/components/{source}/licenses/0/license/id",
    },
    "infrastructure": {"software": "/components/{library}/purl", "hardware": "/formulation/0/components/1/name"},
    "security": {
        "controls": "none in the file: the checks of a release allow only safetensors, and no code in llama/",
        "compliance": "/metadata/properties/{compliance}/value",
        "policy": "/metadata/supplier/contact/0/email",
        "vulnerability reference": "not applicable: weights have none",
    },
    "indicators": {
        "operational": f"{CARD}/quantitativeAnalysis/performanceMetrics/0/value",
        "security": "none measured",
    },
}


def test_each_minimum_element_of_the_g7_has_its_place_in_the_bom_or_a_reason(released, tmp_path):
    out = shutil.copytree(released, tmp_path / "tiny")
    for part in ("llama", "custom"):
        (corpus,) = read_json(out / part / "evidence" / "data.json")
        source = split_source(corpus["by_source"][0]["source"]) | {
            "collection": "Tales",
            "purl": "pkg:pypi/tales@1",
            "url": "https://example.org/tales",
            "sha256": "0" * 64,
        }
        corpus |= {"sources": {"sources": [source]}, "curation": {"changes": {"pii: EMAIL_ADDRESS": 2}}}
        write_json(out / part / "evidence" / "data.json", [corpus])
    bom.write_boms(out, "someone/tiny")
    content = read_json(out / "llama" / BOM)
    assert problems(content) == []
    kinds = [(part["type"], part["bom-ref"].startswith("data:shards")) for part in content["components"]]
    stated = [row["name"] for row in content["metadata"]["properties"]]
    places = {"shards": kinds.index(("data", True)), "source": kinds.index(("data", False))}
    places |= {"library": kinds.index(("library", False)), "compliance": stated.index("spdx:standardCompliance")}
    elements = {(cluster, name): text for cluster, rows in G7.items() for name, text in rows.items()}
    assert len(elements) == 50
    pointers = {name: text.format(**places) for name, text in elements.items() if text.startswith("/")}
    assert [name for name, text in pointers.items() if not bom.has_pointer(content, text)] == []
    assert all(resolve_pointer(content, text) for text in pointers.values()) and len(pointers) == 46


def test_the_supplier_is_that_of_the_provider_s_file_or_omitted(released, build, run, tmp_path):
    head = read_json(released / "llama" / BOM)["metadata"]
    supplier = {"name": "Example Provider, 1 Example Street, Paris", "contact": [{"email": "ai-act@example.org"}]}
    assert head["supplier"] == supplier and named(head["properties"])["spdx:suppliedBy"] == supplier["name"]
    plain = read_json(build(tmp_path / "plain", "--run", run) / "llama" / BOM)
    assert "supplier" not in plain["metadata"] and "spdx:suppliedBy" not in named(plain["metadata"]["properties"])
    assert "purl" not in plain["components"][0]


def test_the_text_of_a_converted_model_is_unknown(released, build, tmp_path):
    out = build(tmp_path / "converted", "--from_llama", released / "llama")
    content = read_json(out / "llama" / BOM)
    check_references(content, out / "llama")
    assert problems(content) == []
    assert [part["type"] for part in content["components"][1:]] == ["library"] * len(content["components"][1:])
    assert content["compositions"][0] == {"aggregate": "unknown", "assemblies": ["model"]}
    assert "approach" not in content["components"][0]["modelCard"]["modelParameters"]


def test_a_fine_tuned_run_names_its_base_and_the_base_s_text_is_unknown(build, tuned, tmp_path):
    out = build(tmp_path / "tuned", "--run", tuned())
    content = read_json(out / "llama" / BOM)
    check_references(content, out / "llama")
    assert problems(content) == []
    model = content["components"][0]
    (base,) = model["pedigree"]["ancestors"]
    assert (base["name"], base["hashes"][0]["content"]) == ("PleIAs/Pleias-Nano", "0" * 64)
    assert model["modelCard"]["modelParameters"]["approach"] == {"type": "supervised"}
    assert content["compositions"][0]["aggregate"] == "unknown"


def test_a_gguf_folder_lists_its_files_as_models_that_come_from_the_variant(released, tmp_path):
    out = shutil.copytree(released, tmp_path / "tiny")
    (out / "gguf").mkdir()
    for format in ("BF16", "F16"):
        about = {"name": "tiny", "license": "apache-2.0", "languages": ["en"]}
        gguf_writer.write_gguf(out / "llama", out / "gguf" / f"tiny-{format}.gguf", format=format, **about)
    content = read_json(out / "release.json")
    write_json(out / "release.json", content | {"folders": release.list_files(out)})
    card.write_cards(out, "the command", run=None)
    bom.write_boms(out, "someone/tiny")
    content = read_json(out / "gguf" / BOM)
    assert problems(content) == []
    model = content["components"][0]
    weights = sha256(out / "llama" / "model.safetensors")
    files = [part for part in model["components"] if part["type"] == "machine-learning-model"]
    assert [part["name"] for part in files] == ["tiny-BF16.gguf", "tiny-F16.gguf"]
    for part in (model, *files):
        assert part["pedigree"]["ancestors"][0]["hashes"][0]["content"] == weights
    assert model["purl"] == "pkg:huggingface/someone/tiny-GGUF" and model["version"] != weights[:12]


def test_every_folder_has_the_licence_of_its_weights_and_the_code_keeps_its_own(released, run, tmp_path, capsys):
    apache = (Path(card.__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    for part in ("llama", "custom"):
        assert (released / part / "LICENSE").read_text(encoding="utf-8") == apache
        assert "LICENSE" in read_json(released / "release.json")["folders"][part]["files"]
    copy = shutil.copytree(run, tmp_path / "runs" / "tiny")
    source = variants.open_run(Run(copy))
    for part in ("llama", "custom", "gguf"):
        (tmp_path / "out" / part).mkdir(parents=True)
    variants.write_licences(source, tmp_path / "out", "cc0-1.0")
    assert not list((tmp_path / "out").rglob("LICENSE*")) and "put the text of cc0-1.0 into" in capsys.readouterr().out
    (copy / "LICENSE").write_text("Do as you like.")
    variants.write_licences(source, tmp_path / "out", "cc0-1.0")
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("LICENSE*"))
    assert names == ["custom/LICENSE.weights", "gguf/LICENSE", "llama/LICENSE"]


def test_a_licence_is_an_identifier_an_expression_or_the_source_s_words():
    names = ["apache-2.0", "MIT OR Apache-2.0", "LicenseRef-scancode-public-domain", "Various open licences", None]
    assert bom.licences(names) == [
        {"license": {"id": "Apache-2.0"}},
        {"expression": "MIT OR Apache-2.0"},
        {"expression": "LicenseRef-scancode-public-domain"},
        {"license": {"name": "Various open licences"}},
    ]


def test_what_strangers_write_into_sources_keeps_the_bom_valid(released, tmp_path):
    out = shutil.copytree(released, tmp_path / "tiny")
    strange = {
        "kind": "pip",
        "name": "a\u202eb [x](y)",
        "version": "1 2",
        "url": "https://x.org/a b|c",
        "ground": ["x"],
    }
    for part in ("llama", "custom"):
        (corpus,) = read_json(out / part / "evidence" / "data.json")
        corpus["sources"] = {"sources": [strange, "../corpus", {"name": "no kind", "url": None, "license": "\x07"}]}
        write_json(out / part / "evidence" / "data.json", [corpus])
    bom.write_boms(out, None)
    content = read_json(out / "llama" / BOM)
    assert problems(content) == []
    (source,) = [part for part in content["components"] if part["name"] == strange["name"]]
    assert named(source["properties"])["pleias:url"] == strange["url"] and "contents" not in source["data"][0]
