"""Export a run as verified folders for the Hub (safetensors, GGUF, ONNX, OpenVINO).

    python -m model_card.release --run runs/NAME --out dist/NAME
    python -m model_card.release --from_llama FOLDER --out dist/NAME

Everything is written under a temporary name, and renamed to `--out` after every check has passed; a failed check
leaves only its message. The result:

    custom/    model_type pleias, its code, auto_map     llama/     LlamaForCausalLM, no code
    gguf/      NAME-FORMAT.gguf, results.json            onnx/, openvino/
    runs/NAME/ in both variants, for each pretraining run that the weights come from (run_export.py)
    release.json, and SHA256SUMS here and in each folder; README.md, card.json and evidence/ in each folder (card.py);
    bom.cdx.json in each folder (disclosure/bom.py), and model.sig (signing.py) with --sign

The cards are written from `release.json`:

    name, created (UTC), command, seconds, versions {package: version}, hardware {cpu, cpus}
    source     {kind: run | llama, path, run: the run's config, run.json, emissions.json and last validation, and the
               Hub name of its base_model or null; or null}
    model      {parameters, dtype, context, vocabulary, shape {the fields of config.json that define it}}
    license, languages [codes], provider {name, contact} or null,
    signature {public_key_sha256} or null
    folders    {folder: {bytes, files: {path: {bytes, sha256}}}}, without cards and SHA256SUMS
    skipped    {format, also of gguf: reason}
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
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import HfApi

import modeling_pleias

from . import public_summary, signing
from .card import RELATIONS, write_cards
from .disclosure.ai_act_inputs import read_provider
from .disclosure.bom import write_boms
from .disclosure.dataset_metadata import write_shard_metadata
from .escaping import shell_line
from .facts import base_of
from .files import (
    SUMS,
    ReleaseError,
    atomic_folder,
    read_json,
    relativize_paths,
    run_main,
    sha256,
    verify_sums,
    write_json,
    write_sums,
)
from .formats.checks import Checks, ReferenceModel, check_variant
from .formats.variants import ReleaseSource, export_variants, open_llama, open_run, write_licences
from .hub import REPOSITORIES
from .run import Run, path_roots
from .run_export import write_run
from .validate import validate

# Packages that each further format needs; the extra [release] contains all of them.
NEEDS = {"gguf": ("gguf", "xllamacpp"), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
EXPORTERS_SINCE = (5, 23)  # release of transformers; exports of earlier releases cannot be saved in this way
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
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="Folder of a finished run.")
    source.add_argument("--from_llama", type=Path, help="Model folder with model_type llama, such as the original's.")
    parser.add_argument("--out", type=Path, required=True, help="New folder; its last part names the model.")
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=list(NEEDS),
        help="Formats besides the two variants. Default: all whose packages are installed.",
    )
    parser.add_argument(
        "--gguf_formats",
        nargs="+",
        choices=GGUF_FORMATS,
        help="GGUF formats to write besides BF16. Default: all that the model's size allows.",
    )
    parser.add_argument("--max_shard_size", default="5GB", help="Maximum size of a safetensors file. Default: 5GB.")
    parser.add_argument(
        "--perplexity_tokens",
        type=int,
        default=128,
        help="Tokens per language for the perplexity of each GGUF format. Default: 128.",
    )
    parser.add_argument(
        "--license",
        default="apache-2.0",
        help="Hub licence identifier of the weights, such as apache-2.0. Default: apache-2.0.",
    )
    parser.add_argument("--provider", type=Path, help="provider.yaml, to write the documents for the EU's AI Act.")
    parser.add_argument(
        "--comparison", type=Path, help="Folder with the results of the run and of baselines. Default: RUN/comparison."
    )
    parser.add_argument(
        "--base_model",
        metavar="OWNER/NAME",
        help="Hub name of the model that the run started from. Default: that of config.yaml.",
    )
    parser.add_argument(
        "--base_model_relation", choices=RELATIONS, default="finetune", help="Relation to it. Default: finetune."
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="OWNER/NAME",
        help="Upload each folder, to OWNER/NAME and OWNER/NAME-FORMAT. Default: no upload.",
    )
    parser.add_argument("--private", action="store_true", help="Make new repositories private.")
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY.pem",
        help="Private ECDSA key to sign each folder with. Default: no signature.",
    )
    parser.add_argument("--certificate", type=Path, help="Certificate of that key, in PEM. Default: none.")
    parser.add_argument(
        "--chain",
        type=Path,
        nargs="+",
        default=[],
        help="Certificates between it and a trusted issuer. Default: none.",
    )
    args = parser.parse_args(argv)
    if (args.certificate or args.chain) and not (args.sign and args.certificate):
        parser.error("--certificate needs --sign, and --chain needs --certificate.")
    if args.provider and not args.run:
        parser.error("--provider needs --run, because the documents list a run's training data.")
    return args


def choose_formats(requested: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the formats to write, and the skipped ones with the reason.

    Raises:
        ReleaseError: If a requested format needs a package that is missing, or a newer transformers.
    """
    chosen, skipped = [], {}
    for format in NEEDS if requested is None else dict.fromkeys(requested):
        missing = [name for name in NEEDS[format] if find_spec(name) is None]
        command = 'pip install "modeling-pleias[release]"'
        installed = tuple(int(part) for part in version("transformers").split(".")[:2])
        if format in ("onnx", "openvino") and installed < EXPORTERS_SINCE:
            missing.append("transformers>={}.{}".format(*EXPORTERS_SINCE))
            command += f' "{missing[-1]}"'
        if not missing:
            chosen.append(format)
            continue
        reason = f"{format} needs {' and '.join(missing)}: {command}."
        if requested is not None:
            raise ReleaseError(reason)
        skipped[format] = reason
    return chosen, skipped


