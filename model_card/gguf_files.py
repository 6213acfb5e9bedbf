"""The GGUF folder of a release: every file is written, loaded into llama.cpp, and held against torch in fp32."""

import math
from pathlib import Path

import numpy as np
import torch

from . import gguf_writer
from .checks import NEW_TOKENS, Checks, Reference, strings
from .files import write_json
from .fp32 import SAME_ARITHMETIC, Fp32
from .llama_cpp import ENDS, LlamaCpp

# Nats per token that a format may lose. They catch a broken file; what a format really loses is measured.
LOSS_LIMITS = {"F32": 1e-4, "BF16": 0.01, "F16": 0.01, "Q8_0": 0.02, "Q6_K": 0.05}
OTHER_LOSS_LIMIT = 0.25


def write_and_check(
    checks: Checks,
    reference: Reference,
    fp32: Fp32,
    flavour: Path,
    out: Path,
    *,
    formats: list[str],
    name: str,
    license: str,
    languages: list[str],
    **faults,
) -> None:
    """Write `out`/NAME-FORMAT.gguf for each format, and `out`/results.json with what was measured of each.

    The BF16 file of a model stored in bfloat16 is read back and its bits are compared. The arithmetic is checked on a
    file in fp32, which is not released: there llama.cpp and torch do the same sums, so log-probabilities and greedy
    text have to be the same. On the BF16 file llama.cpp also rounds activations to bfloat16: it may come no further
    from fp32 than twice what torch does when it computes in bfloat16.

    Args:
        flavour: folder of the `llama` flavour.
        formats: keys of `gguf_writer.FORMATS`; BF16 is always among them.
        faults: `pre` and `permute` of `gguf_writer.write`, for tests of these checks.
    """
    out.mkdir()
    about = {"name": name, "license": license, "languages": languages, **faults}
    lossless = reference.source.model.dtype == torch.bfloat16
    rows = []
    for format in ("F32", *formats):
        path = out / f"{name}-{format}.gguf"
        gguf_writer.write(flavour, path, format=format, **about)
        if format == "BF16" and lossless:
            compare_bits(checks, flavour, path)
        with LlamaCpp(path, context=fp32.context) as engine:
            if format == "F32":
                ids = [engine.ids(text) for text in strings()]
                checks.equal("gguf", "llama.cpp's token ids", ids, reference.ids)
            equal = None
            if format in ("F32", "BF16"):
                limit = SAME_ARITHMETIC if format == "F32" else 2 * fp32.own_deviation + SAME_ARITHMETIC
                last = {code: engine.log_probabilities(ids, fp32.vocabulary) for code, ids in fp32.prompts.items()}
                fp32.compare_last(checks, "gguf", format, last, limit)
                new = {code: engine.greedy(ids, NEW_TOKENS, fp32.penalty) for code, ids in fp32.prompts.items()}
                equal = fp32.compare_greedy(checks, "gguf", format, new, limit, *ENDS)
            rows.append({**measure(checks, fp32, engine, format, path), "greedy_equal": equal})
        if format == "F32":
            path.unlink()
    torch_row = {"perplexity": math.exp(-fp32.scores.mean()), "own_deviation": fp32.own_deviation}
    write_json(
        out / "results.json",
        {
            "scored_tokens": len(fp32.scores),
            "texts": "eight passages written for this check, one a language",
            "lossless": lossless,
            "torch": torch_row,
            "formats": rows,
        },
    )


def compare_bits(checks: Checks, flavour: Path, path: Path) -> None:
    """Every tensor of a file, read back and brought into our order, has the bits of the released one."""
    found, expected = gguf_writer.read_back(path, flavour), dict(gguf_writer.tensors(flavour))
    same = sum(name in found and torch.equal(found[name], tensor) for name, tensor in expected.items())
    name, figure = "BF16: tensors read back, bit for bit", f"{same} of {len(expected)} equal"
    checks.add("gguf", name, figure, same == len(expected), equal=same, of=len(expected))


def measure(checks: Checks, fp32: Fp32, engine: LlamaCpp, format: str, path: Path) -> dict:
    """One format's row of results.json: size, perplexity, loss against fp32 in nats per token, agreement."""
    told = [engine.score(fp32.passages[code], i) for code, i in fp32.scored]
    scores, likeliest = (np.array(column) for column in zip(*told, strict=True))
    loss = fp32.scores - scores
    mean, error = float(loss.mean()), float(loss.std(ddof=1) / len(loss) ** 0.5)
    limit = LOSS_LIMITS.get(format, OTHER_LOSS_LIMIT)
    perplexity, exact = math.exp(-scores.mean()), math.exp(-fp32.scores.mean())
    agreement = float((likeliest == fp32.likeliest).mean())
    checks.add(
        "gguf",
        f"{format}: loss on {len(scores)} tokens, nats each",
        f"{mean:+.5f} +- {error:.5f} (at most {limit:g}); perplexity {perplexity:.3f} ({perplexity / exact - 1:+.2%})",
        mean <= limit,
        loss=mean,
        limit=limit,
    )
    return {
        "format": format,
        "released": format != "F32",
        "file": path.name,
        "bytes": path.stat().st_size,
        "perplexity": perplexity,
        "perplexity_ratio": perplexity / exact,
        "loss_nats_per_token": mean,
        "loss_standard_error": error,
        "same_likeliest_token": agreement,
    }
