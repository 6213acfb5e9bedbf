"""Curation loses no document: each is kept, or dropped with a reason, whatever the input and whichever worker dies."""

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import run_program

from training.common.config import InputError
from training.common.files import read_json, write_json
from training.curation import lexicon, statistics
from training.curation.endpoint import Endpoint
from training.curation.parquet_steps import rows
from training.curation.pipeline import curate
from training.curation.recipe import CurationConfig
from training.data.documents import COLUMNS, read_documents
from training.shards import ShardsConfig, build_shards

ROOT = Path(__file__).parents[2]
WORDS = {
    "English": """the old house stood by river and nobody came until spring when bells rang over hills children were
    playing garden while their mother wrote long letters to her brother who had gone away many years before with little
    money but great hopes for better life across sea every evening she looked through window thinking about what might
    have become of him there was no answer only wind trees along road winter night morning light bread water fire""",
    "French": """la vieille maison se trouvait au bord du lac et personne ne venait avant le printemps quand les
    cloches sonnaient sur collines enfants jouaient dans jardin pendant que leur tante lisait longues lettres de son
    mari qui avait quitté ce pays depuis bien des années avec peu d'argent mais grandes envies chaque soir elle
    regardait la porte en pensant aux jours heureux il n'y avait pas de réponse seulement vent arbres chemin""",
}
WORDS = {language: text.split() for language, text in WORDS.items()}


