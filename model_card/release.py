"""From a run to everything a user downloads: folders that are ready for the Hub, and verified before they are there.

    python -m model_card.release --run runs/NAME --out dist/NAME
    python -m model_card.release --from_llama FOLDER --out dist/NAME

Everything is written under a temporary name, and takes the name `--out` when every check has passed; a failed check
leaves nothing behind but its sentence. What lies there then:

    custom/    model_type pleias, its code, auto_map     llama/     LlamaForCausalLM, no code
    gguf/      NAME-FORMAT.gguf, results.json            onnx/, openvino/
    run/ in the two flavours of a pretraining run: how it went, and what it read (run_files.py)
    release.json, and SHA256SUMS here and in each folder; README.md, card.json and evidence/ in each folder (card.py)

`release.json` is what the cards are made from:

    name, created (UTC), command, seconds, versions {package: version}, hardware {cpu, cpus}
    source     {kind: run | llama, path, run: the run's config, run.json, emissions.json and last validation, and the
               name on the Hub of its base_model or null; or null; earlier: the same of the runs that it went on from,
               the oldest first}
    model      {parameters, dtype, context, vocabulary, shape {the fields of config.json that give it}}
    license, languages [codes]
    folders    {folder: {bytes, files: {path: {bytes, sha256}}}}, cards and SHA256SUMS left out
    skipped    {format: why}
    checks     [{part: folder, name, figure: text for people, passed, values: {name: number or string}}]
    gguf       results.json of gguf/, or null: {scored_tokens, texts, lossless, torch {perplexity,
               own_deviation}, formats
               [{format, released, file, bytes, perplexity, perplexity_ratio, loss_nats_per_token,
               loss_standard_error, same_likeliest_token, greedy_equal (of F32 and BF16)}]}
"""

if not __package__:  # run by path; same as `python -m model_card.release`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import HfApi

from . import public_summary
from .card import RELATIONS, write_cards
from .checks import Checks, Reference, check_flavour
from .facts import base_of, history, roots
from .files import (
    SUMS,
    ReleaseError,
    portable,
    program,
    read_config,
    read_json,
    sha256,
    verify_sums,
    write_json,
    write_sums,
)
from .flavours import Source, open_llama, open_run, write_flavours
from .run_files import write_run
from .validate import validate

