"""Moments in bf16: they follow fp32's, and have the same bits on any number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from vidgen.errors import UserError
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import OptimConfig, Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.optim.optimizer import (
    EMA,
    build_optimizer,
    state_tensors,
    update_weights_and_ema,
)

MakeRecipe = Callable[..., Recipe]
CONFIG = OptimConfig(lr=3e-3, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.01, states="bf16")


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 3))


def train_small(states: Any, steps: int) -> tuple[list[float], nn.Module]:
    """A teacher's outputs, learned from fresh inputs in each step."""
    teacher, model = small_model(1), small_model(2)
    config = OptimConfig(lr=3e-3, eps=1e-8, states=states)
    optimizer = build_optimizer(model.parameters(), config)
    losses = []
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(64, 6, generator=generator)
        loss = (model(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_training_follows_that_with_fp32_moments() -> None:
    steps = 400
    plain, _ = train_small("fp32", steps)
    ours, _ = train_small("bf16", steps)
    for begin in (0, 100, 300):  # as the loss falls
        one, two = (sum(curve[begin : begin + 100]) for curve in (plain, ours))
        assert two == pytest.approx(one, rel=0.15)
    assert sum(ours[-100:]) < 0.1 * sum(ours[:100])


def test_the_first_step_is_adamw_s_as_moments_are_rounded_after_their_use() -> None:
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(ours.parameters(), CONFIG)
    expected = torch.optim.AdamW(
        theirs.parameters(), lr=3e-3, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.01
    )
    x = torch.randn(5, 6)
    for model, opt in ((ours, optimizer), (theirs, expected)):
        model(x).square().mean().backward()
        opt.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        state = optimizer.state[p]
        assert {key: t.dtype for key, t in state.items()} == {
            "step": torch.float32,
            "exp_avg": torch.bfloat16,
            "exp_avg_sq": torch.bfloat16,
        }


def test_the_ema_updated_in_the_same_pass_is_that_of_every_optimizer() -> None:
    named = dict(small_model().named_parameters())
    fused, alone = EMA(named, 0.9), EMA(named, 0.9)
    optimizer = build_optimizer(named.values(), CONFIG)
    still = next(iter(named.values()))
    for step in range(1, 4):
        for p in named.values():
            p.grad = torch.randn_like(p)
        if step == 3:
            still.grad = None  # the EMA goes on following weights that stay
        update_weights_and_ema(optimizer, fused, step)
        alone.update(step)
    for name, average in fused.tensors.items():
        assert not torch.equal(average, named[name])
        torch.testing.assert_close(average, alone.tensors[name], rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_stays() -> None:
    model = small_model()
    optimizer = build_optimizer(model.parameters(), CONFIG)
    first, *others = model.parameters()
    before = first.detach().clone()
    for p in others:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(first, before)
    assert optimizer.state[first]["step"] == 0
    assert optimizer.state[others[0]]["step"] == 1


def test_weights_that_are_not_fp32_are_refused() -> None:
    with pytest.raises(ValueError, match="must be float32"):
        build_optimizer([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))], CONFIG)


SHAPES = [(7, 5), (3,), (2, 300), (5, 2, 3, 2)]


def updated(make: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """All that three updates leave of parameters that `make` has sharded, or not."""
    generator = torch.Generator().manual_seed(11)
    named = {
        str(i): nn.Parameter(make(torch.randn(shape, generator=generator)))
        for i, shape in enumerate(SHAPES)
    }
    ema = EMA(named, 0.99)
    optimizer = build_optimizer(named.values(), CONFIG)
    for step in range(1, 4):
        for p in named.values():
            p.grad = make(torch.randn(p.shape, generator=generator))
        update_weights_and_ema(optimizer, ema, step)
    averages = {f"average {name}": tensor for name, tensor in ema.tensors.items()}
    return {**state_tensors(named, optimizer), **named, **averages}


def updated_shards(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found = updated(lambda whole: distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None))
    whole = {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in found.items()
    }
    if rank == 0:
        torch.save(whole, folder / "whole.pt")
    dist.destroy_process_group()


def test_shards_have_the_bits_of_the_whole(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Over three ranks, of which one holds no row of some, as on none."""
    ranks(updated_shards, 3)
    shards = torch.load(tmp_path / "ranks-0" / "whole.pt")
    alone = updated(lambda whole: whole)
    assert shards.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(tensor, shards[name]), name


def tensors_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / f"step-{step:09d}"
    return {
        f"{group}/{name}": tensor
        for group in checkpoint.groups(path)
        for name, tensor in checkpoint.read_tensors(path, group).items()
    }


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tiny: MakeRecipe) -> None:
    straight, broken = (tiny("optim.states=bf16", run=run) for run in ("straight", "broken"))
    Trainer(straight).run()
    Trainer(broken).run(stop_after=3)
    assert Trainer(broken).run() == 6
    one, two = (tensors_of(Path(recipe.run_dir), 6) for recipe in (straight, broken))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
        if name.endswith((".exp_avg", ".exp_avg_sq")):
            assert tensor.dtype == torch.bfloat16


def test_states_of_another_kind_are_refused(tiny: MakeRecipe, recipe_file: Path) -> None:
    recipe = tiny("optim.states=bf16", "train.steps=1", run="kind")
    Trainer(recipe).run()
    other = read_recipe(recipe_file, [f"run_dir={recipe.run_dir}"], Recipe)
    with pytest.raises(UserError, match=r"optim\.states bf16.*set optim\.states=bf16"):
        Trainer(other)
