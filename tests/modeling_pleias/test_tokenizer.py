"""The shipped tokenizer: lossless, with the same ids in every library; plain text never yields special tokens."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import pytest
import tiktoken
import transformers_tests
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import modeling_pleias
from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS, PATTERN

SHIPPED = Path(modeling_pleias.__file__).parent / "tokenizer"
PLEIAS = PleiasTokenizer.from_pretrained(SHIPPED)
SPECIAL = [*BASE_TOKENS, *DOCUMENT_TOKENS]

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HARD_TEXTS = [
    "",
    " ",
    "Le cœur a ses raisons… n'est-ce pas ? Oui !",
    "« Qui va là ? » — dit-il ; et l’on attendit : rien !",
    "tabs\tand\t\ttabs\r\nCRLF\r\n\r\nform\ffeed\vvertical\x00nul\x01\x1b[0m\x7f",
    "runs of     spaces   \n   and   \n\n\n lines   ",
    "cafe\u0301 re\u0301sume\u0301 NFD, café NFC",
    "ﬁn ﬂeur eﬃcace æther œuvre ĳs",
    "ſo iſt es geſchehen, daß 'ſ und don'ſ, I'S I'LL we've",
    "Waſſer¬\nfall, Buch-\nſtaben, ꝑꝛo vñ cõciliũ aͤ oͤ uͤ",
    "COMÉDIE GÖTHE ÇÀ ET LÀ ŒUVRES ß ẞ İıſ",
    "1 12 123 1234 12345678901 ½ ² Ⅳ ٣٤",
    "<p class=\"x\">a &amp; b</p>\n\t<td>1</td>\n{\"k\": [1, 2]}\n    def f(x):\n        return x\n",
    "👩‍👩‍👧‍👦 🇫🇷 e\u200bz \ufeff\u00ad\u2028\u2029\u0085\u00a0\u3000",
    "生活的真谛是 ปี ด привет שלום नमस्ते",
    "<|begin_of_text|>[PAD][UNK]<|text_start|> <|text_start |>",
    "a" * 300 + "=" * 300 + " " * 300 + "\n" * 300 + "-=" * 150,
]  # fmt: skip


def ids(text: str, tokenizer=PLEIAS) -> list[int]:
    """Return the ids of plain text: no delimiter, and written special tokens are text."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def adversarial(count: int) -> list[str]:
    """Return strings of fragments that are difficult for tokenizers, in many scripts; deterministic."""
    draw = random.Random(3)
    words = (
        "the l'été qu’il Straße geſchehen naïve cœur œuvre ĳsje Ĳ próximo ação niño ¿qué? quæ ſunt cõ vñ daß DASS "
        "don't I'LL he'S 'ſ 'tis O'Reilly COMÉDIE GÖTHE Éluard ÀÇÉ straat één perché città così ðe þæt İstanbul ıſ ǅ "
        "ﬁn ﬃ ﬆ мир שלום سلام 生活 ありがとう 한국 ไทย नमस्ते ปี γνῶθι e\u0301 a\u0308 o\u0364 n\u0303 x\u0323\u0301 "
        "👩‍👧 🇫🇷 ☙ ❦ 1er 2ᵉ n° № ½ ² Ⅳ ٣٤ 1789 12345678 3,14 1.000.000,00 <|text_start|> [PAD] <b> </b> &amp; "
        '{"a":1} \\n == != -> // /* ¬ ¶ § † ꝛ ꝑ ẽ'
    ).split()
    signs = [*" \t\n\r\f\v\x00\x01\x1c\x1f\x7f\x85\xa0\xad«»“”‘’'\"¿¡?!.,;:…—–-_=*#|/\\(){}[]<>@%&$€£~^`+°ªº"]
    signs += "\r\n|  |   |\n\n| ?| !| ;| :|\u202f!|\u2009|\u200b|\u2028|\ufeff|¬\n|-\n| \n|\t |\n ".split("|")
    signs += "... ---- ==== aaaa abab".split()
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            part = draw.choice(words if draw.random() < 0.5 else signs)
            if draw.random() < 0.05:
                part *= draw.randint(2, 9)
            if draw.random() < 0.05:
                part = chr(draw.choice((0x20, 0xA0, 0x250, 0x1E00, 0xA720)) + draw.randrange(0xA0))
            parts.append(part.upper() if draw.random() < 0.05 else part)
        strings.append(draw.choice(("", " ")).join(parts))
    return strings


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_every_text_round_trips(text):
    assert PLEIAS.decode(PLEIAS.encode(text, add_special_tokens=False)) == text
    assert PLEIAS.decode(PLEIAS.encode(text), skip_special_tokens=False) == BASE_TOKENS[1] + text


