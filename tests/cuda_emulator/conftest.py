"""The GPU kernels of csrc/cuda, built for the emulator and run on guarded memory."""

import ctypes
import fcntl
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda_emulator"
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4}
COUNTS = ("launches", "barriers", "matrix_products", "copies", "bank_conflicts")

Run = Callable[..., Any]


def compile_module(build: Path) -> Path:
    """Kept between runs, so that only what changed is compiled; one process builds at a time."""
    import pybind11

    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")
    build.mkdir(parents=True, exist_ok=True)
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DVIDGEN_EMULATE_CUDA=ON"),
        *("-DVIDGEN_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"),
    ]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    make = [cmake, "--build", str(build), "--target", "_emulated", "-j", str(os.cpu_count())]
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, make):
            result = subprocess.run(command, capture_output=True, text=True, timeout=550)
            assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return next(build.glob("_emulated*.so"))


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Memory:
    """Guarded tensors: a kernel that leaves one faults; what lies between its rows is watched."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._allocate = library.vidgen_emulator_allocate
        self._allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._allocate.restype = ctypes.c_void_p
        self._release = library.vidgen_emulator_release
        self._release.argtypes = [ctypes.c_void_p]
        self._lent: list[tuple[int, Tensor, Tensor]] = []

    def empty(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        gap: int = 0,
        at_the_end: bool | None = None,
    ) -> Tensor:
        """All bits set: NaN. `gap` elements lie between one row of the last dimension and the next;
        the last row ends, or the first begins, where memory does."""
        stride, strides = 1, []
        for i, size in enumerate(reversed(shape)):
            strides.append(stride)
            stride *= size + (gap if i == 0 else 0)
        strides.reverse()
        count = (
            0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        )
        bytes_ = max(count * dtype.itemsize, 1)
        rounded = -(-bytes_ // 16) * 16
        if at_the_end is None:
            at_the_end = random.random() < 0.5
        address = self._allocate(bytes_, at_the_end)
        raw = torch.frombuffer((ctypes.c_uint8 * rounded).from_address(address), dtype=torch.uint8)
        raw.fill_(255)
        flat = raw[: count * dtype.itemsize].view(dtype)
        view = flat.as_strided(shape, strides) if count else torch.empty(shape, dtype=dtype)
        self._lent.append((address, raw, view))
        return view

    def copy(self, tensor: Tensor, gap: int = 0) -> Tensor:
        return self.empty(tensor.shape, tensor.dtype, gap).copy_(tensor)

    def check(self) -> None:
        """Nothing was written between rows or behind the last one."""
        for _, raw, view in self._lent:
            if view.numel() == 0:
                continue
            numbers = view.view(_integers(view.dtype))
            kept = numbers.clone()
            numbers.fill_(255 if numbers.dtype == torch.uint8 else -1)
            assert (raw == 255).all(), "a kernel wrote between or behind the rows of a tensor"
            numbers.copy_(kept)

    def release(self) -> None:
        for address, _, _ in self._lent:
            self._release(address)
        self._lent.clear()


def _integers(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_integers(tensor.dtype))


class Emulator:
    """Runs kernels as the Python side does, each under several schedules of its threads."""

    def __init__(self, path: Path) -> None:
        self.module = load_module(path)
        self.library = ctypes.CDLL(str(path))
        self.memory = Memory(self.library)

    def counts(self) -> dict[str, int]:
        """What happened since the last call."""
        values = (ctypes.c_int64 * len(COUNTS))()
        self.library.vidgen_emulator_counts(values)
        return dict(zip(COUNTS, values, strict=True))

    def seed(self, value: int) -> None:
        self.library.vidgen_emulator_seed(ctypes.c_uint64(value))

    def run(
        self, kernel: str, inputs: Sequence[Any], outputs: Sequence[Tensor], *last: Any
    ) -> None:
        """Fills the outputs; `inputs` may hold None for tensors that are absent."""
        found: list[list[Tensor]] = []
        for _ in range(2):
            self.seed(random.randrange(2**63))
            for output in outputs:
                output.fill_(float("nan") if output.is_floating_point() else 0)
            self.launch(kernel, *inputs, *outputs, *last)
            found.append([output.clone() for output in outputs])
        for one, two in zip(*found, strict=True):
            assert torch.equal(bits(one), bits(two)), f"{kernel} depends on the order of threads"
        self.memory.check()

    def launch(self, kernel: str, *fields: Any) -> None:
        views = [_view(f) if isinstance(f, Tensor) else f for f in fields]
        floats = getattr(self.module.cuda, kernel + "_workspace")(*views)
        workspace = self.memory.empty((floats,), torch.float32)
        getattr(self.module.cuda, kernel)(*views, 0, workspace.data_ptr() if floats else 0)


def _view(tensor: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), CODES[tensor.dtype], tuple(tensor.shape), tensor.stride()


@pytest.fixture(scope="session")
def emulator_path() -> Path:
    return compile_module(BUILD)


@pytest.fixture
def emulator(emulator_path: Path) -> Iterator[Emulator]:
    emulator = Emulator(emulator_path)
    yield emulator
    emulator.memory.release()


def allowed_error(exact: Tensor, plain: Tensor, dtype: torch.dtype) -> float:
    """2 max|plain - fp64| + tiny; the factor is 6 where numbers are few and luck decides."""
    factor = 2 if exact.numel() >= 32 else 6
    tiny = torch.finfo(dtype).eps / 2 + 3 * torch.finfo(torch.float32).eps
    allowed = factor * (plain.double() - exact).abs().max() + tiny * exact.abs().max() + 1e-30
    return float(allowed)


class ErrorRule:
    """Compares what kernels found with fp64, allowing what plain torch in their type gets."""

    def __init__(self, function: Run, inputs: Sequence[Any], grads: Sequence[Tensor]) -> None:
        self.exact = self._results(function, inputs, grads, torch.float64)
        self.plain = self._results(function, inputs, grads, None)

    @staticmethod
    def _results(
        function: Run, inputs: Sequence[Any], grads: Sequence[Tensor], dtype: torch.dtype | None
    ) -> list[Tensor]:
        leaves = [
            t.detach().clone().to(dtype or t.dtype).requires_grad_(t.is_floating_point())
            if isinstance(t, Tensor)
            else t
            for t in inputs
        ]
        outputs = function(*leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        wanted = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        if not grads:
            return [output.detach() for output in outputs]
        given = [g.to(output.dtype) for g, output in zip(grads, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, wanted, given, allow_unused=True)
        return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]

    def check(self, *found: Tensor) -> None:
        for i, (ours, exact, plain) in enumerate(zip(found, self.exact, self.plain, strict=True)):
            assert ours.shape == exact.shape, f"result {i}"
            if ours.numel() == 0:
                continue
            error = float((ours.double() - exact).abs().max())
            allowed = allowed_error(exact, plain, ours.dtype)
            assert error <= allowed, f"result {i}: error {error:.3g} > {allowed:.3g}"


@pytest.fixture
def error_rule() -> type[ErrorRule]:
    return ErrorRule


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value
