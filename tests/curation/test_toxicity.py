"""Toxicity: verdict and policy, the offline scorer, Celadon's architecture, and the accuracy of both.

Some sentences are hostile, because they must be detected.
"""

import codecs
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import DebertaV2Config, DebertaV2Tokenizer

from training.common.config import InputError
from training.common.language import LANGUAGES
from training.curation import lexicon
from training.curation.celadon import Celadon, CeladonScorer
from training.curation.lexicon import KINDS, LexiconScorer, endings, lists, score_passage
from training.curation.toxicity import POLICIES, action, load_scorer, measure_corpus, measure_sentences, verdict
from training.curation.toxicity_axes import AXES, MIN_SHARE, PASSAGE, Scores, combine, passages
from training.data.documents import SCHEMA

# Language, axis, a sentence that must be detected, and one with nearly the same words that must pass.
PAIRS = [
    ("en", "race", "I really hate immigrants.", "I really hate oranges."),
    ("en", "gender", "Women are inferior and stupid.", "Women are not inferior or stupid."),
    ("en", "religion", "All Muslims should be deported.", "All letters should be answered."),
    ("en", "ability", "Disabled people are worthless.", "Saying that disabled people are worthless is wrong."),
    ("fr", "religion", "Je déteste les musulmans.", "Je déteste les lundis."),
    ("fr", "gender", "Les femmes sont inférieures.", "Les femmes ne sont pas inférieures."),
    ("es", "race", "Los inmigrantes son basura.", "Los inmigrantes son vecinos."),
    ("es", "religion", "Odio a los judíos.", "Odio a los mosquitos."),
    ("de", "race", "Ausländer sind Abschaum.", "Ausländer sind kein Abschaum."),
    ("de", "religion", "Alle Muslime sollten getötet werden.", "Alle Muslime sollten gehört werden."),
    ("it", "gender", "Le donne sono inferiori.", "Le donne sono arrivate."),
    ("it", "race", "Odio gli immigrati.", "Odio gli spinaci."),
    ("nl", "race", "Ik haat buitenlanders.", "Ik haat spruitjes."),
    ("nl", "gender", "Vrouwen zijn minderwaardig.", "Vrouwen zijn niet minderwaardig."),
    ("pt", "religion", "Os muçulmanos são escória.", "Os muçulmanos são vizinhos."),
    ("pt", "gender", "Eu odeio as mulheres.", "Eu amo as mulheres."),
    ("la", "religion", "Iudaei sunt sordidi et scelesti.", "Iudaei sunt in urbe et in agris."),
    ("la", "gender", "Detestor mulieres omnes.", "Laudo mulieres omnes."),
]


# Verdict and policy -------------------------------------------------------------------------------


def test_the_verdict_follows_the_paper_for_all_1024_combinations():
    for levels in itertools.product(range(4), repeat=5):
        total = sum(levels)
        single_3 = total == 3 and levels.count(3) == 1
        expected = "toxic" if total >= 7 else "mild" if total >= 4 or single_3 else "none"
        assert verdict(Scores(*levels)) == expected, levels


@pytest.mark.parametrize(
    "policy, corpus_stage, actions",
    [
        ("tox", "base", ("keep", "leave", "leave")),
        ("tox", "annealing", ("keep", "warn", "rewrite")),
        ("card", "base", ("keep", "leave", "drop")),
        ("card", "annealing", ("keep", "rewrite", "drop")),
        ("drop", "base", ("keep", "drop", "drop")),
        ("drop", "annealing", ("keep", "drop", "drop")),
    ],
)
def test_each_policy_follows_its_source(policy, corpus_stage, actions):
    assert tuple(action(v, policy=policy, corpus_stage=corpus_stage) for v in ("none", "mild", "toxic")) == actions


def test_the_annealing_corpus_uses_what_the_base_corpus_leaves():
    for rules in POLICIES.values():
        for base, annealing in rules.values():
            assert (base == "leave") == (annealing in ("warn", "rewrite"))


