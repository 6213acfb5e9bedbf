"""Which process holds what of the model: all of it (DDP), a share of every tensor (FSDP2), of every matrix (TP).

Accelerate's launcher says which (accelerate/*.yaml); torch's own `fully_shard` and `parallelize_module` do it, on CPUs
as on GPUs. Accelerate itself would not shard on CPUs, and would not say so, and nothing here could be tested there.

Processes are numbered replicate x shard x tensor, the last running fastest: neighbours compute one layer together.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from .config import InputError

STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


@dataclass(frozen=True)
class Layout:
    """How many processes there are of each kind.

    Args:
        rank: of this process.
        replicate: groups of processes that each hold the whole model.
        shard: processes in a group that take different batches and hold a share of every tensor.
        tensor: processes that compute the same batch, each with a share of the matrices of every layer.
        sharded: whether the model is cut at all; if not, DDP wraps it, and replicate is the number of processes.
        reshard: whether a layer's weights are dropped between its forward and its backward.
    """

    rank: int = 0
    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    sharded: bool = False
    reshard: bool = True

    @classmethod
    def from_launcher(cls) -> "Layout":
        """What `accelerate launch --config_file` asks for through the environment; it is taken out of there.

        `distributed_type: FSDP` shards over all processes, or as `parallelism_config` says. Accelerate then sees
        nothing but processes, and would otherwise wrap the model in its own way on GPUs and in DDP on CPUs.

        Raises:
            InputError: for what is not done here.
        """
        prefixes = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG", "FSDP_", "PARALLELISM_CONFIG_")
        asked = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefixes)}
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if asked.get("ACCELERATE_USE_FSDP") != "true" or processes == 1:
            return cls(rank, processes)
        if asked.get("FSDP_VERSION") != "2":
            raise InputError("The launcher's fsdp_config asks for FSDP 1; set fsdp_version: 2.")
        for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING", "FORWARD_PREFETCH"):
            if asked.get(f"FSDP_{name}") == "true":
                raise InputError(
                    f"The launcher's fsdp_config asks for fsdp_{name.lower()}, which is not done; unset it."
                )
        kinds = {"DP_REPLICATE": 1, "DP_SHARD": processes, "TP": 1, "CP": 1, "SP": 1}
        sizes = {kind: int(asked.get(f"PARALLELISM_CONFIG_{kind}_SIZE", usual)) for kind, usual in kinds.items()}
        if sizes["CP"] > 1 or sizes["SP"] > 1:
            raise InputError("The launcher's parallelism_config asks for cp or sp, which is not done; set both to 1.")
        replicate, shard, tensor, *_ = sizes.values()
        if replicate * shard * tensor != processes:
            raise InputError(
                f"The launcher's parallelism_config asks for {replicate} x {shard} x {tensor} processes (dp_replicate "
                f"x dp_shard x tp) and there are {processes}; change it or --num_processes."
            )
        return cls(rank, replicate, shard, tensor, True, asked.get("FSDP_RESHARD_AFTER_FORWARD") != "false")

    @property
    def sizes(self) -> dict[str, int]:
        """Processes of each kind, outermost first."""
        return {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}

    @property
    def data_rank(self) -> int:
        """Which of the `data_processes` shares of a batch this process takes."""
        return self.rank // self.tensor

    @property
    def data_processes(self) -> int:
        """In how many shares a batch is taken."""
        return self.replicate * self.shard

    def cut(self, loss_model: torch.nn.Module, dtype: torch.dtype) -> None:
        """Leave each process its share of the parameters, in place; to be done before the optimizer is made.

        Every process must come with the same weights. Matrices go where the config's `base_model_tp_plan` says. The
        embedding, which is also the head, and the norms are on every process of `tensor` alike.

        Args:
            loss_model: holds a `PleiasForCausalLM` as `model`, on the device; the forward that is called is its own.
            dtype: in which the layers' weights travel. The embedding's and all gradients travel in fp32, and gradients
                are summed over processes after every micro batch: kept whole until the last they would need the memory
                that the cutting saves.

        Raises:
            InputError: when heads or columns do not divide among the processes of `tensor`.
        """
        model, config = loss_model.model, loss_model.model.config
        sizes = {kind: size for kind, size in self.sizes.items() if size > 1 or kind == "shard"}
        mesh = init_device_mesh(model.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        if self.tensor > 1:
            for field in ("num_key_value_heads", "intermediate_size"):
                if getattr(config, field) % self.tensor:
                    raise InputError(
                        f"model: {field} {getattr(config, field)} does not divide by tp_size {self.tensor}."
                    )
            plan = {name: STYLES[style]() for name, style in config.base_model_tp_plan.items()}
            parallelize_module(model.model, mesh["tensor"], plan, src_data_rank=None)
        data = mesh["replicate", "shard"] if self.replicate > 1 else mesh["shard"]
        # Not the activations between layers: they are as they would be without FSDP.
        layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        rest = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in model.model.layers:
            fully_shard(layer, mesh=data, mp_policy=layers, reshard_after_forward=self.reshard)
        fully_shard(loss_model, mesh=data, mp_policy=rest, reshard_after_forward=False)


def drop_gathered(loss_model: torch.nn.Module) -> None:
    """After a forward that no backward follows: the embedding, kept whole for it, goes back to everyone's share."""
    if isinstance(loss_model, FSDPModule):
        loss_model.reshard()


