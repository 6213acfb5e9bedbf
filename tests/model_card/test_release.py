"""A release is atomic; its variants equal the run bit for bit, for users without this package."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
import unittest.mock
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_pleias
from model_card import release
from model_card.files import ReleaseError, read_json, verify_sums, write_json
from model_card.formats import checks, variants
from model_card.run import Run
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.tasks import instruct
from training.tasks.instruct.format import TEMPLATE


def save_model(folder: Path, tokenizer: Path) -> None:
    """A small model with random weights, in bfloat16; wide enough for K-quants, with clear preferences."""
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(PleiasTokenizer.from_pretrained(tokenizer)),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pretraining_init_std=0.1,
    )
    PleiasForCausalLM(config).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_tokenizer):
    """Folder of a run as training leaves it, with a small model."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_model(folder / "model", tiny_tokenizer)
    (folder / "config.yaml").write_text("name: tiny\ncorpus:\n  languages: [fr, la]\n", encoding="utf-8")
    write_json(folder / "run.json", {"name": "tiny", "sessions": []})
    write_json(folder / "emissions.json", {"kg_co2eq": 1e-6})
    rows = [{"step": 1, "loss": 6.0}, {"step": 1, "validation": {"fr": {"bits_per_byte": 2.0}}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def like_the_original(tmp_path_factory, tiny_tokenizer):
    """A folder labelled llama whose tokenizer has the defects of the original's: no bos, eos, pad or length limit,

    spaces cleaned up when decoding, and GPT-2's rules for cutting text.
    """
    folder = tmp_path_factory.mktemp("hub") / "original"
    save_model(folder, tiny_tokenizer)
    config = read_json(folder / "config.json")
    del config["pad_token_id"], config["pretraining_init_std"]
    write_json(folder / "config.json", {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    (folder / "generation_config.json").unlink()
    spec = read_json(folder / "tokenizer.json")
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec["post_processor"] = None
    spec["model"]["ignore_merges"] = False
    write_json(folder / "tokenizer.json", spec)
    defects = {"clean_up_tokenization_spaces": True, "model_max_length": 10**30}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **defects})
    return folder


def build(*arguments: str | Path) -> dict:
    return release.build_release(release.options([str(argument) for argument in arguments]), "the command")


@pytest.fixture(scope="session")
def released(run, tmp_path_factory):
    """Folder of a release of the run, its two variants in shards of at most 400 kB, written under umask 027."""
    out = tmp_path_factory.mktemp("dist") / "tiny"
    before = os.umask(0o027)
    try:
        build("--run", run, "--out", out, "--formats", "--max_shard_size", "400KB")
    finally:
        os.umask(before)
    return out


@pytest.fixture(scope="session")
def reference(run):
    return checks.ReferenceModel(variants.open_run(Run(run)))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """The interpreter of a virtual environment that has transformers and torch, but not this project."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    # A folder named in a .pth file is searched, but its own .pth files, which an editable install needs, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    code = "import importlib.util as u; assert u.find_spec('transformers') and not u.find_spec('modeling_pleias')"
    subprocess.run([python, "-I", "-c", code], check=True)
    return python


def test_every_check_of_a_good_release_passed_and_is_recorded(released):
    content = read_json(released / "release.json")
    assert len(content["checks"]) == 18 and all(check["passed"] for check in content["checks"])
    assert {check["part"] for check in content["checks"]} == {"custom", "llama"}


def test_release_json_contains_the_run_s_records(released, run):
    content = read_json(released / "release.json")
    model = PleiasForCausalLM.from_pretrained(run / "model", dtype="auto")
    assert content["model"]["parameters"] == model.num_parameters() and content["model"]["dtype"] == "bfloat16"
    assert content["languages"] == ["fr", "la"]
    assert content["source"]["run"]["validation"] == {"step": 1, "validation": {"fr": {"bits_per_byte": 2.0}}}
    assert content["source"]["run"]["emissions"] == {"kg_co2eq": 1e-6}
    assert content["command"] == "the command" and content["gguf"] is None and content["skipped"] == {}


def test_without_the_package_both_variants_give_the_logits_and_the_text_of_the_run(released, run, stranger, tmp_path):
    code = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n"
        "folder, code = sys.argv[1], sys.argv[1].endswith('custom')\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=code, dtype=torch.bfloat16)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code)\n"
        "ids = tokenizer('la vieille maison', return_tensors='pt').input_ids\n"
        "generate = pipeline('text-generation', folder, trust_remote_code=code, max_new_tokens=9,"
        " dtype=torch.bfloat16)\n"
        "text = generate('la vieille maison')[0]['generated_text']\n"
        "print(json.dumps([type(model).__name__, ids.tolist(), model(ids).logits.float().tolist(), text]))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path)}
    content = {}
    for variant in ("custom", "llama"):
        command = [stranger, "-I", "-c", code, released / variant]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        content[variant] = json.loads(done.stdout.splitlines()[-1])
    assert [content["custom"][0], content["llama"][0]] == ["PleiasForCausalLM", "LlamaForCausalLM"]
    assert content["custom"][1:] == content["llama"][1:]
    model = PleiasForCausalLM.from_pretrained(run / "model", dtype=torch.bfloat16)
    tokenizer = PleiasTokenizer.from_pretrained(run / "model")
    ids = tokenizer("la vieille maison", return_tensors="pt").input_ids
    assert content["llama"][1] == ids.tolist()
    assert content["llama"][2] == model(ids).logits.float().tolist()
    out = model.generate(ids, max_new_tokens=9)[0]
    assert content["llama"][3] == tokenizer.decode(out, skip_special_tokens=True)


def test_auto_map_names_every_class_that_the_package_registers(released):
    config = read_json(released / "custom" / "config.json")
    registered = {}
    for line in Path(modeling_pleias.__file__).read_text(encoding="utf-8").splitlines():
        if ".register(" in line and not line.startswith(("AutoConfig", "AutoTokenizer")):
            registered[line.partition(".")[0]] = line.rpartition(", ")[2].removesuffix(")")
    assert len(registered) == 5
    expected = {auto: f"modeling_pleias.{name}" for auto, name in registered.items()}
    assert config["auto_map"] == {"AutoConfig": "configuration_pleias.PleiasConfig", **expected}
    settings = read_json(released / "custom" / "tokenizer_config.json")
    assert settings["auto_map"] == {"AutoTokenizer": [None, "tokenization_pleias.PleiasTokenizer"]}


def test_the_llama_variant_has_no_code_and_does_not_mention_pleias(released):
    assert not list((released / "llama").glob("*.py"))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        assert "pleias" not in (released / "llama" / name).read_text(encoding="utf-8").lower()


def test_with_the_package_the_custom_variant_loads_without_trust(released):
    assert (
        type(AutoModelForCausalLM.from_pretrained(released / "custom", trust_remote_code=False)) is PleiasForCausalLM
    )
    assert type(AutoTokenizer.from_pretrained(released / "custom", trust_remote_code=False)) is PleiasTokenizer


def test_weights_are_sharded_by_size_into_the_same_files_in_both_variants(released):
    files = read_json(released / "release.json")["folders"]
    shards = {name: file for name, file in files["llama"]["files"].items() if name.endswith(".safetensors")}
    # The largest tensor sets the least that a shard can be.
    assert len(shards) > 3 and max(file["bytes"] for file in shards.values()) < 420_000
    assert {name: files["custom"]["files"][name] for name in shards} == shards


def test_files_follow_the_umask(released):
    modes = {path.stat().st_mode & 0o777 for path in released.rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_sha256sum_verifies_the_release_and_each_folder_alone(released):
    for folder in (released, released / "custom", released / "llama"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
        listed = {line.partition("  ")[2] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert listed == {name for name in there if not name.endswith("SHA256SUMS")}


# Faults that a check finds: each is made on purpose ----------------------------


def flip_a_bit(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forget_a_head(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["auto_map"]["AutoModelForTokenClassification"]
    write_json(folder / "config.json", config)


def add_no_bos(folder: Path) -> None:
    spec = read_json(folder / "tokenizer.json")
    spec["post_processor"] = None
    write_json(folder / "tokenizer.json", spec)


def clean_up_spaces(folder: Path) -> None:
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**settings, "clean_up_tokenization_spaces": True})


def forget_the_penalty(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


@pytest.mark.parametrize(
    "variant, faults",
    [
        pytest.param("custom", {forget_a_head: "classes of auto_map, from the folder's code"}, marks=pytest.mark.slow),
        pytest.param("llama", {forget_the_penalty: "64 ids generated in eight languages"}, marks=pytest.mark.slow),
        (
            "llama",
            {
                flip_a_bit: "tensors in 9 safetensors files, bit for bit",
                add_no_bos: "token ids, as from the source's tokenizer.json",
                clean_up_spaces: "tokenizer: unk, bos, eos, pad, length limit, exact decoding",
            },
        ),
    ],
)
def test_a_fault_fails_its_check(released, reference, tmp_path, variant, faults):
    folder = shutil.copytree(released / variant, tmp_path / variant)
    for fault in faults:
        fault(folder)
    collected = checks.Checks()
    checks.check_variant(collected, reference, folder)
    assert set(faults.values()) <= {check.name for check in collected.results if not check.passed}


@pytest.mark.slow
def test_a_failed_check_ends_the_release_with_a_message_and_leaves_nothing(run, tmp_path, monkeypatch):
    def write_and_spoil(source, out, **options):
        variants.export_variants(source, out, **options)
        flip_a_bit(out / "llama")

    monkeypatch.setattr(release, "export_variants", write_and_spoil)
    with pytest.raises(ReleaseError, match=r"^No release was made, because a check failed: llama: tensors in .*\.$"):
        build("--run", run, "--out", tmp_path / "dist" / "bad", "--formats")
    assert list((tmp_path / "dist").iterdir()) == []


def test_code_that_needs_more_than_the_folder_fails_with_a_message(run, tmp_path, monkeypatch):
    def write_and_spoil(source, out, **options):
        variants.export_variants(source, out, **options)
        (out / "custom" / "configuration_pleias.py").write_text("import modeling_pleias\n")

    monkeypatch.setattr(release, "export_variants", write_and_spoil)
    with pytest.raises(ReleaseError, match="custom does not load in a fresh interpreter: .*modeling_pleias"):
        build("--run", run, "--out", tmp_path / "bad", "--formats")
    assert list(tmp_path.iterdir()) == []


def test_the_chat_template_of_a_model_tuned_on_conversations_is_in_both_variants(run, tmp_path):
    tuned = shutil.copytree(run, tmp_path / "runs" / "tuned")
    tokenizer = instruct.add_chat_template(AutoTokenizer.from_pretrained(run / "model"))
    tokenizer.save_pretrained(tuned / "model")
    variants.export_variants(variants.open_run(Run(tuned)), tmp_path / "out", max_shard_size="5GB")
    turns = [{"role": "user", "content": "bells"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert expected == "<|begin_of_text|><|im_start|>user\nbells<|im_end|>\n<|im_start|>assistant\n"
    for variant in ("custom", "llama"):
        opened = AutoTokenizer.from_pretrained(tmp_path / "out" / variant)
        assert opened.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected


@pytest.mark.parametrize("place", ["file", "further files", "setting", "settings"])
def test_every_folder_of_a_release_has_the_chat_templates_of_the_source(run, tmp_path, place, monkeypatch):
    tuned = shutil.copytree(run, tmp_path / "runs" / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    several = {"default": TEMPLATE, "rag": "{{ messages[0]['content'] }}"}
    tokenizer.chat_template = several if place in ("further files", "settings") else TEMPLATE
    tokenizer.save_pretrained(tuned / "model", save_jinja_files="file" in place)
    variants.export_variants(variants.open_run(Run(tuned)), tmp_path / "out", max_shard_size="5GB")
    if not release.choose_formats(None)[1].get("onnx"):
        from model_card.formats import exports

        class Exporter:  # of the graph, which needs no template
            def export(self, *_):
                return self

            def save_pretrained(self, folder):
                folder.mkdir()

        monkeypatch.setitem(exports.EXPORTERS, "openvino", (Exporter, lambda **_: None))
        exports.export_format(tmp_path / "out" / "llama", tmp_path / "out" / "openvino", format="openvino")
    for folder in (tmp_path / "out").iterdir():
        assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
        expected = several if isinstance(tokenizer.chat_template, dict) else {"default": TEMPLATE}
        assert variants.chat_templates(folder) == expected


def test_padding_and_truncation_of_the_source_s_last_use_are_not_released(run, tmp_path):
    used = shutil.copytree(run, tmp_path / "runs" / "used")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokenizer(["bells", "old hills"], padding="max_length", max_length=6, truncation=True)
    tokenizer.save_pretrained(used / "model")
    AutoTokenizer.from_pretrained(used / "model").save_pretrained(used / "model")  # tokenizer_config.json has it, too
    assert read_json(used / "model" / "tokenizer.json")["padding"]["strategy"] == {"Fixed": 6}
    source = variants.open_run(Run(used))
    variants.export_variants(source, tmp_path / "out", max_shard_size="5GB")
    clean = variants.open_run(Run(run))
    variants.export_variants(clean, tmp_path / "clean", max_shard_size="5GB")
    for variant in ("custom", "llama"):
        expected, released = (read_json(tmp_path / out / variant / "tokenizer.json") for out in ("clean", "out"))
        assert released == expected
        expected, released = (
            read_json(tmp_path / out / variant / "tokenizer_config.json") for out in ("clean", "out")
        )
        assert released == expected | {"pad_token_type_id": 0, "truncation_side": "right"}  # the defaults
    assert checks.ReferenceModel(source).ids == checks.ReferenceModel(clean).ids


def test_formats_that_a_small_model_cannot_have_are_named_before_the_release_begins(
    run, tmp_path, monkeypatch, capsys
):
    if sentence := release.choose_formats(None)[1].get("gguf"):
        pytest.skip(sentence)
    small = shutil.copytree(run, tmp_path / "runs" / "small")
    config = PleiasConfig.from_pretrained(run / "model")
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 160, 16
    PleiasForCausalLM(config).bfloat16().save_pretrained(small / "model")
    source = variants.open_run(Run(small))
    formats, impossible = release.choose_gguf_formats(None, source)
    assert formats == ["BF16", "F16", "Q8_0", "Q5_0", "Q4_0"] and set(impossible) == {"Q6_K", "Q5_K_M", "Q4_K_M"}
    sentence = r"Q6_K needs rows of a multiple of 256 numbers \(Q6_K\), and those of .* have 64\."
    monkeypatch.setattr(release, "export_variants", lambda *_, **__: print("export"))
    monkeypatch.setattr(release, "ReferenceModel", unittest.mock.Mock(side_effect=ReleaseError("far enough")))
    with pytest.raises(ReleaseError, match="far enough"):
        build("--run", small, "--out", tmp_path / "dist", "--formats", "gguf")
    assert re.search(sentence + r"\n(skip .*\n){2}export", capsys.readouterr().out)
    with pytest.raises(ReleaseError, match=sentence + " Choose other --gguf_formats."):
        build("--run", small, "--out", tmp_path / "dist", "--formats", "gguf", "--gguf_formats", "Q6_K", "Q8_0")
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_not_a_finished_run_is_refused(run, tmp_path):
    with pytest.raises(ReleaseError, match=f"{tmp_path} is not a run: it has no config.yaml"):
        build("--run", tmp_path, "--out", tmp_path / "out", "--formats")
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(ReleaseError, match=f"{tmp_path} has no model/ yet"):
        build("--run", tmp_path, "--out", tmp_path / "out", "--formats")
    with pytest.raises(ReleaseError, match="model_type in .*config.json must be 'llama', got 'pleias'"):
        build("--from_llama", run / "model", "--out", tmp_path / "out", "--formats")
    shutil.copytree(run / "model", tmp_path / "model")
    write_json(
        tmp_path / "model" / "config.json", {**read_json(run / "model" / "config.json"), "num_hidden_layers": 3}
    )
    with pytest.raises(ReleaseError, match=r"The weights in .* do not match its config.json: .*layers\.2\."):
        build("--run", tmp_path, "--out", tmp_path / "out", "--formats")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ReleaseError, match="mine exists: delete it, or use another --out"):
        build("--run", run, "--out", tmp_path / "mine", "--formats")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_format_without_its_packages_is_skipped_unless_it_was_requested(monkeypatch):
    monkeypatch.setattr(release, "find_spec", lambda name: None if name == "onnxruntime" else types)
    monkeypatch.setattr(release, "EXPORTERS_SINCE", (5, 0))
    formats, skipped = release.choose_formats(None)
    assert formats == ["gguf", "openvino"]
    assert skipped == {"onnx": 'onnx needs onnxruntime: pip install "modeling-pleias[release]".'}
    assert release.choose_formats(["openvino"]) == (["openvino"], {})
    with pytest.raises(ReleaseError, match="onnx needs onnxruntime"):
        release.choose_formats(["onnx"])


def test_an_export_that_needs_a_newer_transformers_is_skipped_unless_it_was_requested(monkeypatch):
    monkeypatch.setattr(release, "find_spec", lambda name: types)
    monkeypatch.setattr(release, "EXPORTERS_SINCE", (99, 1))
    formats, skipped = release.choose_formats(None)
    assert formats == ["gguf"] and set(skipped) == {"onnx", "openvino"}
    with pytest.raises(ReleaseError) as error:
        release.choose_formats(["onnx"])
    needed = "transformers>=99.1"
    assert str(error.value) == f'onnx needs {needed}: pip install "modeling-pleias[release]" "{needed}".'


# From the original's folder ------------------------------------------------------


@pytest.fixture(scope="session")
def completed(like_the_original, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist") / "completed"
    build("--from_llama", like_the_original, "--out", out, "--formats")
    return out


@pytest.mark.parametrize("variant", ["custom", "llama"])
def test_the_original_s_tokenizer_settings_are_completed_and_no_id_changes(like_the_original, completed, variant):
    before = Tokenizer.from_file(str(like_the_original / "tokenizer.json"))
    defective = AutoTokenizer.from_pretrained(like_the_original)
    after = AutoTokenizer.from_pretrained(
        completed / variant, trust_remote_code=False
    )  # as the installed package opens it
    assert (defective.bos_token, defective.eos_token, defective.pad_token) == (None, None, None)
    assert defective.model_max_length == 10**30 and defective.clean_up_tokenization_spaces
    assert [after.unk_token_id, after.bos_token_id, after.eos_token_id, after.pad_token_id] == [0, 1, 2, 3]
    assert after.clean_up_tokenization_spaces is False
    assert after.model_max_length == 256 and len(after("mot " * 999, truncation=True).input_ids) == 256
    for text in checks.strings():
        assert after.encode(text) == before.encode(text).ids
        assert after.decode(after.encode(text)) == text
    assert len(after) == before.get_vocab_size(with_added_tokens=True)
    assert after(["a", "bcd"], padding=True).attention_mask[0][0] == 0


def test_the_original_s_weights_are_the_same_in_the_custom_variant(like_the_original, completed):
    content = read_json(completed / "release.json")
    seen = like_the_original.relative_to(like_the_original.parent.parent).as_posix()  # no folder of the machine's
    assert content["source"] == {"kind": "llama", "path": seen, "run": None}
    assert all(check["passed"] for check in content["checks"])
    ids = torch.arange(4, 24)[None]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.bfloat16)
        for p in (completed / "custom", like_the_original)
    )
    assert type(ours) is PleiasForCausalLM and type(theirs).__name__ == "LlamaForCausalLM"
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


# Other formats, and the Hub ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("format, module", [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_prints_nothing(run, tmp_path, format, module):
    """In a process of its own: pytest would keep warnings from stderr, and torch.onnx warns once per process."""
    pytest.importorskip(module, reason="pip install '.[release]'")
    variants.export_variants(variants.open_run(Run(run)), tmp_path, max_shard_size="5GB")
    code = "import sys; from pathlib import Path; from model_card.formats.exports import export_format; "
    code += "from transformers.utils import logging; logging.disable_progress_bar(); "  # as the program does
    code += "export_format(Path(sys.argv[1]), Path(sys.argv[2]), format=sys.argv[3])"
    command = [sys.executable, "-c", code, str(tmp_path / "llama"), str(tmp_path / format), format]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_an_export_writes_the_text_of_torch_without_torch(released, reference, tmp_path, format):
    if sentence := release.choose_formats(None)[1].get(format):
        pytest.skip(sentence)
    from model_card.formats import exports
    from model_card.formats.fp32_reference import Fp32Reference

    exports.export_format(released / "llama", tmp_path / format, format=format)
    for path in (tmp_path / format).iterdir():  # torch.onnx notes at each operator where its code is
        assert not any(name in path.read_bytes() for name in (b"site-packages", os.fsencode(tmp_path.parents[1])))
    fp32 = Fp32Reference(reference, score_tokens=8)
    collected = checks.Checks()
    exports.check_export(collected, fp32, tmp_path / format, format=format)
    assert [check.passed for check in collected.results] == [True, True]
    assert collected.results[1].values == {"equal": 8, "of": 8, "gaps": {}}
    # Reading in two steps, the second with a past, gives the logits of reading at once; another past does not.
    session, ids = exports.SESSIONS[format](tmp_path / format), fp32.prompts["fr"]
    logits = session.read(ids).copy()
    session.reset()
    session.read(ids[:7])
    torch.testing.assert_close(session.read(ids[7:]), logits, rtol=0, atol=1e-4)
    session.reset()
    session.read(fp32.prompts["de"][:7])
    assert abs(session.read(ids[7:]) - logits).max() > 0.1


def test_the_onnx_example_of_the_card_writes_the_same_text(released, reference, tmp_path, monkeypatch, capsys):
    if sentence := release.choose_formats(None)[1].get("onnx"):
        pytest.skip(sentence)
    from model_card.formats import exports
    from model_card.formats.fp32_reference import Fp32Reference

    exports.export_format(released / "llama", tmp_path / "onnx", format="onnx")
    template = (Path(release.__file__).parent / "templates/card.md").read_text(encoding="utf-8")
    example = template.partition('{% elif part == "onnx" %}')[2].split("```python\n")[1].partition("```")[0]
    monkeypatch.chdir(tmp_path / "onnx")
    capsys.readouterr()  # what the exporter printed
    exec(example, scope := {})
    prompt, penalty = scope["ids"][:-20], Fp32Reference(reference, score_tokens=8).penalty
    session = exports.OnnxSession(tmp_path / "onnx")
    expected = exports.generate(session, prompt, 20, penalty, ends=())
    assert scope["ids"] == prompt + expected
    assert capsys.readouterr().out == scope["tokenizer"].decode(prompt + expected) + "\n"


def test_push_makes_a_repository_of_each_folder_and_uploads_it(released):
    hub = unittest.mock.create_autospec(HfApi, instance=True)
    repositories = release.push(released, "someone/tiny", private=True, api=lambda: hub)
    assert repositories == ["someone/tiny", "someone/tiny-custom"]
    uploads = {call.kwargs["repo_id"]: call.kwargs["folder_path"] for call in hub.upload_folder.call_args_list}
    assert uploads == {"someone/tiny": released / "llama", "someone/tiny-custom": released / "custom"}
    created = [(call.args, call.kwargs) for call in hub.create_repo.call_args_list]
    assert created == [((name,), {"repo_type": "model", "private": True, "exist_ok": True}) for name in repositories]


def test_push_refuses_a_file_that_is_not_the_verified_one(released, tmp_path):
    copy = shutil.copytree(released, tmp_path / "copy")
    (copy / "llama" / "config.json").write_text("{}")
    hub = unittest.mock.create_autospec(HfApi, instance=True)
    with pytest.raises(ReleaseError, match="llama/config.json is not the file that was verified"):
        release.push(copy, "someone/tiny", private=False, api=lambda: hub)
    assert hub.mock_calls == []
    verify_sums(released)
