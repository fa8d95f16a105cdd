import math
from typing import Any

import pytest
import torch
from torch import nn

from vidgen.recipe.schema import OptimConfig
from vidgen.train.optim.optimizer import (
    EMA,
    build_optimizer,
    learning_rate,
    update_weights_and_ema,
)


def rates(config: OptimConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_a_rate_that_stays() -> None:
    assert rates(OptimConfig(lr=0.5), 3) == [0.5, 0.5, 0.5]


def test_warm_up_reaches_the_rate_in_its_last_step() -> None:
    found = rates(OptimConfig(lr=1.0, warmup=4), 6)
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_drops_hold_from_their_step_on_in_any_order() -> None:
    config = OptimConfig(lr=1.0, drops={4: 0.1, 2: 0.5})
    assert rates(config, 6) == [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]


def test_stage_1_drops_for_its_last_45k_steps() -> None:
    config = OptimConfig(lr=5e-5, drops={40_000: 3e-5})
    assert learning_rate(config, 39_999, 85_000) == 5e-5
    assert learning_rate(config, 40_000, 85_000) == 3e-5


def test_a_decay_follows_half_a_cosine() -> None:
    config = OptimConfig(lr=1.0, decay_to=0.2)
    found = rates(config, 100)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.6)
    assert found[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert found == sorted(found, reverse=True)
    assert 0.2 < found[-1] < 0.201
    assert learning_rate(config, 500, 100) == pytest.approx(0.2)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))


def test_the_optimizer_is_adamw_though_its_state_is_made_ahead() -> None:
    config = OptimConfig(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    ours, theirs = small_model(), small_model()
    optimizer = build_optimizer(ours.parameters(), config)
    state = {key for p in ours.parameters() for key in optimizer.state[p]}
    expected = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, fused=True
    )
    for step in range(4):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        for model, opt in ((ours, optimizer), (theirs, expected)):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
        assert {*expected.state[q]} == state  # a checkpoint holds all there is
        for key in state:
            assert torch.equal(optimizer.state[p][key], expected.state[q][key])


def test_an_average_of_constant_weights_is_those_weights() -> None:
    model = small_model()
    named = dict(model.named_parameters())
    ema = EMA(named, 0.99)
    for step in range(1, 4):
        ema.update(step)
    for name, p in named.items():
        torch.testing.assert_close(ema.tensors[name], p.detach())
        assert ema.tensors[name].data_ptr() != p.data_ptr()


def test_the_average_follows_quickly_at_first_and_slowly_later() -> None:
    p = nn.Parameter(torch.zeros(1))
    ema = EMA({"p": p}, 0.5)
    p.data.fill_(1.0)
    ema.update(1)  # decay 2/11
    assert ema.tensors["p"].item() == pytest.approx(9 / 11)
    p.data.fill_(0.0)
    ema.update(1000)  # decay 0.5
    assert ema.tensors["p"].item() == pytest.approx(9 / 22)


def test_the_average_of_bf16_weights_is_kept_in_fp32() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    ema = EMA({"p": p}, 0.5)
    assert ema.tensors["p"].dtype == torch.float32


@pytest.mark.parametrize("states", ["fp32", "bf16"])
def test_weights_and_ema_are_updated_in_one_call(states: Any) -> None:
    p = nn.Parameter(torch.ones(4, 4))
    ema = EMA({"p": p}, 0.5)
    optimizer = build_optimizer([p], OptimConfig(states=states, lr=0.1, weight_decay=0.0))
    p.grad = torch.ones_like(p)
    update_weights_and_ema(optimizer, ema, 1)
    assert (p < 1).all()
    expected = 1 + ema.rate(1) * (p.detach() - 1)
    torch.testing.assert_close(ema.tensors["p"], expected)
