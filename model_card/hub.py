"""Metadata of model cards that the Hub accepts, results on its benchmarks, and the repositories of a release."""

import json
import shutil
from pathlib import Path

import yaml

from .files import read_json, write_text

LISTS = json.loads(Path(__file__).with_name("hub_lists.json").read_text(encoding="utf-8"))
# Each folder becomes its own repository on the Hub; the variant without code has the plain name.
REPOSITORIES = {"llama": "", "custom": "-custom", "gguf": "-GGUF", "onnx": "-ONNX", "openvino": "-OpenVINO"}
RESULTS, PUBLIC = ".eval_results", "evidence/eval/public.json"


def benchmark_results(result: dict, repository: str | None) -> dict[str, dict]:
    """Return the content of each file of .eval_results/ by task: results on benchmarks of the Hub, in percent.

    Args:
        result: Result of the task `public` of training.evaluate. One over part of the examples is no result.
        repository: OWNER/NAME on the Hub, if known, to which the source of each result links.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml  # lazy import: takes a second

    settings, entries = result.get("settings") or {}, {}
    shots = settings.get("num_fewshot")
    for name, benchmark in LISTS["benchmarks"].items():
        value = result["metrics"].get(f"{name}, {benchmark['metric']}")
        if value is None or settings.get("limit"):
            continue
        number = value["value"] if isinstance(value, dict) else value
        number_of = "the benchmark's number of" if shots is None else shots
        entry = EvalResultEntry(
            dataset_id=benchmark["dataset"],
            task_id=benchmark["task"],
            value=round(100 * number, 4),
            date=result["date"][:10],
            source_url=f"https://huggingface.co/{repository}/blob/main/{PUBLIC}" if repository else None,
            source_name=PUBLIC if repository else None,
            notes=f"{number_of} few-shot examples; {name}, {benchmark['metric']}; lm_eval {result['lm_eval']}",
        )
        entries[benchmark["task"]] = eval_result_entries_to_yaml([entry])
    return entries


def write_benchmark_results(folder: Path, repository: str | None) -> None:
    """Write .eval_results/TASK.yaml of a variant whose evidence is written; the Hub ranks models by them.

    Args:
        folder: The folder.
        repository: OWNER/NAME on the Hub, if known.
    """
    shutil.rmtree(folder / RESULTS, ignore_errors=True)  # of another run
    for task, entries in (
        benchmark_results(read_json(folder / PUBLIC), repository).items() if (folder / PUBLIC).is_file() else ()
    ):
        (folder / RESULTS).mkdir(exist_ok=True)
        write_text(folder / RESULTS / f"{task}.yaml", yaml.safe_dump(entries, sort_keys=False))
