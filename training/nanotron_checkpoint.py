"""A checkpoint written by nanotron's Llama -> a Pleias model folder that loads with `from_pretrained`.

    python -m training.nanotron_checkpoint --checkpoint checkpoints/671500 --tokenizer data/tokenizer --out dist/nano

What nanotron writes (its src/nanotron/serialize): `model_config.json`, and under `model/` a folder per module, in it a
file per parameter, `model_weight.safetensors`, or one per rank where tensor parallelism cuts the parameter,
`model_weight_pp-rank-P-of-N_tp-rank-R-of-N.safetensors`. Each file holds one tensor, `data`; a rank's file says in its
metadata which slices of which whole it holds. Queries, keys and values are one matrix, gate and up another; tied
embeddings are written once, as the embedding.
"""

if not __package__:  # run by path; same as `python -m training.nanotron_checkpoint`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from modeling_pleias import PleiasConfig, PleiasForCausalLM

from .config import InputError, parse, program
from .files import read_json

RANK = re.compile(r"model_weight_pp-rank-\d+-of-\d+_tp-rank-(\d+)-of-(\d+)\.safetensors")
NOT_OF_WEIGHTS = {"is_llama_config", "pretraining_tp", "rope_interleaved", "z_loss_coefficient", "z_loss_enabled"}


@dataclass
class ConversionConfig:
    """Which checkpoint becomes which folder.

    Args:
        checkpoint: nanotron's folder of one step, with model_config.json and model/.
        out: folder for the model.
        tokenizer: folder whose tokenizer is put beside it.
    """

    checkpoint: Path
    out: Path
    tokenizer: Path | None = None


def read_config(checkpoint: Path) -> PleiasConfig:
    """The model's shape.

    Raises:
        InputError: when it is missing, or the model is not one of Pleias' layout.
    """
    path = checkpoint / "model_config.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: give the folder of one step, as nanotron wrote it.")
    said = read_json(path)
    if said.get("is_llama_config") is not True:
        raise InputError(f"{path} is not of nanotron's Llama: is_llama_config is not true.")
    if said.get("rope_interleaved") is not False:
        raise InputError(
            f"{path} does not say that rope_interleaved is false, and rotary dimensions in pairs cannot be converted; "
            "if the model was trained with halves, as every Pleias was, write that into the file."
        )
    fields = {key: value for key, value in said.items() if key not in NOT_OF_WEIGHTS and not key.startswith("_")}
    fields = {key: value for key, value in fields.items() if value is not None}  # null is nanotron's default
    if unknown := set(fields) - set(PleiasConfig.__dataclass_fields__) - {"rope_theta", "rope_scaling"}:
        raise InputError(f"{path}: {', '.join(sorted(unknown))} is nothing that a Pleias model has.")
    try:
        return PleiasConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[-1].strip()}") from error


def slices(text: str) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """(local, global) slices of a rank's metadata: "0,8,None|None,None,None#16,24,None|None,None,None;..."."""

    def one(part: str) -> tuple[slice, ...]:
        numbers = ([None if n == "None" else int(n) for n in axis.split(",")] for axis in part.split("|"))
        return tuple(slice(*bounds) for bounds in numbers)

    pairs = (pair.split("#") for pair in text.split(";"))
    return [(one(here), one(whole)) for here, whole in pairs]


