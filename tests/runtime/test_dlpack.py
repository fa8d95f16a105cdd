"""Leases and the ops' inputs and outputs pass between libraries by DLPack, never by a copy.

Each test proves it twice: both sides have the same address, and each sees what the other writes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vidgen.runtime import native, ops
from vidgen.runtime.attention import attention
from vidgen.runtime.memory import HOST, Arena, Lane

B, L, H, D = 2, 6, 2, 32


def _modulate(x: Tensor) -> Tensor:
    return ops.modulate(x.view(B, L, H * D), torch.ones(B, H * D), torch.ones(B, H * D))


def _gated_residual(x: Tensor) -> Tensor:
    x = x.view(B, L, H * D)
    return ops.gated_residual(x, x, torch.ones(B, H * D))


def _attention(x: Tensor) -> Tensor:
    x = x.view(B, L, H, D)
    return attention(x, x, x)


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "modulate": _modulate,
    "gated_residual": _gated_residual,
    "gelu_tanh": ops.gelu_tanh,
    "attention": _attention,
}


@pytest.fixture
def lease() -> Iterator[Any]:
    arena = Arena(1 << 16, pinned=False)
    lease = arena.lease(B * L * H * D * 4)
    yield lease
    lease.give_back()
    arena.close()


@pytest.fixture(params=["reference", "compiled"])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled" and native.load() is None:
        pytest.skip(native.reason())
    with ops.use(request.param):
        yield


def test_a_lease_is_numpys_and_torchs_at_once(lease: Any) -> None:
    tensor, array = torch.from_dlpack(lease), np.from_dlpack(lease)
    assert tensor.data_ptr() == array.ctypes.data == lease.pointer
    assert tensor.shape == array.shape == (lease.nbytes,)
    tensor.zero_()
    array[3] = 7
    assert tensor[3] == 7
    tensor[4] = 8
    assert array[4] == 8
    assert lease.tensor((8,)).tolist() == [0, 0, 0, 7, 8, 0, 0, 0]


@pytest.mark.parametrize("from_dlpack", [torch.from_dlpack, np.from_dlpack])
def test_what_was_exchanged_keeps_the_leases_bytes(from_dlpack: Callable[[Any], Any]) -> None:
    arena = Arena(256, pinned=False)
    lease = arena.lease(256)
    taken = from_dlpack(lease)
    taken[:] = 5
    lease.give_back()
    assert arena.try_lease(256) is None  # not while somebody sees them
    assert (taken == 5).all()
    del taken
    arena.lease(256, timeout=0).give_back()
    arena.close()


def test_a_lease_that_was_given_back_is_refused() -> None:
    lease = Arena(256, pinned=False).lease(256)
    lease.give_back()
    for from_dlpack in (torch.from_dlpack, np.from_dlpack):
        with pytest.raises(RuntimeError, match="used after its return"):
            from_dlpack(lease)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.usefixtures("implementation")
def test_an_op_reads_numpys_memory_and_numpy_reads_its_output(
    op: Callable[[Tensor], Tensor],
) -> None:
    array = np.random.default_rng(0).standard_normal((B, L, H * D)).astype(np.float32)
    x = torch.from_dlpack(array)
    assert x.data_ptr() == array.ctypes.data
    first = op(x)
    array[0, 0, 0] += 1.0  # the op sees it: x is the array's memory
    out = op(x)
    assert not torch.equal(out, first)
    assert torch.equal(out, op(torch.tensor(array)))
    seen = np.from_dlpack(out)
    assert seen.ctypes.data == out.data_ptr()
    seen[0, 0] = 42.0
    assert (out[0, 0] == 42.0).all()


@pytest.mark.usefixtures("implementation")
def test_an_op_writes_into_numpys_memory() -> None:
    x, array = torch.randn(B, L, D), np.zeros((B, L, D), np.float32)
    out = ops.gelu_tanh(x, out=torch.from_dlpack(array))
    assert out.data_ptr() == array.ctypes.data
    assert np.array_equal(array, ops.gelu_tanh(x).numpy())
    assert array.any()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.usefixtures("implementation")
def test_an_op_reads_a_lease(lease: Any, op: Callable[[Tensor], Tensor]) -> None:
    values = np.linspace(-2, 2, B * L * H * D, dtype=np.float32)
    np.from_dlpack(lease).view(np.float32)[:] = values
    x = torch.from_dlpack(lease).view(torch.float32).view(B, L, H * D)
    assert x.data_ptr() == lease.pointer
    assert torch.equal(op(x), op(torch.tensor(values).view(B, L, H * D)))


@pytest.mark.gpu
def test_a_lease_reaches_cupy_through_a_lane() -> None:
    cupy = pytest.importorskip("cupy")
    arena, lane = Arena(4096), Lane("cuda")
    lease = arena.lease(4096)
    np.from_dlpack(lease)[:] = np.arange(4096) % 251
    ticket = lane.to_device(torch.from_dlpack(lease), producer=HOST, lease=lease)
    lease.give_back(after=ticket)
    tensor = ticket.read(torch.cuda.current_stream())
    array = cupy.from_dlpack(tensor)
    assert array.data.ptr == tensor.data_ptr()
    assert array.get().tolist() == [i % 251 for i in range(4096)]
    ticket.wait()
    arena.close()


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_an_op_reads_cupys_memory_and_cupy_reads_its_output(op: Callable[[Tensor], Tensor]) -> None:
    cupy = pytest.importorskip("cupy")
    array = cupy.random.default_rng(0).standard_normal((B, L, H * D)).astype(cupy.float32)
    with torch.device("cuda"):
        x = torch.from_dlpack(array)
        assert x.data_ptr() == array.data.ptr
        first = op(x)
        array[0, 0, 0] += 1.0
        cupy.cuda.get_current_stream().synchronize()
        out = op(x)
        assert not torch.equal(out, first)
        seen = cupy.from_dlpack(out)
        assert seen.data.ptr == out.data_ptr()
        seen[0, 0] = 42.0
        cupy.cuda.get_current_stream().synchronize()
        assert (out[0, 0] == 42.0).all()
