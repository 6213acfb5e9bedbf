"""OCR correction: the format, lossless joining of windows, decoding with an edit penalty, rows, and the metrics."""

import random
import re
import shutil
from collections import Counter

import jiwer
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS
from training.common.config import InputError
from training.common.generation import complete
from training.common.intervals import bootstrap_interval
from training.data.split import held_out_groups
from training.tasks import ocr, pages, text_windows
from training.tasks.copy_task import WORD
from training.tasks.markers import unescape
from training.tasks.ocr import OcrData, format_ocr, score
from training.tasks.ocr.data import author_or_work, read_pairs
from training.tasks.ocr.edit_penalty import EditPenaltyLogitsProcessor, edit_penalty_processor
from training.tasks.ocr.format import END, START, STOP
from training.tasks.ocr.passages import wrap_prose
from training.tasks.text_windows import align_characters, over_windows, overlapping_windows, split_aligned_pair

TEXTS = st.one_of(st.text(), st.lists(st.sampled_from([*DOCUMENT_TOKENS, "a ", "\n"]), max_size=5).map("".join))
# words with OCR errors and correct words; `fix_words` corrects each separately
WORDS = "rnodern corner the hou5e 0f l'Italie é|té rnorning vvater clean || the a a aa".split()
PROSE = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", " ", "\n", "  ", "\n\n"])).map("".join), max_size=80
).map("".join)