def prose(draw: random.Random, language: str = "English", words: int = 120) -> str:
    """Return a text that is unlike any other and passes every block."""
    sentences = [" ".join(draw.choices(WORDS[language], k=12)).capitalize() + "." for _ in range(words // 12)]
    return " ".join(sentences)


@pytest.fixture(scope="module")
def original(tmp_path_factory, write_corpus):
    """Folder of three files, one in a subfolder, with a document for every reason to drop one; read-only."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("original") / "corpus"
    texts = [prose(draw) for _ in range(30)]
    english = [{"text": text, "license": "CC-By", "collection": "OpenScience"} for text in texts]
    english += [
        {"text": texts[0]},
        {"text": texts[1].replace(".", ";").upper()},
        {"text": prose(draw), "license": "CC BY-NC 4.0"},
        {"text": prose(draw), "license": ""},
        {"text": prose(draw), "language": "Python", "language_type": "Code"},
        {"text": "".join(draw.choices("bcdfghjklmnpqrstvwxz .,;1579", k=600))},
        {"text": " \n"},
        {"text": prose(draw), "identifier": ""},
        {"text": prose(draw, words=60_000)},
        {"text": prose(draw) + " Write to john.smith@company-mail.com today."},
    ]
    french = [{"text": prose(draw, "French"), "language": "French"} for _ in range(20)]
    french[3]["language"] = "English"  # a wrong label
    write_corpus(folder / "en.parquet", english)
    write_corpus(folder / "more" / "fr.parquet", french)
    write_corpus(folder / "more" / "again.parquet", [{"text": text} for text in texts[2:6]])
    write_json(folder / "sources.json", {"sources": [{"name": "synthetic", "license": "CC0-1.0"}]})
    return folder


def config(corpus: Path, out: Path, **settings) -> CurationConfig:
    return CurationConfig(**{"out": out, "corpus": corpus, "workers": 1, "max_megabytes": 0.2, **settings})


@pytest.fixture
def corpus(original, tmp_path):
    """Copy of `original`."""
    return Path(shutil.copytree(original, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def curated(original, tmp_path_factory):
    """Output folder and content of curation.json of `original`; read-only."""
    out = tmp_path_factory.mktemp("curated")
    return out, curate(config(original, out))


def dropped(out: Path) -> list[dict]:
    return [row for path in sorted((out / "dropped").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def kept(out: Path) -> list[dict]:
    files = sorted(path for path in out.rglob("*.parquet") if "dropped" not in path.parts)
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def texts_of(corpus: Path) -> dict[tuple[str, int], str]:
    """Return (file, row) -> text."""
    files = {str(path.relative_to(corpus)): rows(path) for path in corpus.rglob("*.parquet")}
    return {(name, i): row["text"] for name, file in files.items() for i, row in enumerate(file)}


def origin(row: dict) -> tuple[str, int]:
    return row["curation"]["file"], row["curation"]["row"]


def command(*arguments: str, **environment: str) -> subprocess.Popen:
    """Start the program in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.curation", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Output ---------------------------------------------------------------------------------------------------


def test_every_document_is_kept_or_dropped_once_with_the_expected_reason(corpus, curated):
    out, content = curated
    documents = list(texts_of(corpus))
    assert sorted(map(origin, kept(out) + dropped(out))) == sorted(documents)
    reasons = {origin(row): row["reason"] for row in dropped(out)}
    expected = {
        ("en.parquet", 32): "licence refused",
        ("en.parquet", 33): "licence refused",
        ("en.parquet", 34): "other language",
        ("en.parquet", 35): "poor OCR",
        ("en.parquet", 36): "empty",
        ("en.parquet", 37): "no identifier",
        ("en.parquet", 38): "too large",
    }
    assert expected.items() <= reasons.items()
    others = {key: reason for key, reason in reasons.items() if key not in expected}
    assert Counter(others.values()) == {"exact duplicate": 5, "near duplicate": 1}
    assert content["input"]["documents"] == len(documents)


def test_the_statistics_equal_counts_of_the_files(corpus, curated):
    out, content = curated
    texts, expected = texts_of(corpus), Counter()
    for row in kept(out) + dropped(out):
        text, reason = texts[origin(row)], row.get("reason")
        key = row["language"], row["license"], row["collection"], reason
        expected[key, "documents"] += 1
        expected[key, "words"] += len(text.split())
        expected[key, "bytes"] += len(text.encode())
        expected[key, "final_words"] += len(row["text"].split()) if reason is None else 0
        expected[key, "final_bytes"] += len(row["text"].encode()) if reason is None else 0
    written = Counter()
    for row in content["account"]:
        for measure in statistics.MEASURES:
            written[tuple(row[c] for c in ("language", "license", "collection", "reason")), measure] += row[measure]
    assert +written == +expected
    assert content == read_json(out / "curation.json")
    for measure in ("documents", "words", "bytes"):
        assert content["kept"][measure] + content["dropped"][measure] == content["input"][measure]


def test_kept_documents_contain_findings_and_changes(corpus, curated):
    by_origin = {origin(row): row for row in kept(curated[0])}
    row = by_origin["en.parquet", 10]
    assert set(row) == {*COLUMNS, "curation"}
    assert row["license"] == row["curation"]["licence"]["spdx"] == "CC-BY-4.0" or row["license"].startswith("CC-BY")
    assert row["curation"]["licence"]["label"] == "CC-By" and row["curation"]["licence"]["decision"] == "attribution"
    assert row["curation"]["ocr"]["score"] >= row["curation"]["ocr"]["threshold"] > 0
    assert row["curation"]["toxicity"]["verdict"] == "none" and row["curation"]["toxicity"]["by"]
    relabelled = by_origin["more/fr.parquet", 3]
    assert relabelled["language"] == "French" and relabelled["curation"]["language"]["label"] == "English"
    personal = by_origin["en.parquet", 39]
    assert "john.smith@company-mail.com" not in personal["text"] and "@" in personal["text"]
    assert sum(dict(personal["curation"]["pii"]).values()) == 1
    assert personal["word_count"] == len(personal["text"].split())


def test_one_document_of_each_cluster_is_kept_and_its_duplicates_refer_to_it(curated):
    out, _ = curated
    names = {row["identifier"] for row in kept(out)}
    duplicates = [row for row in dropped(out) if row["reason"].endswith("duplicate")]
    assert duplicates and all(row["curation"]["duplicate"]["of"] in names for row in duplicates)
    assert all(row["curation"]["duplicate"]["exact"] == (row["reason"] == "exact duplicate") for row in duplicates)


def test_shards_read_the_curated_corpus_and_include_its_statistics(curated, tiny_tokenizer, tmp_path):
    out, content = curated
    manifest = build_shards(
        ShardsConfig(corpus=out, tokenizer=tiny_tokenizer, out=tmp_path / "shards", validation_share=0.2)
    )
    assert manifest["corpus"]["curation"] == content
    assert manifest["corpus"]["sources"] == read_json(out / "sources.json")
    assert sum(row["documents"] for row in manifest["account"]) == content["kept"]["documents"]
    assert len(list(read_documents(out))) == content["kept"]["documents"]


def test_the_result_does_not_depend_on_the_number_of_workers(corpus, curated, tmp_path):
    content = curate(config(corpus, tmp_path / "two", workers=2))
    assert content["account"] == curated[1]["account"]
    assert kept(tmp_path / "two") == kept(curated[0]) and dropped(tmp_path / "two") == dropped(curated[0])


def test_kept_and_dropped_documents_are_explained(curated):
    out, _ = curated
    text = statistics.explain(out, "en/10")
    assert "row 10 of en.parquet" in text and "CC-By" in text and "kept:" in text and "toxicity" in text
    text = statistics.explain(out, "en/32")
    assert "dropped: licence refused" in text and "kept:" not in text
    with pytest.raises(InputError, match="contains no document nowhere"):
        statistics.explain(out, "nowhere")


def test_the_report_lists_every_reason_and_shows_its_charts(curated):
    out, content = curated
    report = (out / "curation.md").read_text()
    assert all(f"| {reason} |" in report for reason in content["reasons"])
    for name in ("curation-languages.png", "curation-collections.png"):
        assert name in report and (out / name).read_bytes().startswith(b"\x89PNG")


# Bad input ------------------------------------------------------------------------------------------------


def corrupt(corpus: Path, how: str) -> str:
    """Corrupt a file of the corpus; return the expected message."""
    path = corpus / "more" / "fr.parquet"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        return "not a valid Parquet file"
    if how == "bytes changed":
        pq.write_table(pq.read_table(path), path, write_page_checksum=True)
        content = bytearray(path.read_bytes())
        content[200:400] = bytes(200)
        path.write_bytes(content)
        return "not a valid Parquet file"
    if how == "no column":
        pq.write_table(pq.read_table(path).drop(["license", "date"]), path)
        return "lacks the columns license, date"
    table = pq.read_table(path)
    texts = [text.encode() for text in table["text"].to_pylist()]
    texts[5] = b"caf\xe9 " + texts[5]
    column = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", column), path)
    return "invalid UTF-8"


@pytest.mark.parametrize("how", ["truncated", "bytes changed", "no column"])
def test_a_corrupt_file_is_dropped_and_recorded_or_stops_the_run(how, corpus, tmp_path):
    message = corrupt(corpus, how)
    out = tmp_path / "out"
    content = curate(config(corpus, out))
    (record,) = content["lost_files"]
    assert record["file"] == "more/fr.parquet" and message in record["reason"]
    assert read_json(out / "dropped" / "files.json") == content["lost_files"]
    assert not any(row["curation"]["file"] == record["file"] for row in kept(out) + dropped(out))
    assert record["file"] in (out / "curation.md").read_text()
    with pytest.raises(InputError, match=f"fr.parquet.*{message}.*--on_error drop"):
        curate(config(corpus, tmp_path / "other", on_error="stop", max_megabytes=1))
    assert not (tmp_path / "other" / "curation.json").exists()


def test_a_document_that_is_not_utf_8_is_dropped_or_stops_the_run(corpus, tmp_path):
    corrupt(corpus, "utf-8")
    curate(config(corpus, tmp_path / "out"))
    (bad,) = [row for row in dropped(tmp_path / "out") if row["reason"] == "invalid UTF-8"]
    assert origin(bad) == ("more/fr.parquet", 5) and bad["text"].startswith("caf\ufffd ") and "text" in bad["detail"]
    with pytest.raises(InputError, match=r"fr.parquet has an invalid document in row 5 .*invalid UTF-8"):
        curate(config(corpus, tmp_path / "other", on_error="stop", max_megabytes=1))


def test_a_document_of_100_mb_is_dropped_as_too_large(tmp_path, write_corpus):
    huge = "the old house stood by the river and nobody came until the spring. " * 1_500_000
    write_corpus(tmp_path / "corpus" / "en.parquet", [{"text": prose(random.Random(1))}, {"text": huge}])
    content = curate(config(tmp_path / "corpus", tmp_path / "out", max_megabytes=50))
    assert len(huge) > 100e6 and content["kept"]["documents"] == 1
    assert content["reasons"] == {"too large": {"documents": 1, "words": len(huge.split()), "bytes": len(huge)}}
    assert dropped(tmp_path / "out")[0]["text"] == huge


def test_a_corpus_without_a_document_to_keep_is_an_error_and_its_statistics_have_the_reasons(tmp_path, write_corpus):
    write_corpus(tmp_path / "corpus" / "en.parquet", [{"text": "a text", "license": "CC-BY-ND-4.0"}] * 3)
    with pytest.raises(InputError, match="No document of .* was kept"):
        curate(config(tmp_path / "corpus", tmp_path / "out"))
    assert read_json(tmp_path / "out" / "curation.json")["reasons"]["licence refused"]["documents"] == 3


def test_an_output_inside_the_input_or_over_foreign_files_is_refused(corpus, tmp_path, write_corpus):
    with pytest.raises(InputError, match="is inside the input corpus"):
        curate(config(corpus, corpus / "curated"))
    write_corpus(tmp_path / "foreign" / "en.parquet", [{}])
    with pytest.raises(InputError, match="was not written by this program"):
        curate(config(corpus, tmp_path / "foreign"))


@pytest.mark.parametrize("answer", ["nonsense", "error", "nothing"])
def test_a_document_that_an_endpoint_fails_to_change_is_dropped_with_the_error_type(answer, tmp_path, write_corpus):
    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if answer == "nothing":
                time.sleep(3)
            body = b"<html>moved</html>" if answer == "nonsense" else b"{}"
            self.send_response(500 if answer == "error" else 200)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "m"}]}')

        def log_message(self, *arguments):
            pass

    draw = random.Random(5)
    words, _, _ = lexicon.lists("en")
    slurs = [word for word, bits in words.items() if bits & lexicon.ANY_SLUR]
    toxic = "".join(f" All {slur} are filthy vermin. Kill the {slur}." for slur in slurs[:40])
    write_corpus(tmp_path / "corpus" / "en.parquet", [{"text": prose(draw)}, {"text": prose(draw) + toxic}])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = Endpoint(url=f"http://127.0.0.1:{server.server_port}", model="m", timeout=1, max_attempts=1)
    try:
        content = curate(config(tmp_path / "corpus", tmp_path / "out", corpus_stage="annealing", endpoint=endpoint))
    finally:
        server.shutdown()
    (row,) = dropped(tmp_path / "out")
    assert row["reason"] == "not rewritten" and row["detail"] and origin(row) == ("en.parquet", 1)
    assert content["kept"]["documents"] == 1


