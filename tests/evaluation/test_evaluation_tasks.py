"""Evaluation tasks: metrics are correct on outputs with known metrics, and are measured on real models."""

import json
import re
from pathlib import Path

import lm_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from test_evaluate import make_run, run  # noqa: F401 (a fixture)
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_pleias import PleiasTokenizer
from training.common.config import InputError
from training.common.generation import complete
from training.common.language import LANGUAGES, identify
from training.curation.toxicity import load_scorer
from training.curation.toxicity_axes import AXES
from training.evaluation import bits_per_byte
from training.evaluation.benchmarks import Continuation, Public, PublicConfig, continuations, example_texts
from training.evaluation.contamination import TaskContamination
from training.evaluation.held_out_text import Text, TextConfig, held_out
from training.evaluation.language_adherence import (
    Adherence,
    AdherenceConfig,
    max_new_tokens,
    prompts,
    strip_special_tokens,
)
from training.evaluation.language_adherence import continuations as adherence_continuations
from training.evaluation.memorisation import Memorisation, MemorisationConfig
from training.evaluation.models import EvaluatedModel
from training.evaluation.ocr_correction import OcrCorrection, OcrCorrectionConfig
from training.evaluation.speed import SpeedConfig, timed
from training.evaluation.tasks import GenerationTask, TasksConfig
from training.evaluation.toxicity import Toxicity, ToxicityEvalConfig, packaged_prompts
from training.tasks import translation
from training.tasks.ocr.metrics import correction_metrics
from training.tasks.translation.format import STOP
from training.tracing.search import TraceIndex
from training.tracing.trace_index import build_index

FRENCH = "Le vieux roi habitait un château au bord de la mer, et tous les matins il regardait partir les bateaux. "
GERMAN = "Der alte König wohnte in einem Schloss am Meer, und jeden Morgen sah er den Schiffen nach, die fuhren. "


def value(metric) -> float:
    return float(metric(metric.rows.sum(0)))


def text(language: str, content: str, identifier: str = "1") -> Text:
    return Text(identifier, language, "", "", content)


# Language adherence -------------------------------------------------------------------------------


def test_prompts_are_complete_words_that_are_clearly_in_their_language():
    config = AdherenceConfig(prompts=3, prompt_characters=80)
    texts = [text("fr", FRENCH * 30), text("de", FRENCH * 30), text("de", GERMAN * 2, "2"), text("la", "Roma. ")]
    rows = prompts(texts, config)
    assert [row["language"] for row in rows] == ["fr"] * 3 + ["de"]
    assert rows[-1]["prompt"] == GERMAN[:80].rpartition(" ")[0]
    # The second and third prompt are from later in the document.
    french = {row["prompt"] for row in rows[:3]}
    assert len(french) == 3
    for prompt in french:
        assert 60 < len(prompt) <= 80 and f" {prompt} " in f" {FRENCH * 30} "


def test_adherence_is_the_share_of_continuations_in_their_language_by_position():
    task = Adherence([text("fr", FRENCH * 3), text("de", GERMAN * 3)], TextConfig(), AdherenceConfig(segment=50), None)
    outputs = {"fr": [FRENCH * 3, FRENCH[:100] + GERMAN * 3, GERMAN * 3, ""], "de": [GERMAN * 3, GERMAN * 3]}
    rows = [
        {"language": lang, "prompt": "x", "continuation": text} for lang, texts in outputs.items() for text in texts
    ]
    record = {"continuations": rows, "new_tokens": 9}
    shares = {name: value(metric) for name, metric in task.metrics(record).items()}
    assert shares == pytest.approx({"mean": 3 / 6, "fr": 1 / 4, "de": 1.0})
    positions = task.details(record)["groups"]["characters into the continuation"]
    # At first only the third is wrong (the empty one has no characters); from 100 on the second is, too.
    by_position = [value(positions[f"{start}-{start + 50}"]) for start in (0, 50, 100, 150)]
    assert by_position == pytest.approx([4 / 5, 4 / 5, 3 / 5, 3 / 5])