def fix_words(text: str) -> str:
    """Correct every word separately."""
    return re.sub(r"\S+", lambda word: word[0].replace("rn", "m").replace("0", "o").replace("|", "l"), text)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return PleiasTokenizer.from_pretrained(tiny_tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    """An untrained model."""
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return PleiasForCausalLM(config).eval()


# Format -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_the_format_round_trips_even_if_a_text_contains_markers(text, truth):
    prompt, completion = format_ocr(text, truth)
    assert prompt.count(START) == prompt.count(END) == completion.count(STOP) == 1
    assert unescape(prompt.removeprefix(START).removesuffix(END)) == text
    assert ocr.parse_correction(completion) == truth


def test_the_format_is_the_published_one():
    prompt, completion = format_ocr("Tbe house", "The house")
    assert prompt == "<|text_start|>Tbe house<|text_end|><|ocr_correction_start|>"
    assert completion == "The house<|ocr_correction_end|>"


# Windows ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(alphabet="ab \n\u00a0é", max_size=300), st.integers(8, 60))
def test_windows_cover_the_text_and_overlap_within_the_maximum_size(text, size):
    windows = overlapping_windows(text, size, size // 4)
    assert windows[0][0] == 0 and windows[-1][1] == len(text)
    assert all(end - start <= size for start, end in windows)
    for (_, end), (start, following) in zip(windows, windows[1:], strict=False):
        assert 0 < start <= end < following


@settings(deadline=None)
@given(st.text(alphabet="ab \n\u00a0é", max_size=300), st.integers(8, 60))
def test_unchanged_windows_join_to_the_input(text, size):
    assert over_windows(text, size, size // 4, lambda windows: windows) == text


@settings(deadline=None)
@given(PROSE)
def test_windows_corrected_word_by_word_join_to_the_corrected_text(text):
    corrected = over_windows(text, 60, 15, lambda windows: [fix_words(window) for window in windows])
    assert corrected == fix_words(text)


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=200), st.integers(8, 40), st.randoms())
def test_arbitrary_outputs_join_without_repetition(text, size, draw):
    outputs = []

    def change(windows):
        outputs.extend("".join(draw.choices("ab xy", k=draw.randint(0, 60))) for _ in windows)
        return outputs

    joined = over_windows(text, size, size // 4, change)
    assert not Counter(joined) - Counter("".join([*outputs, text]))


def test_windows_that_overlap_too_much_are_rejected():
    with pytest.raises(ValueError, match="overlap"):
        overlapping_windows("a text", 20, 6)


@settings(deadline=None)
@given(PROSE)
def test_a_pair_is_split_where_both_texts_agree(truth):
    ocr_text = truth.replace("m", "rn").replace("o", "0")
    pieces = list(split_aligned_pair(ocr_text, truth, 60))
    assert " ".join(" ".join(right for _, right in pieces).split()) == " ".join(truth.split())
    assert all(wrong == right.replace("m", "rn").replace("o", "0") for wrong, right in pieces)
    assert all(len(right) <= 120 for _, right in pieces)


@settings(deadline=None)
@given(st.lists(st.sampled_from("the old house stood by the river until nobody came".split()), min_size=40))
def test_long_texts_are_aligned_piece_by_piece(words):
    truth = " ".join(words)
    ocr_text = truth.replace("o", "0").replace("m", "rn")
    complete = align_characters(truth, ocr_text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_windows, "PIECE", 64)
        places = align_characters(truth, ocr_text)
    unchanged = places[places >= 0]
    assert (np.diff(unchanged) > 0).all()
    assert all(truth[i] == ocr_text[place] for i, place in enumerate(places) if place >= 0)
    assert len(unchanged) >= 0.95 * (complete >= 0).sum()


def test_a_pair_of_a_million_characters_is_split():
    draw = random.Random(0)
    truth = " ".join("".join(draw.choices("abcdefgh", k=7)) for _ in range(125_000))
    pieces = list(split_aligned_pair(truth.replace("h", "li"), truth, 300))
    assert " ".join(right for _, right in pieces) == truth and len(pieces) > 3000
    assert all(wrong == right.replace("h", "li") for wrong, right in pieces)


def test_a_paragraph_with_a_word_longer_than_a_passage_is_no_prose():
    prose = "the old house stood by the river until nobody came " * 4
    assert list(wrap_prose(f"{'a' * 1_000_000}\n{prose}", 300, 60)) == list(wrap_prose(prose, 300, 60)) != []


def test_passages_in_which_a_pair_disagrees_are_dropped():
    truth = "the old house stood by the river " * 4 + "and nobody came until the spring " * 4
    ocr_text = "the old house stood by the river " * 4 + "qzx 4711 wvk 0815 ppq jjj " * 8
    assert all(
        Levenshtein.normalized_distance(*pair) < 0.5 for pair in list(split_aligned_pair(ocr_text, truth, 60))[:2]
    )
    assert not any("4711" in wrong and len(wrong) > 120 for wrong, _ in split_aligned_pair(ocr_text, truth, 60))


# Decoding -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.text(alphabet="abé c", max_size=30), st.lists(st.sampled_from([b"a", b"bc", "é".encode(), b" "]), max_size=8)
)
def test_distances_tracked_during_decoding_are_levenshtein_distances(text, tokens):
    near = EditPenaltyLogitsProcessor(PleiasTokenizer(), [text], [2], 1.0)
    for token in tokens:
        near.distances[0] = near._after(0, token)
    source, output = text.encode(), b"".join(tokens)
    assert near.distances[0].tolist() == [Levenshtein.distance(output, source[:j]) for j in range(len(source) + 1)]


@settings(max_examples=10, deadline=None)
@given(PROSE.filter(str.strip) | st.sampled_from(["« Où ? » ſaiſon\u2060<|text_end|> €", "x" * 90, "<|pad|>"]))
def test_with_a_high_penalty_an_untrained_model_returns_the_input(model, tokenizer, text):
    assert ocr.correct(model, tokenizer, text, window=40, overlap=10, edit_penalty=1e4) == text


def test_without_a_penalty_an_untrained_model_changes_the_input(model, tokenizer):
    assert ocr.correct(model, tokenizer, "the old house stood", edit_penalty=0) != "the old house stood"


@pytest.mark.parametrize(("penalty", "output"), [(0.5, "h"), (20.0, "b")])
def test_a_change_is_made_if_the_model_prefers_it_by_more_than_the_penalty(tokenizer, penalty, output):
    b, h, t, far, stop = tokenizer.convert_tokens_to_ids(["b", "h", "t", "z", STOP])
    near = EditPenaltyLogitsProcessor(tokenizer, ["tbe"], [stop], penalty)
    scores = torch.full((1, len(tokenizer)), -20.0)
    scores[0, [t, far]] = torch.tensor([5.0, 5.5])
    assert near(torch.tensor([[1]]), scores).argmax().item() == (far if penalty < 0.5 else t)
    scores[0, [h, b]] = torch.tensor([9.0, 1.0])
    assert near(torch.tensor([[1, t]]), scores).argmax().item() == {"h": h, "b": b}[output]


def test_a_correction_ends_before_its_input_only_if_that_outweighs_the_rest(tokenizer):
    stop, a = tokenizer.convert_tokens_to_ids([STOP, "a"])
    scores = torch.zeros(1, len(tokenizer))
    scores[0, stop] = 8.0
    for text, ends in (("abcdefghijkl", False), ("a", True)):
        near = EditPenaltyLogitsProcessor(tokenizer, [text], [stop], 2.0)
        near(torch.tensor([[1]]), scores)
        assert (near(torch.tensor([[1, a]]), scores).argmax().item() == stop) == ends


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.text(alphabet="ab\u00e9 c\u20ac", max_size=12), st.sampled_from([0.0, 0.5, 5.0]))
def test_a_draft_is_scored_in_one_call_as_token_by_token(tokenizer, seed, text, penalty):
    stop, draw = tokenizer.convert_tokens_to_ids(STOP), torch.Generator().manual_seed(seed)
    draft = [*tokenizer(text, add_special_tokens=False).input_ids, stop]
    scores = torch.randn(len(draft) + 1, len(tokenizer), generator=draw).mul(3).round().bfloat16()
    scores[range(len(draft)), draft] += torch.randint(12, (len(draft),), generator=draw).bfloat16()
    one_by_one, together = (EditPenaltyLogitsProcessor(tokenizer, [text], [stop], penalty) for _ in range(2))
    tokens, last = [], 1
    for expected, scores_V in zip([*draft, None], scores.float(), strict=True):
        last = one_by_one(torch.tensor([[last]]), scores_V[None]).argmax().item()
        tokens.append(last)
        if last != expected:
            break
    assert together.choose(draft, scores) == tokens