# Interrupted runs -----------------------------------------------------------------------------------------


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    workers = []
    for child in process.children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
        except psutil.Error:  # it ended in the meantime
            pass
    return workers


def published(out: Path) -> dict[str, bytes]:
    paths = [path for path in out.rglob("*") if path.is_file() and ".curation" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_a_full_disk_while_files_are_published_leaves_the_earlier_result(original, curated, tmp_path):
    out, content = Path(shutil.copytree(curated[0], tmp_path / "out")), curated[1]
    settings, earlier = config(original, out), published(out)
    for name in content["kept_files"]:
        (settings.work / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / name, settings.work / "kept" / name)
    (settings.work / "published.json").unlink()
    step = statistics.PublishStep(settings, settings={}, fingerprint="new")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(statistics.statistics_report, "write_statistics", no_space)
        step.run()
    assert published(out) == earlier
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(statistics, "move_files", no_space)
        step.run()
    assert published(out) == earlier
    step.run()
    assert read_json(out / "curation.json")["fingerprint"] == "new" and kept(out) == kept(curated[0])
    assert not [name for name in published(out) if name.startswith("dropped/") and name.endswith(".parquet")]


def no_space(folder, *arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def test_an_interrupted_run_over_an_earlier_result_is_resumed(original, curated, tmp_path, monkeypatch):
    out = Path(shutil.copytree(curated[0], tmp_path / "out"))
    monkeypatch.setattr("training.curation.executors.run_stages", lambda *arguments, **options: False)  # as Slurm
    again = config(original, out, languages=["en"])
    assert curate(again) is None
    write_json(again.work / "selected" / "work.json", "done")
    assert curate(again) is None and (again.work / "selected" / "work.json").is_file()
    assert curate(config(original, out, languages=["fr"])) is None
    assert not (again.work / "selected" / "work.json").is_file()


@pytest.fixture
def wide(tmp_path, write_corpus):
    """Corpus of eight files, two of which take a second each."""
    draw = random.Random(7)
    for i in range(8):
        documents = 600 if i in (2, 5) else 60
        write_corpus(tmp_path / "wide" / f"{i}.parquet", [{"text": prose(draw, words=600)} for _ in range(documents)])
    return tmp_path / "wide"


def test_a_killed_worker_stops_the_run_with_a_message_and_a_second_run_completes_only_what_is_missing(wide, tmp_path):
    out = tmp_path / "out"
    arguments = ["--in", wide, "--out", out, "--workers", 2, "--on_error", "stop"]
    done = out / ".curation" / "logs" / "select" / "completions"
    process = command(*arguments)
    while not (done.is_dir() and any(done.iterdir())):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    for worker in workers_of(psutil.Process(process.pid)):
        worker.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "A worker was killed" in errors and "Run the same command again" in errors and "Traceback" not in errors
    completed = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert 0 < len(completed) < 8 and not (out / "curation.json").exists()
    process = command(*arguments)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in completed} == completed
    curate(config(wide, tmp_path / "straight", max_megabytes=50, on_error="stop"))
    assert kept(out) == kept(tmp_path / "straight") and len(kept(out)) == 1560
    assert "1,560 documents in" in printed


@pytest.mark.slow
def test_with_drop_a_file_that_kills_its_worker_twice_is_dropped(wide, tmp_path):
    deaths = Counter()

    def kill(rank: int, times: int, over: threading.Event) -> None:
        """Kill the worker that has opened the log of a task."""
        name = f"screen_{rank:05d}.log"
        while not over.wait(0.01) and deaths[rank] < times:
            for worker in workers_of(psutil.Process()):
                try:
                    if any(file.path.endswith(f"select/logs/{name}") for file in worker.open_files()):
                        worker.kill()
                        worker.wait(10)
                        deaths[rank] += 1
                except psutil.Error:
                    pass

    over = threading.Event()
    killers = [threading.Thread(target=kill, args=(2, 1, over)), threading.Thread(target=kill, args=(5, 2, over))]
    for killer in killers:
        killer.start()
    try:
        content = curate(config(wide, tmp_path / "out", workers=2, max_megabytes=50))
    finally:
        over.set()
        for killer in killers:
            killer.join()
    assert deaths == {2: 1, 5: 2}
    (record,) = content["lost_files"]
    assert record == {"file": "5.parquet", "documents": 600, "reason": "its worker was killed twice (out of memory?)"}
    assert content["kept"]["documents"] == 960 and (tmp_path / "out" / "2.parquet").is_file()
    assert not (tmp_path / "out" / "5.parquet").exists()


def test_a_finished_run_is_reused_and_changed_settings_or_files_start_from_scratch(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    first = curate(config(corpus, out))
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert curate(config(corpus, out, workers=2)) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == stamps
    altered = out / first["kept_files"][0]
    content = altered.read_bytes()
    altered.write_bytes(content[:100] + bytes(len(content) - 100))
    assert curate(config(corpus, out))["kept"] == first["kept"] and altered.read_bytes() == content
    capsys.readouterr()
    second = curate(config(corpus, out, languages=["fr"]))
    assert "languages changed: starting from scratch" in capsys.readouterr().err
    assert {row["language"] for row in kept(out)} == {"French"}
    assert second["fingerprint"] != first["fingerprint"]
    (corpus / "more" / "again.parquet").unlink()
    curate(config(corpus, out, languages=["fr"]))
    assert "the files of the corpus changed: starting from scratch" in capsys.readouterr().err
    assert not any(path.name == "again.parquet" for path in out.rglob("*.parquet"))


def test_counts_that_do_not_add_up_are_an_error(corpus, curated, tmp_path):
    out, _ = curated
    parts = [corpus / "en.parquet", out / "en.parquet"]
    halves = [out / "dropped" / half / "en.parquet" for half in ("select", "finish")]
    statistics.count_file("en.parquet", *parts, halves)
    table = pq.read_table(parts[1])
    pq.write_table(table.slice(1), tmp_path / "less.parquet")
    with pytest.raises(InputError, match="1 documents missing, 0 twice"):
        statistics.count_file("en.parquet", parts[0], tmp_path / "less.parquet", halves)
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]), tmp_path / "more.parquet")
    with pytest.raises(InputError, match="0 documents missing, 2 twice"):
        statistics.count_file("en.parquet", parts[0], tmp_path / "more.parquet", halves)