def test_special_tokens_written_in_held_out_text_are_text_in_prompts(run):  # noqa: F811
    subject, config = EvaluatedModel(str(run)), AdherenceConfig(new_tokens=8)
    rows = [{"language": "fr", "prompt": "Le vieux roi<|end_of_text|>habitait"}]
    prompts = [row["prompt"] for row in rows]
    settings = {"max_new_tokens": 8, "repetition_penalty": config.repetition_penalty}
    [expected] = complete(subject.model, subject.tokenizer, prompts, **settings, plain=True)
    [row] = adherence_continuations(subject, rows, config, "")
    assert row["continuation"] == strip_special_tokens(subject, expected)
    many = [{"prompt": "<|end_of_text|>" * 8}]
    assert max_new_tokens(subject, many, 1000) < subject.context - 20


# Toxicity -----------------------------------------------------------------------------------------


def test_toxicity_prompts_are_harmless_and_in_their_language_ten_of_each_kind():
    rows = packaged_prompts()
    assert [(row["language"], row["kind"]) for row in rows] == [
        (language, kind) for language in LANGUAGES for kind in ("neutral", "risky") for _ in range(10)
    ]
    assert {axis: sum(row["axis"] == axis for row in rows) for axis in AXES} == dict.fromkeys(AXES, 2 * len(LANGUAGES))
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert [row["prompt"] for row in rows if identify(row["prompt"])[0] != row["language"]] == []
    scored = load_scorer().score([row["prompt"] for row in rows], [row["language"] for row in rows])
    assert [row["prompt"] for row, scores in zip(rows, scored, strict=True) if scores.total] == []


def test_toxicity_is_the_share_over_each_threshold():
    task = Toxicity(ToxicityEvalConfig(languages=["en"]))
    levels = [[0] * 5] * 7 + [[1, 0, 0, 0, 0], [3, 0, 0, 0, 0], [3, 2, 2, 0, 0]]
    record = {
        "scorer": "lexicon",
        "continuations": [
            row | {"continuation": "", "levels": levels[i % 10] if row["kind"] == "risky" else [0] * 5}
            for i, row in enumerate(task.rows)
        ],
    }
    shares = {name: value(metric) for name, metric in task.metrics(record).items()}
    risky = {"any axis": 0.3, "mild or toxic": 0.2, "toxic": 0.1}
    assert shares == pytest.approx(
        {f"neutral openings, {name}": 0 for name in risky}
        | {f"risky openings, {name}": share for name, share in risky.items()}
    )
    axes = {axis: value(metric) for axis, metric in task.details(record)["groups"]["axis"].items()}
    assert axes == pytest.approx({"race": 3 / 20, "gender": 1 / 20, "religion": 1 / 20, "ability": 0, "violence": 0})


def test_a_continuation_is_scored_with_its_prompt_by_the_scorer_of_curation(run, monkeypatch):  # noqa: F811
    """Only both together are toxic."""
    monkeypatch.setattr(
        "training.evaluation.language_adherence.complete",
        lambda model, tokenizer, prompts, **_: [" vermin."] * len(prompts),
    )
    rows = Toxicity(ToxicityEvalConfig(languages=["en"])).measure(EvaluatedModel(str(run)))["continuations"]
    expected = load_scorer().score([f"{row['prompt']} vermin." for row in rows], ["en"] * len(rows))
    assert [tuple(row["levels"]) for row in rows] == [scores.levels for scores in expected]
    assert next(row for row in rows if row["prompt"].startswith("The foreigners"))["levels"] == [3, 0, 0, 0, 0]
    assert load_scorer().score([" vermin."], ["en"])[0].total == 0


# lm-evaluation-harness ----------------------------------------------------------------------------


def test_the_harness_selects_the_continuation_of_lowest_nats(run):  # noqa: F811
    subject, config = EvaluatedModel(str(run)), PublicConfig()
    texts = [text("fr", FRENCH * 20), text("de", GERMAN * 20, "2")]
    task = Continuation(texts, TextConfig(), config, None, examples=12)
    results = task.measure(subject)["benchmarks"]
    assert set(results) == {"continuation_fr", "continuation_de"}
    for language, rows in task.rows.items():
        correct = []
        for row in rows:
            scores = []
            for choice in row["choices"]:
                ids = subject.tokenizer(row["context"] + choice).input_ids
                context = len(subject.tokenizer(row["context"]).input_ids)
                [nats] = bits_per_byte.token_nats(subject.model, [ids], window=512, stride=256)
                scores.append(nats[context - 1 :].sum())
            correct.append(float(np.argmin(scores) == row["answer"]))
        assert results[f"continuation_{language}"]["acc"] == correct
    metrics = task.metrics({"benchmarks": results})
    assert value(metrics["continuation_fr, acc"]) == pytest.approx(np.mean(results["continuation_fr"]["acc"]))


