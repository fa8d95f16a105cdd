"""Tensor parallelism: the heads and hidden features of every block divided over ranks.

Packed projections ([q|k|v], [q|k|v|mlp] rows; [attention|mlp] columns) cannot be split as stored,
since a rank needs its heads of each part. Their rows are first permuted into rank order, so that
equal shards are correct; checkpoints store the model's order.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

from vidgen.errors import UserError
from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.mmdit.model import MMDiT
from vidgen.runtime.parallel.split import same_input, sum_parts
from vidgen.runtime.parallel.zero import fill, local

# By name within a block: input layers are split by rows (outputs), output layers by columns.
ROWS = ("img_attn.qkv", "txt_attn.qkv", "img_mlp.0", "txt_mlp.0", "linear1")
COLUMNS = ("img_attn.proj", "txt_attn.proj", "img_mlp.2", "txt_mlp.2", "linear2")


class RowsLinear(nn.Module):
    """This rank's outputs of a linear layer, from inputs that all ranks have."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self._group = mesh.get_group()
        self.weight = _divided(whole.weight, mesh, Shard(0))
        self.bias = None if whole.bias is None else _divided(whole.bias, mesh, Shard(0))

    def forward(self, x: Tensor) -> Tensor:
        same = same_input(x, self._group)
        return F.linear(same, local(self.weight), None if self.bias is None else local(self.bias))


class ColumnsLinear(nn.Module):
    """A linear layer over this rank's inputs, summed over the ranks."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self._group = mesh.get_group()
        self.weight = _divided(whole.weight, mesh, Shard(1))
        self.bias = _divided(whole.bias, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        total = sum_parts(F.linear(x, local(self.weight)), self._group)
        return total + local(self.bias)


def _divided(parameter: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    return nn.Parameter(
        distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    )


@torch.no_grad()
def divide(model: MMDiT, mesh: DeviceMesh) -> None:
    """Split a model, identical on every rank, over a one-dimensional mesh, in place."""
    ways = mesh.size()
    check_divides(model.config, ways)
    for name, parameter in model.named_parameters():
        if (packed := packed_order(model.config, name, ways)) is not None:
            dim, order = packed
            parameter.copy_(parameter.index_select(dim, order.to(parameter.device)))
    for block in (*model.double_blocks, *model.single_blocks):
        for names, kind in ((ROWS, RowsLinear), (COLUMNS, ColumnsLinear)):
            for name in names:
                if (linear := _find(block, name)) is not None:
                    block.set_submodule(name, kind(linear, mesh))
        for module in block.modules():
            if hasattr(module, "num_heads"):
                module.num_heads = model.config.num_heads // ways
            if hasattr(module, "split"):
                module.split = tuple(width // ways for width in module.split)


def check_divides(config: MMDiTConfig, ways: int) -> None:
    if config.num_heads % ways or config.mlp_hidden % ways:
        raise UserError(
            f"parallel.tensor is {ways}: it must divide the model's {config.num_heads} heads and "
            f"{config.mlp_hidden} hidden features"
        )


def packed_order(config: MMDiTConfig, name: str, ways: int) -> tuple[int, Tensor] | None:
    """The packed dimension of a packed parameter, and its indices in rank order."""
    width, hidden = config.hidden_size, config.mlp_hidden
    module, _, kind = name.rpartition(".")
    if module.endswith("_attn.qkv"):
        dim, parts = 0, [width] * 3
    elif module.endswith("linear1"):
        dim, parts = 0, [width] * 3 + [hidden]
    elif module.endswith("linear2") and kind == "weight":
        dim, parts = 1, [width, hidden]
    else:
        return None
    ranges = torch.arange(sum(parts)).split(parts)
    return dim, torch.cat([part.chunk(ways)[rank] for rank in range(ways) for part in ranges])


def sum_norm_gradients(named: Mapping[str, nn.Parameter], mesh: DeviceMesh) -> None:
    """Sum the gradients of the scales that all heads share; each rank has its heads' part."""
    parts = [
        local(p.grad)
        for name, p in named.items()
        if name.endswith("_norm.scale") and p.grad is not None
    ]
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat, group=mesh.get_group())
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


@torch.no_grad()
def in_model_order(
    tensors: Mapping[str, Tensor], config: MMDiTConfig, ways: int
) -> dict[str, Tensor]:
    """Split tensors in the form of a checkpoint: the model's row order, contiguous per rank.

    A name is that of a parameter, optionally followed by that of an optimizer state of its shape.
    """
    found = {}
    for name, tensor in tensors.items():
        if not _is_divided(tensor):
            found[name] = tensor
            continue
        assert isinstance(tensor, DTensor)
        whole = tensor.full_tensor()
        if (packed := packed_order(config, _parameter_of(name), ways)) is not None:
            dim, order = packed
            whole = whole.index_select(dim, torch.argsort(order).to(whole.device))
        found[name] = _in_rows(whole, tensor.device_mesh)
    return found


@torch.no_grad()
def into_rank_order(
    tensors: Mapping[str, Tensor], loaded: Mapping[str, Tensor], config: MMDiTConfig, ways: int
) -> None:
    """Fill split tensors from those of `in_model_order`, which a checkpoint has filled."""
    for name, tensor in tensors.items():
        if not _is_divided(tensor):
            continue
        source = loaded[name]
        assert isinstance(source, DTensor)
        whole = source.full_tensor()
        if (packed := packed_order(config, _parameter_of(name), ways)) is not None:
            dim, order = packed
            whole = whole.index_select(dim, order.to(whole.device))
        fill(tensor, whole)


def _is_divided(tensor: Tensor) -> bool:
    """Whether tensor parallelism split it; FSDP shards of it are then not contiguous rows."""
    names = tensor.device_mesh.mesh_dim_names if isinstance(tensor, DTensor) else None
    return names is not None and "tensor" in names


def _in_rows(whole: Tensor, mesh: DeviceMesh) -> DTensor:
    rows = [Shard(0)] * mesh.ndim
    return distribute_tensor(whole, mesh, rows, src_data_rank=None)


def _parameter_of(name: str) -> str:
    """The parameter a state belongs to: `...qkv.weight` for `...qkv.weight.exp_avg`."""
    for kind in ("weight", "bias"):
        head, found, _ = name.partition(f".{kind}")
        if found:
            return f"{head}.{kind}"
    return name


def _find(block: nn.Module, name: str) -> nn.Linear | None:
    found = dict(block.named_modules()).get(name)
    return found if isinstance(found, nn.Linear) else None
