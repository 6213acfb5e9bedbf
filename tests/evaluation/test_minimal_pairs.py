"""Minimal pairs are scored as by lm-evaluation-harness, and made so that counting words decides half of them."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from test_evaluate import make_run, run  # noqa: F401 (a fixture)

from training import evaluate
from training.common.config import InputError
from training.common.files import read_json
from training.common.language import LANGUAGES
from training.data.licences import decide
from training.data.packages import Package
from training.evaluation.agreement_pairs import CONTENT, SETTINGS, pairs_of
from training.evaluation.benchmarks import Public, PublicConfig
from training.evaluation.minimal_pairs import SENTENCES, MinimalPairs, MinimalPairsConfig
from training.evaluation.models import EvaluatedModel
from training.evaluation.noun_lexicons import apertium, german_nouns, whitakers_words

AGREEMENT = yaml.safe_load(CONTENT.read_text(encoding="utf-8"))
CHOOSER = random.Random(0)
WORDS = "the old house stood by river \u00e9t\u00e9 no\u00ebl bells rang \u00e0 hills".split()
ROWS = [
    {name: " ".join(CHOOSER.sample(WORDS, CHOOSER.randint(3, 5))) for name in SENTENCES} | {"UID": phenomenon}
    for phenomenon in ("order", "letters")
    for _ in range(16)
]


def value(metric) -> float:
    return float(metric(metric.rows.sum(0)))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_accuracies_equal_those_of_the_harness(run, tmp_path):  # noqa: F811
    file = write_lines(tmp_path / "en" / "pairs.jsonl", ROWS)
    declared = {"task": "pairs", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test"}
    declared |= {"dataset_kwargs": {"data_files": {"test": str(file)}}, "doc_to_text": "", "doc_to_target": 0}
    declared |= {"target_delimiter": "", "doc_to_choice": "{{[sentence_good, sentence_bad]}}"}
    declared |= {"metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}]}
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(declared))
    subject = EvaluatedModel(str(run))
    harness = Public(PublicConfig(benchmarks=["pairs"], include_path=tmp_path)).measure(subject)["benchmarks"]["pairs"]
    task = MinimalPairs(MinimalPairsConfig(pairs=file))
    metrics = task.metrics(task.measure(subject))
    assert 0 < np.mean(harness["acc"]) < 1 and harness["acc"] != harness["acc_bytes"]
    assert value(metrics["mean"]) == pytest.approx(np.mean(harness["acc"]), abs=0.001)
    assert value(metrics["mean, per byte"]) == pytest.approx(np.mean(harness["acc_bytes"]), abs=0.001)


def test_accuracies_are_grouped_and_a_tie_counts_half(tmp_path):
    file = write_lines(tmp_path / "pairs.jsonl", [row | {"language": "fr"} for row in ROWS])
    task = MinimalPairs(MinimalPairsConfig(pairs=file))
    assert task.data["pairs"] == {"fr": {"order": 16, "letters": 16}}
    scores = [(-1, -2)] * 16 + [(-1, -1)] * 8 + [(-2, -1)] * 8
    record = {"pairs": [row | {"good": a, "bad": b} for row, (a, b) in zip(task.pairs, scores, strict=True)]}
    metrics = {name: value(metric) for name, metric in task.metrics(record).items()}
    del metrics["mean, per byte"]
    assert metrics == {"mean": 0.625, "fr": 0.625, "order": 1, "letters": 0.25}
    groups = task.details(record)["groups"]["language and phenomenon"]
    assert {name: value(metric) for name, metric in groups.items()} == {"fr, order": 1, "fr, letters": 0.25}


def test_two_models_are_compared_by_language_and_phenomenon(run, tiny_tokenizer, tiny_shards, tmp_path):  # noqa: F811
    other, file = make_run(tmp_path / "other", tiny_tokenizer, tiny_shards, seed=1), tmp_path / "la" / "pairs.jsonl"
    write_lines(file, ROWS)
    arguments = [
        "--model",
        str(run),
        "--model",
        str(other),
        "--suite",
        "minimal_pairs",
        "--out",
        str(tmp_path / "out"),
    ]
    evaluate.main([*arguments, "--minimal_pairs.pairs", str(file), "--minimal_pairs.examples", "12"])
    rows = read_json(tmp_path / "out" / "comparison.json")["tasks"]["minimal_pairs"]
    assert set(rows) == {"mean", "la", "order", "letters", "mean, per byte"}
    first, second = (row["value"] if isinstance(row, dict) else row for row in rows["mean"]["values"].values())
    assert rows["mean"]["differences"]["other"]["value"] == pytest.approx(first - second)
    assert read_json(tmp_path / "out" / "other" / "minimal_pairs.json")["data"]["pairs"]["la"]["order"] == 12


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("en/a.jsonl", [{"sentence_good": "a"}], r"row 1 has no sentence_bad: each row needs"),
        ("en/a.jsonl", [["a", "b"]], r"row 1 has no sentence_good"),
        ("en/a.jsonl", [{"sentence_good": "a", "sentence_bad": "a"}], "two equal sentences: remove it"),
        ("a.jsonl", [ROWS[0]], "row 1 has no language of en, fr"),
        ("en/a.jsonl", [ROWS[0] | {"language": "klingon"}], "has no language of"),
        ("en/a.txt", [ROWS[0]], "contains no .parquet or .jsonl file|is not JSON"),
        ("de/a.jsonl", [ROWS[0]], "has no pair in en: pass other pairs"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, name, rows, message):
    write_lines(tmp_path / name, rows)
    with pytest.raises(InputError, match=message) as error:
        MinimalPairs(MinimalPairsConfig(pairs=tmp_path, languages=["en"]))
    assert "\n" not in str(error.value)


# Pairs of agreement -------------------------------------------------------------------------------


def invented_nouns(language: str) -> list[dict[str, str]]:
    """Return twenty nouns of every gender of a language, with all forms that its contrasts use."""
    phenomena = [contrasts for name, contrasts in AGREEMENT["languages"][language].items() if name not in SETTINGS]
    contrasts = [contrast for group in phenomena for contrast in group]
    cells = {cell for contrast in contrasts for cell in contrast["cells"]}
    cells |= {cell for row in contrasts for text in row["sentences"] for cell in re.findall(r"{(\w{1,3})}", text)}
    kinds = {cell[0] for cell in cells} if language != "en" else {""}
    return [
        {cell: f"b{'ab' * i}{cell}k" for cell in cells if cell.startswith(kind)}
        | {f"{kind}unused": f"b{'ab' * i}{kind}x"}
        for kind in sorted(kinds)
        for i in range(20)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_of_word_frequencies_is_right_in_half_of_the_pairs(language):
    content, nouns = AGREEMENT["languages"][language], invented_nouns(language)
    rows = pairs_of(language, content, nouns, 41)
    assert rows == pairs_of(language, content, nouns[::-1], 40)
    assert Counter(row["phenomenon"] for row in rows) == {name: 40 for name in content if name not in SETTINGS}
    assert len({(row["sentence_good"], row["sentence_bad"]) for row in rows}) == len(rows)
    assert not {row["sentence_good"] for row in rows} & {row["sentence_bad"] for row in rows}
    chooser, frequency = random.Random(0), {}
    differences = []
    for row in rows:
        good, bad = (re.findall(r"\w+", row[name]) for name in SENTENCES)
        ((right, wrong),) = [(a, b) for a, b in zip(good, bad, strict=True) if a != b]
        differences.append(
            frequency.setdefault(right, chooser.random()) > frequency.setdefault(wrong, chooser.random())
        )
        assert "{" not in row["sentence_good"]
    assert sum(differences) == len(rows) / 2


def test_the_lexicons_are_openly_licensed_and_every_language_has_one():
    packages = [Package(**entry) for entry in AGREEMENT["packages"]]
    assert not any(decide(package.licence).refused for package in packages)
    assert (
        {code for package in packages for code in package.languages} == set(LANGUAGES) == set(AGREEMENT["languages"])
    )


def test_nouns_that_could_be_adverbs_or_change_the_article_are_not_used():
    nouns = invented_nouns("es") + [{"ms": "domingo", "mp": "domingos"}, {"fs": "agua", "fp": "aguas"}]
    content = AGREEMENT["languages"]["es"]
    text = " ".join(row["sentence_good"] for row in pairs_of("es", content, nouns, 80))
    assert "domingo" not in text and "agua" not in text
    assert "domingo" in " ".join(row["sentence_good"] for row in pairs_of("es", content | {"but": ""}, nouns, 80))
    with pytest.raises(InputError, match="has no two nouns of the form 'ms' in es"):
        pairs_of("es", content, [{"ms": "gato", "mp": "gatos"}], 4)


def transducer(readings) -> bytes:
    """Return readings, as (form, lemma, tags), as a transducer in the format of lttoolbox: one path for each."""

    def number(n: int) -> bytes:
        size = next(size for size in range(4) if n < 1 << (6 + 8 * size))
        return (n | size << (6 + 8 * size)).to_bytes(size + 1, "big")

    def text(string: str) -> bytes:
        return number(len(string)) + b"".join(number(ord(letter)) for letter in string)

    symbols = sorted({f"<{tag}>" for *_, tags in readings for tag in tags.split(".")})
    paths = []
    for form, lemma, tags in readings:
        width = max(len(form), len(lemma))
        letters = [
            (ord(a) if a else 0, ord(b) if b else 0)
            for a, b in zip(*(list(w) + [""] * (width - len(w)) for w in (form, lemma)), strict=True)
        ]
        paths.append(letters + [(0, -1 - symbols.index(f"<{tag}>")) for tag in tags.split(".")])
    pairs = sorted({pair for path in paths for pair in path})
    states, final = [[]], []
    for path in paths:
        state = 0
        for pair in path:
            states[state].append((pairs.index(pair), len(states)))
            state = len(states)
            states.append([])
        final.append(state)
    data = b"LTTB" + bytes(8) + text("abc") + number(len(symbols)) + b"".join(map(text, symbols)) + number(len(pairs))
    data += (
        b"".join(number(code + len(symbols)) for pair in pairs for code in pair) + number(1) + text("main@standard")
    )
    data += b"LTTD" + bytes(8) + number(0) + number(len(final))
    data += b"".join(number(b - a) for a, b in zip([0, *final], final, strict=False)) + number(len(states))
    for state, arcs in enumerate(states):
        arcs.sort()
        data += number(len(arcs))
        for (last, _), (pair, target) in zip([(0, 0), *arcs], arcs, strict=False):
            data += number(pair - last) + number((target - state) % len(states))
    return data


def test_nouns_of_an_analyser_have_one_reading(tmp_path):
    readings = [("chats", "chat", "n.m.pl"), ("chat", "chat", "n.m.sg"), ("livre", "livre", "n.m.sg")]
    readings += [("livre", "livre", "n.f.sg"), ("port", "port", "n.m.sg"), ("ports", "port", "n.m.pl")]
    readings += [
        ("port", "porter", "vblex.pri.p3.sg"),
        ("for\u00eat", "for\u00eat", "n.f.sg"),
        ("vert", "vert", "adj.m.sg"),
    ]
    (tmp_path / "fra-cat.automorf.bin").write_bytes(transducer(readings))
    nouns = sorted(apertium(tmp_path / "fra-cat.automorf.bin"), key=str)
    assert nouns == [{"fs": "for\u00eat"}, {"mp": "chats", "ms": "chat"}]
    (tmp_path / "nld-afr.automorf.bin").write_bytes(
        transducer([("huis", "huis", "n.nt.sg"), ("man", "man", "n.m.sg")])
    )
    assert sorted(apertium(tmp_path / "nld-afr.automorf.bin"), key=str) == [{"cs": "man"}, {"ns": "huis"}]
    (tmp_path / "eng-spa.automorf.bin").write_bytes(b"LTTB" + b"\x01" * 20)
    with pytest.raises(InputError, match="eng-spa.automorf.bin is not a transducer of lttoolbox without weights"):
        list(apertium(tmp_path / "eng-spa.automorf.bin"))


def test_german_nouns_have_one_gender_and_the_same_form_in_every_case_of_the_singular(tmp_path):
    columns = [f"{case} {number}" for number in ("singular", "plural") for case in ("nominativ", "dativ", "akkusativ")]
    lines = [
        "Hund,Substantiv,m,Hund,Hund,Hund,Hunde,Hunden,Hunde",
        "Band,Substantiv,m,Band,Band,Band,B\u00e4nde,B\u00e4nden,B\u00e4nde",
        "Band,Substantiv,n,Band,Band,Band,B\u00e4nder,B\u00e4ndern,B\u00e4nder",
        "Mensch,Substantiv,m,Mensch,Menschen,Menschen,Menschen,Menschen,Menschen",
        "Wagen,Substantiv,m,Wagen,Wagen,Wagen,Wagen,Wagen,Wagen",
        "Frau,Substantiv,f,Frau,Frau,Frau,Frauen,Frauen,Frauen",
        'Hund,"Nachname,Substantiv",,,,,,,',
    ]
    (tmp_path / "nouns.csv").write_text("\n".join([",".join(["lemma", "pos", "genus", *columns]), *lines]))
    assert list(german_nouns(tmp_path / "nouns.csv")) == [
        {"ms": "Hund", "mp": "Hunde"},
        {"fs": "Frau", "fp": "Frauen"},
    ]


def test_latin_nouns_are_frequent_and_have_a_stem_of_their_own(tmp_path):
    lines = [f"{stem:19}{stem:57}{codes}" for stem, codes in [
        ("mur", "N      2 1 M T          X X X A O wall;"),
        ("silv", "N      1 1 F T          X X X B O wood, forest;"),
        ("amic", "N      2 1 M P          X X X B O friend;"),
        ("amic", "ADJ    1 1 X            X X X A O friendly;"),
        ("nummulari", "N      2 1 M P          X X X E O banker;"),
        ("Rom", "N      1 1 F L          X X X A O Rome;"),
    ]]  # fmt: skip
    (tmp_path / "DICTLINE.GEN").write_text("\n".join([*lines, ""]))
    wall, wood = whitakers_words(tmp_path / "DICTLINE.GEN")
    assert wall == {"msn": "murus", "msa": "murum", "msb": "muro", "mpn": "muri", "mpa": "muros", "mpb": "muris"}
    assert wood == {"fsn": "silva", "fsa": "silvam", "fpa": "silvas"}