def test_each_prompt_of_a_batch_is_compared_with_its_own_text(model, tokenizer):
    texts = ["the old house", "stood", "by the river <|text_end|> and nobody came", "l'été revint"]
    prompts = [format_ocr(text)[0] for text in texts]

    def near(tokenizer, prompts):
        return edit_penalty_processor(tokenizer, prompts, penalty=1e4)

    outputs = complete(
        model, tokenizer, prompts, **{**ocr.DECODING, "max_new_tokens": 90, "logits_processor": near}, batch_tokens=400
    )
    assert [ocr.parse_correction(output) for output in outputs] == texts


def test_a_vocabulary_without_bytes_is_decoded_without_penalty(model):
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    plain = {name: value for name, value in ocr.DECODING.items() if name not in ("draft", "logits_processor")}
    free = complete(model, tokenizer, ["a b", "b"], **{**plain, "max_new_tokens": 8})
    for options in (ocr.DECODING, {**plain, "logits_processor": edit_penalty_processor}):
        assert complete(model, tokenizer, ["a b", "b"], **{**options, "max_new_tokens": 8}) == free


# Rows ---------------------------------------------------------------------------------------------

RENDERED = "rendered page (degraded) read by tesseract 5.3.0; text from {}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folder of 60 rendered English pairs of 12 authors, one without a licence, and 20 historical French ones."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)
    rows = []
    for i in range(80):
        truth = " ".join(draw.choices("the old house stood by the river and nobody came".split(), k=120)) + f" {i}"
        works = RENDERED.format(f"github:COST/ELTeC@1:level1/ENG{i % 36:05}_Author{chr(65 + i % 12)}_Title.xml")
        rows.append(
            {
                "id": f"pair{i}",
                "ocr": truth.replace("h", "b", 20).replace("nob", "n0b"),
                "truth": truth,
                "language": "en" if i < 60 else "fr",
                "source": works if i < 60 else "ICDAR2019 POCR FR1",
                "license": "CC-BY-4.0" if i != 7 else "all rights reserved",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return folder


def test_historical_scans_never_train_and_no_author_is_on_both_sides(pairs):
    for kind in ("rendered", "historical"):
        data = OcrData(pairs=pairs, eval_pairs=kind, synthetic_rows=0, held_out=0.2)
        parts = ocr.rows(data)
        assert {row["kind"] for row in parts["train"]} == {"rendered", "clean"}
        assert {row["language"] for row in parts["train"]} == {"en"}
        assert {row["kind"] for row in parts["held_out"]} == {kind, "clean"}
        assert not any("pair7#" in row["id"] for row in parts["train"])  # its licence is not open
        authors = [{row["group"] for row in some} for some in parts.values()]
        assert not authors[0] & authors[1]
        assert len(authors[0]) in range(8, 12)
        assert parts == ocr.rows(data)


def test_pairs_are_split_into_windows_completely(pairs):
    train = ocr.rows(OcrData(pairs=pairs, synthetic_rows=0, clean_share=0.0, window=200))["train"]
    pieces = sorted((row for row in train if row["id"].startswith("pair3#")), key=lambda row: row["id"])
    truth = pq.read_table(pairs / "pairs.parquet").to_pylist()[3]["truth"]
    assert " ".join(row["truth"] for row in pieces) == truth
    assert all((row["prompt"], row["completion"]) == format_ocr(row["ocr"], row["truth"]) for row in train)
    assert max(len(row["truth"]) for row in train) <= 200


def test_historical_pairs_alone_are_rejected_for_training(pairs):
    with pytest.raises(InputError, match="no rendered pair in fr"):
        ocr.rows(OcrData(pairs=pairs, languages=["fr"], synthetic_rows=0))


def test_a_missing_column_of_pairs_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "ocr": ["b"]}), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="lacks the columns truth, language, source, license"):
        ocr.rows(OcrData(pairs=tmp_path))


