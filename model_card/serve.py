"""Serve a release, a run or a GGUF file over OpenAI's interface on this machine, with llama.cpp and its web page.

    pleias serve dist/NAME
    pleias serve runs/NAME --port 0
    pleias serve model-Q8_0.gguf

The interface is that of llama.cpp's server: /v1/completions, /v1/chat/completions, /v1/models, and its web page at /.
A request that states no decoding gets the model's: the one that its GGUF file or generation_config.json states, else
temperature 0 with repetition penalty 1.2 over the whole context. A base model has no chat template: the messages of a
chat request, joined, are the text that it continues.

Of a folder with GGUF files the BF16 file is served. The model of a folder without is first written to a temporary
GGUF file, which is removed when llama.cpp has opened it.
"""

if not __package__:  # run by path; same as `python -m model_card.serve`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "model_card"

import argparse
import json
import os
import shlex
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import gguf
import xllamacpp

from .disclosure.bom import weights_digest
from .escaping import terminal_line
from .files import ReleaseError, read_json, run_main, sha256
from .formats.llama_cpp import server_parameters

PENALTY = 1.2  # of the card, where a file states none
# Template of a base model. Without one, llama.cpp would use ChatML, which the model has never seen.
CONTINUE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PROMPT = "Au commencement de cette histoire, le roi"


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="Release folder, run folder, model folder, or GGUF file.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 lets the network in. Default: %(default)s."
    )
    parser.add_argument("--port", type=int, default=8000, help="Port; 0 takes a free one. Default: %(default)s.")
    return parser.parse_args(argv)


class Metadata(NamedTuple):
    """Description of a model in its GGUF file.

    Args:
        name: Name of the model.
        license: Identifier of the licence, or None.
        context: Context length in tokens.
        chat: Has a chat template.
        temperature: Temperature of its decoding.
        penalty: Repetition penalty.
        penalty_tokens: Tokens that the penalty looks back over.
    """

    name: str
    license: str | None
    context: int
    chat: bool
    temperature: float
    penalty: float
    penalty_tokens: int


def find_model(path: Path) -> Path:
    """Return the GGUF file or the model folder that a path means.

    Raises:
        ReleaseError: If there is none, or several files and no BF16 among them.
    """
    if not path.exists():
        raise ReleaseError(f"{path} does not exist: name a release, a run, a model folder or a GGUF file.")
    if path.is_file():
        return path
    for folder in (path / "gguf", path):
        if files := sorted(folder.glob("*.gguf")):
            chosen = [file for file in files if file.stem.endswith("-BF16")] or files
            if len(chosen) > 1:
                raise ReleaseError(f"{folder} contains {', '.join(file.name for file in chosen)}: name one of them.")
            return chosen[0]
    for folder in (path, path / "llama", path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "config.yaml").is_file():
        raise ReleaseError(f"{path} has no model/ yet: repeat the command that started the run, and let it finish.")
    raise ReleaseError(f"{path} contains no model: name a release, a run, a model folder or a GGUF file.")


