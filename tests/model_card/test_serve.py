"""`pleias serve` answers over OpenAI's interface with the card's decoding, on this machine alone, and ends cleanly."""

import gzip
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import xllamacpp
from test_release import like_the_original, run  # noqa: F401 (fixtures)
from transformers import AutoTokenizer, pipeline

from model_card import serve
from model_card.files import ReleaseError, read_json, sha256, write_json
from model_card.formats import gguf_writer, variants
from model_card.formats.llama_cpp import server_parameters
from model_card.run import Run
from training.tasks import instruct
from training.tasks.instruct.format import END

PROMPT, CONTEXT = "Au commencement", 256
JSON = {"Content-Type": "application/json"}
TOOL = {"name": "get_info", "description": "Get runtime info", "parameters": {"properties": {}, "type": "object"}}
WEB_PAGE = {"tools": [{"type": "function", "function": TOOL}]}  # which llama.cpp's web page adds to each request
CARD = {"temperature": 0, "repeat_penalty": 1.2, "repeat_last_n": CONTEXT}


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):  # noqa: F811
    """GGUF file of the model of a run, as `serve` writes it."""
    return serve.convert(serve.find_model(run), tmp_path_factory.mktemp("gguf"))


def start(path):
    """A server of a GGUF file in this process, on a free port; it ends when the last reference to it does."""
    return serve.start(path, serve.read_metadata(path), "127.0.0.1", 0, "0" * 64)


def post(server, endpoint, body):
    """The response to a request, or the data of its events if it streams."""
    address = server if isinstance(server, str) else server.listening_address
    request = urllib.request.Request(address + endpoint, json.dumps(body).encode(), JSON)
    with urllib.request.urlopen(request, timeout=60) as response:
        if body.get("stream"):
            return [line.removeprefix("data: ") for line in response.read().decode().split("\n") if line]
        return json.load(response)


def complete(server, **fields):
    """The text of a completion of 80 tokens, more than llama.cpp's penalty looks back over by default."""
    return post(server, "/v1/completions", {"prompt": PROMPT, "max_tokens": 80, **fields})["choices"][0]["text"]


def with_settings(folder, target, **changes):
    """A copy of a model folder with other values in generation_config.json."""
    shutil.copytree(folder, target)
    settings = read_json(target / "generation_config.json")
    write_json(target / "generation_config.json", settings | changes)
    return target


def test_the_model_of_a_run_becomes_the_file_that_a_release_contains(run, served, tmp_path):  # noqa: F811
    variants.export_variants(variants.open_run(Run(run)), tmp_path, max_shard_size="5GB")
    gguf_writer.write_gguf(tmp_path / "llama", tmp_path / "released.gguf", format="BF16", name="tiny")
    assert served.read_bytes() == (tmp_path / "released.gguf").read_bytes()


def test_a_request_without_decoding_gets_the_cards_and_another_its_own(served):
    server = start(served)
    default = complete(server)
    assert default == complete(server, **CARD)
    for fields in ({"repeat_penalty": 1.0}, {"repeat_last_n": 64}, {"temperature": 2, "seed": 1}):
        assert complete(server, **fields) == complete(server, **CARD | fields) != default


def test_the_default_is_the_text_of_transformers(run, served):  # noqa: F811
    generate = pipeline("text-generation", model=str(run / "model"), dtype=torch.float32)
    expected = generate(PROMPT, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    assert complete(start(served), max_tokens=5) == expected  # random weights: near ties make them differ later


def test_the_decoding_of_generation_config_json_wins(run, tmp_path):  # noqa: F811
    folder = with_settings(run / "model", tmp_path / "model", repetition_penalty=1.0)
    path = serve.convert(folder, tmp_path)
    assert complete(start(path)) == complete(start(path), repeat_penalty=1.0) != complete(start(path), **CARD)


def test_a_file_that_states_no_decoding_gets_the_cards(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(gguf_writer, "add_decoding", lambda *arguments: None)
    server = start(serve.convert(run / "model", tmp_path))
    assert complete(server) == complete(server, **CARD)


def test_llama_cpp_takes_the_decoding_from_the_file(served):
    server = xllamacpp.Server(server_parameters(served, context=CONTEXT))
    with urllib.request.urlopen(f"{server.listening_address}/props") as response:
        settings = json.load(response)["default_generation_settings"]["params"]
    assert {name: settings[name] for name in CARD} == pytest.approx(CARD)


def test_a_stream_is_the_text_in_pieces(served):
    server = start(served)
    *events, done = post(server, "/v1/completions", {"prompt": PROMPT, "max_tokens": 30, "stream": True})
    pieces = [json.loads(event)["choices"][0]["text"] for event in events]
    assert done == "[DONE]" and len(pieces) > 10
    assert "".join(pieces) == complete(server, max_tokens=30)


def test_a_base_model_continues_the_messages_of_a_chat(served):
    messages = [{"role": "user", "content": part} for part in (PROMPT[:6], PROMPT[6:])]
    server = start(served)
    answer = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 80, **WEB_PAGE})
    assert answer["choices"][0]["message"]["content"] == complete(server)


