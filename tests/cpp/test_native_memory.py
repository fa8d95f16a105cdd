"""Builds and runs the C++ tests of arena, lease and lane: under the sanitizers too."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a slow machine builds for long


@pytest.mark.parametrize("sanitizer", ["", "address,undefined", "thread"])
def test_memory(sanitizer: str) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")
    # Kept between runs, so that only what changed is compiled.
    build = ROOT / "build" / f"memory_tests_{sanitizer.replace(',', '_')}"
    configure = [cmake, "-S", str(ROOT), "-B", str(build), "-DVIDGEN_PYTHON=OFF"]
    configure += ["-DVIDGEN_TESTS=ON", f"-DVIDGEN_SANITIZE={sanitizer}", "-DCMAKE_BUILD_TYPE=None"]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    target = ["--target", "vidgen_memory_tests", "-j", str(os.cpu_count())]
    for command in (
        [*configure, "-DCMAKE_CXX_FLAGS=-O1"],
        [cmake, "--build", str(build), *target],
        [str(build / "vidgen_memory_tests")],
    ):
        result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
