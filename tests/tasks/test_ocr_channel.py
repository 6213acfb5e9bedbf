"""The OCR corrector: units, lexicon, channel, candidates, proposals, gates, judge, the corrector and its program."""

import gc
import json
import random
import shutil
import weakref
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_pleias  # noqa: F401 (registers the model classes)
from training.common.config import InputError
from training.common.files import lock_folder, sha256
from training.common.language import LANGUAGES
from training.data.ocr_pairs import PAIR_COLUMNS
from training.ocr_channel import ChannelConfig, learn
from training.tasks import ocr
from training.tasks.ocr import candidates, corrector, learning, stages
from training.tasks.ocr.candidates import Candidates, is_accent_change, is_spelling_change
from training.tasks.ocr.changes import KINDS, Change, apply_changes, compose
from training.tasks.ocr.channel import Channel, segments
from training.tasks.ocr.context import context_features
from training.tasks.ocr.corrector import PACKAGED, Corrector, scaled, selected
from training.tasks.ocr.judge import Judge
from training.tasks.ocr.labels import gains, punctuation_readings
from training.tasks.ocr.learning import Examples, Sample
from training.tasks.ocr.lexicon import Lexicon
from training.tasks.ocr.proposals import FEATURES, Document, Proposal, open_resources, rows
from training.tasks.ocr.trees import Trees
from training.tasks.ocr.units import fold, recase, units

SYLLABLES = "ma ne li so tu ra ce pi do va men tor sil".split()
WORDS = ["".join(random.Random(i).choices(SYLLABLES, k=random.Random(-i).randint(2, 4))) for i in range(1, 160)]
SMALL_GATES = {"ROUNDS": 8, "RATE": 0.4, "SMALLEST": 5}
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(["rnane", "v\u00e4", "\u017fo", "-\n", ". ", "\n", "a\u0364"]),
        st.text(max_size=4),
    ),
    max_size=30,
).map(" ".join)


def passage(draw: random.Random, size: int) -> str:
    """Return sentences of frequent and rare words."""
    words = draw.choices(WORDS, weights=[1 / (i + 3) for i in range(len(WORDS))], k=size)
    return " ".join(word.capitalize() if i % 9 == 0 else word + "." * (i % 9 == 8) for i, word in enumerate(words))


def confused(text: str, draw: random.Random) -> str:
    """Read one n in eight as ri, and one m in eight as rn."""
    return "".join({"n": "ri", "m": "rn"}.get(c, c) if draw.random() < 0.12 else c for c in text)


@pytest.fixture(scope="session")
def sources(tmp_path_factory, write_corpus):
    """Folders of a corpus of 40 works, half of them old; and of rendered pages of 19, with one historical scan."""
    folder, draw = tmp_path_factory.mktemp("channel"), random.Random(1)
    documents = [
        {
            "text": "\n".join(passage(draw, 90) for _ in range(4)),
            "open_type": "Open Culture" if i % 2 else "Open Web",
            "collection": "Old" if i % 2 else "New",
            "language_type": "Spoken",
        }
        for i in range(40)
    ]
    write_corpus(folder / "corpus" / "en.parquet", documents)
    pairs = []
    for i, document in enumerate(documents[:20]):
        truth = document["text"].split("\n")[0]
        source = f"rendered page read by tesseract; text from en/{i}" if i else "Scans via a competition"
        pairs.append([f"page/{i}", confused(truth, draw), truth, "en", source, "Public Domain"])
    table = pa.Table.from_pylist([dict(zip(PAIR_COLUMNS, pair, strict=True)) for pair in pairs])
    (folder / "pairs").mkdir()
    pq.write_table(table, folder / "pairs" / "en.parquet")
    return folder


@pytest.fixture(scope="session")
def recipe(sources, base_model):
    return {
        "corpus": sources / "corpus", "pairs": sources / "pairs", "model": base_model, "languages": ["en"],
        "passages": 24, "judged": 60, "measured": 3, "workers": 1,
    }  # fmt: skip