def test_a_corpus_yields_rows_with_synthetic_errors_split_by_author(tiny_corpus):
    data = OcrData(path=tiny_corpus, languages=["en", "fr"], synthetic_rows=120, held_out=0.2, held_out_rows=40)
    parts = ocr.rows(data)
    assert parts == ocr.rows(data)
    synthetic = [row for row in parts["train"] if row["kind"] == "synthetic"]
    assert {row["language"] for row in synthetic} == {"en", "fr"} and 100 <= len(synthetic) <= 120
    assert len(parts["held_out"]) <= 40
    assert not {row["group"] for row in parts["train"]} & {row["group"] for row in parts["held_out"]}
    assert all(
        len(row["truth"]) <= data.window and "\n" in row["truth"] for row in synthetic if len(row["truth"]) > 80
    )
    rate = bootstrap_interval(score(synthetic, [row["ocr"] for row in synthetic])["cer"])["value"]
    assert 0.02 < rate < 0.08
    clean = [row for row in parts["train"] if row["kind"] == "clean"]
    assert 4 <= len(clean) <= 24 and all(row["ocr"] == row["truth"] for row in clean)


def test_settings_without_any_rows_are_rejected_before_downloading():
    with pytest.raises(InputError, match="synthetic_rows is 0"):
        ocr.rows(OcrData(synthetic_rows=0))


def test_copy_rows_come_first_are_correct_and_consist_of_random_words_of_training_rows(pairs):
    settings = {"pairs": pairs, "synthetic_rows": 0, "held_out": 0.2}
    plain, parts = ocr.rows(OcrData(**settings)), ocr.rows(OcrData(**settings, copy_rows=40))
    count = len(parts["train"]) - len(plain["train"])
    copies = parts["train"][:count]
    assert parts["train"][count:] == plain["train"] and parts["held_out"] == plain["held_out"]
    languages = {row["language"] for row in plain["train"]}
    assert 40 <= count < 40 + len(languages) and {row["language"] for row in copies} == languages
    known = {word for row in plain["train"] for word in WORD.findall(row["truth"])}
    for row in copies:
        assert row["ocr"] == row["truth"] and ocr.parse_correction(row["completion"]) == row["truth"]
        assert 1 < len(row["truth"].split()) <= 10 and known.issuperset(row["truth"].split())
    assert not {row["truth"] for row in copies} & {row["truth"] for row in plain["train"]}
    assert parts == ocr.rows(OcrData(**settings, copy_rows=40)) != ocr.rows(OcrData(**settings, copy_rows=40, seed=1))


@pytest.mark.parametrize(
    ("source", "group"),
    [
        (RENDERED.format("github:COST-ELTeC/ELTeC-eng@3db:level1/ENG18872_Lyall.xml"), "lyall"),
        (RENDERED.format("github:COST-ELTeC/ELTeC-por@888:level1/POR0061_LopSou_Lagrimas.xml"), "lopsou"),
        (RENDERED.format("github:cligs/textbox@1b9:italian/short19-20/tei/it0004.xml"), "it0004"),
        (RENDERED.format("deb:php-faker=1.2:fr/Text.php#12 by Gustave Flaubert"), "flaubert"),
        (RENDERED.format("novel#part003"), "novel"),
    ],
)
def test_the_author_of_a_pair_is_parsed_from_its_source(source, group):
    assert author_or_work(source) == group


def test_held_out_groups_do_not_depend_on_the_order_of_rows():
    rows = [(f"l{i % 2}", f"author {i % 17}") for i in range(400)]
    chosen = held_out_groups(rows, 0.2, seed=0)
    assert chosen == held_out_groups(reversed(rows), 0.2, seed=0) != held_out_groups(rows, 0.2, seed=1)
    assert 0.2 <= sum(group in chosen for _, group in rows) / len(rows) < 0.35
    rows = [("la", "author of most rows")] * 9 + [("la", "other")]
    assert held_out_groups(rows, 0.3, seed=0) == {"other"}