@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_hard_texts_round_trip_also_if_special_tokens_are_text(text):
    assert PLEIAS.decode(PLEIAS.encode(text, add_special_tokens=False)) == text
    assert PLEIAS.decode(ids(text)) == text


def test_the_vocabulary_size_is_65536_with_special_tokens_at_both_ends():
    assert len(PLEIAS) == PLEIAS.vocab_size == 65_536
    assert PLEIAS.convert_ids_to_tokens(list(range(4))) == list(BASE_TOKENS)
    assert len(DOCUMENT_TOKENS) == 64
    assert PLEIAS.convert_ids_to_tokens(list(range(65_536 - 64, 65_536))) == list(DOCUMENT_TOKENS)
    assert sorted(PLEIAS.all_special_ids) == [*range(4), *range(65_536 - 64, 65_536)]
    assert (PLEIAS.unk_token_id, PLEIAS.bos_token_id, PLEIAS.eos_token_id, PLEIAS.pad_token_id) == (
        0,
        1,
        2,
        3,
    )


def test_the_settings_that_users_of_the_original_missed():
    assert PLEIAS.model_max_length == 2048
    assert PLEIAS.clean_up_tokenization_spaces is False
    assert PLEIAS.model_input_names == ["input_ids", "attention_mask"]
    assert PLEIAS("Bonjour").input_ids[0] == PLEIAS.bos_token_id
    assert PLEIAS.eos_token_id not in PLEIAS("Bonjour").input_ids


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SPECIAL) | st.text(max_size=8) | st.sampled_from("<|>[]_ ptx"), max_size=8))
@example(SPECIAL)
@example([f" {token}\n" for token in SPECIAL])
def test_no_plain_text_yields_a_special_token(parts):
    text = "".join(parts)
    assert not set(ids(text)) & set(PLEIAS.all_special_ids)
    assert PLEIAS.decode(ids(text)) == text


def test_special_tokens_are_one_id_each():
    for token in SPECIAL:
        assert PLEIAS.encode(f"a{token}b", add_special_tokens=False)[1:-1] == [PLEIAS.convert_tokens_to_ids(token)]


def test_batches_are_padded_on_the_requested_side_and_truncated_on_the_right():
    texts = ["Le roi", "Le roi est mort, vive le roi !"]
    short, long = (PLEIAS(text).input_ids for text in texts)
    gap = len(long) - len(short)
    left = PLEIAS(texts, padding=True)
    assert left.input_ids == [[PLEIAS.pad_token_id] * gap + short, long]
    assert left.attention_mask == [[0] * gap + [1] * len(short), [1] * len(long)]
    right = PLEIAS(texts, padding=True, padding_side="right", return_tensors="pt")
    assert right.input_ids.tolist() == [short + [PLEIAS.pad_token_id] * gap, long]
    assert right.attention_mask.tolist() == [[1] * len(short) + [0] * gap, [1] * len(long)]
    assert PLEIAS(texts, truncation=True, max_length=3).input_ids == [short[:3], long[:3]]
    assert len(PLEIAS("mot " * 5000, truncation=True).input_ids) == 2048


def test_the_folder_loads_as_a_plain_fast_tokenizer_with_the_same_ids():
    plain = PreTrainedTokenizerFast.from_pretrained(SHIPPED)
    assert type(plain) is not PleiasTokenizer
    strings = HARD_TEXTS + adversarial(2000)
    assert plain(strings).input_ids == PLEIAS(strings).input_ids
    assert plain.model_max_length == 2048 and plain.all_special_ids == PLEIAS.all_special_ids


