"""Distribute the model over processes: replicated (DDP), sharded (FSDP2), with sharded matmuls (tensor parallelism).

Accelerate's launcher specifies the layout (accelerate/*.yaml); torch's `fully_shard` and `parallelize_module` apply
it, on CPUs as on GPUs. Accelerate itself silently does not shard on CPUs, where nothing could then be tested.

Processes are numbered replicate x shard x tensor, the last varying fastest: neighbours compute one layer together.
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

from ..common.config import InputError

STYLES = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


@dataclass(frozen=True)
class ParallelLayout:
    """Number of processes of each kind, and the rank of this one.

    Args:
        rank: Rank of this process.
        replicate: Groups of processes that each store the complete model.
        shard: Processes per group that compute different batches and store a share of every tensor.
        tensor: Processes that compute the same batch, each with a share of the matrices of every layer.
        sharded: Whether the model is sharded. If not, DDP wraps it, and `replicate` is the number of processes.
        reshard: Whether a layer's weights are dropped between its forward and its backward.
    """

    rank: int = 0
    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    sharded: bool = False
    reshard: bool = True

    @classmethod
    def from_launcher(cls) -> "ParallelLayout":
        """Read the layout that `accelerate launch --config_file` requests, and remove it from the environment.

        `distributed_type: FSDP` shards over all processes, or as `parallelism_config` specifies. Accelerate then sees
        only processes; otherwise it would wrap the model in its own way on GPUs and in DDP on CPUs.

        Raises:
            InputError: If an unsupported feature is requested.
        """
        prefixes = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG", "FSDP_", "PARALLELISM_CONFIG_")
        requested = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefixes)}
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if requested.get("ACCELERATE_USE_FSDP") != "true" or processes == 1:
            return cls(rank, processes)
        if requested.get("FSDP_VERSION") != "2":
            raise InputError("The launcher's fsdp_config requests FSDP 1. Set fsdp_version: 2.")
        for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING", "FORWARD_PREFETCH"):
            if requested.get(f"FSDP_{name}") == "true":
                raise InputError(f"The launcher's fsdp_config requests fsdp_{name.lower()}: not supported. Unset it.")
        kinds = {"DP_REPLICATE": 1, "DP_SHARD": processes, "TP": 1, "CP": 1, "SP": 1}
        sizes = {kind: int(requested.get(f"PARALLELISM_CONFIG_{kind}_SIZE", size)) for kind, size in kinds.items()}
        if sizes["CP"] > 1 or sizes["SP"] > 1:
            raise InputError("The launcher's parallelism_config requests cp or sp: not supported. Set both to 1.")
        replicate, shard, tensor, *_ = sizes.values()
        if replicate * shard * tensor != processes:
            raise InputError(
                f"The launcher's parallelism_config requests {replicate} x {shard} x {tensor} processes (dp_replicate "
                f"x dp_shard x tp), but there are {processes}. Change it or --num_processes."
            )
        return cls(rank, replicate, shard, tensor, True, requested.get("FSDP_RESHARD_AFTER_FORWARD") != "false")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of processes of each kind, outermost first."""
        return {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}

    @property
    def data_rank(self) -> int:
        """Index of the share of a batch that this process computes, below `data_processes`."""
        return self.rank // self.tensor

    @property
    def data_processes(self) -> int:
        """Number of shares into which a batch is divided."""
        return self.replicate * self.shard

    def shard_model(self, loss_model: torch.nn.Module, dtype: torch.dtype) -> None:
        """Shard the parameters in place, so that each process keeps its share. Call before creating the optimizer.

        Every process must call this with the same weights. The config's `base_model_tp_plan` shards the matrices; all
        processes of `tensor` keep the embedding, which is also the head, and the norms.

        Args:
            loss_model: Module with a `PleiasForCausalLM` as `model`, on the device; its forward is the one called.
            dtype: Dtype in which the layers' weights are gathered. The embedding is gathered and all gradients are
                reduced in fp32. Gradients are reduced after every micro batch: unsharded until the last one they
                would need the memory that sharding saves.

        Raises:
            InputError: If heads or columns do not divide among the processes of `tensor`.
        """
        model, config = loss_model.model, loss_model.model.config
        sizes = {kind: size for kind, size in self.sizes.items() if size > 1 or kind == "shard"}
        mesh = init_device_mesh(model.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        if self.tensor > 1:
            for field in ("num_key_value_heads", "intermediate_size"):
                if (size := getattr(config, field)) % self.tensor:
                    raise InputError(f"model: {field} must be a multiple of tp_size {self.tensor}, got {size}.")
            plan = {name: STYLES[style]() for name, style in config.base_model_tp_plan.items()}
            parallelize_module(model.model, mesh["tensor"], plan, src_data_rank=None)
        data = mesh["replicate", "shard"] if self.replicate > 1 else mesh["shard"]
        # Activations between layers are not cast: they are the same without FSDP.
        layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        rest = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in model.model.layers:
            fully_shard(layer, mesh=data, mp_policy=layers, reshard_after_forward=self.reshard)
        fully_shard(loss_model, mesh=data, mp_policy=rest, reshard_after_forward=False)


def reshard(loss_model: torch.nn.Module) -> None:
    """Shard the embedding again after a forward without a backward, which would have resharded it."""
    if isinstance(loss_model, FSDPModule):
        loss_model.reshard()


# Tensors, sharded or not --------------------------------------------------------------------------------------------


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process stores."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return `value`, this process's part, as a tensor that is distributed like a parameter."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    value = value.to(parameter.device)
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def offset(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the offset of this process's part in the full tensor."""
    start, size = [0] * parameter.dim(), list(parameter.shape)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        for kind in ("tensor", "shard"):  # FSDP shards what tensor parallelism leaves, like torch.chunk
            if kind in mesh.mesh_dim_names:
                number = mesh.mesh_dim_names.index(kind)
                d, count, index = parameter.placements[number].dim, mesh.size(number), mesh.get_local_rank(number)
                share = -(-size[d] // count)
                begin = min(index * share, size[d])
                start[d], size[d] = start[d] + begin, min(share, size[d] - begin)
        assert size == list(parameter.to_local().shape), (size, parameter)
    return tuple(start)


def is_first_holder(parameter: torch.Tensor) -> bool:
    """Return whether this process is the first of those that store the same part of a parameter."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if not isinstance(parameter, DTensor):
        return rank == 0
    mesh = parameter.device_mesh
    others = processes // mesh.size()  # processes of `tensor` if it is not a dimension of the parameter's mesh
    return rank % others == 0 and rank // others < _parts(parameter)


def writers(model: torch.nn.Module) -> int:
    """Return the number of processes, counted from rank 0, that store a part that no earlier one stores."""
    return max(map(_parts, model.parameters()))


def _parts(parameter: torch.Tensor) -> int:
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    return mesh.size() // (mesh["replicate"].size() if "replicate" in mesh.mesh_dim_names else 1)


def clip_gradients(parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
    """Scale all gradients down to a norm over the full model of at most `limit`; return the norm before.

    Parameters that all processes of `tensor` store get the mean of their gradients first, or rounding would make them
    differ. (PyTorch's own function cannot add up norms of parameters that are sharded over different process sets.)
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


def gather_full_model(model: torch.nn.Module, dtype: torch.dtype, *, keep: bool) -> torch.nn.Module | None:
    """Gather the full model in host memory, tensor by tensor, if `keep`. All processes must call this."""
    tensors = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            tensors[name] = value.to("cpu", dtype)
    if not keep:
        return None
    with torch.device("meta"):
        full_model = type(model)(model.config)
    full_model.load_state_dict(tensors, assign=True, strict=False)
    full_model.tie_weights()
    for name, buffer in model.named_buffers():  # the rotary frequencies, which checkpoints do not contain
        module, _, key = name.rpartition(".")
        setattr(full_model.get_submodule(module), key, buffer.cpu())
    return full_model
