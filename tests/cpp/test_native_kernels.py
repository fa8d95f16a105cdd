"""Builds and runs the C++ tests of the kernels: without torch, and under the sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vidgen.runtime import native

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a slow machine builds for long


def build_and_run(build: Path, *options: str, every_variant: bool = True) -> None:
    """Kept between runs, so that only what changed is compiled."""
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")
    configure = [cmake, "-S", str(ROOT), "-B", str(build), "-DVIDGEN_PYTHON=OFF"]
    module = native.load()
    if module is not None:  # those this CPU cannot run need not be compiled again
        variants = module.cpu_variants() if every_variant else module.cpu_variants()[:1]
        configure.append(f"-DVIDGEN_CPU_VARIANTS={';'.join(variants)}")
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    commands = [
        [*configure, "-DVIDGEN_TESTS=ON", *options],
        [cmake, "--build", str(build), "-j", str(os.cpu_count())],
        [str(build / "vidgen_tests")],
    ]
    for command in commands:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=1500,
            env={**os.environ, "VIDGEN_OWN_THREADS": "1"},
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


def test_kernels():
    build_and_run(ROOT / "build" / "cpp_tests", "-DCMAKE_BUILD_TYPE=Release")


def test_kernels_for_bf16_products_without_them():
    module = native.load()
    if module is not None and "avx512_bf16" in module.cpu_variants():
        pytest.skip("this CPU has them")
    build_and_run(ROOT / "build" / "cpp_tests_bf16", "-DVIDGEN_EMULATE_BF16=ON")


@pytest.mark.parametrize(
    "variants", ["widest", pytest.param("every", marks=pytest.mark.long)], ids=str
)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_under_sanitizer(sanitizer, variants):
    """The variants are one source: the widest vectors show most of what there is to see."""
    folder = f"cpp_tests_{sanitizer.replace(',', '_')}"
    build_and_run(
        ROOT / "build" / (folder if variants == "widest" else f"{folder}_{variants}"),
        f"-DVIDGEN_SANITIZE={sanitizer}",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        every_variant=variants == "every",
    )