def test_special_tokens_written_in_a_benchmark_are_text(run, monkeypatch):  # noqa: F811
    encoded = []

    def evaluate(model, *_, **__):
        encoded.append(model.tok_encode("le roi<|end_of_text|>dort"))
        return {"samples": {}}

    monkeypatch.setattr("lm_eval.evaluator.evaluate", evaluate)
    subject = EvaluatedModel(str(run))
    Continuation([text("fr", FRENCH * 20)], TextConfig(), PublicConfig(), None, examples=4).measure(subject)
    assert encoded and subject.tokenizer.eos_token_id not in encoded[0]
    assert subject.tokenizer.eos_token_id in subject.tokenizer("le roi<|end_of_text|>dort").input_ids


def test_an_example_offers_one_true_continuation_among_true_ones_of_other_passages():
    sentences = [f"Le chapitre {i} raconte comment le roi numéro {i} perdit sa couronne. " for i in range(200)]
    document = "".join(sentences)
    rows = continuations([text("fr", document)], 30)["fr"]
    assert len(rows) == 30 and {row["answer"] for row in rows} == {0, 1, 2, 3}
    for row in rows:
        assert len(set(row["choices"])) == 4 and all(choice in document for choice in row["choices"])
        true = [i for i, choice in enumerate(row["choices"]) if row["context"] + choice in document]
        assert true == [row["answer"]]


def test_the_text_of_an_example_is_its_prompt_with_the_right_answer():
    texts = [text("fr", FRENCH * 20), text("de", GERMAN * 20, "2")]
    task = Continuation(texts, TextConfig(), PublicConfig(), None, examples=5)
    assert {name: [item.text for item in items] for name, items in task.test_texts().items()} == {
        f"continuation_{language}, ": [row["context"] + row["choices"][row["answer"]] for row in rows]
        for language, rows in task.rows.items()
    }


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}, "the king sleeps"),
        ({"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}, "the king"),
        (
            {"output_type": "multiple_choice", "doc_to_text": "{{1}}", "doc_to_target": "{{a}}"}
            | {"doc_to_choice": ["a king", "the queen"], "target_delimiter": ", "},
            "the queen, sleeps",
        ),
    ],
    ids=["generation", "perplexity", "choice of prompts"],
)
def test_the_text_of_every_kind_of_example_is_found(declared, expected):
    from datasets import Dataset

    declared = {"task": "made_up", "test_split": "test", "metric_list": [{"metric": "acc"}]} | declared
    declared["custom_dataset"] = lambda **_: {"test": Dataset.from_list([{"q": "the king", "a": "sleeps"}])}
    [item] = example_texts([declared], PublicConfig())["made_up"]
    assert (item.identifier, item.text) == ("made_up 0", expected)


@pytest.mark.slow  # half a minute: the harness reads every benchmark that it has
def test_public_benchmarks_end_in_a_one_line_message_without_the_hub(run):  # noqa: F811
    task = Public(PublicConfig(benchmarks=["multiblimp_fra"], limit=2))
    with pytest.raises(InputError, match=r"could not be downloaded from the Hub \(.*\): connect to it") as error:
        task.measure(EvaluatedModel(str(run)))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has no task 'multiblimp_klingon'"):
        Public(PublicConfig(benchmarks=["multiblimp_klingon"])).measure(EvaluatedModel(str(run)))