# Metrics ------------------------------------------------------------------------------------------


def test_error_rates_equal_jiwer_and_the_reduction_is_relative_to_the_uncorrected_text(pairs):
    rows = [row for row in ocr.rows(OcrData(pairs=pairs, synthetic_rows=0))["held_out"] if row["kind"] != "clean"]
    draw = random.Random(0)
    outputs = [row["completion" if draw.random() < 0.5 else "ocr"] for row in rows]
    outputs[0] += " and more"
    texts = [ocr.parse_correction(output) for output in outputs]
    truths, ocr_texts = ([row[key] for row in rows] for key in ("truth", "ocr"))
    values = {name: bootstrap_interval(metric, samples=100)["value"] for name, metric in score(rows, outputs).items()}
    assert values == pytest.approx(
        {
            "cer": jiwer.cer(truths, texts),
            "wer": jiwer.wer(truths, texts),
            "error_reduction": 1 - jiwer.cer(truths, texts) / jiwer.cer(truths, ocr_texts),
            "cer_uncorrected": jiwer.cer(truths, ocr_texts),
            "wer_uncorrected": jiwer.wer(truths, ocr_texts),
        }
    )
    assert next(iter(values)) == "cer" and not ocr.HIGHER_IS_BETTER


def test_line_breaks_count_as_spaces_and_clean_rows_count_only_for_over_correction():
    row = {"kind": "rendered", "ocr": "tbe old\nhou5e", "truth": "the old\nhouse"}
    clean = {"kind": "clean", "ocr": "the river", "truth": "the river"}
    metrics = score([row, clean], [f"the  old house{STOP}", "the liver"])
    assert {name: float(metric(metric.rows.sum(0))) for name, metric in metrics.items()} == pytest.approx(
        {"cer": 0, "wer": 0, "error_reduction": 1, "cer_uncorrected": 2 / 13, "wer_uncorrected": 2 / 3}
        | {"over_correction": 1 / 9}
    )
    worse = score([row], ["nothing of the kind at all"])["error_reduction"]
    assert float(worse(worse.rows.sum(0))) < 0
    assert np.isfinite([float(metric(metric.rows.sum(0))) for metric in score([row], [""]).values()]).all()


# Pages --------------------------------------------------------------------------------------------


def test_a_page_is_degraded_reproducibly():
    first, same, other = (
        np.asarray(pages.degrade(pages.render_page("the old house\nstood", draw), draw))
        for draw in map(random.Random, (1, 1, 2))
    )
    assert np.array_equal(first, same) and first.dtype == np.uint8
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert first.std() > 10  # not blank


def test_a_missing_tesseract_is_reported_with_the_fix(tmp_path, tiny_corpus, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="tesseract is not installed"):
        pages.build_pairs(pages.PagesConfig(out=tmp_path, path=tiny_corpus, languages=["en"]))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_pages_recognised_by_tesseract_become_pairs_with_real_ocr_errors(tmp_path, tiny_corpus):
    config = pages.PagesConfig(out=tmp_path, path=tiny_corpus, languages=["en"], pages_per_language=5)
    content = pages.build_pairs(config)
    rows = pq.read_table(tmp_path / "en.parquet").to_pylist()
    assert content["languages"]["en"]["kept"] == len(rows) > 0
    assert content["languages"]["en"]["rendered"] == 5
    for row in rows:
        assert 0 < Levenshtein.distance(row["ocr"], row["truth"]) <= 0.4 * len(row["truth"])
    read_back = list(read_pairs(tmp_path, ["en"]))
    assert {pair["kind"] for pair in read_back} == {"rendered"}
    assert all(re.fullmatch(r"\d+", pair["group"]) is None and pair["group"] for pair in read_back)


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_a_language_without_its_pack_is_skipped_and_named(tmp_path, tiny_corpus, monkeypatch, capsys):
    monkeypatch.setattr(pages, "tesseract_languages", lambda: {"eng"})
    content = pages.build_pairs(
        pages.PagesConfig(out=tmp_path, path=tiny_corpus, languages=["en", "fr"], pages_per_language=1)
    )
    assert content["left_out"] == ["fr"] and list(content["languages"]) == ["en"]
    assert "tesseract-ocr-fra" in capsys.readouterr().err
    with pytest.raises(InputError, match="tesseract-ocr-fra"):
        pages.build_pairs(pages.PagesConfig(out=tmp_path, path=tiny_corpus, languages=["fr"], pages_per_language=1))
