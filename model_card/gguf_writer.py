"""GGUF files of the `llama` flavour, written with gguf-py: weights, vocabulary, and what llama.cpp has to know.

llama.cpp's own converter refuses a vocabulary that it has no hash of, and calls for a checkout of its repository.
"""

import ctypes
import re
from pathlib import Path

import gguf
import numpy as np
import torch
import xllamacpp
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType
from safetensors import safe_open
from tokenizers import Tokenizer

from modeling_pleias.tokenization_pleias import PATTERN

from .files import ReleaseError, read_json

# File type; type of the matrices; of the embedding, which is the output matrix too and so is kept finer; of the
# attention values and the second matrix of the MLP in the layers that llama.cpp's mixtures give more bits.
FORMATS = {
    "F32": (LlamaFileType.ALL_F32, Type.F32, Type.F32, Type.F32),
    "BF16": (LlamaFileType.MOSTLY_BF16, Type.BF16, Type.BF16, Type.BF16),
    "F16": (LlamaFileType.MOSTLY_F16, Type.F16, Type.F16, Type.F16),
    "Q8_0": (LlamaFileType.MOSTLY_Q8_0, Type.Q8_0, Type.Q8_0, Type.Q8_0),
    "Q6_K": (LlamaFileType.MOSTLY_Q6_K, Type.Q6_K, Type.Q6_K, Type.Q6_K),
    "Q5_K_M": (LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K, Type.Q6_K, Type.Q6_K),
    "Q5_0": (LlamaFileType.MOSTLY_Q5_0, Type.Q5_0, Type.Q8_0, Type.Q5_0),
    "Q4_K_M": (LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, Type.Q6_K, Type.Q6_K),
    "Q4_0": (LlamaFileType.MOSTLY_Q4_0, Type.Q4_0, Type.Q8_0, Type.Q4_0),
}
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)  # gguf-py reads these; llama.cpp's library writes them