@pytest.fixture(scope="session")
def learned(recipe, tmp_path_factory):
    """Folder of a corrector that was learned from these with small gates."""
    out = tmp_path_factory.mktemp("learned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_GATES.items():
            patch.setattr(learning, name, value)
        learn(ChannelConfig(out=out, **recipe))
    return out


@pytest.fixture(scope="session")
def packaged():
    return Corrector.load(PACKAGED)


@pytest.fixture(scope="session")
def lexicon():
    return Lexicon.from_counts(Counter({word: 3 + 400 // (i + 1) for i, word in enumerate(WORDS)}), Counter())


@pytest.fixture(scope="session")
def channel():
    draw = random.Random(2)
    truths = [passage(draw, 200) for _ in range(10)]
    return Channel.learn([(confused(truth, draw), truth) for truth in truths], {})


# Units and lexicon ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(TEXTS)
def test_units_are_the_text_at_their_places(text):
    for unit in units(text):
        assert text[unit.start : unit.end] == unit.text and not unit.text.isspace()


def test_a_digit_or_bar_alone_may_be_a_letter():
    assert [unit.text for unit in units("| said 1, a|b 12 1t 0")] == ["|", "said", "1", "a", "b", "1t", "0"]


def test_folding_resolves_old_letters_and_case_is_restored():
    assert fold("Po\u017f\u017fe\u017f\u017fion") == "possession" and fold("fa\u0364hrt") == "f\xe4hrt"
    assert recase("the", "Tbe", False) == "The" and recase("the", "TBE", False) == "THE"
    assert recase("haus", "$aus", True) == "Haus"


def test_a_saved_lexicon_has_the_same_words_and_frequencies(lexicon, tmp_path):
    lexicon.save(tmp_path / "en.lexicon")
    loaded = Lexicon.load(tmp_path / "en.lexicon")
    assert loaded.values == lexicon.values and loaded.total == lexicon.total
    assert loaded.frequency(WORDS[0]) == lexicon.frequency(WORDS[0]) > loaded.frequency(WORDS[-1])


@pytest.mark.parametrize("content", [b"", b"text", b"pleias lexicon 1\nnot compressed"])
def test_a_damaged_lexicon_is_refused_by_name(tmp_path, content):
    (tmp_path / "en.lexicon").write_bytes(content)
    with pytest.raises(InputError, match="en.lexicon is not a readable lexicon"):
        Lexicon.load(tmp_path / "en.lexicon")


def test_a_forgotten_work_makes_its_words_unknown_and_returns(lexicon):
    before = dict(lexicon.values)
    with lexicon.without({WORDS[-1]: 4, WORDS[0]: 1}):
        assert WORDS[-1] not in lexicon and WORDS[0] in lexicon
    assert lexicon.values == before


def test_the_letter_model_is_surprised_by_what_no_word_contains(lexicon):
    assert lexicon.letters.surprise("xqzw")[0] > lexicon.letters.surprise(WORDS[3])[0] + 2


# Channel and candidates -------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.text("abcd ", max_size=20), st.text("abcd ", max_size=20))
def test_segments_are_all_that_differs(ocr, truth):
    parts, position = [], 0
    for start, end, right_start, right_end in segments(ocr, truth):
        parts += [ocr[position:start], truth[right_start:right_end]]
        position = end
    assert "".join(parts) + ocr[position:] == truth


def test_the_channel_finds_the_word_that_was_read(lexicon, channel):
    candidates = Candidates(lexicon, channel)
    word = next(word for word in WORDS[:30] if word.count("m") == 1 and word.count("n") == 1)
    best = candidates.words(word.replace("n", "ri").replace("m", "rn"))[0]
    assert best.word == word and best.edits == 2 and not best.free
    assert candidates.words(word) == []


def test_splits_are_of_known_words(lexicon, channel):
    long = [word for word in WORDS[:20] if len(word) > 4]
    place = len(long[0])
    splits = Candidates(lexicon, channel).splits(long[0] + long[1])
    assert place in [at for at, _ in splits]


def test_kinds_of_spelling_are_told_from_errors():
    assert is_accent_change("prosperite", "prosp\xe9rit\xe9") and not is_accent_change("ctat", "\xe9tat")
    assert all(
        is_spelling_change(*pair) for pair in (("roy", "roi"), ("vnd", "und"), ("avoit", "avait"), ("da\xdf", "dass"))
    )
    assert not is_spelling_change("tbe", "the")


# Proposals and labels -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(TEXTS)
def test_proposals_replace_what_stands_at_their_place(lexicon, channel, text):
    document = Document(text, open_resources(lexicon, channel))
    for proposal in document.proposals():
        assert text[proposal.start : proposal.end] == proposal.before != proposal.after
        assert proposal.kind in KINDS and len(proposal.features) == len(FEATURES)
        assert proposal.after.count("\n") <= proposal.before.count("\n")


@settings(max_examples=30)
@given(TEXTS, st.integers(0, 99))
def test_selected_changes_leave_the_rest_byte_for_byte(lexicon, channel, text, seed):
    proposals = Document(text, open_resources(lexicon, channel)).proposals()
    changes = selected(proposals, np.random.default_rng(seed).random(len(proposals)), dict.fromkeys(KINDS, 0.3))
    after, position, moved = apply_changes(text, changes), 0, 0
    for change in changes:
        assert after[position + moved : change.start + moved] == text[position : change.start]
        position, moved = change.end, moved + len(change.after) - len(change.before)
    assert after[position + moved :] == text[position:]


@given(st.text("ab ", max_size=20), st.data())
def test_composed_changes_equal_one_correction_after_the_other(text, data):
    def some_changes(text: str) -> list[Change]:
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
        return [
            Change(start, end, text[start:end], data.draw(st.sampled_from(["", "x", "yz", "abc"])), "word", 0.9)
            for start, end in zip(cuts[::2], cuts[1::2], strict=False)
        ]

    first = some_changes(text)
    corrected = apply_changes(text, first)
    second = some_changes(corrected)
    assert apply_changes(text, compose(text, first, second)) == apply_changes(corrected, second)
    assert compose(text, first, []) == first and compose(text, [], first) == [c for c in first if c.before != c.after]


@given(st.text("ab \n", min_size=0, max_size=60))
def test_pieces_are_the_text(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corrector, "PIECE", 8)
        places = list(corrector.pieces(text))
    assert "".join(text[start:end] for start, end in places) == text
    assert all(0 < end - start <= 8 for start, end in places)


@pytest.fixture
def english():
    """Resources of few words, with the confusions of 1 and bar."""
    counts = Counter({"i": 900, "said": 500, "go": 300, "back": 200, "a": 900, "home": 90})
    return open_resources(
        Lexicon.from_counts(counts, Counter({"i": 900})), Channel({"1": {"i": 9}, "|": {"i": 9}}, {})
    )


def proposed(text: str, resources) -> set[tuple[str, str]]:
    return {(proposal.before, proposal.after) for proposal in Document(text, resources).proposals()}


def test_signs_become_letters_and_marks_but_not_in_numbers(english):
    assert {("1", "I"), (" 1", "!"), (" 1", "?")} <= proposed("said 1 go", english)
    assert {("|", "I"), (" |", "!")} <= proposed("said | go", english)
    assert {("backl", "back!"), ("homet", "home!")} <= proposed("go backl said homet go", english)
    for text in ("said 12 go", "said 1,000 go", "said 1.5 go", "go 3.1"):
        assert proposed(text, english) == set(), text


def test_a_dash_after_a_comma_stays(english):
    channel = Channel({}, {",- ": {", ": 0.9}, ", ": {". ": 0.5}})
    resources = open_resources(english.lexicon, channel)
    assert proposed("said,- go", resources) == set() and proposed("said, go", resources) >= {(", ", ". ")}


def test_words_divided_at_a_line_end_stay_divided(lexicon, channel):
    word = next(word for word in WORDS[:40] if len(word) > 7 and "m" in word[:3])
    text = word.replace("m", "rn", 1)[:5] + "-\n" + word.replace("m", "rn", 1)[5:]
    after = {proposal.after for proposal in Document(text, open_resources(lexicon, channel)).proposals()}
    assert f"{word[:4]}-\n{word[4:]}" in after
    assert Document(word[:4] + "-\n" + word[4:], open_resources(lexicon, channel)).proposals() == []


def test_labels_count_the_errors_that_a_change_removes():
    truth = "mano mase"
    ocr = truth.replace("m", "rn") + "x"
    right = Proposal(0, len(ocr), ocr, truth, "word", [])
    wrong = Proposal(0, 1, "m", "##", "word", [])
    assert gains(ocr, truth, [right]) == [5] and gains(truth, truth, [wrong]) == [-2]
    assert gains(truth, truth, [Proposal(4, 5, " ", "", "merge", [])]) == [-1]


def test_readings_of_punctuation_are_counted_between_words_read_rightly():
    counted = punctuation_readings([("one.two, three", "one two, three"), ("one.two", "one two")])
    assert counted["."] == Counter({" ": 2}) and counted[", "] == Counter({", ": 1})


# Gates and judge ------------------------------------------------------------------------------------------------


def test_trees_equal_those_of_scikit_learn():
    from sklearn.ensemble import HistGradientBoostingClassifier

    random_state = np.random.default_rng(0)
    features = random_state.normal(size=(400, 5))
    labels = features[:, 0] * features[:, 1] + 0.3 * random_state.normal(size=400) > 0
    model = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(features, labels)
    new = random_state.normal(size=(100, 5))
    assert np.allclose(Trees.from_sklearn(model).probability(new), model.predict_proba(new)[:, 1], atol=1e-9)


def test_thresholds_rise_until_pages_are_changed_rightly_and_clean_text_hardly():
    work = next(w for w in map(str, range(99)) if learning.for_calibration(Sample("", "", "", w, True, "", "")))
    text = "the old house by the mill\n" * 20
    clean, page = (Sample(kind, "en", kind, work, kind == "modern", text, text) for kind in ("modern", "rendered"))
    changes = [
        (page, "word", 0.99, 1), (page, "word", 0.72, 1), (page, "word", 0.71, -1), (page, "split", 0.9, -1),
        (clean, "word", 0.8, -1), (clean, "word", 0.9, -1), (clean, "word", 0.75, -1), (clean, "accent", 0.99, -1),
    ]  # fmt: skip
    proposals = [
        change_of(kind, "old", "odd")._replace(start=26 * i + 4, end=26 * i + 7)
        for i, (_, kind, _, _) in enumerate(changes)
    ]
    numbers = np.array([int(sample is clean) for sample, *_ in changes])
    gain = np.array([entry[3] for entry in changes])
    examples = Examples([page, clean], numbers, proposals, np.zeros((len(changes), len(FEATURES))), gain)
    thresholds = learning.calibrate(examples, np.array([probability for _, _, probability, _ in changes]))
    # of the word changes the last is single and not almost certain; no accent or split on a page was right
    assert 0.8 < thresholds["word"] == pytest.approx(0.8, abs=1e-5)
    assert thresholds["split"] == thresholds["accent"] == 1


def test_the_judge_gives_the_probability_that_the_model_gives_each_passage(lexicon, channel, base_model):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base_model), AutoTokenizer.from_pretrained(base_model)
    text = f"the old house {WORDS[2].replace('m', 'rn')}x stood. by the river {WORDS[0]}r and"
    proposals = Document(text, open_resources(lexicon, channel)).proposals()
    verdict = Judge(model, tokenizer).features(text, proposals)

    def log_probabilities(passage: str, right: str) -> np.ndarray:
        """Of all tokens, and of those on the right of the change."""
        encoded = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([[tokenizer.bos_token_id, *encoded.input_ids]])
        with torch.no_grad():
            scores = model(ids).logits.log_softmax(-1)[0, :-1]
        scores = scores.gather(1, ids[0, 1:, None])[:, 0]
        later = torch.tensor([start >= len(passage) - len(right) for start, _ in encoded.offset_mapping])
        return np.array([scores.sum().item(), scores[later].sum().item()])

    assert len(proposals) > 2
    for proposal, (gain, word_gain, right_gain, *_) in zip(proposals, verdict, strict=True):
        end = proposal.end + 16
        right = text[proposal.end : end]
        right = right[: right.rfind(" ")] if end < len(text) and right.rfind(" ") > 0 else right
        before, after = (text[: proposal.start] + part + right for part in (proposal.before, proposal.after))
        expected = log_probabilities(after.strip(), right) - log_probabilities(before.strip(), right)
        assert (gain, right_gain) == pytest.approx(tuple(expected), abs=2e-3), proposal
        assert word_gain == pytest.approx(gain - right_gain, abs=2e-3)


# The corrector and its program ------------------------------------------------------------------------------------


def test_a_learned_corrector_removes_errors_and_leaves_clean_text(learned):
    loaded, draw = Corrector.load(learned), random.Random(5)
    truths = [passage(draw, 120) for _ in range(4)]
    for truth in truths:
        ocr = confused(truth, draw)
        changes = loaded.changes(ocr, "en")
        counted = gains(ocr, truth, changes)
        assert sum(gain > 0 for gain in counted) > 4 * sum(gain < 0 for gain in counted)
        assert loaded.correct(truth, "en") == truth


def test_a_scaled_threshold_makes_more_or_fewer_changes(learned):
    loaded, draw = Corrector.load(learned), random.Random(6)
    ocr = confused(passage(draw, 300), draw)
    counts = [len(loaded.changes(ocr, "en", threshold=scale)) for scale in (0, 1, 4)]
    assert counts[0] >= counts[1] >= counts[2]
    assert scaled(0.9, 0) == 0.5 and scaled(0.9, 1) == pytest.approx(0.9) and scaled(0.9, 2) > 0.98


def test_the_model_folder_decides_how_text_is_corrected(learned, base_model, tmp_path):
    folder = shutil.copytree(base_model, tmp_path / "model")
    shutil.copytree(learned, folder / "ocr_channel", ignore=shutil.ignore_patterns("stages"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = confused(passage(random.Random(7), 60), random.Random(8))
    expected = Corrector.load(folder / "ocr_channel", model, tokenizer).correct(text, "en")
    assert ocr.correct(model, tokenizer, text, language="en") == expected


def test_the_files_of_a_corrector_are_read_once_until_one_is_replaced_and_no_model_is_kept(
    learned, base_model, tmp_path
):
    folder = shutil.copytree(base_model, tmp_path / "model")
    shutil.copytree(learned, folder / "ocr_channel", ignore=shutil.ignore_patterns("stages"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = confused(passage(random.Random(7), 60), random.Random(8))
    expected = ocr.correct(model, tokenizer, text, language="en")
    for file in (folder / "ocr_channel").iterdir():
        file.write_bytes(b"not read again")
    assert ocr.correct(model, tokenizer, text, language="en") == expected != text
    released = weakref.ref(model)
    del model
    gc.collect()
    assert released() is None
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert ocr.correct(model, tokenizer, text, language="en") == expected
    (folder / "ocr_channel" / "corrector.json").unlink()
    with pytest.raises(InputError, match="contains no OCR corrector"):
        ocr.correct(model, tokenizer, text, language="en")


@settings(max_examples=10)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_a_full_cache_of_candidates_changes_nothing(lexicon, channel, words):
    read, small = [word.replace("n", "ri") for word in words], Candidates(lexicon, channel)
    expected = [Candidates(lexicon, channel).words(word) for word in read]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "CACHED", 3)
        assert [small.words(word) for word in read] == expected
        assert len(small._words) <= 3


def change_of(kind: str, before: str, after: str, **features: float) -> Proposal:
    return Proposal(0, len(before), before, after, kind, [features.get(name, 0.0) for name in FEATURES])


def test_sure_changes_support_others_that_undo_the_same_confusion():
    proposals = [change_of("word", *words) for words in (("wbole", "whole"), ("band", "hand"), ("bat", "hat"))]
    proposals.append(change_of("word", "tlie", "the"))
    proposals += [change_of("word", *words, spelling=1) for words in (("vnd", "und"), ("vns", "uns"))]
    before = np.array([0.95, 0.95, 0.5, 0.5, 0.95, 0.5])
    after = corrector.supported(proposals, before)
    assert np.allclose(after[3:], before[3:]) and after[2] == pytest.approx(1 / (1 + np.exp(-2)))
    assert corrector.supported([proposals[0]] * 2, np.array([0.95, 0.95])) == pytest.approx(0.95)  # one word, twice


def test_context_counts_recurring_confusions_errors_and_rivals():
    pairs = [("tbe", "the"), ("tbe", "toe"), ("wbo", "who"), ("Tbe", "The"), ("hos", "has")]
    places = [0, 0, 50, 400, 460]
    proposals = [
        change_of("word", *words)._replace(start=start, end=start + 3)
        for start, words in zip(places, pairs, strict=True)
    ]
    proposals.append(change_of("punctuation", ".", ",")._replace(start=420, end=421))
    probabilities = np.array([0.9, 0.2, 0.5, 0.6, 0.05, 0.3])
    odds, possible = np.log(probabilities / (1 - probabilities)), np.array([0, 1, 2, 3, 5])
    support, errors, near, margin = context_features(proposals, odds, possible, 10).T
    assert support == pytest.approx([0.5, 0, 0.9, 0.5, -1])  # of a word that is read twice, the most probable reading
    assert errors == pytest.approx((0.9 + 0.5 + 0.6 + 0.05 + 0.3) / 10)
    assert near == pytest.approx([0.5, 0.5, 0.9, 0.35, 0.65])
    alone = odds + 9
    assert margin == pytest.approx([odds[0] - odds[1], odds[1] - odds[0], *alone[[2, 3, 5]]])


def test_a_text_decides_which_kinds_of_changes_are_made(packaged, monkeypatch):
    page = "It was a bright morning in the\nspring, and the people of the\nvillage stood before the church.\n"
    garbled = page + "qxvr wrtz bdfg hjkl mnpq rstv wxzb cdfg hjkm npqr tvwx zbcf dghj klmn pqrs tvwz xbcd\n" * 2
    noise = "\n".join("".join(random.Random(i).choices("bcdfghjklmnpqrtvwxz", k=5)) for i in range(60))

    monkeypatch.setattr(corrector, "PASSES", 1)

    def made(text: str) -> list[str]:
        kinds = []
        for kind in KINDS:
            change = Proposal(0, 2, text[:2], "In", kind, [0.0] * len(FEATURES))
            monkeypatch.setattr(packaged, "judged", lambda *_, change=change: ([change], np.array([1.0])))
            kinds += [change.kind for change in packaged.changes(text, "en")]
        return kinds

    assert made(page) == list(KINDS)
    assert made(page.replace("\n", " ") * 3) == ["word", "accent", "punctuation"]  # a line end may have been there
    assert made(garbled) == ["word", "accent"]
    assert made(noise) == made(page.upper()) == made(page + "0.79 2.33 10,29 " * 12) == []
    assert made(page + "vpon") == []


def test_accents_are_removed_from_a_text_without_and_not_added(packaged, lexicon, channel):
    text = "It was a bright morning in th\xe9 spring, and the people of the village stood before th\xe9 old church."
    assert packaged.correct(text, "en") == text.replace("\xe9", "e")
    document = Document("etat", open_resources(lexicon, channel))
    assert corrector._is_spelling(change_of("accent", "etat", "\xe9tat", accent=1), document, False)
    removed = change_of("accent", "th\xe9", "the", accent=1)
    assert not corrector._is_spelling(removed, document, True)  # old or not, the language has no accents
    french = Lexicon.from_counts(Counter({"\xe9tat": 5, "the": 5}), Counter())
    assert french.accented == pytest.approx(0.5, abs=0.05) and lexicon.accented == 0
    assert corrector._is_spelling(removed, Document("th\xe9", open_resources(french, channel)), True)


def test_a_foreign_text_is_left_alone(learned):
    assert Corrector.load(learned).changes("wer hat denn das getan und warum nicht jetzt gleich hier", "en") == []


def test_bad_input_is_refused_in_one_sentence(learned, tmp_path):
    with pytest.raises(InputError, match="has no language 'xx': it corrects en"):
        Corrector.load(learned).changes("text", "xx")
    with pytest.raises(InputError, match="contains no OCR corrector"):
        Corrector.load(tmp_path)
    lexicon = (learned / "en.lexicon").read_bytes()
    for name, content in (
        ("gates.safetensors", b"no"),
        ("corrector.json", b'{"version": 1}'),
        ("corrector.json", (learned / "corrector.json").read_bytes().replace(b'"odds_margin"', b'"other_margin"')),
        ("en.lexicon", lexicon[:-1] + bytes([lexicon[-1] ^ 1])),  # found before the first text
    ):
        folder = shutil.copytree(
            learned, tmp_path / "out", ignore=shutil.ignore_patterns("stages"), dirs_exist_ok=True
        )
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match="contains no OCR corrector"):
            Corrector.load(folder)


def test_a_corrector_that_was_learned_without_a_model_refuses_one(learned, recipe, base_model, tmp_path, monkeypatch):
    for name, value in SMALL_GATES.items():
        monkeypatch.setattr(learning, name, value)
    learn(ChannelConfig(out=tmp_path / "out", **{**recipe, "model": None}))
    loaded, text = Corrector.load(tmp_path / "out"), confused(passage(random.Random(5), 120), random.Random(5))
    assert loaded.changes(text, "en") == Corrector.load(learned).changes(text, "en") != []
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base_model), AutoTokenizer.from_pretrained(base_model)
    with pytest.raises(InputError, match="was learned without a language model"):
        Corrector.load(tmp_path / "out", model, tokenizer)


def test_stopped_learning_resumes_to_equal_files(learned, recipe, tmp_path, monkeypatch):
    for name, value in SMALL_GATES.items():
        monkeypatch.setattr(learning, name, value)
    out = shutil.copytree(learned, tmp_path / "out")
    for name in ("corrector.json", "gates.safetensors", "stages/en.verdicts.safetensors", "stages/en.measured3.json"):
        (out / name).unlink()
    counted = (out / "stages" / "en.counts.json").stat().st_mtime_ns
    learn(ChannelConfig(out=out, **recipe))
    for name in ("corrector.json", "gates.safetensors", "report.json", "stages/en.verdicts.safetensors"):
        assert sha256(out / name) == sha256(learned / name)
    assert (out / "stages" / "en.counts.json").stat().st_mtime_ns == counted
    with pytest.raises(InputError, match="begun with other settings"):
        learn(ChannelConfig(out=out, **{**recipe, "passages": 30}))
    with lock_folder(out), pytest.raises(InputError, match="Another run"):
        learn(ChannelConfig(out=out, **recipe))


def test_historical_scans_are_measured_and_never_learned_from(learned):
    samples = json.loads((learned / "stages" / "en.samples.json").read_text())
    assert {sample[2] for sample in samples} == {"rendered", "noise", "old", "modern"}
    measured = {row["kind"] for row in json.loads((learned / "report.json").read_text())}
    assert "Scans" in measured and "Scans" in (learned / "REPORT.md").read_text()
    assert len(samples) > 20 and "page/0" not in {sample[0] for sample in samples}


def test_examples_survive_their_files(learned, recipe):
    stored = stages.Settings(
        recipe["corpus"], recipe["pairs"], learned / "stages", learned, ("en",), 24, 0, None, 60, 3
    )
    examples = stages.read_examples(stored, "en")
    assert len(examples.proposals) == len(examples.gain) == len(examples.features) > 100
    assert rows([]).shape == (0, len(FEATURES))
    for number, proposal in zip(examples.sample, examples.proposals, strict=True):
        assert examples.samples[number].ocr[proposal.start : proposal.end] == proposal.before


def test_the_packaged_corrector_corrects_eight_languages(packaged):
    assert packaged.languages == list(LANGUAGES)
    clean = "It was a bright morning in the spring, and the people of the village stood before the church."
    assert packaged.correct(clean, "en") == clean
    read = clean.replace("people", "peoplc").replace("morning", "moming").replace("church", "churcb")
    changes = packaged.changes(read, "en")
    assert changes and len(apply_changes(read, changes)) >= len(read)
    assert all(gain > 0 for gain in gains(read, clean, changes))
