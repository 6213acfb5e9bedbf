"""Convert a checkpoint of nanotron's Llama to a Pleias model folder for `from_pretrained`.

    python -m training.nanotron_checkpoint --checkpoint checkpoints/671500 --tokenizer data/tokenizer --out dist/nano

nanotron (src/nanotron/serialize) writes `model_config.json`, and under `model/` a folder per module with one file per
parameter, `model_weight.safetensors`, or one per rank if tensor parallelism shards the parameter,
`model_weight_pp-rank-P-of-N_tp-rank-R-of-N.safetensors`. Each file contains one tensor, `data`; the metadata of a
rank's file contain the full shape and the slices in it. Queries, keys and values are one matrix, gate and up another;
tied embeddings are stored once, as the embedding.
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

from modeling_pleias import PleiasConfig, PleiasForCausalLM

from .common.config import InputError, parse, run_main
from .common.files import atomic_files, lock_folder, read_json
from .finetuning.base_model import load_pretrained_tokenizer

RANK = re.compile(r"model_weight_pp-rank-\d+-of-\d+_tp-rank-(\d+)-of-(\d+)\.safetensors")
NOT_OF_WEIGHTS = {"is_llama_config", "pretraining_tp", "rope_interleaved", "z_loss_coefficient", "z_loss_enabled"}


@dataclass
class ConversionConfig:
    """Input and output folders.

    Args:
        checkpoint: nanotron's folder of one step, with model_config.json and model/.
        out: Output folder of the model.
        tokenizer: Folder of a tokenizer to save with the model. Default: none.
    """

    checkpoint: Path
    out: Path
    tokenizer: Path | None = None


def read_config(checkpoint: Path) -> PleiasConfig:
    """Read the model config.

    Raises:
        InputError: If it is missing, or does not describe a model that Pleias models can represent.
    """
    path = checkpoint / "model_config.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: pass the folder of one step, as nanotron wrote it.")
    content = read_json(path)
    if content.get("is_llama_config") is not True:
        raise InputError(f"{path} does not describe nanotron's Llama: is_llama_config must be true.")
    if content.get("rope_interleaved") is not False:
        raise InputError(
            f"{path}: rope_interleaved must be false, because interleaved rotary dimensions cannot be converted. If "
            "the model was trained without interleaving, as every Pleias model was, set it in the file."
        )
    fields = {key: value for key, value in content.items() if key not in NOT_OF_WEIGHTS and not key.startswith("_")}
    fields = {key: value for key, value in fields.items() if value is not None}  # null is nanotron's default
    if unknown := set(fields) - set(PleiasConfig.__dataclass_fields__) - {"rope_theta", "rope_scaling"}:
        raise InputError(f"{path}: a Pleias model has no {', '.join(sorted(unknown))}.")
    try:
        return PleiasConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[-1].strip()}") from error


def slices(text: str) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Parse the (local, global) slices of a rank: "0,8,None|None,None,None#16,24,None|None,None,None;..."."""

    def axes(part: str) -> tuple[slice, ...]:
        numbers = ([None if n == "None" else int(n) for n in axis.split(",")] for axis in part.split("|"))
        return tuple(slice(*bounds) for bounds in numbers)

    pairs = (pair.split("#") for pair in text.split(";"))
    return [(axes(local), axes(full)) for local, full in pairs]


