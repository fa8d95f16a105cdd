"""Moments of 8 bits by torchao; with it missing, one line that names the extra."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vidgen.errors import UserError
from vidgen.recipe.schema import OptimConfig
from vidgen.runtime import checkpoint
from vidgen.train.optim.optimizer import build_optimizer, set_learning_rate, state_tensors

CONFIG = OptimConfig(lr=3e-3, eps=1e-8, states="8bit")
SHAPES = {"in": (64, 256), "out": (3, 2048), "bias": (64,), "odd": (70, 100)}


@pytest.fixture
def eager() -> Iterator[None]:
    """torchao compiles its update; here it runs as it is written."""
    pytest.importorskip("torchao", reason='torchao is not installed: pip install "vidgen[8bit]"')
    with torch.compiler.set_stance("force_eager"):
        yield


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r'pip install "vidgen\[8bit\]"'):
        build_optimizer([nn.Parameter(torch.zeros(3))], CONFIG)


def test_an_eps_that_a_moment_of_zero_would_divide_by_is_refused() -> None:
    with pytest.raises((ValueError, ValidationError), match="1e-8 or more"):
        OptimConfig(states="8bit")


Make = Callable[[torch.Tensor], torch.Tensor]


def parameters(make: Make = lambda x: x) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: nn.Parameter(make(0.1 * torch.randn(shape, generator=generator)))
        for name, shape in SHAPES.items()
    }


def update(
    named: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps: range,
    make: Make = lambda x: x,
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        set_learning_rate(optimizer, 1e-3 * (step + 1))
        for p in named.values():
            p.grad = make(torch.randn(p.shape, generator=generator))
        optimizer.step()


def test_training_follows_that_with_fp32_moments(eager: None) -> None:
    curves = []
    for states in ("fp32", "8bit"):
        torch.manual_seed(1)
        teacher = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 3))
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 3))
        config = OptimConfig(lr=1e-3, eps=1e-8, states=states)
        optimizer = build_optimizer(model.parameters(), config)
        losses = []
        for _ in range(60):
            x = torch.randn(32, 256)
            loss = (model(x) - teacher(x).detach()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    plain, ours = (sum(curve[-20:]) for curve in curves)
    assert ours == pytest.approx(plain, rel=0.1)
    assert plain < 0.7 * sum(curves[0][:20])


def test_a_checkpoint_holds_codes_and_goes_on_bit_for_bit(eager: None, tmp_path: Path) -> None:
    straight, broken = parameters(), parameters()
    first, second = (build_optimizer(n.values(), CONFIG) for n in (straight, broken))
    update(straight, first, range(5))
    update(broken, second, range(2))

    def everything(named: Any, optimizer: Any) -> dict[str, dict[str, torch.Tensor]]:
        model = {name: p.detach() for name, p in named.items()}
        return {"model": model, "optim": state_tensors(named, optimizer)}

    kept = everything(broken, second)
    assert kept["optim"]["in.exp_avg.codes"].dtype == torch.uint8
    assert kept["optim"]["out.exp_avg_sq.scales"].shape == (3, 8)
    assert kept["optim"]["bias.exp_avg"].dtype == torch.float32
    checkpoint.save(tmp_path, 2, kept, {}).wait()
    resumed = {name: nn.Parameter(torch.zeros_like(p)) for name, p in broken.items()}
    third = build_optimizer(resumed.values(), CONFIG)
    checkpoint.load(tmp_path / "step-000000002", everything(resumed, third))
    update(resumed, third, range(2, 5))
    for name, tensor in everything(straight, first)["optim"].items():
        assert torch.equal(tensor, everything(resumed, third)["optim"][name]), name
    for name, p in straight.items():
        assert torch.equal(p, resumed[name])


def updated_shards(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))

    def make(whole: torch.Tensor) -> DTensor:
        return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)

    named = parameters(make)
    optimizer = build_optimizer(named.values(), CONFIG)
    with torch.compiler.set_stance("force_eager"):
        update(named, optimizer, range(3), make)
    whole = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in {**named, **state_tensors(named, optimizer)}.items()
    }
    if rank == 0:
        torch.save(whole, folder / "whole.pt")
    dist.destroy_process_group()


def test_shards_have_the_bits_of_the_whole(
    eager: None, ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Over two ranks, of which one has 2 rows of the narrow parameter and the other 1."""
    ranks(updated_shards, 2)
    shards = torch.load(tmp_path / "ranks-0" / "whole.pt")
    named = parameters()
    optimizer = build_optimizer(named.values(), CONFIG)
    update(named, optimizer, range(3))
    for name, tensor in {**named, **state_tensors(named, optimizer)}.items():
        assert torch.equal(tensor, shards[name]), name
