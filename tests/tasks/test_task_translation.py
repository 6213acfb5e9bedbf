"""Translation: the format, segments aligned by id and by verse, rows, the metrics, and long texts."""

import re
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS
from training.common.config import InputError
from training.common.intervals import bootstrap_interval
from training.common.language import LANGUAGES
from training.tasks import translation
from training.tasks.instruct.data import remove_markers
from training.tasks.markers import unescape
from training.tasks.text_windows import overlapping_windows, split_spaces
from training.tasks.translation import TranslationData, aligned, format_translation, inference, score
from training.tasks.translation.format import STOP
from training.tasks.translation.inference import split_pieces

TEXTS = st.one_of(st.text(), st.lists(st.sampled_from([*DOCUMENT_TOKENS, "a ", "\n"]), max_size=5).map("".join))

PROMPT = re.compile(
    r"<\|text_start\|>(?:<\|([a-z]{2})\|>)?(.*)<\|text_end\|><\|translation_start\|><\|([a-z]{2})\|>", re.DOTALL
)

WORDS = {
    "en": "the old house stood by the river and nobody came before the spring of that year".split(),
    "fr": "la vieille maison était au bord de la rivière et personne ne venait avant le printemps".split(),
    "la": "domus antiqua iuxta flumen stabat neque quisquam ante ver illius anni veniebat ad eam".split(),
}


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """File of 200 segments of 40 pages in English and French, 40 of them in Latin too."""
    path = tmp_path_factory.mktemp("segments") / "segments.parquet"
    rows = [
        {
            "id": f"page{i // 5}#{i}",
            "source": f"page{i // 5}",
            "license": "Public Domain",
            **{code: f"{' '.join(words[i % 3 : i % 13 + 3])} {i // 2}" for code, words in WORDS.items()},
        }
        | ({} if i % 5 == 0 else {"la": None})
        for i in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def parse_prompt(prompt):
    """Text, target and source or None of a prompt."""
    source, text, target = PROMPT.fullmatch(prompt).groups()
    return unescape(text), target, source


@settings(deadline=None)
@given(TEXTS, st.sampled_from(list(LANGUAGES)), TEXTS, st.sampled_from([None, *LANGUAGES]))
def test_the_format_round_trips_even_if_a_text_contains_markers(text, target, translated, source):
    prompt, completion = format_translation(text, target, translated, source)
    assert parse_prompt(prompt) == (text, target, source)
    assert completion.count(STOP) == 1 and translation.parse_output(completion) == translated


def test_the_format_is_the_published_one_with_the_language_as_the_first_token_of_the_translation():
    prompt, completion = format_translation("Save the file.", "fr", "Enregistrez le fichier.")
    assert prompt == "<|text_start|>Save the file.<|text_end|><|translation_start|><|fr|>"
    assert completion == "Enregistrez le fichier.<|translation_end|>"
    tokenizer = PleiasTokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<|text_start|>", "<|text_end|>", "<|translation_start|>", "<|fr|>"])
    assert [i for i in tokenizer(prompt).input_ids[1:] if i in tokenizer.all_special_ids] == ids


PAGE = """<html><body><p id="par_id0">{outside}</p><div id="DisplayArea"><h1 id="hd_id1">{title}</h1>
<p id="par_id2"> {text} </p><p>{unnamed}</p><p id="par_id3">{left}</p>
<p id="par_id4">{left} <span class="switchinline"><span>Command</span><span>Ctrl</span></span></p>
</div></body></html>"""
ENGLISH = {
    "outside": "A navigation that is no part of the page",
    "title": "Saving a document in another format",
    "text": "Choose the command in the menu, and then enter a name for the document.",
    "unnamed": "A paragraph that has no name",
    "left": "This paragraph was never translated into the other languages at all.",
}
FRENCH = ENGLISH | {
    "title": "Enregistrer un document dans un autre format",
    "text": "Choisissez la commande dans le menu, puis saisissez un nom pour le document.",
}


def test_help_pages_align_by_element_without_untranslated_english(tmp_path):
    for code, words in (("en", ENGLISH), ("fr", FRENCH), ("de", {**ENGLISH, "left": "Open <b>the</b> other file."})):
        (tmp_path / code / "shared").mkdir(parents=True)
        (tmp_path / code / "shared" / "save.html").write_text(PAGE.format(**words), encoding="utf-8")
    (tmp_path / "fr" / "lonely.html").write_text(PAGE.format(**FRENCH), encoding="utf-8")
    rows = list(aligned.help_segments({code: tmp_path / code for code in ("en", "fr", "de")}))
    assert [(row["id"], row["en"], row["fr"]) for row in rows if "fr" in row] == [
        ("shared/save.html#hd_id1", ENGLISH["title"], FRENCH["title"]),
        ("shared/save.html#par_id2", ENGLISH["text"], FRENCH["text"]),
    ]
    assert {row["source"] for row in rows} == {"LibreOffice help shared/save.html"}
    assert not any(row["de"] == row["en"] for row in rows if "de" in row)


def test_verses_align_by_number_in_chapters_with_equal_verse_numbers(tmp_path):
    (tmp_path / "clem_vulgate.csv").write_text(
        "book,chapter,verse,latin\nGn,1,1,[In principio creavit Deus cælum et terram.]\n"
        "Gn,1,2,<Sponsa>Terra autem erat inanis et vacua\nGn,2,1,Igitur perfecti sunt cæli et terra\n"
        "Ps,1,1,Beatus vir qui non abiit in consilio impiorum\n",
        encoding="utf-8",
    )
    with sqlite3.connect(tmp_path / "bible.db") as database:
        database.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
        verses = [
            ("4", 1, 1, 1, "In the beginning God created"),
            ("4", 1, 1, 2, "Now the earth was formless, and God`s"),
        ]
        verses += [("4", 1, 2, 1, "The heavens and the earth"), ("4", 1, 2, 2, "On the seventh day God rested")]
        verses += [("k", 1, 2, 1, "Another translation altogether"), ("4", 19, 1, 1, "Blessed is the man")]
        database.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", verses)
    database.close()
    latin = aligned.vulgate_verses(tmp_path / "clem_vulgate.csv")
    assert list(aligned.bible_segments(latin, aligned.english_verses(tmp_path / "bible.db"))) == [
        {
            "id": "Bible Gn 1:1",
            "source": "Bible Gn 1",
            "license": "Public Domain",
            "la": "In principio creavit Deus cælum et terram.",
            "en": "In the beginning God created",
        },
        {
            "id": "Bible Gn 1:2",
            "source": "Bible Gn 1",
            "license": "Public Domain",
            "la": "Terra autem erat inanis et vacua",
            "en": "Now the earth was formless, and God's",
        },
    ]


def test_no_page_and_no_text_is_in_both_parts(segments):
    data = TranslationData(path=segments, languages=["en", "fr", "la"], train_rows=120, held_out=0.2, held_out_rows=40)
    parts = translation.rows(data)
    assert parts == translation.rows(data)
    assert len(parts["train"]) == 120 and len(parts["held_out"]) == 40
    sources, texts = ({name: {row[key] for row in some} for name, some in parts.items()} for key in ("source", "text"))
    assert not sources["train"] & sources["held_out"]
    assert not texts["train"] & texts["held_out"]
    directions = {(row["source_language"], row["language"]) for row in parts["train"]}
    assert directions == {("en", "fr"), ("fr", "en"), ("en", "la"), ("la", "en")}
    assert translation.rows(TranslationData(**{**vars(data), "seed": 1}))["held_out"] != parts["held_out"]
    for row in parts["train"]:
        text, target, source = parse_prompt(row["prompt"])
        assert (text, target) == (row["text"], row["language"]) and source in (None, row["source_language"])
        assert translation.parse_output(row["completion"]) == row["translation"]
    assert 0.3 < sum(row["prompt"].startswith("<|text_start|><|") for row in parts["train"]) / 120 < 0.7


def test_no_text_is_in_both_parts_in_another_direction_or_as_a_translation(tmp_path):
    repeated = {"en": "Choose a format for the cells.", "fr": "Choisissez un format.", "la": "Elige formam cellarum."}
    rows = [
        {"id": f"page{i}#{j}", "source": f"page{i}", "license": "Public Domain", **texts}
        for i in range(40)
        for j, texts in enumerate(({code: f"{text} {i}" for code, text in repeated.items()}, repeated))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "repeated.parquet")
    parts = translation.rows(
        TranslationData(path=tmp_path / "repeated.parquet", languages=["en", "fr", "la"], held_out=0.2)
    )
    texts = {name: {row[key] for row in some for key in ("text", "translation")} for name, some in parts.items()}
    assert repeated["en"] in texts["held_out"]
    assert parts["train"] and not texts["train"] & texts["held_out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ["fr"]}, "two languages"),
        ({"languages": ["fr", "la"]}, "pivot"),
        ({"languages": ["en", "xx"]}, "xx"),
        ({"languages": ["en", "de"]}, "lacks the column de"),
        ({"languages": ["en", "fr"], "max_characters": 3}, "no parallel segments"),
    ],
)
def test_settings_without_any_rows_are_rejected(segments, change, message):
    with pytest.raises(InputError, match=message):
        translation.rows(TranslationData(**{"path": segments, **change}))


