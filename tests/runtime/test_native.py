import os
import random
import subprocess
import sys

import pytest

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
    features = module.cpu_features()
    variants = module.cpu_variants()
    assert variants[-1] == "baseline"
    for name in ("avx2", "avx512", "avx512_bf16"):
        assert (name in variants) == features[name]


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
