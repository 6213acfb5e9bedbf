"""Correct OCR text in the files of libraries, with their coordinates: text, hOCR, ALTO, PAGE XML, searchable PDFs.

    python -m training.ocr SCANS --out CORRECTED --review review.html

Each file is written to the output folder under its own name, with NAME.changes.json: its text before, and every
change with kind, probability, page and box. A word keeps its box, merged words get the union of theirs, and the parts
of a split word share its width. The same command resumes; files that are done are skipped.
"""

if not __package__:  # run by path; same as `python -m training.ocr`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from tqdm import tqdm

from .common.config import InputError, parse, run_main
from .common.escaping import terminal_line
from .common.files import atomic, fingerprint, lock_folder, model_sha256, read_json, sha256, write_json
from .common.language import FOREIGN_CONFIDENCE, detect_languages, language_code, letters
from .common.processes import SpawnProcessPoolExecutor
from .curation.dehyphenation import divided_words
from .evaluation.models import EvaluatedModel
from .tasks.ocr.corrector import FOLDER, PACKAGED, Corrector
from .tasks.ocr.documents import SUFFIXES, Document, Line, Passage, read_document
from .tasks.ocr.documents.document import LINE_ENDS
from .tasks.ocr.review import is_review, write_review
from .tasks.ocr.searchable_pdf import SearchablePdf
from .tasks.pages import TESSERACT_LANGUAGES

CHANGES = ".changes.json"
FORMAT = 1  # of records
# Letters from which the language of a text is sure enough to contradict its file: Tesseract states "eng" unless told.
CONTRADICTING_LETTERS = 200
UNSTATED = {"und", "mul", "zxx", "frk", "fraktur"}  # frk: Tesseract's Fraktur, in any language


@dataclass
class OcrConfig:
    """Files to correct, and how.

    Args:
        files: Files, and folders that are searched for them.
        out: Folder for the corrected files.
        language: ISO code of all text. Default: what a file states, unless its text is clearly in another language;
            else identified.
        threshold: Caution: 2 demands twice the log-odds of a change that 1 demands; 0 makes every probable change.
        line_ends: Words divided at line ends: keep, mark (soft hyphen; in ALTO, SUBS_CONTENT) or join (on the first
            line).
        review: HTML file that shows every change in its text, with the image of the word where the page's image is
            next to its file. Default: none.
        dry_run: Report the changes, and write nothing but the review.
        overwrite: Replace output files that were made from other input or with other settings.
        model: Folder of a model that judges the changes, which makes correction better and slower: one with an OCR
            corrector, or femto, with which that of this package was learned. Default: no model.
        workers: Files corrected in parallel. Default: one per CPU.
    """

    files: list[Path]
    out: Path
    language: str | None = None
    threshold: float = 1.0
    line_ends: str = "keep"
    review: Path | None = None
    dry_run: bool = False
    overwrite: bool = False
    model: Path | None = None
    workers: int | None = None


