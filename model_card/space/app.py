"""Use a Pleias model in the browser: continuation in eight languages, OCR correction, translation, RAG.

    python app.py [--model FOLDER_OR_NAME_OR_GGUF]

The model is a folder, a name on the Hub or a GGUF file, from --model or the environment variable MODEL. No GPU is
needed.
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import formats
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
CODES = dict(zip(PROMPTS, ("en", "fr", "es", "de", "it", "nl", "la", "pt"), strict=True))
TASK = 512, 0, 1.0  # new tokens, temperature, repetition penalty of the tasks, whose outputs repeat their input
UNABLE = "This model has no token {token}: it was not fine-tuned for this task. Start the app with one that was."


class Torch:
    """Model in a folder or on the Hub, loaded with transformers.

    Args:
        name: Folder, or name on the Hub.
        trust_remote_code: Run the code in the model's folder.
    """

    def __init__(self, name: str, *, trust_remote_code: bool):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        # float32 is lossless, and several times as fast as bfloat16 on a CPU without bfloat16 instructions.
        fast = torch.accelerator.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)
        settings = {"dtype": "auto" if fast else "float32", "trust_remote_code": trust_remote_code}
        self.model = AutoModelForCausalLM.from_pretrained(name, **settings)

    def knows(self, token: str) -> bool:
        """Return whether a token is in the vocabulary."""
        return token in self.tokenizer.get_vocab()

    def stream(self, prompt: str, end: str | None, count: int, temperature: float, penalty: float) -> Iterator[str]:
        """Yield the continuation of the prompt, longer each time; an error of the generating thread is raised here."""
        from transformers import TextIteratorStreamer

        inputs = self.tokenizer(prompt, return_tensors="pt", truncation=True)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=300)
        settings = {"max_new_tokens": count, "repetition_penalty": penalty, "do_sample": temperature > 0}
        settings |= {"temperature": temperature} if temperature > 0 else {}
        if end:
            end_ids = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(end)]
            settings["eos_token_id"] = [end_id for end_id in end_ids if end_id is not None]

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

    def _post(self, endpoint: str, body: dict):
        import urllib.request

        address, data = f"{self.server.listening_address}{endpoint}", json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request)

    def knows(self, token: str) -> bool:
        """Return whether a token is in the vocabulary."""
        with self._post("/tokenize", {"content": token, "add_special": False, "parse_special": True}) as answer:
            return len(json.load(answer)["tokens"]) == 1

    def stream(self, prompt: str, end: str | None, count: int, temperature: float, penalty: float) -> Iterator[str]:
        """Yield the continuation of the prompt, longer each time."""
        body = {"prompt": prompt, "n_predict": count, "temperature": temperature, "repeat_penalty": penalty}
        body |= {"repeat_last_n": 4096, "stream": True, "stop": [end] if end else []}
        text = ""
        with self._post("/completion", body) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    text += json.loads(line.removeprefix(b"data: "))["content"]
                    yield text


def build(model, name: str) -> gr.Blocks:
    """Build the page.

    Args:
        model: `Torch` or `Gguf`.
        name: Title of the page.
    """

    def complete(prompt: str, end: str | None, *settings) -> Iterator[str]:
        if end and not model.knows(end):
            yield UNABLE.format(token=end)
            return
        yield from model.stream(prompt, end, *settings)

    def continue_text(text: str, *settings) -> Iterator[str]:
        for new in complete(text, None, *settings):
            yield text + new

    def correct(text: str) -> Iterator[str]:
        for new in complete(formats.ocr(text), formats.OCR_END, *TASK):
            yield formats.unescape(new)

    def translate(text: str, language: str) -> Iterator[str]:
        token = f"<|{CODES[language]}|>"
        prompt = formats.translation(text, token if model.knows(token) else "")
        for new in complete(prompt, formats.TRANSLATION_END, *TASK):
            yield formats.unescape(new)

    def answer(query: str, text: str) -> Iterator[str]:
        sources = formats.sources_in(text)
        for new in complete(formats.rag(query, sources), formats.ANSWER_END, *TASK):
            yield formats.shown(new, sources)

    languages = list(PROMPTS)
    with gr.Blocks(title=name) as page:
        gr.Markdown(f"# {name}\nA base model: it continues text, and may state what is not so. Greedy as it stands.")
        with gr.Tab("Continue"):
            with gr.Accordion("Decoding", open=False):
                settings = [
                    gr.Slider(1, 512, 64, step=1, label="New tokens"),
                    gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: greedy)"),
                    gr.Slider(1, 2, 1.2, step=0.05, label="Repetition penalty"),
                ]
            language = gr.Dropdown(languages, value="English", label="Opening in")
            text = gr.Textbox(PROMPTS["English"], lines=3, label="Text")
            out = gr.Textbox(lines=8, label="Continued")
            language.change(PROMPTS.get, language, text)
            gr.Button("Continue", variant="primary").click(continue_text, [text, *settings], out)
        with gr.Tab("Correct OCR"):
            text, out = gr.Textbox(lines=6, label="Text as recognised"), gr.Textbox(lines=6, label="Corrected")
            gr.Button("Correct", variant="primary").click(correct, text, out)
        with gr.Tab("Translate"):
            text, language = gr.Textbox(lines=6, label="Text"), gr.Dropdown(languages, value="French", label="Into")
            out = gr.Textbox(lines=6, label="Translation")
            gr.Button("Translate", variant="primary").click(translate, [text, language], out)
        with gr.Tab("Answer from sources"):
            query = gr.Textbox(label="Question")
            sources = gr.Textbox(lines=8, label="Sources, separated by empty lines")
            out = gr.Textbox(lines=8, label="Analysis and answer; quotations are checked")
            gr.Button("Answer", variant="primary").click(answer, [query, sources], out)
    return page


def main() -> None:
    """`python app.py`: see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = os.environ.get("MODEL", "PleIAs/Pleias-1.2b-Preview")
    parser.add_argument("--model", default=default, help="Folder, name on the Hub or GGUF file. Default: %(default)s.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code in the model's folder.")
    parser.add_argument("--port", type=int, default=7860, help="Port of the app. Default: 7860.")
    args = parser.parse_args()
    is_gguf = args.model.endswith(".gguf")
    model = Gguf(args.model) if is_gguf else Torch(args.model, trust_remote_code=args.trust_remote_code)
    name = Path(args.model).resolve().name if Path(args.model).exists() else args.model
    build(model, name).queue().launch(server_port=args.port)


if __name__ == "__main__":
    main()
