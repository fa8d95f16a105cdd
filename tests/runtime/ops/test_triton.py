"""Runs the Triton cases of this folder's tests under Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_kernels_under_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter's own process")
    command = [sys.executable, "-m", "pytest", "-k", "triton", "-p", "no:cacheprovider", "-x"]
    result = subprocess.run(
        [*command, str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) > 50
