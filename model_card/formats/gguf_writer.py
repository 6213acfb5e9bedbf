"""Write GGUF files of the `llama` variant with gguf-py: weights, vocabulary and llama.cpp's metadata.

llama.cpp's own converter refuses a vocabulary whose hash it does not know, and needs a checkout of its repository.
"""

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import torch
import xllamacpp
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType
from safetensors import safe_open

from modeling_pleias.tokenization_pleias import PATTERN

from ..files import ReleaseError, read_json
from .variants import chat_templates, load_tokenizer

# Types of the matrices; of the embedding, which is also the output matrix and so gets more bits; and of v_proj and
# down_proj in the layers that get more bits in llama.cpp's mixtures (xllamacpp has no llama_model_quantize).
FORMATS = {
    **{name: (Type[name],) * 3 for name in ("F32", "BF16", "F16", "Q8_0", "Q6_K")},
    "Q5_K_M": (Type.Q5_K, Type.Q6_K, Type.Q6_K),
    "Q5_0": (Type.Q5_0, Type.Q8_0, Type.Q5_0),
    "Q4_K_M": (Type.Q4_K, Type.Q6_K, Type.Q6_K),
    "Q4_0": (Type.Q4_0, Type.Q8_0, Type.Q4_0),
}
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)  # gguf-py only reads these, so llama.cpp's library quantises