@dataclass(frozen=True)
class CorrectorLoader:
    """Loads the corrector of a model folder, or else that of this package, with the model as judge if there is one.

    Args:
        model: Folder of the model. Default: the corrector of this package, without a model.
    """

    model: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of the corrector."""
        return self.model / FOLDER if self.model and (self.model / FOLDER).is_dir() else PACKAGED

    def fingerprint(self) -> str:
        """Return the hash of all files that decide on changes.

        Raises:
            InputError: If the model folder has no corrector, and this package's was learned with another model.
        """
        hashes = model_sha256(self.model) if self.model else {}
        if self.model and self.folder == PACKAGED:
            if read_json(PACKAGED / "corrector.json")["settings"]["judge"] != fingerprint(hashes):
                raise InputError(
                    f"--model {self.model} has no OCR corrector ({FOLDER}), and that of this package was learned with "
                    "another model: omit --model."
                )
        files = {path.name: sha256(path) for path in self.folder.iterdir() if path.is_file()}
        return fingerprint([files, hashes])

    def __call__(self) -> Corrector:
        if self.model is None:
            return Corrector.load(self.folder)
        judge = EvaluatedModel(str(self.model))
        return Corrector.load(self.folder, judge.model, judge.tokenizer)


def collect(config: OcrConfig) -> tuple[dict[Path, Path], list[str]]:
    """Return the output path of every input file, and a message for every path without files.

    Raises:
        InputError: If two files have the same output path, or a file is its own output.
    """
    targets, messages = {}, []
    for argument in config.files:
        if argument.is_dir():
            paths = [path for path in sorted(argument.rglob("*")) if path.suffix.lower() in {*SUFFIXES, ".pdf"}]
            paths = [path for path in paths if path.is_file() and config.out.absolute() not in path.absolute().parents]
            # METS lists the pages of an ALTO package; reviews are of this program.
            paths = [path for path in paths if "mets" not in path.stem.lower() and not is_review(path)]
            if not paths:
                messages.append(f"{argument} contains no file with OCR ({', '.join(sorted(SUFFIXES))}, .pdf).")
            targets |= {path: config.out / path.relative_to(argument) for path in paths}
        elif argument.is_file():
            targets[argument] = config.out / argument.name
        else:
            messages.append(f"{argument} does not exist.")
    sources: dict[Path, Path] = {}
    for source, target in targets.items():
        if (other := sources.setdefault(target, source)) is not source:
            raise InputError(f"{other} and {source} would both be written to {target}: correct them separately.")
        if target.absolute() == source.absolute():
            raise InputError(f"--out {config.out} is the folder of {source}: use another.")
    return targets, messages


def by_language(document: Document, config: OcrConfig, corrector: Corrector, source: Path) -> dict[str, list[Line]]:
    """Return the lines of a document by the language to correct them in; those in other languages are missing.

    Raises:
        InputError: If the corrector has none of the languages, or the language is unclear.
    """
    known = list(corrector.languages)
    if config.language:
        stated = {language_code(config.language): document.lines}
    else:
        stated = {}
        for line in document.lines:
            code = language_code(line.language or "und")
            stated.setdefault("" if code.lower() in UNSTATED else code, []).append(line)
    languages: dict[str, list[Line]] = {}
    for code, lines in stated.items():
        if not config.language:
            text = Passage(lines).text
            guess = detect_languages(text)
            sure = guess.confidence >= FOREIGN_CONFIDENCE
            if sure and (not code or (code in known and letters(text) >= CONTRADICTING_LETTERS)):
                code = guess.language
        languages.setdefault(code, []).extend(lines)
    usable = {code: lines for code, lines in languages.items() if code in known}
    if not usable:
        names = ", ".join(filter(None, languages))
        problem = f"is in a language without a corrector ({names})" if names else "is in an unclear language"
        raise InputError(f"{source} {problem}: pass --language, one of {', '.join(known)}.")
    return usable


def correct_file(source: Path, target: Path, config: OcrConfig, settings: dict, corrector: Corrector) -> dict:
    """Correct a file, and return the content of its record; unless it is a dry run, write both.

    Raises:
        InputError: If the file cannot be corrected.
    """
    digest = sha256(source)
    if source.suffix.lower() == ".pdf":
        if not config.language:
            raise InputError(f"{source} is a PDF, which is read in one language: pass --language.")
        jobs = max(1, (os.cpu_count() or 1) // config.workers)
        document = SearchablePdf(
            source, TESSERACT_LANGUAGES.get(language_code(config.language), config.language), jobs
        )
    else:
        document = read_document(source)
    languages = by_language(document, config, corrector, source)
    pages = [
        {
            "image": page.image and Path(page.image.replace("\\", "/")).name,  # next to the file, wherever it was read
            "size": page.size,
            "blocks": [line.number for line in page.lines if line.starts_block],
            "lines": [[word.text for word in line.words] for line in page.lines],
        }
        for page in document.pages
    ]
    characters = {code: len(Passage(lines).text) for code, lines in languages.items()}
    changes = []
    for code, lines in languages.items():
        passage = Passage(lines)
        found_changes = corrector.changes(passage.text, code, threshold=config.threshold)
        changes += document.correct(passage, found_changes)
    changes.sort(key=lambda change: (change["page"], change["line"], change["word"], change["start"]))
    divided = 0
    if config.line_ends != "keep":
        text = Passage(document.lines).text
        divided = document.set_line_ends(divided_words(text, max(characters, key=characters.get)), config.line_ends)
    record = {
        "file": str(target.relative_to(config.out)),
        "sha256": digest,
        "settings": settings,
        "characters": characters,
        "line_ends": divided,
        "changes": changes,
        "pages": pages,
    }
    if not config.dry_run:
        data = document.to_bytes() if changes or divided else source.read_bytes()
        write_json(record_path(target), record | {"output_sha256": hashlib.sha256(data).hexdigest()})
        with atomic(target) as temporary:
            temporary.write_bytes(data)
    return record


def record_path(target: Path) -> Path:
    """Return the path of the record next to a corrected file."""
    return target.with_name(target.name + CHANGES)


def earlier(source: Path, target: Path, settings: dict) -> dict | None:
    """Return the record of a corrected file; None if it does not exist yet.

    Raises:
        InputError: If another file is there.
    """
    if not target.exists():
        return None
    path = record_path(target)
    record = read_json(path) if path.is_file() else {}
    if record.get("settings") == settings and record.get("sha256") == sha256(source):
        if record.get("output_sha256") == sha256(target):
            return record
    raise InputError(
        f"{target} was made from another file or with other settings: pass --overwrite, or use another --out."
    )


def correct_files(config: OcrConfig, load: CorrectorLoader) -> dict:
    """Correct all files in worker processes; files that fail are named on stderr, and the others are still corrected.

    Returns:
        The content of ocr.json: settings and command, files by outcome, and changes by kind.
    """
    targets, messages = collect(config)
    workers = max(1, min(config.workers or os.cpu_count() or 1, len(targets)))
    settings = {
        "format": FORMAT,
        "language": config.language, "threshold": config.threshold, "line_ends": config.line_ends,
        "corrector": load.fingerprint(),
    }  # fmt: skip
    records, reused = {}, 0
    with nullcontext() if config.dry_run else lock_folder(config.out):
        todo = {}
        for source, target in targets.items():
            try:
                record = None if config.dry_run else earlier(source, target, settings)
            except InputError as error:
                if not config.overwrite:
                    messages.append(str(error))
                    continue
                record = None
            if record is None:
                todo[source] = target
            else:
                records[source], reused = record, reused + 1
        for message in messages:
            print(f"error: {terminal_line(message)}", file=sys.stderr)
        for source, result in outcomes(todo, replace(config, workers=workers), settings, load):
            if isinstance(result, dict):
                records[source] = result
            else:
                messages.append(result)
                tqdm.write(f"error: {terminal_line(result)}", file=sys.stderr)
        kinds = Counter(change["kind"] for record in records.values() for change in record["changes"])
        summary = {
            "command": sys.orig_argv,
            "settings": settings,
            "files": {"corrected": len(records) - reused, "reused": reused, "failed": len(messages)},
            "characters": sum(sum(record["characters"].values()) for record in records.values()),
            "changes": dict(kinds.most_common()),
            "errors": messages,
        }
        if not config.dry_run and targets:
            write_json(config.out / "ocr.json", summary)
        if config.review and records:
            write_review(config.review, {source: records[source] for source in targets if source in records})
    return summary


def outcomes(
    todo: dict[Path, Path], config: OcrConfig, settings: dict, load: CorrectorLoader
) -> Iterator[tuple[Path, dict | str]]:
    """Yield each file with its record or the message of its failure, in the order in which they are done."""
    progress = partial(tqdm, total=len(todo), desc="ocr", unit="file", file=sys.stderr, disable=not todo)
    if config.workers == 1:
        for source, target in progress(todo.items()):
            yield source, attempt(source, target, config, settings, load)
        return
    with SpawnProcessPoolExecutor(config.workers) as pool:
        jobs = {pool.submit(attempt, source, todo[source], config, settings, load): source for source in todo}
        for job in progress(as_completed(jobs)):
            yield jobs.pop(job), job.result()


def attempt(source: Path, target: Path, config: OcrConfig, settings: dict, load: CorrectorLoader) -> dict | str:
    """Correct a file and return its record, or the message of the failure."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.workers))
    try:
        return correct_file(source, target, config, settings, cached(load))
    except (InputError, OSError) as error:
        return str(error)


@cache
def cached(load: CorrectorLoader) -> Corrector:
    """Load the corrector once in each process."""
    return load()


def main() -> None:
    """Run `python -m training.ocr`."""
    config = parse(OcrConfig, description="Correct OCR text in its files.", positional="files")
    if config.line_ends not in LINE_ENDS:
        raise InputError(f"--line_ends must be one of {', '.join(LINE_ENDS)}, got {config.line_ends}.")
    if config.review and config.review.exists() and not (config.overwrite or is_review(config.review)):
        raise InputError(f"--review {config.review} exists and is no review: pass --overwrite, or another file.")
    summary = correct_files(config, CorrectorLoader(config.model))
    files, changes = summary["files"], summary["changes"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in changes.items())
    print(
        f"{files['corrected']:,} files corrected, {files['reused']:,} done before, {files['failed']:,} failed; "
        f"{sum(changes.values()):,} changes in {summary['characters']:,} characters" + f" ({kinds})" * bool(kinds)
    )
    if files["failed"]:
        raise InputError(f"{files['failed']} of the inputs could not be corrected; see the messages above.")


if __name__ == "__main__":
    run_main(main)