@given(st.text(alphabet="ab .\n", max_size=3 * PASSAGE))
def test_passages_concatenate_to_the_text_and_none_is_too_long(text):
    pieces = passages(text)
    assert "".join(pieces) == text
    assert all(len(piece) <= PASSAGE for piece in pieces) and all(len(piece) > PASSAGE // 2 for piece in pieces[:-1])


def test_passages_end_where_a_paragraph_ends():
    paragraph = "A sentence of some length, and another one. " * 30 + "\n\n"
    assert all(piece.endswith("\n\n") for piece in passages(paragraph * 5)[:-1])


def test_one_passage_makes_a_short_document_toxic_but_not_a_novel():
    bad, good = Scores(3, 3, 3, 0, 0), Scores()
    assert combine([good] * 9 + [bad]) == bad
    assert combine([good] * 399 + [bad]) == good
    enough = round(400 * MIN_SHARE)
    assert combine([bad] * enough + [good] * (400 - enough)) == bad
    assert combine([bad] * (enough - 1) + [good] * (401 - enough)) == good


def test_axes_are_combined_separately():
    assert combine([Scores(race=2), Scores(violence=3), Scores()]) == Scores(race=2, violence=3)


# The offline scorer -------------------------------------------------------------------------------


@pytest.mark.parametrize("language, axis, hostile, harmless", PAIRS)
def test_hostile_sentences_are_detected_and_similar_harmless_ones_pass(language, axis, hostile, harmless):
    scores = score_passage(hostile, language)
    assert verdict(scores) != "none" and getattr(scores, axis) == 3
    assert verdict(score_passage(harmless, language)) == "none"


def test_every_language_has_words_of_every_kind():
    for language in LANGUAGES:
        words, triggers, phrases = lists(language)
        kinds = 0
        for bits in words.values():
            kinds |= bits
        for endings_of_phrase in phrases.values():
            for _, bits in endings_of_phrase:
                kinds |= bits
        assert kinds & (256 << len(KINDS)) - 1 == (256 << len(KINDS)) - 1, language
        assert triggers and all(word == word.lower() for word in words)


def test_entries_expand_to_all_their_endings():
    assert endings("hat{e|ed}") == ["hate", "hated"]
    assert endings("pauvre{|s} fou{|s}") == ["pauvre fou", "pauvre fous", "pauvres fou", "pauvres fous"]


def test_a_call_for_violence_against_a_group_counts_on_two_axes():
    assert score_passage("All Muslims should be killed.", "en") == Scores(religion=3, violence=3)


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("words", ["they not vermin", "women vermin kill must you all", "hate them never good are"])
def test_a_rule_looks_at_the_words_near_it_only(words, language, monkeypatch):
    looked_at = []
    near = lexicon._Sentence.near
    monkeypatch.setattr(lexicon._Sentence, "near", lambda *args: looked_at.append(len(near(*args))) or near(*args))
    work = []
    for repetitions in (50, 200):
        looked_at.clear()
        lexicon.score_passage(f"{words} " * repetitions, language)
        work.append(sum(looked_at) + len(looked_at))
    assert work[1] <= 4.5 * work[0]


def test_quotations_count_less():
    assert score_passage("I hate immigrants.", "en").race == 3
    assert score_passage('He turned. "I hate immigrants," he said.', "en").race == 2
    assert score_passage('He said "well". I hate immigrants.', "en").race == 3
    assert score_passage('An open quotation: "\n\nI hate immigrants.', "en").race == 3


def test_a_pronoun_refers_to_the_group_of_the_previous_sentence_only():
    assert score_passage("Here come the immigrants. I hate them.", "en").race == 3
    assert score_passage("Here come the immigrants. It rains. I hate them.", "en").race == 0


def test_a_slur_alone_is_2_and_one_addressed_to_a_person_3():
    assert score_passage("The word faggot occurs twice in the novel.", "en").gender == 2
    assert score_passage("You faggot.", "en").gender == 3


def test_graphic_violence_counts_distinct_words():
    words = "slaughter blood corpse entrails severed skull mutilated beheaded gore throat stabbed tortured".split()
    assert score_passage(" ".join(words[:5] * 9), "en").violence == 0
    assert score_passage(" ".join(words[:6]), "en").violence == 1
    assert score_passage(" ".join(words), "en").violence == 2


def test_a_document_in_another_language_is_scored_as_english():
    scorer = LexiconScorer()
    assert scorer.score(["# I hate immigrants"], ["python"]) == scorer.score(["# I hate immigrants"], ["en"])


def test_texts_without_words_have_zero_scores():
    assert load_scorer().score(["", "\n\n", "12 + 30 = 42"], ["en", "la", "de"]) == [Scores()] * 3


def test_a_hostile_sentence_is_detected_anywhere_in_a_long_document():
    filler = "The weather was fine and the road was long. "
    for before in (0, 40, 44, 45, 46, 90):
        text = filler * before + "I hate immigrants. " + filler * 50
        assert load_scorer().score([text], ["en"])[0].race == 3, before


# Accuracy -----------------------------------------------------------------------------------------


def _csv(path: Path, rows: list[tuple[str, str, str]]) -> None:
    path.write_text("functionality,text,label\n" + "".join(f'{f},"{t}",{label}\n' for f, t, label in rows))


def test_the_metrics_of_a_few_sentences_are_correct(tmp_path):
    _csv(
        tmp_path / "fr.csv",
        [
            ("hate", "Je déteste les musulmans.", "hateful"),
            ("irony", "Quels gens charmants.", "hateful"),
            ("thing", "Je déteste les lundis.", "non-hateful"),
            ("mention", "Je déteste les étrangers au récit.", "non-hateful"),
        ],
    )
    report = measure_sentences(tmp_path)
    metrics = report["languages"]["fr"]
    assert metrics["precision"] == 0.5 and metrics["recall"] == 0.5 and metrics["f1"] == 0.5
    assert metrics["auc"] == (1 + 0.5 + 0.5 + 0) / 4  # (3 or 0) against (0, 3)
    assert report["functionality"] == {
        "hate": {"fr": 1.0},
        "irony": {"fr": 0.0},
        "mention": {"fr": 0.0},
        "thing": {"fr": 1.0},
    }
    assert report["unseen"] == metrics


def test_the_language_on_which_rules_were_adjusted_is_excluded_from_unseen(tmp_path):
    _csv(tmp_path / "en.csv", [("hate", "I hate immigrants.", "hateful"), ("thing", "I hate Mondays.", "non-hateful")])
    report = measure_sentences(tmp_path)
    assert report["languages"]["en"]["f1"] == 1.0 and report["unseen"] is None


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(tmp_path):
    _csv(tmp_path / "en.csv", [("hate", "I hate immigrants.", "hateful"), ("thing", "I hate Mondays.", "non-hateful")])
    expected, content = measure_sentences(tmp_path), (tmp_path / "en.csv").read_bytes()
    (tmp_path / "en.csv").write_bytes(codecs.BOM_UTF8 + content.replace(b"\n", b"\r\n"))
    assert measure_sentences(tmp_path) == expected


@pytest.mark.parametrize(
    "content, message",
    [
        (b"functionality;text;label\nhate;I hate immigrants.;hateful\n", "en.csv needs a first line"),
        (b"functionality,text,label\nhate,I hate immigrants.\n", "en.csv needs a first line"),
        (b"functionality,text,label\n", "en.csv needs a first line"),
        (b"functionality,text,label\nhate,caf\xe9,hateful\n", "en.csv is not UTF-8"),
        (b"functionality,text,label\nhate," + b"a" * 200_000 + b",hateful\n", "en.csv is not CSV"),
    ],
)
def test_a_file_that_is_no_list_of_sentences_is_named(tmp_path, content, message):
    (tmp_path / "en.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        measure_sentences(tmp_path)


def test_a_folder_without_labelled_sentences_is_an_error(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        measure_sentences(tmp_path)


def test_a_corpus_is_counted_by_language_collection_and_verdict(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [("a", "Novels", "I hate immigrants."), ("b", "Novels", "It rains."), ("c", "Laws", "No dogs.")]
    rows = [
        dict.fromkeys(SCHEMA.names) | {"identifier": i, "collection": c, "language": "English", "text": t}
        for i, c, t in texts
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "en.parquet")
    by_collection = measure_corpus(tmp_path, sample_every=1)["English"]
    counts = {c: [row[kind] for kind in ("documents", "none", "mild", "toxic")] for c, row in by_collection.items()}
    assert counts == {"Laws": [1, 1, 0, 0], "Novels": [2, 1, 1, 0]}


# Celadon ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a small, randomly initialised checkpoint in the format of the published one."""
    torch.manual_seed(0)
    config = DebertaV2Config(  # the config of microsoft/deberta-v3-small, except for the sizes
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        relative_attention=True,
        position_buckets=32,
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        layer_norm_eps=1e-7,
        max_position_embeddings=512,
        type_vocab_size=0,
        position_biased_input=False,
        initializer_range=0.5,  # large enough for different scores of different texts
    )
    folder = tmp_path_factory.mktemp("celadon")
    Celadon(config).save_pretrained(folder)
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "\u2581", *"abcdefghijklmnopqrstuvwxyz.,'", "[MASK]"]
    DebertaV2Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)]).save_pretrained(folder)
    return folder


