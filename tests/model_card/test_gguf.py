"""GGUF files are lossless: llama.cpp tokenises, computes and generates as torch does, or a check fails."""

import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from test_release import like_the_original, run  # noqa: F401 (fixtures)
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_card import release
from model_card.files import ReleaseError, read_json, write_json
from model_card.formats import checks, gguf_release, gguf_writer, variants
from model_card.formats.fp32_reference import Fp32Reference
from model_card.run import Run
from modeling_pleias import PleiasTokenizer
from training.tasks import instruct
from training.tasks.instruct.format import END, TEMPLATE

ABOUT = {"name": "tiny", "license": "apache-2.0", "languages": ["fr", "la"]}


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):  # noqa: F811
    """Folder of the variants of the run, unchecked."""
    folder = tmp_path_factory.mktemp("dist") / "tiny"
    folder.mkdir()
    variants.export_variants(variants.open_run(Run(run)), folder, max_shard_size="400KB")
    return folder


@pytest.fixture(scope="module")
def reference(run):  # noqa: F811
    return checks.ReferenceModel(variants.open_run(Run(run)))


@pytest.fixture(scope="module")
def fp32(reference):
    return Fp32Reference(reference, score_tokens=24)


@pytest.fixture(scope="module")
def exported(reference, fp32, released, tmp_path_factory):  # noqa: F811
    """Folder of all formats, and the results of their checks."""
    folder, collected = tmp_path_factory.mktemp("release") / "gguf", checks.Checks()
    formats = list(release.GGUF_FORMATS)
    gguf_release.write_and_check(collected, reference, fp32, released / "llama", folder, formats=formats, **ABOUT)
    return folder, collected.results


def test_a_good_file_passes_every_check(exported):
    assert [check.name for check in exported[1] if not check.passed] == []
    values = {check.name: check.values for check in exported[1]}
    assert values["llama.cpp's token ids"] == {"equal": 19, "of": 19}
    assert values["BF16: tensors read back, bit for bit"] == {"equal": 20, "of": 20}
    assert values["F32: greedy text, 64 tokens"] == {"equal": 8, "of": 8, "gaps": {}}


def test_the_fp32_file_is_for_the_checks_alone(exported):
    names = {path.name for path in exported[0].iterdir()}
    assert names == {"results.json", *(f"tiny-{format}.gguf" for format in release.GGUF_FORMATS)}


def test_results_json_has_the_measurements_of_each_format(exported, fp32):
    results = read_json(exported[0] / "results.json")
    rows = {row["format"]: row for row in results["formats"]}
    assert results["torch"]["perplexity"] == pytest.approx(math.exp(-fp32.scores.mean()))
    assert rows["F32"]["perplexity"] == pytest.approx(results["torch"]["perplexity"], rel=1e-5)
    assert rows["F32"]["greedy_equal"] == 8 and rows["F32"]["same_likeliest_token"] == 1.0
    for format in release.GGUF_FORMATS:
        assert rows[format]["bytes"] == (exported[0] / f"tiny-{format}.gguf").stat().st_size
        loss = math.log(rows[format]["perplexity_ratio"])
        assert rows[format]["loss_nats_per_token"] == pytest.approx(loss, abs=1e-9)
    sizes = [rows[format]["bytes"] for format in ("F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")]
    assert sizes == sorted(sizes, reverse=True)


def test_transformers_reads_the_bf16_file_back_to_the_same_logits(exported, released):  # noqa: F811
    """Its reader reverses llama.cpp's order of queries and keys with its own code."""
    back = AutoModelForCausalLM.from_pretrained(exported[0], gguf_file="tiny-BF16.gguf", dtype=torch.float32)
    variant = AutoModelForCausalLM.from_pretrained(released / "llama", dtype=torch.float32)
    ids = torch.arange(4, 44)[None]
    assert torch.equal(back(ids).logits, variant(ids).logits)


