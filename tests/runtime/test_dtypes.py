import subprocess
import sys

import safetensors.torch
import torch

from vidgen.runtime import dtypes


def test_sizes_are_those_of_torch() -> None:
    assert {name: dtype.itemsize for name, dtype in dtypes.by_name().items()} == dtypes.SIZES


def test_names_are_those_of_safetensors() -> None:
    for name, dtype in dtypes.by_name().items():
        assert dtypes.names()[dtype] == name
        content = safetensors.torch.save({"x": torch.zeros(2, dtype=dtype)})
        assert f'"dtype":"{name}"'.encode() in content


def test_workers_need_no_torch() -> None:
    code = "import sys, vidgen.data.cache.entries; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