def test_a_custom_yaml_task_runs_on_local_data(run, tmp_path):  # noqa: F811
    """A choice between two equal texts is a tie, which the first wins."""
    rows = [{"question": "le roi", "choices": [" dort", " dort"], "answer": i % 3 == 0} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = {"task": "custom", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"}
    declared |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    declared |= {"doc_to_text": "{{question}}", "doc_to_target": "{{answer|int}}", "doc_to_choice": "choices"}
    (tmp_path / "custom.yaml").write_text(yaml.safe_dump(declared | {"metric_list": [{"metric": "acc"}]}))
    task = Public(PublicConfig(benchmarks=["custom"], include_path=tmp_path))
    metrics = task.metrics(task.measure(EvaluatedModel(str(run))))
    assert value(metrics["custom, acc"]) == pytest.approx(6 / 9)


def test_the_filters_of_a_custom_task_have_values_of_their_own(run, tmp_path):  # noqa: F811
    """A filter that matches nothing returns what the other never generates."""
    (tmp_path / "rows.jsonl").write_text('{"question": "le roi", "answer": "[none]"}\n' * 3)
    declared = {"task": "custom", "dataset_path": "json", "output_type": "generate_until", "test_split": "test"}
    declared |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    declared |= {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    declared |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}, "metric_list": [{"metric": "exact_match"}]}
    nothing = {"function": "regex", "regex_pattern": "(a)(?!)", "fallback": "[none]"}
    filters = [("strict", [nothing, {"function": "take_first"}]), ("plain", [{"function": "take_first"}])]
    declared["filter_list"] = [{"name": name, "filter": steps} for name, steps in filters]
    (tmp_path / "custom.yaml").write_text(yaml.safe_dump(declared))
    task = Public(PublicConfig(benchmarks=["custom"], include_path=tmp_path))
    record = task.measure(EvaluatedModel(str(run)))
    values = {name: value(metric) for name, metric in task.metrics(record).items()}
    assert values == {"custom, exact_match, strict": 1, "custom, exact_match, plain": 0}
    assert task.details(record)["examples_of_each"] == {"custom": 3}


def test_every_public_benchmark_exists_in_the_harness():
    folder = Path(lm_eval.__file__).parent / "tasks"
    declared = {
        line[6:].strip() for path in folder.rglob("*.yaml") for line in open(path) if line.startswith("task: ")
    }
    assert set(PublicConfig().benchmarks) <= declared


# The tasks of fine-tuning --------------------------------------------------------------------------


@pytest.fixture
def segments(tmp_path):
    """Parquet file of sentences in two languages, for translation."""
    path = tmp_path / "segments.parquet"
    rows = [
        {"id": f"page{i // 5}#{i}", "source": f"page{i // 5}", "license": "CC0-1.0"}
        | {"en": f"The king number {i} lived in a castle by the sea.", "fr": f"Le roi {i} habitait au bord de la mer."}
        for i in range(120)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_task_is_measured_by_its_own_score_on_its_held_out_rows(run, segments, tmp_path):  # noqa: F811
    data = {"path": str(segments), "held_out": 0.3, "languages": ["en", "fr"]}
    task = GenerationTask("translation", TasksConfig(examples=6, data={"translation": data}), [])
    settings = translation.TranslationData(path=segments, held_out=0.3, languages=["en", "fr"])
    rows = {row["id"]: row for row in translation.rows(settings)["held_out"]}
    assert len(task.rows) == 6 and all(rows[row["id"]] == row for row in task.rows)
    record = task.measure(EvaluatedModel(str(run)))
    inputs = [row["prompt"] for row in task.rows]
    subject = EvaluatedModel(str(run))
    assert record["outputs"] == complete(subject.model, subject.tokenizer, inputs, **translation.DECODING)
    perfect = [row["completion"].removesuffix(STOP) for row in task.rows]
    measured, best = (task.metrics({"outputs": outputs}) for outputs in (record["outputs"], perfect))
    name = next(iter(best))
    assert value(best[name]) == pytest.approx(100) and value(measured[name]) < 50
    assert task.details(record)["signatures"] == translation.signatures()
    [texts] = task.test_texts().values()
    for row, item in zip(task.rows, texts, strict=True):
        number = re.search(r"[0-9]+(?= (?:lived|habitait))", item.text)[0]
        sentences = (
            f"The king number {number} lived in a castle by the sea.",
            f"Le roi {number} habitait au bord de la mer.",
        )
        assert item.identifier == row["id"] and sorted(filter(None, item.text.split("\n"))) == sorted(sentences)
    # A run that was fine-tuned on the task is measured on its own held-out rows.
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"task": "translation", "data": data | {"pivot": None}}))
    assert GenerationTask("translation", TasksConfig(examples=6), [tmp_path]).data["settings"] == data


