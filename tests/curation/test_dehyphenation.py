"""Line repair: what is joined, removed or unchanged, and that no letter is lost."""

import random
import textwrap
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pleias.tokenization_pleias import DOCUMENT_TOKENS
from training.curation import dehyphenation, running_heads
from training.curation.dehyphenation import PAGE_BREAK, RepairedText, repair

unhurried = settings(deadline=None, max_examples=300)
PROSE = (
    "the keeper of the lighthouse climbed the narrow stairs every evening and lit the great lamp above the sea while "
    "his daughter counted the ships that went by and wrote their names into a book which nobody ever read afterwards"
).split()


def joined(text: str, language: str | None = None) -> str:
    return repair(text, language).text


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "language, printed, expected",
    [
        ("en", "the inter-\nnational law of na-\ntions\n", "the international\nlaw of nations\n"),
        ("en", "inter-\nnational, and", "international,\nand"),
        ("en", "in-\nter-\nnational law", "international\nlaw"),
        ("en", "inter-\r\nnational law\r\nof", "international\r\nlaw\r\nof"),
        ("en", "  inter-\n  national law", "  international\nlaw"),
        ("en", "INTER-\nNATIONAL LAW", "INTERNATIONAL\nLAW"),
        ("fr", "la con-\nſtitution du ﬁ-\nnal", "la conſtitution\ndu ﬁnal"),
        ("de", "die Ver-\nfassung", "die Verfassung"),
        ("pt", "a clas-\nse do inter-\nno gover-\nno", "a classe\ndo interno\ngoverno"),
        ("la", "homi-\nnibus a-\nmore", "hominibus\namore"),
        (None, "Wör\u00ad\nter und Mc\u00ad\nDonald", "Wörter\nund McDonald"),  # soft hyphen
        (None, "foo¬\nbar", "foobar"),  # OCR error for a hyphen
        ("de", "die Haupt⸗\nſache", "die Hauptſache"),
        ("de", "Haupt=\nſache, Neben=\nſache und Ver=\nfaſſung", "Hauptſache,\nNebenſache\nund Verfaſſung"),
        ("en", "inter-\n\fnational law", "international\n\flaw"),  # across a page break
        ("pt", "disse-\n-se que", "disse-se\nque"),  # Portuguese repeats the hyphen
    ],
)
def test_a_word_hyphenated_at_a_line_end_is_joined(language, printed, expected):
    done = repair(printed, language)
    assert done.text == expected and done.hyphens_joined > 0 and not done.removed


@pytest.mark.parametrize(
    "language, printed, expected",
    [
        ("de", "die Nord-\nSüd-Achse", "die Nord-Süd-Achse"),
        ("de", "der EG-\nKonformität", "der EG-Konformität"),
        ("de", "die EU-\nweite", "die EU-weite"),
        ("fr", "Saint-\nGermain", "Saint-Germain"),
        ("fr", "dit-\nil et peut-\nêtre", "dit-il\net peut-être"),
        ("fr", "Montpezat-\nde-Quercy", "Montpezat-de-Quercy"),
        ("en", "my mother-in-\nlaw", "my mother-in-law"),
        ("en", "a self-\nmade man", "a self-made\nman"),
        ("en", "the twenty-\nfirst, and a twenty-first more", "the twenty-first,\nand a twenty-first more"),
        ("pt", "beijou-\nme, destacava-\nse, amá-\nlo", "beijou-me,\ndestacava-se,\namá-lo"),
        ("de", "Haupt⸗\nStraße", "Haupt⸗Straße"),
    ],
)
def test_a_compound_keeps_its_hyphen(language, printed, expected):
    done = repair(printed, language)
    assert done.text == expected and done.compounds_joined > 0 == done.hyphens_joined