class Weights:
    """The parameters of a nanotron checkpoint, each read whole by its dotted name; keeps account of the files read."""

    def __init__(self, checkpoint: Path):
        self.folder = checkpoint / "model"
        self.read: set[Path] = set()

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """One parameter.

        Args:
            name: module and parameter, such as "model.final_layer_norm.pp_block.weight".
            shape: that it must have.

        Raises:
            InputError: naming the file that is missing, damaged, or of another shape.
        """
        folder = self.folder.joinpath(*name.split(".")[:-1])
        if (whole := folder / "model_weight.safetensors").is_file():
            tensor, _ = self.load(whole)
            if tensor.shape != shape:
                raise InputError(f"{whole} has the shape {tuple(tensor.shape)} where model_config.json means {shape}.")
            return tensor
        parts = {}
        for path in sorted(folder.glob("model_weight_*.safetensors")):
            if match := RANK.fullmatch(path.name):
                parts[int(match[1])] = (path, int(match[2]))
        ranks = {of for _, of in parts.values()} or {1}
        if missing := sorted(set(range(max(ranks))) - set(parts)):
            raise InputError(f"{folder} lacks the part of tensor-parallel rank {missing[0]} of {max(ranks)}.")
        if len(ranks) > 1:
            raise InputError(f"{folder} holds parts of {sorted(ranks)} ranks; keep those of one run.")
        out, filled = torch.empty(0), 0
        for path, _ in parts.values():
            part, said = self.load(path)
            if "local_global_slices_pairs" not in said:
                raise InputError(f"{path} does not say which part it is: nanotron's checkpoints do since version 1.2.")
            of = tuple(int(n) for n in re.findall(r"\d+", re.sub(r"np\.int\d+", "", said["unsharded_shape"])))
            if of != shape:
                raise InputError(f"{path} is part of the shape {of} where model_config.json means {shape}.")
            out = out if filled else torch.empty(shape, dtype=part.dtype)
            try:
                for here, there in slices(said["local_global_slices_pairs"]):
                    out[there] = part[here]
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"{path} has the shape {tuple(part.shape)}, which is not what its own metadata says."
                ) from error
            filled += part.numel()
        if filled != math.prod(shape):
            raise InputError(f"{folder}: its parts hold {filled:,} numbers of {math.prod(shape):,}.")
        return out

    def load(self, path: Path) -> tuple[torch.Tensor, dict[str, str]]:
        """The tensor of a file and its metadata."""
        try:
            with safe_open(path, "pt") as file:
                tensor, said = file.get_tensor("data"), file.metadata() or {}
        except SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}); copy it again.") from error
        self.read.add(path)
        return tensor, said

    def check_all_read(self) -> None:
        """Nothing of the checkpoint may be left over.

        Raises:
            InputError: naming the first file that no parameter of ours was made of.
        """
        if left := sorted(set(self.folder.rglob("*.safetensors")) - self.read):
            raise InputError(f"{left[0]} is nothing that a Pleias model has.")


def state_dict(weights: Weights, config: PleiasConfig) -> dict[str, torch.Tensor]:
    """The tensors under our names; rotary dimensions are halves on both sides, so rows keep their order."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    heads = [n * config.head_dim for n in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    tensors = {
        "model.embed_tokens.weight": weights("model.token_position_embeddings.pp_block.token_embedding.weight", V, D),
        "model.norm.weight": weights("model.final_layer_norm.pp_block.weight", D),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = weights("model.lm_head.pp_block.weight", V, D)
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.decoder.{i}.pp_block", f"model.layers.{i}"
        q, k, v = weights(f"{theirs}.attn.qkv_proj.weight", sum(heads), D).split(heads)
        gate, up = weights(f"{theirs}.mlp.gate_up_proj.weight", 2 * F, D).chunk(2)
        layer = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": weights(f"{theirs}.attn.o_proj.weight", D, heads[0]),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": weights(f"{theirs}.mlp.down_proj.weight", D, F),
            "input_layernorm": weights(f"{theirs}.input_layernorm.weight", D),
            "post_attention_layernorm": weights(f"{theirs}.post_attention_layernorm.weight", D),
        }
        tensors |= {f"{ours}.{name}.weight": tensor.clone() for name, tensor in layer.items()}
    return tensors


def convert(config: ConversionConfig) -> PleiasForCausalLM:
    """Write `config.out`, in the checkpoint's precision; return the model.

    Raises:
        InputError: naming what is missing, damaged, left over, or of another shape.
    """
    shape = read_config(config.checkpoint)
    weights = Weights(config.checkpoint)
    tensors = state_dict(weights, shape)
    weights.check_all_read()
    with torch.device("meta"):
        model = PleiasForCausalLM(shape)
    wrong = model.load_state_dict(tensors, strict=False, assign=True)
    assert not wrong.unexpected_keys and set(wrong.missing_keys) <= {"lm_head.weight"}, wrong
    model.tie_weights()
    model.save_pretrained(config.out)
    if config.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        tokenizer.model_max_length = shape.max_position_embeddings
        tokenizer.save_pretrained(config.out)
    return model


def main() -> None:
    """`python -m training.nanotron_checkpoint`."""
    config = parse(ConversionConfig, description="Convert a nanotron checkpoint into a Pleias model folder.")
    model = convert(config)
    print(f"{model.num_parameters():,} parameters, {model.dtype}; {config.out} loads with from_pretrained.")


if __name__ == "__main__":
    program(main)
