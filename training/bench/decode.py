"""Compare generation on this CPU with llama.cpp on the same bf16 weights: prefill and decode, by batch size.

    python -m training.bench.decode                                         femto's weights
    python -m training.bench.decode --shape nano_1.2b --fp32 false          random weights; 5 GB of memory and disk
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m training.bench.decode    as on a CPU with AVX2 alone
    GOMP_SPINCOUNT=300000 python -m training.bench.decode     waiting threads spin, as in programs of others by default

The programs of `training` set OMP_WAIT_POLICY=passive, with which waiting threads sleep, here and in llama.cpp.
All ways of generating take turns, and the fastest round of each counts, which other work on the machine affects least.
The repetition penalty is the card's, 1.2 over the whole context. llama.cpp runs as its own server with its default
settings, in a process of its own: in that of PyTorch, even idle, it slows decoding from 5.5 to 8.3 ms a token,
probably because the OpenMP library counts the threads of both and so lets them sleep between products.
"""

if not __package__:  # run by path; same as `python -m training.bench.decode`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[2]), "training.bench"

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copy
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_pleias import PleiasConfig, PleiasForCausalLM

from ..common.bf16_weights import reading_bf16_weights
from ..common.config import InputError, parse, run_main
from ..common.environment import hardware

# In a process of its own, because `training` does not import `model_card`.
WRITE_GGUF = (
    "import sys; from pathlib import Path; from model_card.formats.gguf_writer import write_gguf; "
    "write_gguf(*map(Path, sys.argv[1:]), format='BF16', name='bench', license='apache-2.0', languages=['en'])"
)
SERVE = """
import sys, xllamacpp
p, (path, *numbers) = xllamacpp.CommonParams(), sys.argv[1:]
p.model.path, p.n_gpu_layers, p.verbosity = path, 0, 1
p.n_ctx, p.n_parallel, p.cpuparams.n_threads = map(int, numbers)
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
LLAMA_CPP = "llama.cpp, BF16"


@dataclass
class DecodeBench:
    """Model and workload.

    Args:
        shape: femto (its weights), or nano_1.2b (random weights).
        model: Folder of femto, from which nano_1.2b takes the tokenizer.
        batches: Batch sizes.
        prompt_tokens: Tokens of each prompt (prefill).
        new_tokens: Tokens generated after it (decode).
        rounds: Repetitions, alternating; the first is not counted, and the fastest other is.
        fp32: Whether to measure weights in fp32, too.
    """

    shape: Literal["femto", "nano_1.2b"] = "femto"
    model: Path = Path("model_card/femto")
    batches: list[int] = field(default_factory=lambda: [1, 16])
    prompt_tokens: int = 256
    new_tokens: int = 32
    rounds: int = 6
    fp32: bool = True


def random_model(source: Path, folder: Path) -> None:
    """Write a model folder of the 1.2b's shape with random bf16 weights."""
    shape = PleiasConfig.nano_1_2b().to_dict()
    config = LlamaConfig(**{key: value for key, value in shape.items() if key not in ("model_type", "architectures")})
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu").tie_weights()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1) if "norm" in name else parameter.data.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(source / name, folder)


