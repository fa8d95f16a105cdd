import os
import random
import subprocess
import sys

import pytest

from vidgen.errors import UserError
from vidgen.runtime import native
from vidgen.runtime.crc32c import crc32c, crc32c_python

needs_native = pytest.mark.skipif(native.load() is None, reason=native.reason())


def test_crc32c_known_answers():
    for checksum in (crc32c, crc32c_python):
        assert checksum(b"") == 0
        assert checksum(b"123456789") == 0xE3069283
        assert checksum(bytes(32)) == 0x8A9136AA
        assert checksum(bytes([0xFF] * 32)) == 0x62A8AB43


@pytest.mark.parametrize("size", [1, 7, 8, 9, 4095, 12287, 12288, 12289, 50_001])
def test_crc32c_any_length(size):
    data = random.randbytes(size + 3)
    assert crc32c(memoryview(data)[3:]) == crc32c_python(data[3:])


def test_crc32c_continues():
    data = random.randbytes(30_000)
    for checksum in (crc32c, crc32c_python):
        assert checksum(data[12_345:], checksum(data[:12_345])) == checksum(data)


@needs_native
def test_crc32c_refuses_what_is_not_contiguous():
    with pytest.raises((BufferError, ValueError)):
        crc32c(memoryview(bytes(100))[::2])


@needs_native
def test_features_and_variants_agree():
    module = native.load()
    features, compiled = module.cpu_features(), module.compiled_cpu_variants()
    assert module.cpu_variants() == [name for name in compiled if features.get(name, True)]
    assert compiled == [name for name in reversed(native.CPU_VARIANTS) if name in compiled]
    best = next(name for name in reversed(native.CPU_VARIANTS) if features.get(name, True))
    assert module.cpu_variants()[0] == best, "built for another CPU; build it again"
    assert module.cpu_variants()[-1] == "baseline"


USES_THE_MODULE = """
import torch
from vidgen.runtime import native, ops
x = torch.arange(40.0).view(1, 4, 10)
with ops.use("compiled"):
    assert torch.equal(ops.gated_residual(x, x, torch.ones(1, 10)), 2 * x)
print(native.load().cpu_variant())
"""


def in_a_process(**environment):
    """Its output, or the last line of its error."""
    kept = {name: value for name, value in os.environ.items() if name != "VIDGEN_CPU"}
    result = subprocess.run(
        [sys.executable, "-c", USES_THE_MODULE],
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, **environment},
    )
    return (result.stdout or result.stderr).splitlines()[-1]


@needs_native
def test_the_best_variant_runs_unless_one_is_selected():
    variants = native.load().cpu_variants()
    assert in_a_process() == variants[0]
    assert in_a_process(VIDGEN_CPU=variants[-1]) == variants[-1]


@needs_native
def test_a_variant_that_cannot_run_is_refused():
    module = native.load()
    lacking = [name for name, here in module.cpu_features().items() if not here]
    wrong = {"avx3": "VIDGEN_CPU is 'avx3', expected baseline, avx2, avx512 or avx512_bf16"}
    for name in native.CPU_VARIANTS:
        if name in lacking:
            wrong[name] = f"VIDGEN_CPU={name}, but this CPU lacks it"
        elif name not in module.compiled_cpu_variants():
            wrong[name] = "VIDGEN_CPU_VARIANTS=all pip install"
    for name, message in wrong.items():
        with pytest.raises(UserError) as refused:
            native._select(module, name, "")
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="VIDGEN_CPU=avx2, but it is not built"):
        native._select(None, "avx2", "it is not built")
    with pytest.raises(ValueError, match="no compiled variant avx3 runs"):
        module.select_cpu_variant("avx3")


@needs_native
def test_the_environment_is_read_when_the_module_is_loaded():
    assert "VIDGEN_CPU is 'sse', expected baseline" in in_a_process(VIDGEN_CPU="sse")


@needs_native
def test_the_module_needs_neither_torch_nor_a_driver():
    code = (
        "import sys, importlib.util as u;"
        f"s = u.spec_from_file_location('_native', {native.load().__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "assert 'torch' not in sys.modules; print(hex(m.crc32c(b'123456789')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.stdout.strip() == "0xe3069283", result.stderr