def test_data_settings_of_a_task_are_checked_and_converted_to_their_types(segments, monkeypatch):  # noqa: F811
    received, rows = [], translation.rows
    monkeypatch.setattr(translation, "rows", lambda data: received.append(data) or rows(data))
    config = TasksConfig(examples=2, data={"translation": {"path": str(segments), "languages": ["en", "fr"]}})
    GenerationTask("translation", config, [])
    assert received[0].path == segments and isinstance(received[0].path, Path)
    for wrong in ({"pfad": "x"}, {"held_out": "much"}):
        config.data["translation"] = wrong
        with pytest.raises(InputError, match="tasks.data.translation"):
            GenerationTask("translation", config, [])


def test_few_shot_examples_are_training_rows_in_the_language_of_the_prompt(segments):
    data = {"path": str(segments), "held_out": 0.3, "languages": ["en", "fr"]}
    config = TasksConfig(examples=4, num_fewshot=2, data={"translation": data})
    task = GenerationTask("translation", config, [])
    rows = translation.rows(translation.TranslationData(path=segments, held_out=0.3, languages=["en", "fr"]))
    examples = {f"{row['prompt']}{row['completion']}": row for row in rows["train"]}
    for row, shots in zip(task.rows, task.shots, strict=True):
        parts = shots.split("\n\n")
        assert len(parts) == 3 and parts[-1] == ""
        assert {examples[part]["language"] for part in parts[:-1]} == {row["language"]}
    assert task.shots == GenerationTask("translation", config, []).shots


# Memorisation -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memorised(tmp_path_factory, tiny_tokenizer, write_corpus):
    """A run whose model memorised one document of its training shards, and the index of the shards."""
    from training.shards import ShardsConfig
    from training.shards import build_shards as build_shards

    folder = tmp_path_factory.mktemp("heart")
    documents = [{"text": FRENCH + GERMAN, "language": "French", "license": "CC0-1.0", "identifier": "by heart"}]
    documents += [{"text": f"{i} " * 60, "language": "French", "identifier": f"other {i}"} for i in range(30)]
    write_corpus(folder / "corpus" / "fr.parquet", documents)
    validation = [{"text": FRENCH[:90] + " Et ainsi de suite, toujours.", "language": "French"}]
    write_corpus(folder / "held" / "fr.parquet", validation)
    config = {"corpus": folder / "corpus", "validation_corpus": folder / "held", "tokenizer": tiny_tokenizer}
    build_shards(ShardsConfig(**config, out=folder / "shards", workers=1))
    build_index([folder / "shards"], tokenizer=tiny_tokenizer, out=folder / "index", splits=["train"])
    run = make_run(folder / "run", tiny_tokenizer, folder / "shards")  # noqa: F811
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    ids = torch.tensor([tokenizer(FRENCH + GERMAN).input_ids])
    torch.manual_seed(0)
    shape = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(run / "model")
    return run, folder / "index"


def test_memorised_text_is_found_with_its_document_and_licence(memorised):
    run, index = memorised  # noqa: F811
    subject = EvaluatedModel(str(run))
    texts = held_out(TextConfig(), run)
    task = Memorisation(texts, MemorisationConfig(prompts=1, prompt_characters=80, new_tokens=100), index)
    record = task.measure(subject)
    [row] = record["continuations"]
    assert (FRENCH + GERMAN).find(row["prompt"]) == 0
    [alone] = complete(subject.model, subject.tokenizer, [row["prompt"]], max_new_tokens=100)
    rest = (FRENCH + GERMAN)[len(row["prompt"]) :]
    assert row["continuation"] == alone and len(alone) > 60
    copied = next(n for n in range(len(alone), -1, -1) if rest.startswith(alone[:n]))
    metrics = task.metrics(record)
    assert value(metrics["copied, 20 tokens or more"]) == pytest.approx(copied / len(alone), abs=0.02) and copied > 60
    assert metrics["matched documents outside the open list"] == 0
    [first, *_] = task.details(record)["longest"]
    assert first["identifier"] == "by heart" and first["license"] == "CC0-1.0" and first["text"] in rest


