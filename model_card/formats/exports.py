"""Export the `llama` variant to ONNX and OpenVINO with transformers' exporters, and run it without transformers.

Each export is one fp32 graph. Its inputs are ids, mask, positions, and the keys and values of earlier tokens, none for
a prompt.
"""

import io
import logging
import shutil
import sys
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM
from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter, exporter_dynamo, utils
from transformers.exporters.utils import decompose_for_generation

from .checks import NEW_TOKENS, Checks
from .fp32_reference import SAME_ARITHMETIC, Fp32Reference
from .variants import copy_chat_templates

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# Their warnings do not affect the exported graph, which is compared with torch: untested versions, dynamic axes, and
# operators without torchvision or a signature that no layer here uses.
EXPORT_LOGGERS = (
    utils.logger,
    exporter_dynamo.logger,
    logging.getLogger("torch.onnx._internal.exporter._registration"),
)
# OpenVINO's telemetry contacts a web service from a forked child, which may wait forever and the program with it.
sys.modules.setdefault("openvino_telemetry", None)

EXPORTERS = {"onnx": (OnnxExporter, OnnxConfig), "openvino": (OpenVINOExporter, OpenVINOConfig)}


@contextmanager
def hide_export_warnings() -> Iterator[None]:
    """Hide the exporters' known warnings and progress lines in a block; errors and other warnings are shown."""
    levels = [logger.level for logger in EXPORT_LOGGERS]
    try:
        for logger in EXPORT_LOGGERS:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # torch.onnx prints its progress
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(EXPORT_LOGGERS, levels, strict=True):
            logger.setLevel(level)


def export_format(variant: Path, out: Path, *, format: str) -> None:
    """Export the folder of the `llama` variant to `out`; `format` is `onnx` or `openvino`."""
    model = LlamaForCausalLM.from_pretrained(variant, dtype=torch.float32).eval()
    # Two rows, one padded: the exporter would make a batch of one or a mask of ones a constant.
    pad = model.config.pad_token_id
    ids = torch.tensor([[1, 5, 6, 7], [pad, pad, 1, 5]])
    sample = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    graph, inputs = decompose_for_generation(model, sample, multi_token_decode=True)["decode"]
    exporter, config = EXPORTERS[format]
    with hide_export_warnings():
        exporter().export(graph, inputs, config(dynamic=True)).save_pretrained(out)
    if format == "onnx":
        remove_stack_traces(out / "model.onnx")
    for name in TOKENIZER_FILES:
        shutil.copyfile(variant / name, out / name)
    copy_chat_templates(variant, out)


def remove_stack_traces(path: Path) -> None:
    """Remove from an ONNX file what torch.onnx notes at each operator: lines of code, with paths of this machine."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for graph in (model.graph, *model.functions):
        for part in (graph, *graph.node, *graph.value_info):
            del part.metadata_props[:]
    del model.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.save(model, path)


class OnnxSession:
    """The exported graph in ONNX Runtime, without torch.

    Args:
        folder: Folder that `export` wrote.
    """

    def __init__(self, folder: str | Path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
        # Keys and values: input.cache.* since transformers 5.24, input.past_key_values.* before.
        self.past = [node for node in self.session.get_inputs() if node.name.startswith("input.")]
        self.reset()

    def reset(self) -> None:
        """Clear the cache of keys and values."""
        _, heads, _, width = self.past[0].shape
        self.cache = [np.zeros((1, int(heads), 0, int(width)), np.float32) for _ in self.past]
        self.seen = 0

    def read(self, ids: list[int]) -> np.ndarray:
        """Process further ids; return the logits (V,) of the next token."""
        feed = step_inputs(ids, self.seen)
        feed |= {node.name: value for node, value in zip(self.past, self.cache, strict=True)}
        names = ["logits", *(node.name.replace("input.", "output.", 1) for node in self.past)]
        logits, *self.cache = self.session.run(names, feed)
        self.seen += len(ids)
        return logits[0, -1]


class OpenVinoSession:
    """The exported graph in OpenVINO, which stores earlier keys and values itself.

    Args:
        folder: Folder that `export` wrote.
    """

    def __init__(self, folder: str | Path):
        import openvino

        # By default the CPU plugin computes in bfloat16 if it can, and stores the cache in 8 bits.
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        model = openvino.Core().compile_model(Path(folder) / "openvino_model.xml", "CPU", exact)
        self.request = model.create_infer_request()
        self.reset()

    def reset(self) -> None:
        """Clear the cache of keys and values."""
        self.request.reset_state()
        self.seen = 0

    def read(self, ids: list[int]) -> np.ndarray:
        """Process further ids; return the logits (V,) of the next token."""
        logits = self.request.infer(step_inputs(ids, self.seen) | {"beam_idx": np.zeros(1, np.int32)})["logits"]
        self.seen += len(ids)
        return logits[0, -1].copy()


SESSIONS = {"onnx": OnnxSession, "openvino": OpenVinoSession}


def step_inputs(ids: list[int], seen: int) -> dict[str, np.ndarray]:
    """Return the inputs of one call: ids, a mask over all tokens so far, and positions."""
    return {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, seen + len(ids)), np.int64),
        "position_ids": np.arange(seen, seen + len(ids), dtype=np.int64)[None],
    }


def generate(session, ids: list[int], count: int, repetition_penalty: float, ends: Container[int]) -> list[int]:
    """Return the greedy continuation, with transformers' repetition penalty; it ends before an id of `ends`."""
    session.reset()
    new: list[int] = []
    logits = session.read(ids)
    while len(new) < count:
        seen = np.unique([*ids, *new])
        values = logits[seen]
        logits[seen] = np.where(values < 0, values * repetition_penalty, values / repetition_penalty)
        token = int(logits.argmax())
        if token in ends:
            break
        new.append(token)
        if len(new) < count:
            logits = session.read([token])
    return new


def check_export(checks: Checks, fp32: Fp32Reference, folder: Path, *, format: str) -> None:
    """Compare an exported folder with torch: log-probabilities after each prompt, and greedy text."""
    session = SESSIONS[format](folder)
    last = {}
    for code, ids in fp32.prompts.items():
        session.reset()
        logits = torch.from_numpy(np.array(session.read(ids)))
        last[code] = logits.log_softmax(-1).numpy()
    fp32.compare_last(checks, format, "fp32", last, SAME_ARITHMETIC)
    new = {code: generate(session, ids, NEW_TOKENS, fp32.penalty, fp32.ends) for code, ids in fp32.prompts.items()}
    fp32.compare_greedy(checks, format, "fp32", new, SAME_ARITHMETIC)
