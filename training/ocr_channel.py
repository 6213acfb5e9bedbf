"""Learn the OCR corrector of several languages: lexicons, channel, gates and thresholds, from a corpus and OCR pages.

    python -m training.ocr_channel --corpus data/corpus --pairs data/ocr_pairs --model model_card/femto --out OUT

Only rendered pages are learned from (training.tasks.pages makes them); historical scans among the pairs are measured.
Finished stages stay in OUT/stages, so that the same command resumes.
"""

if not __package__:  # run by path; same as `python -m training.ocr_channel`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import sys
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .common.config import InputError, parse, run_main
from .common.escaping import shell_line
from .common.files import lock_folder, read_json, write_json
from .common.processes import SpawnProcessPoolExecutor
from .data.documents import checked_languages
from .tasks.ocr import stages
from .tasks.ocr.channel_report import write_report


@dataclass
class ChannelConfig:
    """Settings of the OCR corrector.

    Args:
        corpus: Corpus folder or file: Parquet with Common Corpus columns.
        pairs: Folder of OCR pages and their truth, as training.tasks.pages writes it.
        out: Folder for the corrector, its report and the finished stages.
        model: Folder of the language model that judges changes. Default: none, the corrector is the first gate alone.
        languages: ISO codes. Default: all eight.
        passages: Passages of clean text per language, half of old and half of modern text.
        judged: Possible changes per language that the language model judges to learn from.
        measured: Texts of each kind and language in the report.
        workers: Processes, one language each.
        seed: Seed of the passages, the simulated errors and the trees.
    """

    corpus: Path
    pairs: Path
    out: Path
    model: Path | None = None
    languages: list[str] | None = None
    passages: int = 400
    judged: int = 4000
    measured: int = 60
    workers: int = 2
    seed: int = 0


def learn(config: ChannelConfig) -> None:
    """Run the stages that OUT/stages does not contain, and write the corrector and its report.

    Raises:
        InputError: If another program writes to OUT, OUT was begun with other settings, or an input is missing.
    """
    languages = checked_languages(config.languages)
    if config.model and not (config.model / "config.json").is_file():
        raise InputError(f"--model {config.model} is not a model folder: it has no config.json.")
    settings = stages.Settings(
        config.corpus, config.pairs, config.out / "stages", config.out, tuple(languages), config.passages,
        config.seed, config.model, config.judged, config.measured,
    )  # fmt: skip
    with lock_folder(config.out):
        _check_settings(config)
        pool = SpawnProcessPoolExecutor(min(config.workers, len(languages))) if config.workers > 1 else nullcontext()
        with pool as executor:
            _each(executor, stages.count, settings, [*languages, None], "words counted")
            stages.write_lexicons(settings)
            stages.learn_channel(settings)
            _each(executor, stages.propose, settings, languages, "changes proposed")
            stages.fit_first(settings)
            _each(executor, stages.judge_examples, settings, languages, "changes judged")
            stages.fit_gates(settings)
            _each(executor, stages.measure, settings, languages, "corrector measured")
        command = shell_line(["python", "-m", "training.ocr_channel", *sys.argv[1:]])
        write_report(config.out, stages.measured_rows(settings), command)


def _check_settings(config: ChannelConfig) -> None:
    """Refuse to resume with other settings than those that the finished stages had."""
    file = config.out / "stages" / "settings.json"
    values = {name: str(value) for name, value in asdict(config).items() if name not in ("out", "measured", "workers")}
    if file.is_file() and read_json(file) != values:
        raise InputError(f"{config.out} was begun with other settings: pass those of {file}, or use another --out.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, values)


def _each(executor: Executor | None, stage, settings: stages.Settings, languages: list, done: str) -> None:
    """Run a stage for each language, in processes if there are any."""
    run = executor.map if executor else map
    for language, _ in zip(languages, run(stage, [settings] * len(languages), languages), strict=True):
        print(f"{language or 'code'}: {done}", file=sys.stderr)


def main() -> None:
    """`python -m training.ocr_channel`."""
    config = parse(ChannelConfig, description="Learn the OCR corrector from a corpus and OCR pages.")
    torch.manual_seed(config.seed)
    learn(config)
    print(config.out / "REPORT.md")


if __name__ == "__main__":
    run_main(main)