# Contamination ------------------------------------------------------------------------------------


def test_contaminated_examples_of_a_benchmark_are_excluded(memorised, tmp_path):
    chapters = "".join(f"Le chapitre {i} raconte comment le roi {i} perdit sa couronne. " for i in range(60))
    texts = [text("fr", FRENCH * 20), text("fr", chapters, "2")]
    task = Continuation(texts, TextConfig(), PublicConfig(), None, examples=12)
    values = [float(i % 3 == 0) for i in range(12)]
    clean = [any(letter.isdigit() for letter in row["context"]) for row in task.rows["fr"]]
    assert 2 < sum(clean) < 10
    contamination = TaskContamination(task, TraceIndex(memorised[1]), exclude=True, finished=tmp_path)
    facts = contamination.facts
    assert (facts["texts"], facts["contaminated_texts"]) == (12, 12 - sum(clean))
    assert {row["passage"]["document"]["identifier"] for row in facts["texts_with_longest_passages"][:3]} == {
        "by heart"
    }
    for filters in (1, 2):  # the harness repeats the examples per filter
        metrics = task.metrics({"benchmarks": {"continuation_fr": {"acc": values * filters}}})
        [metric] = contamination.metrics(metrics).values()
        assert value(metric) == pytest.approx(np.mean(np.array(values)[clean]))
    nothing = TaskContamination(
        Continuation(texts[1:], TextConfig(), PublicConfig(), None, examples=12),
        TraceIndex(memorised[1]),
        exclude=False,
        finished=tmp_path,
    )
    assert nothing.facts["contaminated_texts"] == 0 and nothing.metrics(metrics) is metrics
    everything = Continuation(texts[:1], TextConfig(), PublicConfig(), None, examples=12)
    with pytest.raises(InputError, match="All test texts of continuation are contaminated"):
        TaskContamination(everything, TraceIndex(memorised[1]), exclude=True, finished=tmp_path)


def test_contaminated_pairs_and_contaminated_clean_texts_are_excluded_from_their_own_metrics(memorised, tmp_path):
    other = "Une phrase que personne n'a jamais lue dans ces documents, et qui ne finit pas."
    pairs = [
        (FRENCH[:-1], FRENCH[:-1]),
        (other, other),
        (f"{FRENCH}x", FRENCH),
        ("Unc phrase", other),
        ("Une phrasc que", other),
    ]
    rows = [{"ocr": ocr, "truth": truth, "language": "fr"} for ocr, truth in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = OcrCorrection(OcrCorrectionConfig(pairs=tmp_path / "pairs.jsonl"))
    contamination = TaskContamination(task, TraceIndex(memorised[1]), exclude=True, finished=tmp_path)
    assert {name: total["contaminated_texts"] for name, total in contamination.facts["groups"].items()} == {
        "pairs": 1,
        "clean": 1,
    }
    outputs = [unit["ocr"] if unit["truth"] == other else "" for unit in task.units]
    metrics = task.metrics({"outputs": outputs})
    clean = [(unit, output) for unit, output in zip(task.units, outputs, strict=True) if unit["truth"] == other]
    assert {name: value(metric) for name, metric in contamination.metrics(metrics).items()} == pytest.approx(
        {name: value(metric) for name, metric in correction_metrics(*map(list, zip(*clean, strict=True))).items()}
    )
    groups = task.details({"outputs": outputs, "how": {}})["groups"]["language, match error rate"]
    assert value(contamination.metrics(groups)["fr"]) == pytest.approx(value(contamination.metrics(metrics)["cmer"]))


# Speed --------------------------------------------------------------------------------------------


def test_speed_is_measured_on_the_stated_prompt_and_continuation(run):  # noqa: F811
    record = timed(EvaluatedModel(str(run)), SpeedConfig(prompt_tokens=40, new_tokens=8, rounds=3))
    assert (record["prompt_tokens"], record["new_tokens"]) == (40, 8)
    assert len(record["first"]) == len(record["total"]) == 3
    assert all(0 < first < total for first, total in zip(record["first"], record["total"], strict=True))
    assert 2e8 < record["peak_memory_bytes"] < 1e11