@pytest.mark.parametrize(
    "language, text",
    [
        ("de", "Haupt-\nund Nebensachen"),  # the second half follows later
        ("nl", "zilver-\nen goudlaken, zilveren"),
        ("en", "pre-\nand post-war"),
        (None, "1914-\n1918"),
        (None, "he said -\nand went"),
        (None, "beneficios-\na. Microempresa"),
        (None, "sagte-\nDer Mann"),
        (None, "well --\nthen"),
        (None, "inter-\n\nnational"),  # another paragraph
        ("en", "value=\nother"),  # not Fraktur
        (None, "soft\u00adhyphen within, and a-b"),
    ],
)
def test_what_may_not_be_a_hyphenated_word_is_unchanged(language, text):
    assert repair(text, language) == RepairedText(text)


def test_verse_is_unchanged():
    verse = "\n".join(
        ["Shall I compare thee to a summer's day?", "Thou art more lovely and more Temper-", "Ate, and rough winds do"]
        + [
            "Shake the darling buds of May,",
            "And summer's lease hath all too short a date:",
            "Sometime too hot the eye",
        ]
    )
    assert joined(verse, "en") == verse
    for refrain in ("Nevermore.", "7"):  # a refrain of a poem without pages is not a head
        poem = "\n\n".join(f"{verse}\n{refrain}" for _ in range(9))
        assert joined(poem, "en") == poem


def test_code_is_unchanged():
    code = (
        'def f(x):\n    """Uses the inter-\n    national form."""\n    y = {"a": [x], "b": x}\n    return y["a"][0]\n'
        * 9
    )
    assert joined(code) == code
    paged = "\f".join(f"#include <a.h>\n{code}" for _ in range(5))
    assert joined(paged) == paged


# Pages --------------------------------------------------------------------------------------------


def page(seed: int, lines: int = 36) -> str:
    """Return a page of prose with full lines that starts and ends within a sentence."""
    draw = random.Random(seed)
    words = [draw.choice(PROSE) for _ in range(lines * 12)]
    return "\n".join(textwrap.wrap(" ".join(words), 62)[:lines])


def with_ocr_error(head: str, seed: int) -> str:
    """Replace one letter of a head in half of the cases."""
    draw, at = random.Random(seed), random.Random(seed).randrange(len(head))
    return head if draw.random() < 0.5 else f"{head[:at]}{draw.choice('ilt1')}{head[at + 1 :]}"


BODIES = [page(seed) for seed in range(12)]


@pytest.mark.parametrize("number", ["- {} -", "{}", "[{}]", "— {} —"])
def test_heads_and_numbers_at_page_breaks_are_removed_and_the_text_is_preserved(number):
    heads = "CHARLES DICKENS", "GREAT EXPECTATIONS"
    pages = [
        f"{with_ocr_error(heads[i % 2], i)}\n\n{body}\n\n{number.format(i + 87)}\n" for i, body in enumerate(BODIES)
    ]
    done = repair("\f".join(pages), "en")
    assert done.text.split() == " ".join(BODIES).split()
    assert (done.heads_removed, done.page_numbers_removed, done.page_breaks) == (12, 12, 11)
    assert done.text.count("\f") == 11 and len(done.removed) == 24 and number.format(90) in done.removed


def test_heads_with_numbers_in_them_and_roman_numbers_are_removed():
    pages = [f"{i} GREAT EXPECTATIONS\n{body}" for i, body in enumerate(BODIES, 87)]
    done = repair("\f".join(pages), "en")
    assert done.text.split() == " ".join(BODIES).split() and done.heads_removed == 12
    roman = "iii iv v vi vii viii ix x xi xii xiii xiv".split()
    done = repair("\f".join(f"{body}\n{number}" for body, number in zip(BODIES, roman, strict=True)), "en")
    assert done.text.split() == " ".join(BODIES).split() and done.page_numbers_removed == 12


def test_heads_of_two_lines_are_removed():
    done = repair("\f".join(f"GREAT EXPECTATIONS\nVolume the second\n{body}" for body in BODIES), "en")
    assert done.text.split() == " ".join(BODIES).split() and done.heads_removed == 24