class NanotronWeights:
    """Reader of the unsharded parameters of a nanotron checkpoint by dotted name; records which files were read."""

    def __init__(self, checkpoint: Path):
        self.folder = checkpoint / "model"
        self.read: set[Path] = set()

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """Read one parameter.

        Args:
            name: Module and parameter, such as "model.final_layer_norm.pp_block.weight".
            shape: Expected shape.

        Raises:
            InputError: If a file is missing, corrupt or of another shape (the message gives its path).
        """
        folder = self.folder.joinpath(*name.split(".")[:-1])
        if (path := folder / "model_weight.safetensors").is_file():
            tensor, _ = self.load(path)
            if tensor.shape != shape:
                raise InputError(f"{path} has shape {tuple(tensor.shape)}, but model_config.json requires {shape}.")
            return tensor
        parts = {}
        for path in sorted(folder.glob("model_weight_*.safetensors")):
            if match := RANK.fullmatch(path.name):
                parts[int(match[1])] = (path, int(match[2]))
        sizes = {size for _, size in parts.values()} or {1}
        if missing := sorted(set(range(max(sizes))) - set(parts)):
            raise InputError(f"{folder} has no shard of tensor-parallel rank {missing[0]} of {max(sizes)}.")
        if len(sizes) > 1:
            raise InputError(f"{folder} contains shards of {sorted(sizes)} ranks: keep the shards of one run.")
        out, filled = torch.empty(0), 0
        for path, _ in parts.values():
            part, metadata = self.load(path)
            if "local_global_slices_pairs" not in metadata:
                raise InputError(f"{path} has no local_global_slices_pairs, which nanotron writes since version 1.2.")
            full = tuple(int(n) for n in re.findall(r"\d+", re.sub(r"np\.int\d+", "", metadata["unsharded_shape"])))
            if full != shape:
                raise InputError(f"{path} is a shard of shape {full}, but model_config.json requires {shape}.")
            out = out if filled else torch.empty(shape, dtype=part.dtype)
            try:
                for local_slices, full_slices in slices(metadata["local_global_slices_pairs"]):
                    out[full_slices] = part[local_slices]
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{path} has shape {tuple(part.shape)}, unlike its own metadata.") from error
            filled += part.numel()
        if filled != math.prod(shape):
            raise InputError(f"{folder}: its shards contain {filled:,} of {math.prod(shape):,} values.")
        return out

    def load(self, path: Path) -> tuple[torch.Tensor, dict[str, str]]:
        """Read the tensor of a file and its metadata."""
        try:
            with safe_open(path, "pt") as file:
                tensor, metadata = file.get_tensor("data"), file.metadata() or {}
        except SafetensorError as error:
            raise InputError(f"{path} is corrupt ({error}): copy it again.") from error
        self.read.add(path)
        return tensor, metadata

    def check_all_read(self) -> None:
        """Check that the whole checkpoint was used.

        Raises:
            InputError: If a file was not read (the message gives the first).
        """
        if unread := sorted(set(self.folder.rglob("*.safetensors")) - self.read):
            raise InputError(f"{unread[0]}: a Pleias model has no such parameter.")


def state_dict(weights: NanotronWeights, config: PleiasConfig) -> dict[str, torch.Tensor]:
    """Return the tensors by Pleias name; rows keep their order, because no rotary dimensions are interleaved."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    heads = [n * config.head_dim for n in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
    tensors = {
        "model.embed_tokens.weight": weights("model.token_position_embeddings.pp_block.token_embedding.weight", V, D),
        "model.norm.weight": weights("model.final_layer_norm.pp_block.weight", D),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = weights("model.lm_head.pp_block.weight", V, D)
    for i in range(config.num_hidden_layers):
        block = f"model.decoder.{i}.pp_block"
        q, k, v = weights(f"{block}.attn.qkv_proj.weight", sum(heads), D).split(heads)
        gate, up = weights(f"{block}.mlp.gate_up_proj.weight", 2 * F, D).chunk(2)
        layer = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": weights(f"{block}.attn.o_proj.weight", D, heads[0]),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": weights(f"{block}.mlp.down_proj.weight", D, F),
            "input_layernorm": weights(f"{block}.input_layernorm.weight", D),
            "post_attention_layernorm": weights(f"{block}.post_attention_layernorm.weight", D),
        }
        tensors |= {f"model.layers.{i}.{name}.weight": tensor.clone() for name, tensor in layer.items()}
    return tensors


def convert(config: ConversionConfig) -> PleiasForCausalLM:
    """Write `config.out` in the dtype of the checkpoint; return the model.

    Raises:
        InputError: If a file is missing, corrupt, unused or of another shape (the message gives its path).
    """
    model_config = read_config(config.checkpoint)
    weights = NanotronWeights(config.checkpoint)
    tensors = state_dict(weights, model_config)
    weights.check_all_read()
    with torch.device("meta"):
        model = PleiasForCausalLM(model_config)
    wrong = model.load_state_dict(tensors, strict=False, assign=True)
    assert not wrong.unexpected_keys and set(wrong.missing_keys) <= {"lm_head.weight"}, wrong
    model.tie_weights()
    with atomic_files(config.out, last="config.json") as folder:
        model.save_pretrained(folder)
        if config.tokenizer:
            tokenizer = load_pretrained_tokenizer(config.tokenizer)
            tokenizer.model_max_length = model_config.max_position_embeddings
            tokenizer.save_pretrained(folder)
    return model


def main() -> None:
    """Run `python -m training.nanotron_checkpoint`."""
    config = parse(ConversionConfig, description="Convert a nanotron checkpoint to a Pleias model folder.")
    with lock_folder(config.out):
        model = convert(config)
    print(f"{model.num_parameters():,} parameters, {model.dtype}; {config.out} loads with from_pretrained.")


if __name__ == "__main__":
    run_main(main)