def chat_model(run, folder, *, template=True):  # noqa: F811
    """A copy of a model that ends turns, as one that was fine-tuned on conversations."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    with_settings(run / "model", folder, eos_token_id=[2, tokenizer.convert_tokens_to_ids(END)])
    if template:
        instruct.add_chat_template(tokenizer).save_pretrained(folder)
    return folder


def test_a_chat_model_gets_the_conversation_in_its_template(run, tmp_path):  # noqa: F811
    path = serve.convert(folder := chat_model(run, tmp_path / "chat"), tmp_path)
    messages = [{"role": "user", "content": "Bonjour"}, {"role": "assistant", "content": "Salut"}]
    messages.append({"role": "user", "content": PROMPT})
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    server = start(path)
    answer = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 20, **WEB_PAGE})
    expected = complete(server, prompt=prompt.removeprefix("<|begin_of_text|>"), max_tokens=20)
    assert answer["choices"][0]["message"]["content"] == expected
    assert "/v1/chat/completions" in serve.first_screen(serve.read_metadata(path), "http://127.0.0.1:1")


def test_the_server_listens_on_this_machine_alone_and_no_website_may_read_it(served):
    server = start(served)
    port = int(server.listening_address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):  # on Linux, each 127.x.y.z is an address of this machine
        socket.create_connection(("127.0.0.2", port), timeout=5)
    request = urllib.request.Request(f"{server.listening_address}/v1/models", headers={"Origin": "https://a.example"})
    with urllib.request.urlopen(request) as response:
        assert not response.headers["Access-Control-Allow-Origin"]
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{server.listening_address}/slots")
    with pytest.raises(ReleaseError, match=f"127.0.0.1:{port} cannot be used .*choose another --port"):
        serve.check_address("127.0.0.1", port)


@pytest.fixture
def program(served, tmp_path):
    """The program as a process, and the lines of its first screen; it is killed if the test leaves it running."""
    released = tmp_path / "tiny"
    (released / "gguf").mkdir(parents=True)
    shutil.copyfile(served, released / "gguf" / "tiny-BF16.gguf")
    command = [sys.executable, "-m", "model_card.serve", str(released), "--port", "0"]
    root = Path(serve.__file__).parent.parent
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a shell starts in the background, such as these tests, ignores SIGINT, and so would the server.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=root, **options) as process:
        try:
            yield process, list(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        finally:
            process.kill()


def test_the_first_screen_states_model_licence_and_a_request_and_ctrl_c_ends_a_running_one(program, served):
    process, lines = program
    screen = dict(line.strip().split(None, 1) for line in lines)
    assert screen["model"].startswith("tiny (base model") and screen["licence"] == "not stated"
    assert screen["decoding"].startswith("temperature 0, repetition penalty 1.2 over the whole context")
    curl, _, url, _, header, _, body = shlex.split(screen["request"])
    assert (curl, header) == ("curl", "Content-Type: application/json") and url.startswith(screen["page"])
    assert post(screen["page"], url.removeprefix(screen["page"]), json.loads(body))["choices"][0]["text"]
    with urllib.request.urlopen(f"{screen['page']}/v1/models") as response:
        (entry,) = json.load(response)["data"]
    assert screen["text"].startswith("AI-generated: say so")
    assert set(entry["tags"]) == {"ai_generated", f"sha256:{sha256(served)}"}
    page = urllib.request.Request(screen["page"], headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(page) as response:
        assert "<!doctype html>" in gzip.decompress(response.read()).decode()
    body = json.dumps({"prompt": PROMPT, "max_tokens": 10**6, "ignore_eos": True, "stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, JSON)) as stream:
        assert stream.readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert process.stderr.read() == "\nStopped by SIGINT.\n"


def test_sigterm_ends_it(program):
    process, _ = program
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert process.stderr.read() == "\nStopped by SIGTERM.\n"


def bad_input(name, run, original, served, folder):  # noqa: F811
    """A path that cannot be served."""
    if name == "nothing":
        return folder / "nothing"
    folder.mkdir()
    if name == "unfinished":
        (folder / "config.yaml").touch()
    if name == "two files":
        (folder / "a-Q8_0.gguf").touch()
        (folder / "b-Q8_0.gguf").touch()
    if name == "text":
        (folder / "a.gguf").write_text("no GGUF")
    if name == "cut off":
        (folder / "a.gguf").write_bytes(served.read_bytes()[:5000])
    if name in ("other model", "no weights"):
        shutil.copytree(run / "model", folder, dirs_exist_ok=True)
        if name == "no weights":
            (folder / "model.safetensors").unlink()
        else:
            write_json(folder / "config.json", read_json(folder / "config.json") | {"model_type": "bert"})
    if name == "no template":
        return chat_model(run, folder / "model", template=False)
    return original if name == "original" else folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"does not exist: name a release, a run"),
        ("empty", r"contains no model: name a release, a run"),
        ("unfinished", r"has no model/ yet: repeat the command"),
        ("two files", r"contains a-Q8_0.gguf, b-Q8_0.gguf: name one of them"),
        ("text", r"a.gguf is not a complete GGUF file"),
        ("cut off", r"a.gguf is not a complete GGUF file"),
        ("other model", r"model_type is 'bert'"),
        ("no weights", r"contains no weights"),
        ("no template", r"contains no chat template: add chat_template.jinja"),
        ("original", r"pleias release --from_llama .*, and serve dist/NAME"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(name, message, run, like_the_original, served, tmp_path, monkeypatch):  # noqa: F811
    path = bad_input(name, run, like_the_original, served, tmp_path / "input")
    monkeypatch.setattr(sys, "argv", ["serve", str(path), "--port", "0"])
    with pytest.raises(ReleaseError, match=message) as error:
        serve.main()
    assert re.fullmatch(r"[^\n]+\.", str(error.value))