def write(
    flavour: Path,
    path: Path,
    *,
    format: str,
    name: str,
    license: str,
    languages: list[str],
    pre: str | None = None,
    permute: bool = True,
) -> None:
    """Write one GGUF file.

    Args:
        flavour: folder of the `llama` flavour.
        path: the file to write.
        format: a key of `FORMATS`.
        name: of the model, for `general.name`.
        license: SPDX identifier in lower case, as on the Hub.
        languages: codes.
        pre: llama.cpp's name of the rules that cut text; found from the tokenizer when not given.
        permute: bring queries and keys into llama.cpp's order. False, like a wrong `pre`, is for tests of the checks.

    Raises:
        ReleaseError: when the model has something that a GGUF of the llama architecture cannot say.
    """
    config = read_json(flavour / "config.json")
    rope = config["rope_parameters"]
    if rope["rope_type"] != "default":
        raise ReleaseError(f"GGUF files are written for plain rotary positions; {flavour} has {rope['rope_type']}.")
    file_type, matrices, embedding, finer = FORMATS[format]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_license(license)
    writer.add_languages(languages)
    writer.add_tags(["text-generation"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, flavour, config, pre=pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor_name, tensor in tensors(flavour):
        values = tensor.float().numpy()
        projection = next((part for part in heads if f".{part}." in tensor_name), None)
        if projection and permute:
            values = interleaved(values, heads[projection])
        kind = matrices
        if values.ndim == 1:
            kind = Type.F32  # norms: llama.cpp wants them so, and they weigh nothing
        elif tensor_name.endswith(("embed_tokens.weight", "lm_head.weight")):
            kind = embedding
        elif tensor_name.endswith(("v_proj.weight", "down_proj.weight")):
            layer = int(re.search(r"layers\.(\d+)\.", tensor_name)[1])
            kind = finer if gets_more_bits(layer, config["num_hidden_layers"]) else matrices
        target = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, quantize(values, kind, tensor_name), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(flavour: Path):
    """Names and tensors of a folder's safetensors files, one at a time."""
    for path in sorted(flavour.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no mapping)
                yield name, shard.get_tensor(name)


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: what is turned together lies side by side."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def halved(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for its _M mixtures: the first and the last eighth, and every third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def quantize(values: np.ndarray, kind: Type, name: str) -> np.ndarray:
    """Rows of float32 in a format's bytes, (rows, bytes per row); llama.cpp's own routines where gguf-py has none.

    Raises:
        ReleaseError: when the rows are not a multiple of the format's block.
    """
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if values.shape[-1] % block:
        raise ReleaseError(
            f"{kind.name} works on blocks of {block} numbers, and the rows of {name} have {values.shape[-1]}."
        )
    if kind not in K_TYPES:
        return gguf.quants.quantize(values, kind)
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty(gguf.quant_shape_to_byte_shape(values.shape, kind), dtype=np.uint8)
    rows, row = (ctypes.c_int64(n) for n in values.shape)
    source, target = values.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
    size = library.ggml_quantize_chunk(ctypes.c_int(kind), source, target, ctypes.c_int64(0), rows, row, None)
    assert size == out.nbytes, (name, kind, size, out.nbytes)
    return out


def add_vocabulary(writer: gguf.GGUFWriter, flavour: Path, config: dict, *, pre: str | None) -> None:
    """Entries in order of id, their kinds, the merges, and which entries begin, end, pad and stand for the unknown."""
    spec = read_json(flavour / "tokenizer.json")
    settings = read_json(flavour / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(flavour / "tokenizer.json"))
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    kinds = {t["id"]: TokenType.CONTROL if t["special"] else TokenType.USER_DEFINED for t in spec["added_tokens"]}
    # A vocabulary may be shorter than the embedding: the rest gets names that no text contains.
    rows = range(config["vocab_size"])
    unused = {number for number in rows if number not in by_id}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or pre_tokenizer(spec, flavour))
    writer.add_token_list([by_id.get(number, f"[unused{number}]") for number in rows])
    writer.add_token_types(
        [TokenType.UNUSED if number in unused else kinds.get(number, TokenType.NORMAL) for number in rows]
    )
    # tokenizers writes a merge as a pair, older files as one string
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        token = settings[f"{role}_token"]
        getattr(writer, f"add_{role}_token_id")(
            tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
        )
    writer.add_add_bos_token(tokenizer.encode("").ids[:1] == [config["bos_token_id"]])
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def pre_tokenizer(spec: dict, flavour: Path) -> str:
    """llama.cpp's name for the rules by which a tokenizer.json cuts text.

    Raises:
        ReleaseError: when it has none that is exact.
    """
    rules = spec["pre_tokenizer"] or {}
    if spec.get("normalizer") is None:
        steps = rules.get("pretokenizers", [rules])
        if len(steps) == 2 and steps[0].get("pattern") == {"Regex": PATTERN} and not steps[1].get("use_regex", True):
            return "llama-bpe"
        if len(steps) == 1 and steps[0].get("type") == "ByteLevel" and steps[0].get("use_regex"):
            return "gpt-2"
    raise ReleaseError(
        f"{flavour}/tokenizer.json cuts text by rules that llama.cpp has no exact match for; release without GGUF "
        "(--formats onnx openvino)."
    )


def read_back(path: Path, flavour: Path) -> dict[str, torch.Tensor]:
    """Tensors of a GGUF file under the names, in the order and precision of the folder that it was written from."""
    config = read_json(flavour / "config.json")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name, tensor in tensors(flavour):
        there = stored.get(names.get_name(name, try_suffixes=(".weight", ".bias")))
        if there is None:
            continue
        values = gguf.dequantize(there.data, there.tensor_type).reshape(tensor.shape)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                values = halved(values, config[heads])
        found[name] = torch.from_numpy(values.copy()).to(tensor.dtype)
    return found