@pytest.mark.parametrize(
    "between", ["\n\n{}\n\n", "\n{}\n", "\n\n{}\n\nGREAT EXPECTATIONS\n\n", "\n{} GREAT EXPECTATIONS\n"]
)
def test_without_page_breaks_consecutive_numbers_indicate_the_pages(between):
    text = BODIES[0] + "".join(between.format(i) + body for i, body in enumerate(BODIES[1:], 88))
    done = repair(text, "en")
    assert done.text == "\n".join(BODIES)  # and the sentences continue
    assert len(done.removed) >= 11


def test_a_word_hyphenated_at_a_page_end_is_joined_after_removal_of_the_head():
    pages = [f"{body} inter-\n{i}" for i, body in enumerate(BODIES, 20)]
    text = "\f".join(f"GREAT EXPECTATIONS\n{'national ' if i else ''}{page}" for i, page in enumerate(pages))
    done = repair(text, "en")
    assert done.text.count("international") == 11 and done.hyphens_joined == 11


@pytest.mark.parametrize(
    "numbered",
    [
        lambda i, body: f"{i}\n\n{body.capitalize()}.",  # chapters: the text ends before the next number
        lambda i, body: f"Artikel {i}\n\n{body}",
        lambda i, body: f"{i}\n{body[:100]}",  # items
        lambda i, body: f"{(i * 7) % 12}\n{body}",  # numbers that are not consecutive
        lambda i, body: f"Chapter {i} of the lighthouse keeper's book .... {i}",  # a table of contents
    ],
)
def test_numbers_of_the_work_are_kept(numbered):
    text = "\n\n".join(numbered(i, body) for i, body in enumerate(BODIES, 1))
    assert joined(text, "en") == text


def test_page_breaks_can_be_replaced_with_the_tokenizers_token():
    assert PAGE_BREAK in DOCUMENT_TOKENS
    text = "\f".join(f"HEAD {i}\n{body}" for i, body in enumerate(BODIES))
    done = repair(text, "en", page_break=PAGE_BREAK)
    assert done.text.count(PAGE_BREAK) == 11 == done.page_breaks and "\f" not in done.text
    assert repair(done.text, "en", page_break=PAGE_BREAK).text == done.text
    assert repair(text, "en").text == done.text.replace(PAGE_BREAK, "\f")


def test_a_page_break_replaced_with_whitespace_does_not_split_a_sentence():
    text = "the end of a sentence.\n\fAnother one that\n\fgoes on over the page.\f"
    assert repair(text, page_break="\n\n").text == (
        "the end of a sentence.\n\n\nAnother one that\ngoes on over the page.\n\n"
    )


def test_heads_that_begin_alike_are_compared_with_few_others():
    draw = random.Random(0)
    lines = ["Line" + "".join(draw.choices("klmnop", k=draw.randint(0, 6))) for _ in range(900)]

    def clusters_by_search() -> list[list[int]]:
        """Return the clusters, with a search of all entries instead of a set of them."""
        clusters, known = [], {}
        for item, line in enumerate(lines):
            letters = line.casefold()
            ends = ("^" + letters[:4], "$" + letters[-4:])
            candidates = [candidate for end in ends for candidate in known.get(end, [])[-4:]]
            number = next((n for other, n in candidates if other == letters), None)
            if number is None:
                number = next((n for other, n in candidates if running_heads._alike(other, letters)), len(clusters))
            if number == len(clusters):
                clusters.append([])
            clusters[number].append(item)
            for end in ends:
                if (letters, number) not in known.setdefault(end, []):
                    known[end].append((letters, number))
        return clusters

    assert running_heads._similar([(line, item) for item, line in enumerate(lines)]) == clusters_by_search()