def test_the_file_describes_the_model(exported, released):  # noqa: F811
    fields = gguf.GGUFReader(exported[0] / "tiny-BF16.gguf").fields
    metadata = {name: field.contents() for name, field in fields.items()}
    config = read_json(released / "llama" / "config.json")
    assert metadata["general.architecture"] == "llama" and metadata["general.name"] == "tiny"
    assert metadata["general.license"] == "apache-2.0" and metadata["general.languages"] == ["fr", "la"]
    assert metadata["llama.context_length"] == config["max_position_embeddings"]
    assert metadata["llama.rope.freq_base"] == 10_000 and metadata["llama.attention.head_count_kv"] == 2
    assert metadata["tokenizer.ggml.model"] == "gpt2" and metadata["tokenizer.ggml.pre"] == "llama-bpe"
    special = [metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("unknown", "bos", "eos", "padding")]
    assert special == [0, 1, 2, 3] and metadata["tokenizer.ggml.add_bos_token"] is True
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert tokens[1] == "<|begin_of_text|>" and len(tokens) == config["vocab_size"] == 400
    control = {i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL}
    assert control == {*range(4), *range(400 - 64, 400)}


def test_llama_cpp_reads_the_chat_templates_and_the_end_of_a_turn(reference, fp32, released, tmp_path):  # noqa: F811
    folder = shutil.copytree(released / "llama", tmp_path / "llama")
    tokenizer = instruct.add_chat_template(AutoTokenizer.from_pretrained(folder))
    end = tokenizer.convert_tokens_to_ids(END)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "rag": "{{ messages[0]['content'] }}"}
    tokenizer.save_pretrained(folder)
    generation = read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", generation | {"eos_token_id": [2, end]})
    collected = checks.Checks()
    gguf_release.write_and_check(collected, reference, fp32, folder, tmp_path / "gguf", formats=["BF16"], **ABOUT)
    results = {check.name: check.passed for check in collected.results}
    assert all(results.values()) and results["llama.cpp's token ids of a conversation"]
    fields = gguf.GGUFReader(tmp_path / "gguf" / "tiny-BF16.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.chat_template.rag"].contents() == "{{ messages[0]['content'] }}"
    assert fields["tokenizer.ggml.eot_token_id"].contents() == end


@pytest.mark.parametrize("begins, ends", [(True, False), (False, True), (True, True), (False, False)])
def test_the_file_states_what_the_tokenizer_adds_however_it_was_last_used(released, tmp_path, begins, ends):  # noqa: F811
    folder = shutil.copytree(released / "llama", tmp_path / "llama")
    tokenizer = PleiasTokenizer.from_pretrained(folder, add_bos_token=begins, add_eos_token=ends)
    tokenizer(["a", "b c"], padding="max_length", max_length=9, truncation=True)
    tokenizer.save_pretrained(folder)
    gguf_writer.write_gguf(folder, tmp_path / "x.gguf", format="BF16", **ABOUT)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is begins
    assert fields["tokenizer.ggml.add_eos_token"].contents() is ends


# Deliberate faults ---------------------------------------------------------------


def failed_checks(reference, fp32, variant, folder, **faults) -> list[str]:
    collected = checks.Checks()
    gguf_release.write_and_check(collected, reference, fp32, variant, folder, formats=["BF16"], **ABOUT, **faults)
    return [check.name for check in collected.results if not check.passed]


def test_queries_and_keys_in_the_wrong_order_are_detected(reference, fp32, released, tmp_path):  # noqa: F811
    failed = failed_checks(reference, fp32, released / "llama", tmp_path / "gguf", permute=False)
    assert "F32: log-probabilities of all tokens" in failed and "BF16: log-probabilities of all tokens" in failed
    assert "F32: greedy text, 64 tokens" in failed and "BF16: tensors read back, bit for bit" in failed


def test_another_pre_tokenizer_s_name_is_detected_by_the_ids(reference, fp32, released, tmp_path):  # noqa: F811
    failed = failed_checks(reference, fp32, released / "llama", tmp_path / "gguf", pre="gpt-2")
    assert failed == ["llama.cpp's token ids"]


