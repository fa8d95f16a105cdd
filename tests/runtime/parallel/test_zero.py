"""FSDP2 training and gradient clipping against one process."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from vidgen.runtime.parallel import clip_grad_norm, fill, shard, synchronise_gradients

STEPS, LIMIT = 4, 0.05


def join(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


class Net(nn.Module):
    """Sizes that no number of ranks divides, and a parameter smaller than the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


def train(model: nn.Module, batches: list[torch.Tensor]) -> list[float]:
    """The gradient norm of each step, clipped."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    norms = []
    for batch in batches:
        model(batch).square().mean().backward()
        norm = clip_grad_norm(model.parameters(), LIMIT)
        assert not isinstance(norm, DTensor)
        norms.append(norm.item())
        optimizer.step()
        optimizer.zero_grad()
    return norms


def compare_worlds(rank: int, most: int, folder: Path) -> None:
    for world in range(2, most + 1):
        if rank < world:
            compare(rank, world, folder)


def compare(rank: int, world: int, folder: Path) -> None:
    join(rank, world, folder)
    torch.manual_seed(0)
    original = Net()
    batches = list(torch.randn(STEPS, 12, 5))
    alone = copy.deepcopy(original)
    wanted = train(alone, batches)
    assert min(wanted) > LIMIT  # else nothing was clipped

    meshes = [init_device_mesh("cpu", (world,))]
    if world == 4:
        meshes.append(init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts")))
    for mesh in meshes:
        for zero in (2, 3):
            model = copy.deepcopy(original)
            shard(model, model.blocks, mesh, zero=zero)
            assert all(isinstance(p, DTensor) for p in model.parameters())
            norms = train(model, [b.chunk(world)[rank] for b in batches])
            torch.testing.assert_close(norms, wanted, rtol=1e-5, atol=0)
            for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


def test_sharded_training_is_training(ranks: Any) -> None:
    ranks(compare_worlds, 4)


def low_precision(rank: int, world: int, folder: Path) -> None:
    """Blocks compute in bf16; what is stored, and the gradient, stay fp32."""
    join(rank, world, folder)
    torch.manual_seed(0)
    model = Net()
    full = sum(p.numel() for p in model.parameters())
    shard(model, model.blocks, init_device_mesh("cpu", (world,)), param_dtype=torch.bfloat16)
    out = model(torch.ones(2, 5, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    # Each rank's gradient is rank + 1 times the same thing; their mean in bf16 would be rounded.
    (out.sum() * (rank + 1)).backward()
    bias = model.head.bias.grad
    assert isinstance(bias, DTensor)
    assert bias.dtype == torch.float32
    assert bias.full_tensor().item() == 2 * sum(range(1, world + 1)) / world
    held = sum(p.to_local().numel() for p in model.parameters())
    assert held < full
    dist.destroy_process_group()


def test_blocks_compute_in_the_dtype_asked_for(ranks: Any) -> None:
    ranks(low_precision, 2)


def mixed_norm(rank: int, world: int, folder: Path) -> None:
    """Gradients sharded over one mesh, replicated, and plain: the norm is that of the whole."""
    join(rank, world, folder)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (world,))
    gradients = [torch.randn(5, 3), torch.randn(7), torch.randn(2, 2).bfloat16()]
    from torch.distributed.tensor import Replicate, Shard

    wanted = torch.stack([g.double().norm() for g in gradients]).norm()
    parameters = [
        nn.Parameter(distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)])),
        nn.Parameter(distribute_tensor(torch.zeros(7), mesh, [Replicate()])),
        nn.Parameter(torch.zeros(2, 2).bfloat16()),
        nn.Parameter(torch.zeros(3)),  # without a gradient
    ]
    parameters[0].grad = distribute_tensor(gradients[0], mesh, [Shard(0)])
    parameters[1].grad = distribute_tensor(gradients[1], mesh, [Replicate()])
    parameters[2].grad = gradients[2].clone()
    for limit in (None, 100.0):
        norm = clip_grad_norm(parameters, limit)
        torch.testing.assert_close(norm.double(), wanted, rtol=1e-6, atol=0)
        assert torch.equal(parameters[2].grad, gradients[2])
    clip_grad_norm(parameters, 1.0)
    torch.testing.assert_close(clip_grad_norm(parameters, None).item(), 1.0, rtol=1e-2, atol=0)
    assert clip_grad_norm(parameters[3:], 1.0).item() == 0.0
    local = torch.ones(2)
    parameters[1].grad = DTensor.from_local(local.repeat(4)[:7], mesh, [Partial()])
    with pytest.raises(ValueError, match="not reduced"):
        clip_grad_norm(parameters, None)
    dist.destroy_process_group()


def test_the_norm_counts_everything_once(ranks: Any) -> None:
    ranks(mixed_norm, 3)


def fill_shards(rank: int, world: int, folder: Path) -> None:
    """A model sharded before it has memory is filled with what one process would have."""
    join(rank, world, folder)
    torch.manual_seed(0)
    original = Net()
    for mesh in (
        init_device_mesh("cpu", (world,)),
        init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "parts")),
    ):
        with torch.device("meta"):
            model = Net()
        shard(model, model.blocks, mesh)
        assert all(p.is_meta for p in model.parameters())
        model.to_empty(device="cpu")
        for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
            fill(ours, theirs)
            assert torch.equal(ours.full_tensor(), theirs)
    dist.destroy_process_group()


def test_no_rank_ever_holds_the_whole(ranks: Any) -> None:
    ranks(fill_shards, 4)


def accumulate(rank: int, world: int, folder: Path) -> None:
    """Micro-steps that do not reduce give the gradient of those that do."""
    join(rank, world, folder)
    torch.manual_seed(0)
    original = Net()
    batches = [torch.randn(2, 5) for _ in range(3)]
    found = []
    for every in (True, False):
        model = copy.deepcopy(original)
        shard(model, model.blocks, init_device_mesh("cpu", (world,)), zero=3)
        for number, batch in enumerate(batches, start=1):
            synchronise_gradients(model, every or number == len(batches))
            model(batch * (rank + 1)).square().mean().backward()
        found.append([p.grad.full_tensor() for p in model.parameters()])
    for often, once in zip(*found, strict=True):
        torch.testing.assert_close(once, often, rtol=1e-5, atol=1e-6)
    synchronise_gradients(original, False)  # not sharded: there is nothing to reduce
    dist.destroy_process_group()


def test_gradients_reduced_once_a_step_are_the_same(ranks: Any) -> None:
    ranks(accumulate, 2)


def test_zero_is_2_or_3() -> None:
    with pytest.raises(ValueError, match="zero is 2 or 3"):
        shard(Net(), [], None, zero=1)  # type: ignore[arg-type]
