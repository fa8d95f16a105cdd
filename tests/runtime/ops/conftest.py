"""The laws every op keeps, as one object; each test file supplies the op and its inputs."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vidgen.runtime import ops
from vidgen.runtime.ops import dispatch

Op = Callable[..., Any]


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _leaves(inputs: Sequence[Any]) -> list[Tensor]:
    return [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]


class Laws:
    """Runs one op under one implementation."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation
        self.seed = random.randrange(2**31)  # fresh inputs in every run
        torch.manual_seed(self.seed)

    def results(self, op: Op, inputs: Sequence[Any], grads: Sequence[Tensor]) -> list[Tensor]:
        """Outputs and the gradients of every input that wants one."""
        outputs = _tuple(op(*inputs))
        leaves = _leaves(inputs)
        found = torch.autograd.grad(outputs, leaves, grads[: len(outputs)]) if leaves else ()
        return [*outputs, *found]

    def grads(self, op: Op, inputs: Sequence[Any]) -> list[Tensor]:
        with ops.use("reference"), torch.no_grad():
            return [torch.randn_like(output) for output in _tuple(op(*inputs))]

    def error_rule(self, op: Op, eager: Op, inputs: Sequence[Any]) -> None:
        """max|op - fp64| <= 2 max|eager - fp64| + tiny.

        tiny is the rounding nobody can avoid: once to the result's type, and a few times in
        float32 on the way, both of the largest number. Which of two errors is larger is luck where
        there are few numbers, so there the factor is 6.
        """
        interpreted = self.implementation == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted and max(t.numel() for t in inputs) > 4000:
            pytest.skip("too large for the interpreter")
        grads = self.grads(op, inputs)
        wide = [
            t.detach().double().requires_grad_(t.requires_grad)
            if isinstance(t, Tensor) and t.is_floating_point()
            else t
            for t in inputs
        ]
        exact = self.results(eager, wide, [g.double() for g in grads])
        plain = self.results(eager, inputs, grads)
        ours = self.results(op, inputs, grads)
        for i, (e, p, o) in enumerate(zip(exact, plain, ours, strict=True)):
            assert o.dtype == p.dtype
            assert o.shape == e.shape
            if o.numel() == 0:
                continue
            allowed = (2 if o.numel() >= 32 else 6) * (p.double() - e).abs().max()
            tiny = torch.finfo(o.dtype).eps / 2 + 3 * torch.finfo(torch.float32).eps
            allowed += tiny * e.abs().max() + 1e-30
            error = (o.double() - e).abs().max()
            assert error <= allowed, f"result {i}: {error:.3g} > {allowed:.3g}, seed {self.seed}"

    def same_bits_for_any_thread_count(self, op: Op, inputs: Sequence[Any]) -> None:
        grads = self.grads(op, inputs)
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                found.append(self.results(op, inputs, grads))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert torch.equal(one, two)

    def compiles_without_a_break(self, op: Op, inputs: Sequence[Any]) -> None:
        grads = self.grads(op, inputs)
        torch.compiler.reset()
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        ours = self.results(compiled, inputs, grads)
        for one, two in zip(ours, self.results(op, inputs, grads), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)

    def recomputes_the_same_bits(self, op: Op, inputs: Sequence[Any]) -> None:
        grads = self.grads(op, inputs)

        def recomputed(*args: Any) -> Any:
            return checkpoint(op, *args, use_reentrant=False)

        ours = self.results(recomputed, inputs, grads)
        for one, two in zip(ours, self.results(op, inputs, grads), strict=True):
            assert torch.equal(one, two)

    def passes_on_non_finite_values(self, op: Op, inputs: Sequence[Any]) -> None:
        """NaN and infinity come out where the reference has them."""
        grads = self.grads(op, inputs)
        ours = self.results(op, inputs, grads)
        with ops.use("reference"):
            plain = self.results(op, inputs, grads)
        for one, two in zip(ours, plain, strict=True):
            assert torch.equal(one.isnan(), two.isnan())
            assert torch.equal(one.isinf(), two.isinf())


def _why_not(implementation: str, device: str, op: str = "modulate") -> str:
    return dispatch.why_not(op, implementation, device, torch.float32)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the tensors of a test are made."""
    name: str = request.param
    if name == "cpu":
        yield name
        return
    with torch.device(name):
        yield name


@pytest.fixture(params=["reference", "compiled", "triton"])
def laws(
    request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Laws]:
    implementation: str = request.param
    if why := _why_not(implementation, device):
        pytest.skip(why)
    if implementation == "triton":
        # Few programs, so that each has several tokens to add up.
        monkeypatch.setattr("vidgen.runtime.ops.triton.rows._PROGRAMS", 5)
    with ops.use(implementation):
        yield Laws(implementation)


@pytest.fixture
def kernel_laws(device: str) -> Iterator[Laws]:
    """Of the compiled kernels alone."""
    if why := _why_not("compiled", device):
        pytest.skip(why)
    with ops.use("compiled"):
        yield Laws("compiled")


FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=FLOATS, ids=["fp32", "bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