def write_gguf(
    variant: Path,
    path: Path,
    *,
    format: str,
    name: str,
    license: str | None = None,
    languages: Iterable[str] = (),
    pre: str | None = None,
    permute: bool = True,
) -> None:
    """Write one GGUF file.

    Args:
        variant: Folder of the `llama` variant.
        path: File to write.
        format: Key of `FORMATS`.
        name: Name of the model, for `general.name`.
        license: SPDX identifier in lower case, as on the Hub. Default: the file states none.
        languages: Language codes. Default: the file states none.
        pre: llama.cpp's name of the pre-tokenizer. Default: the one that equals the tokenizer's.
        permute: Put queries and keys into llama.cpp's order. False, like a wrong `pre`, is for tests of the checks.

    Raises:
        ReleaseError: If the model has a property that a GGUF file of the llama architecture cannot express.
    """
    config = read_json(variant / "config.json")
    rope = config["rope_parameters"]
    check_model(variant, rope)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if license:
        writer.add_license(license)
    if languages:
        writer.add_languages(list(languages))
    writer.add_tags(["text-generation"])
    writer.add_file_type(LlamaFileType.ALL_F32 if format == "F32" else LlamaFileType[f"MOSTLY_{format}"])
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
    add_decoding(writer, read_json(variant / "generation_config.json"), config["max_position_embeddings"])
    add_vocabulary(writer, variant, config, pre=pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor_name, tensor in tensors(variant):
        values = tensor.float().numpy()
        projection = next((part for part in heads if f".{part}." in tensor_name), None)
        if projection and permute:
            values = interleaved(values, heads[projection])
        kind = tensor_type(tensor_name, values.ndim, format, config["num_hidden_layers"])
        target = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ReleaseError(f"{variant} contains {tensor_name}, for which GGUF files of Llama have no place.")
        writer.add_tensor(target, quantize(values, kind, tensor_name), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_model(folder: Path, rope: dict) -> None:
    """Check that a GGUF file of the llama architecture can express a model.

    Args:
        folder: Folder of the model.
        rope: `rope_parameters` of its config.

    Raises:
        ReleaseError: If it cannot.
    """
    if rope["rope_type"] != "default":
        raise ReleaseError(
            f"GGUF files need rope_type 'default', and {folder}/config.json has {rope['rope_type']!r}: release "
            "without GGUF (--formats onnx openvino)."
        )
    pre_tokenizer(read_json(folder / "tokenizer.json"), folder)


def impossible_formats(formats: Iterable[str], shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, str]:
    """Return the formats that a model is too small for, with the reason.

    Args:
        formats: Keys of `FORMATS`.
        shapes: Shape of each tensor of the model, by name.
        layers: Number of its layers.
    """
    reasons = {}
    for format in formats:
        for name, shape in shapes.items():
            block = gguf.GGML_QUANT_SIZES[kind := tensor_type(name, len(shape), format, layers)][0]
            if shape[-1] % block and format not in reasons:
                reasons[format] = (
                    f"{format} needs rows of a multiple of {block} numbers ({kind.name}), and those of {name} have "
                    f"{shape[-1]}."
                )
    return reasons


def tensor_type(name: str, dimensions: int, format: str, layers: int) -> Type:
    """Return the type in which a format stores a tensor."""
    matrices, embedding, finer = FORMATS[format]
    if dimensions == 1:
        return Type.F32  # norms: llama.cpp requires fp32, and they are small
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return embedding
    if name.endswith(("v_proj.weight", "down_proj.weight")):
        layer = int(re.search(r"layers\.(\d+)\.", name)[1])
        return finer if gets_more_bits(layer, layers) else matrices
    return matrices


def tensors(variant: Path):
    """Yield names and tensors of a folder's safetensors files, one at a time."""
    for path in sorted(variant.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no mapping)
                yield name, shard.get_tensor(name)


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a query or key projection in llama.cpp's order: rows rotated together are adjacent."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def halved(x: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved`."""
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def gets_more_bits(layer: int, layers: int) -> bool:
    """Return whether llama.cpp's _M mixtures give a layer more bits: first and last eighth, every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def quantize(values: np.ndarray, kind: Type, name: str) -> np.ndarray:
    """Quantise rows of float32 to bytes, (rows, bytes per row), with llama.cpp's routines for `K_TYPES`.

    The rows must have a multiple of the numbers in a block of the type (see `impossible_formats`).
    """
    assert values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0, (name, kind, values.shape)
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


def add_decoding(writer: gguf.GGUFWriter, generation: dict, context: int) -> None:
    """Add the decoding of generation_config.json, which llama.cpp then uses where the user states no other.

    Args:
        writer: Writer of the file.
        generation: Content of generation_config.json.
        context: Context length in tokens; like transformers', the penalty looks back over all of it.
    """
    writer.add_sampling_temp(generation.get("temperature") or 1.0 if generation.get("do_sample") else 0.0)
    writer.add_sampling_penalty_repeat(generation.get("repetition_penalty") or 1.0)
    writer.add_sampling_penalty_last_n(context)


def add_vocabulary(writer: gguf.GGUFWriter, variant: Path, config: dict, *, pre: str | None) -> None:
    """Add the tokens in order of id, their types, the merges, and the ids of the special tokens."""
    spec = read_json(variant / "tokenizer.json")
    settings = read_json(variant / "tokenizer_config.json")
    tokenizer = load_tokenizer(variant / "tokenizer.json")
    by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    kinds |= {t["id"]: TokenType.CONTROL if t["special"] else TokenType.USER_DEFINED for t in spec["added_tokens"]}
    # A vocabulary may be smaller than the embedding: the other rows get names that no text contains.
    rows = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or pre_tokenizer(spec, variant))
    writer.add_token_list([by_id.get(i, f"[unused{i}]") for i in rows])
    writer.add_token_types([kinds.get(i, TokenType.UNUSED) for i in rows])
    # tokenizers writes a merge as a pair, older files as one string.
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        token = settings[f"{role}_token"]
        getattr(writer, f"add_{role}_token_id")(
            tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
        )
    ends = read_json(variant / "generation_config.json").get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:  # of a model fine-tuned on conversations: the end of a turn
        writer.add_eot_token_id(ends[1])
    if templates := chat_templates(variant):
        writer.add_chat_template([{"name": name, "template": template} for name, template in templates.items()])
    ids = tokenizer.encode("a").ids
    writer.add_add_bos_token(ids[0] == config["bos_token_id"])
    writer.add_add_eos_token(ids[-1] == config["eos_token_id"])
    writer.add_add_space_prefix(False)


def pre_tokenizer(spec: dict, variant: Path) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Raises:
        ReleaseError: If llama.cpp has none that is exactly equal.
    """
    rules = spec["pre_tokenizer"] or {}
    if spec.get("normalizer") is None:
        steps = rules.get("pretokenizers", [rules])
        if len(steps) == 2 and steps[0].get("pattern") == {"Regex": PATTERN} and not steps[1].get("use_regex", True):
            return "llama-bpe"
        if len(steps) == 1 and steps[0].get("type") == "ByteLevel" and steps[0].get("use_regex"):
            return "gpt-2"
    raise ReleaseError(
        f"llama.cpp has no exact equivalent of the pre-tokenizer and normalizer in {variant}/tokenizer.json: release "
        "without GGUF (--formats onnx openvino)."
    )


def read_back(path: Path, variant: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a GGUF file with the names, order and precision of the folder from which it was written."""
    config = read_json(variant / "config.json")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    result = {}
    for name, tensor in tensors(variant):
        entry = stored.get(names.get_name(name, try_suffixes=(".weight", ".bias")))
        if entry is None:
            continue
        values = gguf.dequantize(entry.data, entry.tensor_type).reshape(tensor.shape)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                values = halved(values, config[heads])
        result[name] = torch.from_numpy(values.copy()).to(tensor.dtype)
    return result
