"""A backend that computes something else is found out before "auto" uses it."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vidgen.runtime.attention import attention, choice, soundness
from vidgen.runtime.attention.backends import Needs, Saved
from vidgen.runtime.attention.soundness import fault
from vidgen.runtime.attention.table import TABLE
from vidgen.runtime.attention.torch_backends import MATH, SDPA_FLASH_CPU


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(soundness, "_found", {})
    return


EVERY = [
    Needs("cpu", dtype, dim, True, lse, mask)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for dim in (32, 128)
    for lse in (False, True)
    for mask in (frozenset(), frozenset({"block"}), frozenset({"length", "block"}))
] + [
    Needs("cpu", dtype, dim, gradient, True, frozenset(), blocks=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for dim in (32, 128)
    for gradient in (False, True)
]


@pytest.mark.parametrize("backend", [b for b in TABLE if "cpu" in b.devices], ids=lambda b: b.name)
def test_what_runs_here_is_sound(backend: Any) -> None:
    served = [needs for needs in EVERY if backend.refusal(needs) is None]
    assert served
    for needs in served:
        assert fault(backend, needs) == ""


def wrong_output(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out * 1.02, lse


def wrong_lse(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse + 1e-3


def wrong_gradient(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out.detach() + 1.02 * (out - out.detach()), lse


def no_lse_gradient(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse.detach() + 0.0 * out.sum()


def not_finite(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, torch.where(lse.isneginf(), 0.0, lse)


def other_shape(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse[..., None]


def test_a_wrong_backward_over_blocks_is_found() -> None:
    def local_lse(grad_out: Tensor, saved: Saved, scale: float) -> Any:
        """As if the block were the whole row."""
        assert SDPA_FLASH_CPU.forward is not None
        assert SDPA_FLASH_CPU.backward is not None
        out, lse, _ = SDPA_FLASH_CPU.forward(saved.q, saved.k, saved.v, scale)
        return SDPA_FLASH_CPU.backward(grad_out, saved._replace(out=out, lse=lse), scale)

    needs = Needs("cpu", torch.float32, 64, True, True, frozenset(), blocks=True)
    assert "grad_q is off by" in fault(replace(SDPA_FLASH_CPU, block_backward=local_lse), needs)


def test_only_backends_with_a_backward_given_the_lse_serve_blocks() -> None:
    needs = Needs("cuda", torch.bfloat16, 64, True, True, frozenset(), blocks=True)
    able = {b.name for b in TABLE if b.block_backward is not None}
    assert able == {
        *("native", "sdpa_flash_cpu", "sdpa_flash", "sdpa_efficient", "cudnn", "math"),
        *("flash2", "flash3", "flash4"),
    }
    refused = "has no backward that takes the log-sum-exp of a whole row"
    (flex,) = (b for b in TABLE if b.name == "flex")
    assert flex.refusal(needs) == refused


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (wrong_output, "out is off by"),
        (wrong_lse, "lse is off by"),
        (wrong_gradient, "grad_. is off by"),
        (no_lse_gradient, "grad_. is off by"),
        (not_finite, "lse is not finite where"),
        (other_shape, "lse has shape"),
    ],
)
def test_every_kind_of_fault_is_found(break_it: Any, message: str, caplog: Any) -> None:
    math = MATH.run
    assert math is not None
    broken = replace(MATH, name="broken", run=lambda *given: break_it(*math(*given)))
    mask = frozenset({"block", "length"}) if break_it is not_finite else frozenset()
    needs = Needs("cpu", torch.float32, 64, break_it is not not_finite, True, mask)
    if break_it is other_shape:
        needs = replace(needs, gradient=False)
    with caplog.at_level(logging.WARNING):
        import re

        assert re.match(message, fault(broken, needs))
    assert "attention backend broken is not used" in caplog.text


def test_a_backend_that_raises_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise RuntimeError("no kernel image is available\nmore lines")

    broken = replace(MATH, name="broken", run=fails, last_resort=False)
    monkeypatch.setattr(choice, "TABLE", (broken, SDPA_FLASH_CPU, MATH))
    needs = Needs("cpu", torch.float32, 64, True, False, frozenset())
    assert choice.choose(needs).name == "sdpa_flash_cpu"
    assert fault(broken, needs) == "it fails: no kernel image is available"


def test_the_surroundings_of_a_call_do_not_reach_the_check() -> None:
    """Fake tensors, counters, inference, saved-tensor hooks and the random state."""
    packed = []
    state = torch.get_rng_state()
    with FakeTensorMode():
        x = torch.empty(1, 5, 2, 64, requires_grad=True)
        assert attention(x, x, x).shape == x.shape
    assert all(reason == "" for reason in soundness._found.values())
    soundness._found.clear()
    choice.reset()
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(1, 5, 2, 64, requires_grad=True)
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t),
    ):
        attention(x, x, x, backend="auto").sum().backward()
    assert counter.get_total_flops() == 0
    assert {tuple(t.shape) for t in packed} <= {(1, 5, 2, 64), (1, 2, 5)}
    soundness._found.clear()
    choice.reset()
    with torch.inference_mode():
        attention(x, x, x)
    assert all(reason == "" for reason in soundness._found.values())