def test_pages_that_are_alike_take_a_bounded_number_of_rounds(monkeypatch):
    rounds = []
    find = dehyphenation.without_page_lines
    monkeypatch.setattr(dehyphenation, "without_page_lines", lambda *args: rounds.append(1) or find(*args))
    form = "\n".join(f"{PROSE[i % 9]} {PROSE[i // 9]} to be filled in" for i in range(200))
    done = repair("\f".join([form] * 3), "en")
    assert len(rounds) == dehyphenation.MAX_ROUNDS and done.heads_removed > 0


@unhurried
@given(st.lists(st.sampled_from(["inter", "nation", "a", " ", "\n", ",", "-", "_", "7"])).map("".join))
def test_a_word_between_blanks_is_where_a_search_finds_it(text):
    words = dehyphenation._Words(text, "en").between_blanks
    for word in ("inter", "nation", "a", "internation", "aa", "nationa"):
        assert (word in words) == (f" {word} " in text)


def test_a_compound_is_joined_if_its_joined_form_begins_a_word():
    assert joined("a self-\nmade man, selfmademen", "en") == "a selfmade\nman, selfmademen"
    assert joined("propan-l-\none alone, x-l-one", "en") == "propan-l-one\nalone, x-l-one"  # not "lone", as in "alone"


# Preservation -------------------------------------------------------------------------------------

PIECES = """inter national law Haupt und a B I the 12 13 14 15 iv v vi Self well-known 1,2 x= = Ver fassung é ſ ﬁ Neben
ſache GREAT - -- 3. « » el la il""".split()
JOINTS = [
    " ",
    "\n",
    "-\n",
    "-\r\n",
    "\u00ad\n",
    "¬\n",
    "=\n",
    "⸗\n",
    "- ",
    "\n\n",
    "\f",
    "\n\f",
    "-\n\f\n",
    "-\f",
    " - ",
]
JOINTS += ["\n  ", "--\n", "\r\n", "\t", "-", "\n12\n", "\n\n13\n\n"]
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(JOINTS)), max_size=60).map(
    lambda pairs: "".join(map("".join, pairs))
)
LANGUAGES = st.sampled_from([None, "en", "fr", "es", "de", "it", "nl", "la", "pt"])


def letters(text: str) -> Counter:
    return Counter(filter(str.isalpha, text))


@unhurried
@given(TEXTS | st.text("ab-\n\f 1AB.", max_size=80), LANGUAGES, st.sampled_from([None, PAGE_BREAK, "\n\n"]))
def test_every_letter_is_kept_or_in_a_removed_line_and_a_second_repair_finds_nothing(text, language, page_break):
    done = repair(text, language, page_break=page_break)
    result = done.text.replace(PAGE_BREAK, "\f")
    assert letters(result) + sum(map(letters, done.removed), Counter()) == letters(text)
    assert repair(done.text, language, page_break=page_break).text == done.text
    assert done.page_breaks == text.count("\f") and len(done.removed) == done.heads_removed + done.page_numbers_removed


@unhurried
@given(TEXTS, LANGUAGES)
def test_the_order_of_letters_is_preserved_if_no_line_is_removed(text, language):
    done = repair(text, language)
    if not done.removed:
        assert list(filter(str.isalpha, done.text)) == list(filter(str.isalpha, text))


@unhurried
@given(st.text().map(lambda text: text.translate({ord(c): "+" for c in "-\u00ad¬⸗=\f0123456789"})), LANGUAGES)
def test_a_text_without_hyphens_pages_and_numbers_is_unchanged(text, language):
    assert repair(text, language) == RepairedText(text)


def test_counts_contain_the_numeric_fields():
    done = repair("inter-\nnational Nord-\nSüd x\fy", "de")
    assert done.counts == {
        "hyphens_joined": 1,
        "compounds_joined": 1,
        "heads_removed": 0,
        "page_numbers_removed": 0,
        "page_breaks": 1,
    }