# Of a tensor, whole or cut -----------------------------------------------------------------------------------------


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value`, of the shape of what this process holds of a parameter, as a tensor that is cut as the parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    value = value.to(parameter.device)
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def offset(parameter: torch.Tensor) -> tuple[int, ...]:
    """Where in the whole what this process holds begins."""
    start, size = [0] * parameter.dim(), list(parameter.shape)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        for kind in ("tensor", "shard"):  # FSDP cuts what tensor parallelism has left, as torch.chunk does
            if kind in mesh.mesh_dim_names:
                number = mesh.mesh_dim_names.index(kind)
                d, count, index = parameter.placements[number].dim, mesh.size(number), mesh.get_local_rank(number)
                share = -(-size[d] // count)
                begin = min(index * share, size[d])
                start[d], size[d] = start[d] + begin, min(share, size[d] - begin)
        assert size == list(parameter.to_local().shape), (size, parameter)
    return tuple(start)


def writes(parameter: torch.Tensor) -> bool:
    """Whether this process is the first of those that hold the same of it."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not isinstance(parameter, DTensor):
        return rank == 0
    mesh = parameter.device_mesh
    others = processes // mesh.size()  # processes of `tensor`, where it is not among the parameter's dimensions
    return rank % others == 0 and rank // others < _parts(parameter)


def writers(model: torch.nn.Module) -> int:
    """Processes, from the first on, that hold something that no earlier one does."""
    return max(map(_parts, model.parameters()))


def _parts(parameter: torch.Tensor) -> int:
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    return mesh.size() // (mesh["replicate"].size() if "replicate" in mesh.mesh_dim_names else 1)


def clip_gradients(parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
    """Scale all gradients down so that their norm over the whole model is at most `limit`; returns the norm before.

    What the processes of `tensor` hold alike gets the mean of their gradients first, or rounding would part them.
    (PyTorch's own function cannot add up the norms of parameters that are cut over different sets of processes.)
    """
    parameters = list(parameters)
    if not isinstance(parameters[0], DTensor):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [parameter.grad.to_local() for parameter in parameters]
    meshes = [parameter.device_mesh for parameter in parameters]
    tensor = next((mesh["tensor"] for mesh in meshes if "tensor" in mesh.mesh_dim_names), None)
    squares = torch.zeros((), device=gradients[0].device)
    for parameter, gradient, mesh in zip(parameters, gradients, meshes, strict=True):
        if tensor is not None and "tensor" not in mesh.mesh_dim_names:
            dist.all_reduce(gradient, group=tensor.get_group())
            gradient /= tensor.size()
        copies = dist.get_world_size() // _parts(parameter)
        squares += gradient.norm() ** 2 / copies
    dist.all_reduce(squares)
    norm = squares.sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def gathered(model: torch.nn.Module, dtype: torch.dtype, *, keep: bool) -> torch.nn.Module | None:
    """The whole model in host memory, tensor after tensor; every process takes part, and those with `keep` get it."""
    tensors = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            tensors[name] = value.to("cpu", dtype)
    if not keep:
        return None
    with torch.device("meta"):
        whole = type(model)(model.config)
    whole.load_state_dict(tensors, assign=True, strict=False)
    whole.tie_weights()
    for name, buffer in model.named_buffers():  # the rotary frequencies, which no checkpoint holds
        module, _, key = name.rpartition(".")
        setattr(whole.get_submodule(module), key, buffer.cpu())
    return whole
