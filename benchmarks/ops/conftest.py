"""What the benchmarks of the ops share: sizes, implementations, and the copy they are held against.

Run as: pytest benchmarks/ops -o python_files='bench_*.py' --benchmark-json=FILE [--tokens N]
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.runtime import ops
from vidgen.runtime.observe.hardware import copy_bandwidth

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tokens", type=int, default=4096, help="length of the sequence")
    parser.addoption("--width", type=int, default=3072, help="features of a token")
    parser.addoption("--heads", type=int, default=24, help="attention heads")


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_used_again() -> None:
    """Outputs come from memory already touched: page faults are not what is measured."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing straight from the system
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing back to it


@dataclass(frozen=True)
class Size:
    tokens: int
    width: int
    heads: int


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    return Size(*(request.config.getoption(f"--{name}") for name in ("tokens", "width", "heads")))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


Op = Callable[..., Any]


@dataclass
class Bench:
    """Times an op and says which fraction of a copy's bandwidth it reaches."""

    benchmark: Any
    implementation: str
    device: torch.device
    copy_bytes_per_s: float

    def forward(self, op: Op, plain: Op, inputs: Sequence[Any], moved: int) -> None:
        """op is ours, plain the same in eager torch; moved: bytes each must move at least."""
        call = self._call(op, plain)
        with torch.no_grad():
            self._time(lambda: call(*inputs), moved)

    def backward(self, op: Op, plain: Op, inputs: Sequence[Any], moved: int) -> None:
        outputs = self._call(op, plain)(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
        grads = [torch.randn_like(output) for output in outputs]
        self._time(lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True), moved)

    def _call(self, op: Op, plain: Op) -> Op:
        if self.implementation == "torch.compile":
            return torch.compile(plain)
        return plain if self.implementation == "eager" else op

    def _time(self, call: Callable[[], Any], moved: int) -> None:
        def finished() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        self.benchmark.pedantic(finished, rounds=7, warmup_rounds=2)
        rate = moved / self.benchmark.stats.stats.min
        self.benchmark.extra_info.update(
            device=str(self.device),
            threads=torch.get_num_threads(),
            bytes=moved,
            gb_per_s=rate / 1e9,
            fraction_of_copy=rate / self.copy_bytes_per_s,
        )


@pytest.fixture(params=["compiled", "triton", "eager", "torch.compile"])
def bench(
    request: pytest.FixtureRequest,
    benchmark: Any,
    device: torch.device,
    dtype: torch.dtype,
    size: Size,
) -> Iterator[Bench]:
    implementation: str = request.param
    copied = size.tokens * size.width * dtype.itemsize
    ruler = copy_bandwidth(device, copied, repeats=10)
    result = Bench(benchmark, implementation, device, ruler)
    if implementation not in ("compiled", "triton"):
        yield result
        torch.compiler.reset()
        return
    if implementation == "triton" and device.type == "cpu":
        pytest.skip("Triton on a CPU is an interpreter")
    why = ops.dispatch.why_not("modulate", implementation, device.type, dtype)
    if why:
        pytest.skip(why)
    with ops.use(implementation):
        yield result