def convert(folder: Path, out: Path) -> Path:
    """Write the model of a folder as a BF16 file in `out`, and return its path.

    Raises:
        ReleaseError: If the folder contains no complete causal language model of this architecture.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ("llama", "pleias"):
        raise ReleaseError(f"{folder} is not a Pleias or Llama model: model_type is {config.get('model_type')!r}.")
    if not any(folder.glob("*.safetensors")):
        raise ReleaseError(f"{folder} contains no weights (*.safetensors): copy the complete folder.")
    settings = read_json(folder / "tokenizer_config.json")
    needed = {f"{role}_token" for role in ("bos", "eos", "unk", "pad")}
    if "rope_parameters" not in config or not needed <= settings.keys():
        raise ReleaseError(
            f"{folder} lacks settings that a GGUF file needs: export it (pleias release --from_llama {folder} --out "
            "dist/NAME), and serve dist/NAME."
        )
    from .formats import gguf_writer  # lazy import: torch takes seconds

    name = (folder.resolve().parent if folder.name == "model" else folder.resolve()).name
    about = {"name": name, "license": None, "languages": []}
    if (folder / "evidence" / "release.json").is_file():  # a variant of a release
        release = read_json(folder / "evidence" / "release.json")
        about = {key: release[key] for key in about}
    print(f"Writing {name} as a temporary GGUF file ...", flush=True)
    gguf_writer.write_gguf(folder, path := out / "model.gguf", format="BF16", **about)
    return path


def read_metadata(path: Path) -> Metadata:
    """Read the description of a model from its GGUF file.

    Raises:
        ReleaseError: If the file is no GGUF file of a language model, or conversations have no template.
    """
    try:
        fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if not name.endswith("merges")}
        architecture = fields["general.architecture"].contents()
        context = fields[f"{architecture}.context_length"].contents()
    except (ValueError, LookupError) as error:
        raise ReleaseError(f"{path} is not a complete GGUF file of a language model ({error}).") from None

    def value(name: str, default):
        return fields[name].contents() if name in fields else default

    keys = gguf.Keys
    chat = keys.Tokenizer.CHAT_TEMPLATE in fields
    if keys.Tokenizer.EOT_ID in fields and not chat:
        raise ReleaseError(
            f"{path.name} was trained on conversations (it has a token that ends a turn) and contains no chat "
            "template: add chat_template.jinja to the model's folder, and convert it again."
        )
    penalty_tokens = value(keys.General.SAMPLING_PENALTY_LAST_N, -1)
    return Metadata(
        name=value(keys.General.NAME, path.stem),
        license=value(keys.General.LICENSE, None),
        context=context,
        chat=chat,
        temperature=value(keys.General.SAMPLING_TEMP, 0.0),
        penalty=value(keys.General.SAMPLING_PENALTY_REPEAT, PENALTY),
        penalty_tokens=context if penalty_tokens < 0 else penalty_tokens,
    )


def check_address(host: str, port: int) -> None:
    """Check that a program can listen on an address.

    Raises:
        ReleaseError: If it cannot.
    """
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"{host}:{port} cannot be used ({reason}): choose another --port; 0 takes a free one."
        raise ReleaseError(message) from None


def start(path: Path, metadata: Metadata, host: str, port: int, digest: str) -> xllamacpp.Server:
    """Start llama.cpp's server in this process.

    That its text is AI-generated, and the weights, are tags in /v1/models: completions have no field for them.

    Args:
        path: GGUF file.
        metadata: Description of the model.
        host: Address to listen on.
        port: Port, or 0 for a free one.
        digest: sha256 of the weights that the user named.

    Raises:
        ReleaseError: If llama.cpp does not load the file; its own message is on stderr.
    """
    parameters = server_parameters(path, context=metadata.context)
    parameters.model_alias = {metadata.name}
    parameters.model_tags = {"ai_generated", f"sha256:{digest}"}
    parameters.hostnames, parameters.port = [host], port
    parameters.cors_origins = ""  # no website may read from this server through the user's browser
    parameters.endpoint_slots = False  # lists the prompts of all users
    if not metadata.chat:
        parameters.chat_template = CONTINUE
    parameters.sampling.temp = metadata.temperature
    parameters.sampling.penalty_repeat = metadata.penalty
    parameters.sampling.penalty_last_n = metadata.penalty_tokens  # not -1, which turns the penalty off
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError:
        raise ReleaseError(f"llama.cpp does not load {path.name}; its message is above.") from None


def first_screen(metadata: Metadata, address: str) -> str:
    """Return the lines that are printed when the server answers."""
    over = "the whole context" if metadata.penalty_tokens >= metadata.context else f"{metadata.penalty_tokens} tokens"
    kind = "chat model" if metadata.chat else "base model, which continues a text"
    request = {"messages": [{"role": "user", "content": PROMPT}]} if metadata.chat else {"prompt": PROMPT}
    endpoint = f"{address}/v1/{'chat/' * metadata.chat}completions"
    body = shlex.quote(json.dumps(request | {"max_tokens": 40}))
    return "\n".join(
        [
            f"model     {terminal_line(metadata.name)} ({kind}; context of {metadata.context} tokens)",
            f"licence   {terminal_line(metadata.license or 'not stated')}",
            f"decoding  temperature {metadata.temperature:g}, repetition penalty {metadata.penalty:.3g} over {over}, "
            "unless a request states its own",
            f"text      AI-generated: say so where it is shown. {address}/v1/models states the sha256 of the weights",
            f"page      {address}",
            f"request   curl -s {endpoint} -H 'Content-Type: application/json' -d {body}",
            "Ctrl-C ends it.",
        ]
    )


def serve(args: argparse.Namespace) -> None:
    """Serve the model of the command line until a signal raises SystemExit."""
    check_address(args.host, args.port)
    model = find_model(args.model)
    with TemporaryDirectory(prefix="pleias-serve-") as temporary:
        path = model if model.is_file() else convert(model, Path(temporary))
        metadata = read_metadata(path)
        hashes = {file.name: sha256(file) for file in ([model] if model.is_file() else model.glob("*.safetensors"))}
        digest = hashes.get(model.name) or weights_digest(hashes)
        # In a thread, because a signal that arrives meanwhile would destroy the server before it has a name.
        server = ThreadPoolExecutor(1).submit(start, path, metadata, args.host, args.port, digest).result()
    print(first_screen(metadata, server.listening_address), flush=True)
    threading.Event().wait()


def main() -> None:
    """`pleias serve`: see the docstring of this file."""
    args = options()
    try:
        serve(args)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code)  # the server's destructor waits for running requests, and for ever if it has just started


if __name__ == "__main__":
    run_main(main)