def test_autotokenizer_returns_the_class_with_the_package_and_the_same_ids_without(tmp_path):
    assert type(AutoTokenizer.from_pretrained(SHIPPED)) is PleiasTokenizer
    code = (
        "import json, sys\n"
        "sys.modules['modeling_pleias'] = None\n"
        "from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([type(t).__name__, t(json.load(sys.stdin)).input_ids, t.padding_side]))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(SHIPPED)],
        input=json.dumps(HARD_TEXTS),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    name, plain_ids, side = json.loads(done.stdout.splitlines()[-1])
    assert name == "TokenizersBackend" and side == "left"
    assert plain_ids == PLEIAS(HARD_TEXTS).input_ids


def test_saving_and_loading_changes_nothing(tmp_path):
    PLEIAS.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    before, after = (json.loads((d / "tokenizer_config.json").read_text()) for d in (SHIPPED, tmp_path))
    # transformers records where a tokenizer was loaded from, which is not a setting.
    assert {key: value for key, value in after.items() if key not in ("is_local", "local_files_only")} == before


@settings(max_examples=12)
@given(
    begins=st.sampled_from([None, False, True]),
    ends=st.sampled_from([None, False, True]),
    added=st.lists(st.sampled_from(["zyx", " wvu", "<|own|>"]), unique=True),
    used=st.booleans(),
)
@example(begins=False, ends=True, added=[" wvu", "zyx"], used=True)
def test_what_is_added_to_a_text_outlives_saving_on_every_way_of_loading(begins, ends, added, used):
    requested = {"add_bos_token": begins, "add_eos_token": ends}
    requested = {name: value for name, value in requested.items() if value is not None}
    tokenizer = PleiasTokenizer(**requested)
    tokenizer.add_tokens(added)
    texts = ["", "old zyx wvu<|own|>house", "a text that is longer than the other one"]
    expected = tokenizer(texts).input_ids
    assert expected[0] == [1] * (begins is not False) + [2] * (ends is True)
    if used:  # transformers saves how a tokenizer was last used
        tokenizer(texts, padding="max_length", max_length=5, truncation=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        by_file = PleiasTokenizer.from_pretrained(folder, trust_remote_code=True)  # reads tokenizer.json itself
        for opened in (
            AutoTokenizer.from_pretrained(folder),
            by_file,
            PreTrainedTokenizerFast.from_pretrained(folder),
        ):
            assert opened(texts).input_ids == expected
        assert (by_file.add_bos_token, by_file.add_eos_token) == (begins is not False, ends is True)
        by_file.add_eos_token = not by_file.add_eos_token
        by_file.save_pretrained(folder)
        reopened = AutoTokenizer.from_pretrained(folder)
        assert reopened(texts).input_ids == by_file(texts).input_ids != expected
    trained = tokenizer.train_new_from_iterator(["the old house"] * 9, 340)
    assert (trained.add_bos_token, trained.add_eos_token) == (begins is not False, ends is True)


def test_the_bytes_alone_are_a_tokenizer():
    tokenizer = PleiasTokenizer()
    assert len(tokenizer) == tokenizer.vocab_size == 4 + 256 + 64
    for text in HARD_TEXTS:
        assert tokenizer.decode(ids(text, tokenizer)) == text
        assert len(ids(text, tokenizer)) == len(text.encode())


def test_training_a_new_vocabulary_keeps_the_ids_of_the_special_tokens():
    new = PLEIAS.train_new_from_iterator(HARD_TEXTS * 3, 600, show_progress=False)
    assert type(new) is PleiasTokenizer and len(new) == new.vocab_size == 600
    assert new.convert_ids_to_tokens([*range(4), *range(600 - 64, 600)]) == SPECIAL
    assert all(new.decode(ids(text, new)) == text for text in HARD_TEXTS)
    assert new("a").input_ids[0] == new.bos_token_id and new.model_max_length == 2048


def test_tiktoken_gives_the_same_ids():
    # Not with tiktoken's reader, which caches the file by path and would use it after the file has changed.
    lines = (line.split() for line in (SHIPPED / "ranks.tiktoken").read_bytes().splitlines())
    encoding = tiktoken.Encoding(
        "pleias",
        pat_str=PATTERN,
        mergeable_ranks={base64.b64decode(entry): int(rank) for entry, rank in lines},
        special_tokens={token: PLEIAS.convert_tokens_to_ids(token) for token in SPECIAL},
    )
    assert encoding.n_vocab == 65_536
    for text in HARD_TEXTS + adversarial(10_000):
        assert encoding.encode_ordinary(text) == ids(text), repr(text)
        assert encoding.encode(text, allowed_special="all") == PLEIAS.encode(text, add_special_tokens=False), repr(
            text
        )


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory):
    """llama.cpp's server, the interface that users have, with the shipped vocabulary and a minimal model."""
    for name in ("gguf", "xllamacpp"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[release]'")
    from model_card.formats import gguf_writer
    from model_card.formats.llama_cpp import LlamaCppServer

    folder = tmp_path_factory.mktemp("gguf")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    PleiasForCausalLM(PleiasConfig(num_key_value_heads=1, **shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SHIPPED / name, folder / name)
    path = folder / "vocabulary.gguf"
    gguf_writer.write_gguf(folder, path, format="F32", name="vocabulary", license="apache-2.0", languages=[])
    with LlamaCppServer(path, context=256) as server:
        yield server


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_llama_cpp_returns_the_same_ids_and_the_exact_text(llama_cpp, count):
    strings = HARD_TEXTS + ["Vraiment ?", "Oui !", " ?", " !", "« Non ! » ? !"] + adversarial(count)
    for text in strings:
        tokens = llama_cpp.call("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
        assert tokens == ids(text), repr(text)
        assert llama_cpp.call("/detokenize", {"tokens": tokens})["content"] == text, repr(text)


def test_llama_cpp_adds_the_delimiter_and_parses_special_tokens_like_this_tokenizer(llama_cpp):
    text = "<|text_start|>Le roi est mort.<|text_end|><|ocr_correction_start|>"
    tokens = llama_cpp.call("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    assert tokens == PLEIAS(text).input_ids


if not transformers_tests.missing():
    from transformers_tests import test_tokenization_common, test_tokenizers_backend_mixin

    class ForEveryTokenizer(test_tokenization_common.TokenizerTesterMixin):
        """transformers' tests for every tokenizer."""

        tokenizer_class = rust_tokenizer_class = PleiasTokenizer
        from_pretrained_kwargs = {}

        @classmethod
        def setUpClass(cls):
            # The source distribution lacks the sample text that this reads.
            opened = unittest.mock.mock_open(read_data="\n\n".join(HARD_TEXTS[2:5]))
            with unittest.mock.patch.object(test_tokenization_common, "open", opened, create=True):
                super().setUpClass()

    class ForTheBackend(test_tokenizers_backend_mixin.TokenizersBackendTesterMixin):
        """transformers' tests for tokenizers on the tokenizers library."""

        tokenizer_class = rust_tokenizer_class = PleiasTokenizer
        from_pretrained_kwargs = {}

    class OfASmallVocabulary:
        """A small vocabulary: each test loads the tokenizer several times, which takes minutes for the shipped one."""

        @classmethod
        def setUpClass(cls):
            with tempfile.TemporaryDirectory() as folder:
                PLEIAS.train_new_from_iterator(HARD_TEXTS * 3, 1000, show_progress=False).save_pretrained(folder)
                cls.from_pretrained_id = folder
                super().setUpClass()
            cls.from_pretrained_id = [cls.tmpdirname]
            cls.tokenizers_list = [(PleiasTokenizer, cls.tmpdirname, {})]

    class TestTokenizer(OfASmallVocabulary, ForEveryTokenizer, unittest.TestCase):
        pass

    class TestBackend(OfASmallVocabulary, ForTheBackend, unittest.TestCase):
        pass

    @pytest.mark.slow
    class TestShippedTokenizer(ForEveryTokenizer, unittest.TestCase):
        from_pretrained_id = str(SHIPPED)

    @pytest.mark.slow
    class TestShippedBackend(ForTheBackend, unittest.TestCase):
        from_pretrained_id = str(SHIPPED)
