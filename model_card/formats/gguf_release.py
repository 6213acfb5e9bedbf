"""Write the GGUF folder of a release, load each file into llama.cpp, and compare it with torch in fp32."""

import math
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from ..files import write_json
from . import gguf_writer
from .checks import NEW_TOKENS, TEXTS, Checks, ReferenceModel, strings
from .fp32_reference import SAME_ARITHMETIC, Fp32Reference
from .llama_cpp import ENDS, LlamaCppServer
from .load_probe import digest
from .variants import chat_templates

# Largest loss of a format in nats per token. It detects a broken file; the actual loss is measured.
LOSS_LIMITS = {"F32": 1e-4, "BF16": 0.01, "F16": 0.01, "Q8_0": 0.02, "Q6_K": 0.05}
OTHER_LOSS_LIMIT = 0.25
CONVERSATION = [
    {"role": role, "content": TEXTS["languages"][code]["prompt"]}
    for role, code in (("user", "fr"), ("assistant", "en"), ("user", "la"))
]


def write_and_check(
    checks: Checks,
    reference: ReferenceModel,
    fp32: Fp32Reference,
    variant: Path,
    out: Path,
    *,
    formats: list[str],
    name: str,
    license: str,
    languages: list[str],
    **faults,
) -> None:
    """Write `out`/NAME-FORMAT.gguf for each format, and `out`/results.json with the measurements.

    The BF16 file of a model stored in bfloat16 is read back and its bits are compared. The arithmetic is checked on an
    fp32 file, which is not released: llama.cpp and torch compute the same sums there, so log-probabilities and greedy
    text must be equal. On the BF16 file llama.cpp also rounds activations to bfloat16: it may deviate from fp32 at
    most twice as far as torch does when it computes in bfloat16.

    Args:
        variant: Folder of the `llama` variant.
        formats: Keys of `gguf_writer.FORMATS`, always with BF16.
        faults: `pre` and `permute` of `gguf_writer.write_gguf`, for tests of these checks.
    """
    out.mkdir()
    about = {"name": name, "license": license, "languages": languages, **faults}
    lossless = reference.source.model.dtype == torch.bfloat16
    rows = []
    for format in ("F32", *formats):
        path = out / f"{name}-{format}.gguf"
        gguf_writer.write_gguf(variant, path, format=format, **about)
        if format == "BF16" and lossless:
            check_bits(checks, variant, path)
        with LlamaCppServer(path, context=fp32.context) as engine:
            if format == "F32":
                ids = [engine.ids(text) for text in strings()]
                checks.equal("gguf", "llama.cpp's token ids", ids, reference.ids)
                if chat_templates(variant):
                    check_chat_template(checks, variant, engine)
            equal = None
            if format in ("F32", "BF16"):
                limit = SAME_ARITHMETIC if format == "F32" else 2 * fp32.own_deviation + SAME_ARITHMETIC
                last = {code: engine.log_probabilities(ids, fp32.vocabulary) for code, ids in fp32.prompts.items()}
                fp32.compare_last(checks, "gguf", format, last, limit)
                new = {code: engine.greedy(ids, NEW_TOKENS, fp32.penalty) for code, ids in fp32.prompts.items()}
                equal = fp32.compare_greedy(checks, "gguf", format, new, limit, *ENDS)
            rows.append({**measure_format(checks, fp32, engine, format, path), "greedy_equal": equal})
        if format == "F32":
            path.unlink()
    write_json(
        out / "results.json",
        {
            "scored_tokens": len(fp32.scores),
            "texts": "eight passages written for this check, one per language",
            "lossless": lossless,
            "torch": {"perplexity": math.exp(-fp32.scores.mean()), "own_deviation": fp32.own_deviation},
            "formats": rows,
        },
    )


def check_chat_template(checks: Checks, variant: Path, engine: LlamaCppServer) -> None:
    """Check that llama.cpp makes the same token ids of a conversation as transformers."""
    expected = AutoTokenizer.from_pretrained(variant).apply_chat_template(CONVERSATION, add_generation_prompt=True)
    prompt = engine.call("/apply-template", {"messages": CONVERSATION})["prompt"]
    checks.equal("gguf", "llama.cpp's token ids of a conversation", [engine.ids(prompt)], [expected["input_ids"]])


def check_bits(checks: Checks, variant: Path, path: Path) -> None:
    """Check that the tensors of a GGUF file, read back in the variant's order, have the bits of the released ones."""
    stored, expected = gguf_writer.read_back(path, variant), dict(gguf_writer.tensors(variant))
    digests = [digest(stored[name]) if name in stored else None for name in expected]
    checks.equal("gguf", "BF16: tensors read back, bit for bit", digests, list(map(digest, expected.values())))


def measure_format(checks: Checks, fp32: Fp32Reference, engine: LlamaCppServer, format: str, path: Path) -> dict:
    """Return a format's row of results.json: size, perplexity, loss in nats per token against fp32, agreement."""
    columns = zip(*(engine.score(fp32.passages[code], i) for code, i in fp32.scored), strict=True)
    scores, greedy_ids = map(np.array, columns)
    loss = fp32.scores - scores
    mean, error = float(loss.mean()), float(loss.std(ddof=1) / len(loss) ** 0.5)
    limit = LOSS_LIMITS.get(format, OTHER_LOSS_LIMIT)
    perplexity, exact = math.exp(-scores.mean()), math.exp(-fp32.scores.mean())
    checks.add(
        "gguf",
        f"{format}: loss on {len(scores)} tokens, nats per token",
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
        "same_likeliest_token": float((greedy_ids == fp32.greedy_ids).mean()),
    }