# What each further format needs beyond the base install, all of it in the extra [release].
NEEDS = {"gguf": ("gguf", "xllamacpp"), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
EXPORTERS_SINCE = (5, 23)  # release of transformers; the exports of earlier ones cannot be saved in this way
# Each folder is a repository of its own on the Hub; the one without code takes the plain name.
REPOSITORIES = {"llama": "", "custom": "-custom", "gguf": "-GGUF", "onnx": "-ONNX", "openvino": "-OpenVINO"}
GGUF_FORMATS = ("BF16", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0")
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of a finished run")
    source.add_argument("--from_llama", type=Path, help="folder labelled llama, such as the original's")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; its last part names the model")
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=list(NEEDS),
        help="formats beside the two flavours; when not given, all whose packages are installed",
    )
    parser.add_argument(
        "--gguf_formats", nargs="+", choices=GGUF_FORMATS, default=GGUF_FORMATS, help="GGUF files to write"
    )
    parser.add_argument("--max_shard_size", default="5GB", help="largest safetensors file")
    parser.add_argument(
        "--score_tokens", type=int, default=128, help="tokens a language that perplexity is measured on"
    )
    parser.add_argument("--license", default="apache-2.0", help="licence of the weights, as the Hub spells it")
    parser.add_argument("--provider", type=Path, help="provider.yaml: write the documents for the EU's AI Act from it")
    parser.add_argument(
        "--comparison", type=Path, help="folder of the run measured beside others; when not given, RUN/comparison"
    )
    parser.add_argument("--base_model", metavar="OWNER/NAME", help="what it started from; else config.yaml says")
    parser.add_argument("--base_model_relation", choices=RELATIONS, default="finetune", help="how it came from that")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload each folder, to OWNER/NAME and OWNER/NAME-FORMAT")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    args = parser.parse_args(argv)
    if args.provider and not args.run:
        parser.error("--provider needs --run: the documents account for a run's text.")
    return args


def choose_formats(asked: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """The formats to make, and those left out with the reason.

    Raises:
        ReleaseError: If a requested format needs a package that is missing, or a newer transformers.
    """
    chosen, skipped = [], {}
    for format in NEEDS if asked is None else dict.fromkeys(asked):
        missing = [name for name in NEEDS[format] if find_spec(name) is None]
        command = 'pip install "modeling-pleias[release]"'
        installed = tuple(int(part) for part in version("transformers").split(".")[:2])
        if format in ("onnx", "openvino") and installed < EXPORTERS_SINCE:
            missing.append("transformers>={}.{}".format(*EXPORTERS_SINCE))
            command += f' "{missing[-1]}"'
        if not missing:
            chosen.append(format)
            continue
        sentence = f"{format} needs {' and '.join(missing)}: {command}."
        if asked is not None:
            raise ReleaseError(sentence)
        skipped[format] = sentence
    return chosen, skipped


@contextmanager
def whole_or_not_there(out: Path):
    """Give a temporary folder beside `out`; it takes the name when the block ends well, and goes otherwise.

    Raises:
        ReleaseError: when `out` is there already.
    """
    if out.exists():
        raise ReleaseError(f"{out} is there already: delete it, or give another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def account_of_run(run: Path) -> dict:
    """What the run says of itself, for the card."""
    rows = (
        (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if (run / "metrics.jsonl").is_file() else []
    )
    metrics = [json.loads(row) for row in rows if '"validation"' in row]
    config = read_config(run)
    where = roots(run)
    return {
        "config": portable(config, *where),
        "base_model": base_of(config, run),
        "run": portable(read_json(run / "run.json"), *where),
        "emissions": read_json(run / "emissions.json") if (run / "emissions.json").is_file() else None,
        "validation": metrics[-1] if metrics else None,
    }


def describe(source: Source) -> dict:
    """The `source`, `model` and `languages` of release.json."""
    config = source.model.config
    shape = {name: getattr(config, name) for name in SHAPE}
    return {
        "source": {
            "kind": "run" if source.run else "llama",
            "path": portable(str(source.run or source.folder), *roots(source.run or source.folder)),
            "run": account_of_run(source.run) if source.run else None,
            "earlier": [account_of_run(run) for run in history(source.run)[:-1]] if source.run else [],
        },
        "model": {
            "parameters": source.model.num_parameters(),
            "dtype": str(source.model.dtype).removeprefix("torch."),
            "context": config.max_position_embeddings,
            "vocabulary": config.vocab_size,
            "shape": shape,
        },
        "languages": source.languages,
    }


def list_files(folder: Path) -> dict:
    """Bytes and hashes of the files of each folder, cards and lists of hashes left out."""
    folders = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = [p for p in sorted(part.rglob("*")) if p.is_file() and p.name not in (SUMS, "README.md")]
        files = {p.relative_to(part).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
        folders[part.name] = {"bytes": sum(file["bytes"] for file in files.values()), "files": files}
    return folders


def processor() -> str:
    """The processor's name, where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def build(args: argparse.Namespace, command: str) -> dict:
    """Make and verify `args.out`; returns what stands in release.json.

    Raises:
        ReleaseError: when the source cannot be released, or a check failed.
    """
    formats, skipped = choose_formats(args.formats)
    for sentence in skipped.values():
        print(f"skip  {sentence}")
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - start - sum(seconds.values()), 1)

    with whole_or_not_there(args.out) as out:
        source = open_run(args.run) if args.run else open_llama(args.from_llama)
        write_flavours(source, out, max_shard_size=args.max_shard_size)
        lap("writing the flavours")
        checks, reference = Checks(), Reference(source)
        for flavour in ("custom", "llama"):
            check_flavour(checks, reference, out / flavour)
        for flavour in ("custom", "llama") if source.run else ():
            write_run(source.run, out / flavour)
        lap("checking the flavours")
        if formats:
            from .fp32 import Fp32

            fp32 = Fp32(reference, score_tokens=args.score_tokens)
            lap("the reference in fp32")
        for format in formats:
            write_format(format, args, checks, reference, fp32, out)
            lap(format)
        checks.raise_on_failure()
        seconds["in all"] = round(time.perf_counter() - start, 1)
        packages = ["torch", "transformers", "tokenizers", "safetensors", "huggingface-hub"]
        packages += [name for format in formats for name in NEEDS[format]]
        release = {
            "name": args.out.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": portable(command, *roots(args.run or args.from_llama)),
            "seconds": seconds,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "hardware": {"cpu": processor(), "cpus": len(os.sched_getaffinity(0))},
            **describe(source),
            "license": args.license,
            "folders": list_files(out),
            "skipped": skipped,
            "checks": checks.to_json(),
            "gguf": read_json(out / "gguf" / "results.json") if "gguf" in formats else None,
        }
        write_json(out / "release.json", release)
        # Nothing in release.json is of the cards: they are made from it.
        options = {"base_model": args.base_model, "relation": args.base_model_relation}
        options |= {"comparison": args.comparison, "repository": args.push}
        documents = public_summary.write(args.run, args.provider, out) if args.provider else []
        write_cards(out, release["command"], run=args.run, documents=documents, **options)
        for part in release["folders"]:
            if problems := validate(out / part, run=False):
                raise ReleaseError(f"The card of {part} is not in order: {problems[0].message}.")
        write_sums(out)
    return release


def write_format(format: str, args: argparse.Namespace, checks: Checks, reference: Reference, fp32, out: Path) -> None:
    """Write one further format and check it. Its libraries are imported here, because they may be missing."""
    if format == "gguf":
        from .gguf_files import write_and_check

        write_and_check(
            checks,
            reference,
            fp32,
            out / "llama",
            out / "gguf",
            formats=list(dict.fromkeys(["BF16", *args.gguf_formats])),
            name=args.out.name,
            license=args.license,
            languages=reference.source.languages,
        )
    else:
        from .exports import check_export, export

        export(out / "llama", out / format, format=format)
        check_export(checks, fp32, out / format, format=format)


def push(folder: Path, repository: str, *, private: bool, api: Callable[[], HfApi] = HfApi) -> list[str]:
    """Upload each folder of a release to its own repository; returns their names.

    Raises:
        ReleaseError: when a file is not the one that SHA256SUMS lists.
    """
    verify_sums(folder)
    hub, made = api(), []
    for part, suffix in REPOSITORIES.items():
        if (folder / part).is_dir():
            hub.create_repo(repository + suffix, repo_type="model", private=private, exist_ok=True)
            message = f"Release {folder.name}"
            hub.upload_folder(repo_id=repository + suffix, folder_path=folder / part, commit_message=message)
            made.append(repository + suffix)
    return made


def main() -> None:
    """`python -m model_card.release`: see the docstring of this file."""
    args = options()
    transformers.logging.disable_progress_bar()
    release = build(args, shlex.join(["python", "-m", "model_card.release", *sys.argv[1:]]))
    laps = ", ".join(f"{name} {value:g} s" for name, value in release["seconds"].items())
    print(f"\n{len(release['checks'])} checks passed. Time: {laps}.")
    for name, part in release["folders"].items():
        print(f"{args.out / name}: {len(part['files'])} files, {part['bytes'] / 1e6:.1f} MB")
    if args.push:
        print("Uploaded to", ", ".join(push(args.out, args.push, private=args.private)))


if __name__ == "__main__":
    program(main)