@contextmanager
def llama_cpp(path: Path, batch: int, context: int, threads: int) -> Iterator[Callable[[torch.Tensor, int], list]]:
    """Load a GGUF file into llama.cpp's server; yield a function that continues prompts (B, T) by some tokens."""
    command = [sys.executable, "-c", SERVE, *map(str, (path, batch * context, batch, threads))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    address = next(line for line in server.stdout if line.startswith("http")).strip().split("//")[1]

    def post(ids: list[int], count: int) -> list[int]:
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        body |= {"repeat_penalty": 1.2, "repeat_last_n": len(ids) + count, "return_tokens": True}
        connection = http.client.HTTPConnection(address)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        assert response.status == 200 and answer["tokens_predicted"] == count, answer
        return answer["tokens"]

    with server, ThreadPoolExecutor(batch) as pool:  # leaving closes its input, and so ends it
        yield lambda prompts_BT, count: list(pool.map(post, prompts_BT.tolist(), [count] * batch))


def torch_runs(folder: Path, *, fp32: bool) -> dict[str, Callable[[torch.Tensor, int], None]]:
    """Return the ways of generating with PyTorch, by name; all of one dtype share their weights."""
    runs = {}

    def add(name: str, model: PreTrainedModel, around: Callable = nullcontext) -> None:
        def run(prompts_BT: torch.Tensor, count: int) -> None:
            mask = torch.ones_like(prompts_BT)
            out = model.generate(
                prompts_BT,
                attention_mask=mask,
                max_new_tokens=count,
                repetition_penalty=1.2,
                eos_token_id=None,
                do_sample=False,
                pad_token_id=0,
            )
            assert out.shape[1] == prompts_BT.shape[1] + count

        def within(prompts_BT: torch.Tensor, count: int) -> None:
            with around():
                run(prompts_BT, count)

        runs[name] = within

    for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))[not fp32 :]:
        pleias = PleiasForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        with torch.device("meta"):
            llama = LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).eval()
        llama.load_state_dict(pleias.state_dict(), assign=True)
        llama.tie_weights()
        llama.model.rotary_emb = pleias.model.rotary_emb
        for model in (pleias, llama):
            model.generation_config.eos_token_id = None
        add(f"transformers' Llama, {word}", llama)
        add(f"Pleias, {word}", pleias)
    add("Llama, read_bf16_weights", llama, lambda: reading_bf16_weights(llama))
    add("Pleias, read_bf16_weights", pleias, lambda: reading_bf16_weights(pleias))
    return runs


def measure_decoding(bench: DecodeBench, folder: Path, gguf: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Return tokens/s of prefill and decode by batch size and way of generating."""
    runs, report = torch_runs(folder, fp32=bench.fp32), {}
    generator, vocab = torch.Generator().manual_seed(0), AutoConfig.from_pretrained(folder).vocab_size
    for batch in bench.batches:
        context = bench.prompt_tokens + bench.new_tokens + 8
        with llama_cpp(gguf, batch, context, torch.get_num_threads()) as generate:
            ways = runs | {LLAMA_CPP: generate}
            seconds: dict[str, list[list[float]]] = {name: [] for name in ways}
            for _ in range(bench.rounds):
                for name, run in ways.items():
                    prompts_BT = torch.randint(100, vocab, (batch, bench.prompt_tokens), generator=generator)
                    times = []
                    for count in (1, 1 + bench.new_tokens):
                        start = time.perf_counter()
                        run(prompts_BT, count)
                        times.append(time.perf_counter() - start)
                    seconds[name].append(times)
        tokens = {"prefill": batch * bench.prompt_tokens, "decode": batch * bench.new_tokens}
        report[batch] = {}
        for name, pairs in seconds.items():
            prefill, total = (min(times) for times in zip(*pairs[1:], strict=True))
            report[batch][name] = {
                "prefill": tokens["prefill"] / prefill,
                "decode": tokens["decode"] / (total - prefill),
            }
    return report


def main() -> None:
    """Run `python -m training.bench.decode`."""
    bench = parse(DecodeBench, description="Compare generation on this CPU with llama.cpp on the same weights.")
    if not (bench.model / "config.json").is_file():
        raise InputError(f"{bench.model} contains no model: run this in a checkout, or pass --model FOLDER.")
    with tempfile.TemporaryDirectory() as temporary:
        folder, gguf = bench.model, Path(temporary) / "bf16.gguf"
        if bench.shape != "femto":
            folder = Path(temporary) / bench.shape
            random_model(bench.model, folder)
        subprocess.run([sys.executable, "-c", WRITE_GGUF, str(folder), str(gguf)], check=True)
        report = measure_decoding(bench, folder, gguf)
    kernels, machine = torch.backends.cpu.get_cpu_capability(), hardware()
    title = f"{bench.shape}, {machine['cpu']}, PyTorch's kernels for {kernels}, {machine['threads']} threads"
    table = Table("tokens/s", *(f"{kind}, batch {b}" for b in report for kind in ("prefill", "decode")), title=title)
    for name in next(iter(report.values())):
        cells = []
        for rows in report.values():
            for kind, value in rows[name].items():
                cells.append(f"{value:,.4g} ({value / rows[LLAMA_CPP][kind]:.2f})")
        table.add_row(name, *cells)
    Console(width=118).print(table)


if __name__ == "__main__":
    run_main(main)