def test_a_pre_tokenizer_that_llama_cpp_does_not_know_is_detected(reference, fp32, released, tmp_path):  # noqa: F811
    with pytest.raises(ReleaseError, match="llama.cpp does not load tiny-F32.gguf"):
        failed_checks(reference, fp32, released / "llama", tmp_path / "gguf", pre="pleias")


def test_one_wrong_weight_is_detected(reference, fp32, released, tmp_path, monkeypatch):  # noqa: F811
    def tensors(variant, original=gguf_writer.tensors):
        for name, tensor in original(variant):
            yield name, tensor * 1.5 if name == "model.layers.1.mlp.up_proj.weight" else tensor

    monkeypatch.setattr(gguf_writer, "tensors", tensors)
    assert "F32: log-probabilities of all tokens" in failed_checks(
        reference, fp32, released / "llama", tmp_path / "gguf"
    )


# The parts -----------------------------------------------------------------------


def test_the_original_s_pre_tokenizer_is_gpt_2_in_llama_cpp(like_the_original, tmp_path):  # noqa: F811
    source = variants.open_llama(like_the_original)
    variants.export_variants(source, tmp_path, max_shard_size="5GB")
    reference = checks.ReferenceModel(source)
    assert reference.ids[0][0] != 1  # its tokenizer adds no begin token, and neither does the file
    fp32 = Fp32Reference(reference, score_tokens=8)
    assert failed_checks(reference, fp32, tmp_path / "llama", tmp_path / "gguf") == []
    fields = gguf.GGUFReader(tmp_path / "gguf" / "tiny-BF16.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_a_model_that_a_file_cannot_express_is_refused(released, tmp_path):  # noqa: F811
    folder = shutil.copytree(released / "llama", tmp_path / "llama")
    config, spec = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    yarn = {**config["rope_parameters"], "rope_type": "yarn", "factor": 2.0}
    write_json(folder / "config.json", {**config, "rope_parameters": yarn})
    with pytest.raises(ReleaseError, match="need rope_type 'default', and .*llama/config.json has 'yarn'"):
        gguf_writer.write_gguf(folder, tmp_path / "x.gguf", format="BF16", **ABOUT)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", {**spec, "normalizer": {"type": "NFC"}})
    with pytest.raises(ReleaseError, match="no exact equivalent of the pre-tokenizer and normalizer in"):
        gguf_writer.write_gguf(folder, tmp_path / "x.gguf", format="BF16", **ABOUT)


def test_llama_cpp_s_quantiser_and_gguf_py_s_agree(monkeypatch):
    values = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    expected = gguf.quants.quantize(values, Type.Q8_0)
    monkeypatch.setattr(gguf_writer, "K_TYPES", (Type.Q8_0,))  # sends it to llama.cpp
    restored = gguf.dequantize(gguf_writer.quantize(values, Type.Q8_0, "w"), Type.Q8_0)
    np.testing.assert_allclose(restored, gguf.dequantize(expected, Type.Q8_0), atol=1e-3)


@pytest.mark.parametrize("kind, error", [(Type.Q4_K, 0.08), (Type.Q5_K, 0.04), (Type.Q6_K, 0.02)])
def test_k_quants_round_trip_within_their_precision(kind, error):
    values = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    packed = gguf_writer.quantize(values, kind, "w")
    assert packed.shape == gguf.quant_shape_to_byte_shape(values.shape, kind)
    back = gguf.dequantize(packed, kind)
    assert np.linalg.norm(back - values) / np.linalg.norm(values) < error


def test_the_order_of_rows_is_reversed_exactly():
    rows = np.arange(24.0).reshape(12, 2)
    reordered = gguf_writer.interleaved(rows, 2)
    assert [int(row[0]) // 2 for row in reordered[:6]] == [0, 3, 1, 4, 2, 5]  # the first head of six rows
    assert np.array_equal(gguf_writer.halved(reordered, 2), rows)


def test_the_layers_with_more_bits_are_those_of_llama_cpp():
    """Of 22 layers, by llama.cpp's use_more_bits: the first and last eighth, every third between."""
    layers = [layer for layer in range(22) if gguf_writer.gets_more_bits(layer, 22)]
    assert layers == [0, 1, *range(4, 20, 3), 20, 21]