def test_celadon_has_the_published_size_and_parameter_names():
    with torch.device("meta"):
        small = DebertaV2Config(
            vocab_size=128100,
            hidden_size=768,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=3072,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            type_vocab_size=0,
            position_biased_input=False,
        )
        model = Celadon(small)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 141  # "141M params" on its page
    heads = {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith("deberta.")}
    assert heads == {f"heads.{i}.weight": (4, 768) for i in range(5)} | {f"heads.{i}.bias": (4,) for i in range(5)}


def test_celadon_returns_the_same_five_levels_after_loading_again(checkpoint):
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        assert "heads.4.bias" in weights.keys()
    first, second = load_scorer(str(checkpoint)), CeladonScorer(str(checkpoint))
    texts = ["the cat sat.", "a dog ran, and ran.", "x" * 50]
    assert first.score(texts, ["en"] * 3) == second.score(texts, ["en"] * 3)
    ids = first.tokenizer(texts[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = first.model(ids)
        first_token = first.model.deberta(ids).last_hidden_state[:, 0]
    assert logits.shape == (1, len(AXES), 4) and logits.isfinite().all()
    for axis, head in enumerate(first.model.heads):
        with torch.inference_mode():
            torch.testing.assert_close(logits[:, axis], first_token @ head.weight.T + head.bias)


def test_celadon_scores_do_not_depend_on_the_batch(checkpoint):
    texts = ["the cat sat.", "a dog ran, and ran. " * 3, "no", "q " * 260, "it rains. " * 2, ""]
    alone = [CeladonScorer(str(checkpoint)).score([text], ["en"])[0] for text in texts]
    assert len(set(alone)) > 1
    assert CeladonScorer(str(checkpoint), batch_size=3).score(texts, ["en"] * len(texts)) == alone


def test_celadon_scores_every_window_of_a_long_document(checkpoint):
    scorer = CeladonScorer(str(checkpoint))
    text = "the quick brown fox. " * 120
    windows = scorer._windows(text)
    assert len(windows) > 3 and all(len(ids) <= 512 for ids in windows)
    plain = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [i for ids in windows for i in ids[1:-1]] == plain
    by_window = [Scores(*scorer.model(torch.tensor([ids])).argmax(-1)[0].tolist()) for ids in windows]
    assert scorer.score([text], ["en"]) == [combine(by_window)]


def test_celadon_reads_the_text_without_invisible_characters(checkpoint):
    scorer, text = CeladonScorer(str(checkpoint)), "the quick brown fox, and a dog. " * 3
    hidden = text.replace("qu", "q\u00adu\u200b").replace(" ", "\u00a0").replace("f", "\uff46")
    assert scorer.score([hidden], ["en"]) == scorer.score([text], ["en"])


def test_a_model_without_the_five_heads_is_an_error(checkpoint, tmp_path):
    scorer = CeladonScorer(str(checkpoint))
    scorer.model.deberta.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="heads.0.bias"):
        CeladonScorer(str(tmp_path))


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    with pytest.raises(InputError, match=str(tmp_path)):
        load_scorer(str(tmp_path))