def test_scores_equal_sacrebleu(segments):
    data = TranslationData(path=segments, languages=["en", "fr"], held_out=0.3, held_out_rows=50)
    rows = translation.rows(data)["held_out"]
    outputs = [" ".join(row["translation"].split()[::-1][:4]) + " de la" for row in rows]
    outputs[0] = ""
    references = [row["translation"] for row in rows]
    metrics = score(rows, outputs)
    for name, sacrebleu in (("chrf2++", CHRF(word_order=2)), ("bleu", BLEU())):
        measured = bootstrap_interval(metrics[name], samples=50)
        assert measured["value"] == sacrebleu.corpus_score(outputs, [references]).score > 0
        assert measured["low"] <= measured["value"] <= measured["high"]
        some = metrics[name].rows[7:19].sum(0)  # as a bootstrap sample is
        assert float(metrics[name](some)) == sacrebleu.corpus_score(outputs[7:19], [references[7:19]]).score
    assert next(iter(metrics)) == "chrf2++" and translation.HIGHER_IS_BETTER
    assert bootstrap_interval(score(rows, [row["completion"] for row in rows])["chrf2++"])["value"] == pytest.approx(
        100
    )
    assert translation.signatures()["chrf2++"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2")


def test_translations_in_the_wrong_language_are_counted():
    french = "La vieille maison était au bord de la rivière, et personne ne venait avant le printemps."
    english = "The old house stood by the river, and nobody came before the spring of that year."
    rows = [{"language": "fr", "translation": french}, {"language": "en", "translation": english}] * 2
    metric = score([*rows, {"language": "fr", "translation": "Oui"}], [french, french, french, "", "Yes"])[
        "language_match"
    ]
    assert metric.rows.sum(0).tolist() == [2, 4]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab é.!?\n\t\u00a0", max_size=30), max_size=8).map("".join), st.integers(4, 40))
def test_pieces_concatenate_to_the_text_within_the_maximum_length(text, longest):
    pieces = split_pieces(text, longest)
    assert "".join(pieces) == text
    assert all(piece.isspace() or (piece == piece.strip() and len(piece) <= longest) for piece in pieces)


def split_by_search(text, longest):
    """Split a text as `split_pieces`, with a search of all sentences and of the complete rest for each piece."""
    pieces = []
    for line in re.split(r"(\s*\n\s*)", text):
        start = 0
        sentences = [match.end() for match in re.finditer(r"[.!?:;][\"'\u201d\u2019\xbb)]*\s+", line)] + [len(line)]
        while start < len(line):
            end = max((end for end in sentences if start < end <= start + longest), default=None)
            if end is None:
                end = start + overlapping_windows(line[start:], longest, 0)[0][1]
            pieces += [piece for piece in split_spaces(line[start:end]) if piece]
            start = end
    return pieces


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab.!? \n\t", max_size=30), max_size=8).map("".join), st.integers(4, 40))
def test_pieces_are_those_of_a_search_in_the_complete_line(text, longest):
    assert split_pieces(text, longest) == split_by_search(text, longest)


def test_a_million_spaces_and_sentences_are_split():
    spaces = " " * 1_000_000
    assert split_pieces(f"a{spaces}b", 300)[0] == "a" and remove_markers(f"a{spaces}b") == f"a{spaces}b"
    assert "".join(split_pieces("a. " * 400_000)) == "a. " * 400_000


def test_a_long_line_is_split_at_the_ends_of_sentences():
    sentences = ["One is here.", "Two is there!", "Three is nowhere?"]
    assert split_pieces(" ".join(sentences), 20) == [sentences[0], " ", sentences[1], " ", sentences[2]]
    assert split_pieces("\n\n".join(sentences), 90) == [sentences[0], "\n\n", sentences[1], "\n\n", sentences[2]]


def test_a_text_is_translated_piece_by_piece_and_its_layout_is_preserved(tiny_tokenizer, monkeypatch):
    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = PleiasForCausalLM(config).eval()
    seen = []
    complete = inference.complete

    def recording(model, tokenizer, prompts, **options):
        seen.extend(prompts)
        return complete(model, tokenizer, prompts, **{**options, "max_new_tokens": 4})

    monkeypatch.setattr(inference, "complete", recording)
    translated = translation.translate(model, tokenizer, "the house\n\n  the river\n", target="fr", source="en")
    assert seen == [format_translation(text, "fr", source="en")[0] for text in ("the house", "the river")]
    house = translation.translate(model, tokenizer, "the house", target="fr", source="en")
    assert translated.startswith(f"{house}\n\n  ") and translated.endswith("\n")
    assert translation.translate(model, tokenizer, " \n", target="fr") == " \n"
    with pytest.raises(InputError, match="xx"):
        translation.translate(model, tokenizer, "the house", target="xx")