# Executors ------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
# A cluster of one machine: all dependencies are complete, and the array runs here, one index after the other.
cp "${@: -1}" "$JOBS/$(ls "$JOBS" | wc -l).slurm"
script="$JOBS/$(($(ls "$JOBS" | wc -l) - 1)).slurm"
echo "$@" > "$script.arguments"
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for index in $(seq 0 "${last:-0}"); do
    if [ -n "$last" ]; then export SLURM_ARRAY_TASK_ID=$index; fi
    SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" > "$script.$index.log" 2>&1
done
echo "Submitted batch job $(ls "$JOBS" | wc -l)"
"""


@pytest.mark.slow  # 13 jobs, each in a new Python process
def test_slurm_jobs_wait_for_each_other_and_return_the_same_as_local_processes(corpus, curated, tmp_path):
    tools, jobs = tmp_path / "tools", tmp_path / "jobs"
    jobs.mkdir()
    tools.mkdir()
    srun = '#!/bin/bash\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\n"$@"\n'
    for name, script in (("sbatch", SBATCH), ("srun", srun), ("scontrol", "#!/bin/bash\necho here\n")):
        (tools / name).write_text(script)
        (tools / name).chmod(stat.S_IRWXU)
    out = tmp_path / "slurm"
    options = '{partition: cpu, time: "1:00:00", mem_per_cpu_gb: 4}'
    done = run_program(
        *("training.curation.__main__", "--in", corpus, "--out", out, "--max_megabytes", 0.2),
        *("--executor", "slurm", "--workers", 7, "--executor_options", options),
        environment={"PATH": f"{tools}:{os.environ['PATH']}", "JOBS": str(jobs)},
        log=tmp_path / "log",
    )
    assert done.returncode == 0, done.stderr
    assert "Submitted to Slurm" in done.stdout
    scripts = {}
    for path in jobs.glob("*.slurm"):
        text = path.read_text()
        if "merge_stats" not in text:
            name = text.partition("--job-name=")[2].split()[0]
            scripts[name] = text, Path(f"{path}.arguments").read_text()
    assert list(sorted(scripts)) == sorted(
        f"curation-{stage}" for stage in ("select", "match", "cluster", "finish", "publish")
    )
    text, arguments = scripts["curation-select"]
    for line in ("--partition=cpu", "--time=1:00:00", "--mem-per-cpu=4G", "--array=0-2%7", "launch_pickled_pipeline"):
        assert line in text
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in text and f"export PYTHONPATH={ROOT}" in text
    assert "--dependency" not in arguments
    assert all("--dependency=afterok:" in scripts[name][1] for name in scripts if name != "curation-select")
    assert kept(out) == kept(curated[0]) and dropped(out) == dropped(curated[0])
    assert read_json(out / "curation.json")["account"] == curated[1]["account"]


def test_slurm_without_partition_or_time_is_an_error_with_an_example(corpus, tmp_path):
    with pytest.raises(InputError, match=r"partition and time in --executor_options, for example '\{partition: cpu"):
        curate(config(corpus, tmp_path / "out", executor="slurm"))


@pytest.mark.skipif(shutil.which("ray") is None, reason="Ray is not installed (pip install ray)")
def test_ray_returns_the_same_as_local_processes(corpus, curated, tmp_path):
    code = (
        "import ray; from pathlib import Path; from training.curation.pipeline import *\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        f"curate(CurationConfig(corpus=Path({str(corpus)!r}), out=Path({str(tmp_path / 'ray')!r}), workers=2, "
        "max_megabytes=0.2, executor='ray', executor_options={'mem_per_cpu_gb': 0.5}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "ray") == kept(curated[0]) and dropped(tmp_path / "ray") == dropped(curated[0])


# The command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "enhanced"])
def test_the_command_line_curates_and_explains(name, corpus, packaged, tmp_path):
    arguments = ["--config", name, "--in", corpus, f"--out={tmp_path / 'out'}", "--workers", 1]
    corrector = f"import pathlib, training.tasks.ocr.corrector as c; c.PACKAGED = pathlib.Path({str(packaged)!r})"
    done = run_program("training.curation.__main__", *arguments, log=tmp_path / "log", prelude=corrector)
    assert done.returncode == 0, done.stderr
    assert "licence refused" in done.stdout and "exact duplicate" in done.stdout
    content = read_json(tmp_path / "out" / "curation.json")
    assert content["settings"]["corpus_stage"] == {"light": "base", "enhanced": "annealing"}[name]
    assert ("finish: ocr_correction" in content["blocks"]) == (name == "enhanced")
    assert content["command"].startswith("python -m training.curation --config")
    arguments = ["--explain", "en/32", "--out", tmp_path / "out"]
    done = run_program("training.curation.__main__", *arguments, log=tmp_path / "log")
    assert done.returncode == 0 and "dropped: licence refused" in done.stdout


def test_a_missing_input_is_an_error(tmp_path):
    arguments = ["--config", "light", "--out", tmp_path / "out"]
    done = run_program("training.curation.__main__", *arguments, log=tmp_path / "log")
    assert done.returncode == 2
    assert done.stderr == "error: --in is missing: pass the folder of the corpus to curate.\n"
