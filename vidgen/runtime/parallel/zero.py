"""ZeRO: parameters, gradients and optimizer state sharded over ranks with FSDP2."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    *,
    zero: Literal[2, 3] = 3,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = torch.float32,
) -> None:
    """Shard a model in place, with one FSDP unit per block and one for the rest.

    A mesh with one dimension shards over all its ranks; with two, it replicates over the first and
    shards over the second. `zero=2` keeps a gathered block until its backward, `zero=3` gathers it
    again. Blocks compute in `param_dtype`, which their token inputs must have. Gradients are
    averaged over all ranks in `reduce_dtype`: in a context-parallel group, where each rank holds
    part of a sample, a rank's loss must therefore be its part of the group's mean times the number
    of ranks in the group.
    """
    if zero not in (2, 3):
        raise ValueError(f"zero is 2 or 3, not {zero}")
    # Inputs are not cast: timesteps are fp32 and tokens bf16.
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=zero == 3, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=zero == 3, mp_policy=policy)


def synchronise_gradients(model: nn.Module, wanted: bool) -> None:
    """Set whether the next backward reduces gradients over ranks, or accumulates them locally.

    With accumulation over micro-steps, gradients are reduced once per step, at the cost of an
    unsharded fp32 gradient in memory. A model that is not sharded has nothing to reduce.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


@torch.no_grad()
def fill(parameter: Tensor, whole: Tensor) -> None:
    """Set a parameter's values; a sharded one copies its own part, without communication."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
        return
    moved = whole.to(parameter.device, parameter.dtype)
    cut = distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.to_local().copy_(cut.to_local())


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients so that their joint 2-norm is at most `max_norm`; return the norm before.

    The norm is that of the whole model: shards are summed over their meshes, and plain gradients,
    which are equal on all ranks, count once. `None` only measures. The norm is a scalar tensor on
    the gradients' device, to avoid a synchronisation here.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    # Gradients with the same sharding share one all-reduce.
    squares: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in gradients:
        key, part = _sharding(gradient)
        wide = torch.promote_types(part.dtype, torch.float32)
        squares.setdefault(key, []).append(torch.linalg.vector_norm(part, dtype=wide).square())
    parts_of_norm = []
    for (mesh, dims), parts in squares.items():
        total = torch.stack(parts).sum()
        for dim in dims:
            assert mesh is not None
            dist.all_reduce(total, group=mesh.get_group(dim))
        parts_of_norm.append(total)
    norm = torch.stack(parts_of_norm).sum().sqrt()
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            part = local(gradient)
            part.mul_(scale.to(part.dtype))
    return norm


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharding(tensor: Tensor) -> tuple[tuple[DeviceMesh | None, tuple[int, ...]], Tensor]:
    """The mesh, the mesh dimensions that a tensor is sharded over, and this rank's part."""
    if not isinstance(tensor, DTensor):
        return (None, ()), tensor
    if any(p.is_partial() for p in tensor.placements):
        raise ValueError(f"a gradient is not reduced yet: {tensor.placements}")
    dims = tuple(d for d, p in enumerate(tensor.placements) if not p.is_replicate())
    return (tensor.device_mesh, dims), tensor.to_local()
