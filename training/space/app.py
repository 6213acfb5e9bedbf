"""Page of a Pleias model in the browser, which runs without this package: continuation in eight languages.

    python app.py [--model FOLDER_OR_NAME_OR_GGUF] [--index FOLDER]

The model is a folder, a name on the Hub or a GGUF file, from --model or the environment variable MODEL. Where the
package modeling-pleias[app] is installed, it is `pleias app`, whose further tabs call the package: sources, OCR
correction, translation, answers. No GPU is needed.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import gradio as gr

PROMPTS = {
    "English": "The old library stood by the river, and on winter evenings",
    "French": "La vieille bibliothèque se dressait au bord du fleuve, et les soirs d'hiver",
    "Spanish": "La vieja biblioteca se alzaba junto al río, y en las tardes de invierno",
    "German": "Die alte Bibliothek stand am Fluss, und an Winterabenden",
    "Italian": "La vecchia biblioteca sorgeva in riva al fiume, e nelle sere d'inverno",
    "Dutch": "De oude bibliotheek stond aan de rivier, en op winteravonden",
    "Latin": "In principio creavit Deus caelum et terram",
    "Portuguese": "A velha biblioteca erguia-se à beira do rio, e nas noites de inverno",
}
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # on no server


class Torch:
    """Model of transformers.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, name: str, *, trust_remote_code: bool) -> "Torch":
        """Load a model in a folder or on the Hub; `trust_remote_code` runs the code in its folder."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        # float32 is lossless, and several times as fast as bfloat16 on a CPU without bfloat16 instructions.
        fast = torch.accelerator.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)
        settings = {"dtype": "auto" if fast else "float32", "trust_remote_code": trust_remote_code}
        return cls(AutoModelForCausalLM.from_pretrained(name, **settings), tokenizer)

    def stream(self, prompt: str, count: int, temperature: float, penalty: float) -> Iterator[str]:
        """Yield the continuation of the prompt, longer each time; an error of the generating thread is raised here."""
        from transformers import TextIteratorStreamer

        inputs = self.tokenizer(prompt, return_tensors="pt", truncation=True)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=300)
        settings = {"max_new_tokens": count, "repetition_penalty": penalty, "do_sample": temperature > 0}
        settings |= {"temperature": temperature} if temperature > 0 else {}

        def generate() -> None:
            try:
                self.model.generate(**inputs, **settings, streamer=streamer)
            finally:
                streamer.on_finalized_text("", stream_end=True)  # else this request waits, and the queue behind it

        thread = ThreadPoolExecutor(1)
        generation = thread.submit(generate)
        thread.shutdown(wait=False)
        text = ""
        for piece in streamer:
            text += piece
            yield text
        generation.result()


class Gguf:
    """Model in a GGUF file, loaded with llama.cpp.

    Args:
        path: GGUF file.
    """

    def __init__(self, path: str):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = path
        parameters.n_parallel, parameters.n_gpu_layers, parameters.warmup = 1, 0, False
        parameters.verbosity = 1  # errors
        self.server = xllamacpp.Server(parameters)

    def stream(self, prompt: str, count: int, temperature: float, penalty: float) -> Iterator[str]:
        """Yield the continuation of the prompt, longer each time."""
        import urllib.request

        body = {"prompt": prompt, "n_predict": count, "temperature": temperature, "repeat_penalty": penalty}
        body = json.dumps(body | {"repeat_last_n": 4096, "stream": True}).encode()
        address, text = f"{self.server.listening_address}/completion", ""
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    text += json.loads(line.removeprefix(b"data: "))["content"]
                    yield text


def complete(model: Torch | Gguf, text: str, count: int, temperature: float, penalty: float) -> Iterator[str]:
    """Yield a text with its continuation, longer each time: the completions of all tabs are made here."""
    if not text.strip():
        raise gr.Error("The text is empty: enter one.", print_exception=False)
    for new in model.stream(text, count, temperature, penalty):
        yield text + new


def origin(name: str, weights: list[Path]) -> dict:
    """Return what accompanies each completion: that a model wrote it, its name, and the sha256 of its weights.

    Of several files, it is the sha256 of the sorted lines `HASH  FILE`, as in the BOM of a release.
    """
    lines = []
    for path in weights:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        lines.append(f"{digest.hexdigest()}  {path.name}\n")
    text = "".join(sorted(lines))
    digest = text.partition(" ")[0] if len(lines) == 1 else hashlib.sha256(text.encode()).hexdigest()
    return {"ai_generated": True, "model": name, "sha256": digest}


def build_page(model: Torch | Gguf, name: str, tabs: Mapping[str, Callable[[], None]], mark: dict) -> gr.Blocks:
    """Build the page.

    Args:
        model: Model that continues texts.
        name: Title of the page.
        tabs: Title of each further tab, and a function that adds its components.
        mark: Result of `origin`, which each continuation returns, too.
    """
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(
            f"# {name}\nA base model: it continues text, and may state falsehoods. Decoding is greedy by default."
        )
        with gr.Tab("Continue"):
            with gr.Accordion("Decoding", open=False):
                settings = [
                    gr.Slider(1, 512, 64, step=1, label="New tokens"),
                    gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: greedy)"),
                    gr.Slider(1, 2, 1.2, step=0.05, label="Repetition penalty"),
                ]
            language = gr.Dropdown(list(PROMPTS), value="English", label="Opening in")
            text = gr.Textbox(PROMPTS["English"], lines=3, label="Text")
            out = gr.Textbox(lines=8, label="Continued (AI-generated)")
            language.change(PROMPTS.get, language, text)

            def continue_text(*values) -> Iterator[tuple[str, dict]]:
                for continued in complete(model, *values):
                    yield continued, mark

            button = gr.Button("Continue", variant="primary")
            button.click(continue_text, [text, *settings], [out, gr.JSON(label="Origin")])
        for title, add in tabs.items():
            with gr.Tab(title):
                add()
    return page


def find_weights(model: str) -> list[Path]:
    """Return the files of weights of a GGUF file, a folder, or a model on the Hub that was just loaded."""
    from transformers.utils import cached_file

    path = Path(model) if Path(model).exists() else Path(cached_file(model, "config.json")).parent
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def launch(page: gr.Blocks, **options) -> None:
    """Serve the page, without links to elsewhere."""
    page.queue().launch(theme=THEME, footer_links=[], **options)


def main() -> None:
    """`python app.py`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = os.environ.get("MODEL", "PleIAs/Pleias-1.2b-Preview")
    parser.add_argument("--model", default=default, help="Folder, name on the Hub or GGUF file. Default: %(default)s.")
    parser.add_argument("--index", default=os.environ.get("INDEX"), help="Index of training.trace, for Sources.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code in the model's folder.")
    parser.add_argument("--port", type=int, default=7860, help="Port of the app. Default: 7860.")
    args = parser.parse_args()
    if find_spec("modeling_pleias"):
        from modeling_pleias.training.app import AppConfig, open_page

        page, _ = open_page(AppConfig(Path(args.model), Path(args.index) if args.index else None))
    elif args.index:
        parser.error("--index needs the package modeling-pleias[app].")
    else:
        is_gguf = args.model.endswith(".gguf")
        model = Gguf(args.model) if is_gguf else Torch.load(args.model, trust_remote_code=args.trust_remote_code)
        name = Path(args.model).resolve().name if Path(args.model).exists() else args.model
        page = build_page(model, name, {}, origin(name, find_weights(args.model)))
    launch(page, server_port=args.port)


if __name__ == "__main__":
    main()