def choose_gguf_formats(requested: list[str] | None, source: ReleaseSource) -> tuple[list[str], dict[str, str]]:
    """Return the GGUF formats to write, always with BF16, and those that the model is too small for, with the reason.

    Raises:
        ReleaseError: If a requested format is among the latter, or GGUF cannot express the model.
    """
    from .formats import gguf_writer  # lazy import: its libraries may be missing

    config = source.model.config
    gguf_writer.check_model(source.folder, config.rope_parameters)
    formats = list(dict.fromkeys(["BF16", *(requested or GGUF_FORMATS)]))
    shapes = {name: tuple(tensor.shape) for name, tensor in source.model.state_dict().items()}
    impossible = gguf_writer.impossible_formats(formats, shapes, config.num_hidden_layers)
    if requested and impossible:
        raise ReleaseError(f"{' '.join(impossible.values())} Choose other --gguf_formats.")
    return [format for format in formats if format not in impossible], impossible


def run_metadata(run: Run) -> dict:
    """Return the run's own records, for the card."""
    return {
        "config": run.relative(run.config),
        "base_model": base_of(run.config, run.folder),
        "run": run.relative(run.record),
        "emissions": run.emissions,
        "validation": run.validation,
    }


def describe_source(source: ReleaseSource) -> dict:
    """Return the `source`, `model` and `languages` of release.json."""
    config, folder = source.model.config, source.run.folder if source.run else source.folder
    shape = {name: getattr(config, name) for name in SHAPE}
    return {
        "source": {
            "kind": "run" if source.run else "llama",
            "path": relativize_paths(str(folder), *path_roots(folder)),
            "run": run_metadata(source.run) if source.run else None,
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
    """Return the bytes and hashes of the files of each folder, without cards and lists of hashes."""
    folders = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = [p for p in sorted(part.rglob("*")) if p.is_file() and p.name not in (SUMS, "README.md")]
        files = {p.relative_to(part).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
        folders[part.name] = {"bytes": sum(file["bytes"] for file in files.values()), "files": files}
    return folders


def cpu_name() -> str:
    """Return the name of the CPU, if the system states it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def open_signer(args: argparse.Namespace):
    """Return the signer of `signing.make_signer`, or None without --sign.

    Raises:
        ReleaseError: If the key cannot sign or is inside --out, or model-signing is missing.
    """
    if not args.sign:
        return None
    if find_spec("model_signing") is None:
        raise ReleaseError('--sign needs model-signing: pip install "modeling-pleias[release]".')
    if args.sign.resolve().is_relative_to(args.out.resolve()):
        raise ReleaseError(f"{args.sign} is inside --out, which is published: move the key to another folder.")
    return signing.make_signer(args.sign, args.certificate, args.chain)


def build_release(args: argparse.Namespace, command: str) -> dict:
    """Write and verify `args.out`; return the content of release.json.

    Raises:
        ReleaseError: If the source cannot be released, or a check failed.
    """
    formats, skipped = choose_formats(args.formats)
    signer = open_signer(args)
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - start - sum(seconds.values()), 1)

    with atomic_folder(args.out) as out:
        run = Run(args.run) if args.run else None
        documents = public_summary.fill_documents(run, args.provider) if args.provider else {}
        named = read_provider(args.provider)["provider"] if args.provider else {}
        provider = {key: named[key] for key in ("name", "contact")} if named.get("name") else None
        source = open_run(run) if run else open_llama(args.from_llama)
        gguf_formats, impossible = choose_gguf_formats(args.gguf_formats, source) if "gguf" in formats else ([], {})
        skipped |= impossible
        for reason in skipped.values():
            print(f"skip  {reason}")
        export_variants(source, out, max_shard_size=args.max_shard_size)
        lap("writing the variants")
        checks, reference = Checks(), ReferenceModel(source)
        for variant in ("custom", "llama"):
            check_variant(checks, reference, out / variant)
        for variant in ("custom", "llama") if run else ():
            write_run(run, out / variant)
        lap("checking the variants")
        if formats:
            from .formats.fp32_reference import Fp32Reference

            fp32 = Fp32Reference(reference, score_tokens=args.perplexity_tokens)
            lap("the reference in fp32")
        for format in formats:
            write_format(format, args, checks, reference, fp32, out, gguf_formats)
            lap(format)
        checks.raise_on_failure()
        write_licences(source, out, args.license)
        seconds["total"] = round(time.perf_counter() - start, 1)
        packages = ["torch", "transformers", "tokenizers", "safetensors", "huggingface-hub"]
        packages += [name for format in formats for name in NEEDS[format]]
        release = {
            "name": args.out.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": relativize_paths(command, *path_roots(args.run or args.from_llama)),
            "seconds": seconds,
            "versions": {
                "python": platform.python_version(),
                "modeling_pleias": modeling_pleias.__version__,
                **{name: version(name) for name in packages},
            },
            "hardware": {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0))},
            **describe_source(source),
            "license": args.license,
            "provider": provider,
            "signature": {"public_key_sha256": signing.fingerprint(args.sign)} if signer else None,
            "folders": list_files(out),
            "skipped": skipped,
            "checks": checks.to_json(),
            "gguf": read_json(out / "gguf" / "results.json") if "gguf" in formats else None,
        }
        write_json(out / "release.json", release)
        # release.json does not describe the cards, because they are written from it.
        options = {"base_model": args.base_model, "relation": args.base_model_relation}
        options |= {"comparison": args.comparison, "repository": args.push_to_hub}
        if documents:
            public_summary.write_documents(documents, out)
        files = [out / name for name in public_summary.PUBLISHED if documents]
        write_cards(out, release["command"], run=run, documents=files, **options)
        for part in release["folders"]:
            if problems := validate(out / part, run=False):
                raise ReleaseError(f"The card of {part} is not valid: {problems[0].message}.")
        write_shard_metadata(out / "llama", [out / part for part in release["folders"]], args.push_to_hub)
        write_boms(out, args.push_to_hub)
        write_sums(out)
        for part in release["folders"] if signer else ():
            signing.sign_folder(out / part, signer)
    return release


def write_format(
    format: str,
    args: argparse.Namespace,
    checks: Checks,
    reference: ReferenceModel,
    fp32,
    out: Path,
    gguf_formats: list[str],
) -> None:
    """Write and check one further format. Lazy imports, because its libraries may be missing."""
    if format == "gguf":
        from .formats.gguf_release import write_and_check

        write_and_check(
            checks,
            reference,
            fp32,
            out / "llama",
            out / "gguf",
            formats=gguf_formats,
            name=args.out.name,
            license=args.license,
            languages=reference.source.languages,
        )
    else:
        from .formats.exports import check_export, export_format

        export_format(out / "llama", out / format, format=format)
        check_export(checks, fp32, out / format, format=format)


def push(folder: Path, repository: str, *, private: bool, api: Callable[[], HfApi] = HfApi) -> list[str]:
    """Upload each folder of a release to its own repository; return the repositories' names.

    Raises:
        ReleaseError: If a file is not the one that SHA256SUMS lists.
    """
    verify_sums(folder)
    hub, repositories = api(), []
    for part, suffix in REPOSITORIES.items():
        if (folder / part).is_dir():
            hub.create_repo(repository + suffix, repo_type="model", private=private, exist_ok=True)
            message = f"Release {folder.name}"
            hub.upload_folder(repo_id=repository + suffix, folder_path=folder / part, commit_message=message)
            repositories.append(repository + suffix)
    return repositories


def main() -> None:
    """`python -m model_card.release`: see the docstring of this file."""
    args = options()
    transformers.logging.disable_progress_bar()
    release = build_release(args, shell_line(["python", "-m", "model_card.release", *sys.argv[1:]]))
    laps = ", ".join(f"{name} {value:g} s" for name, value in release["seconds"].items())
    print(f"\n{len(release['checks'])} checks passed. Time: {laps}.")
    for name, part in release["folders"].items():
        print(f"{args.out / name}: {len(part['files'])} files, {part['bytes'] / 1e6:.1f} MB")
    if args.push_to_hub:
        print("Uploaded to", ", ".join(push(args.out, args.push_to_hub, private=args.private)))


if __name__ == "__main__":
    run_main(main)
