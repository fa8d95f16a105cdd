"""Builds and runs the C++ tests of the kernels: without torch, and under the sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vidgen.runtime import native

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a slow machine builds for long


def build_and_run(build: Path, *options: str) -> str:
    """Kept between runs, so that only what changed is compiled."""
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("needs cmake and a C++ compiler")
    configure = [cmake, "-S", str(ROOT), "-B", str(build), "-DVIDGEN_PYTHON=OFF"]
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
    return result.stdout


def has_bf16_products() -> bool:
    module = native.load()
    return module is not None and bool(module.cpu_features()["avx512_bf16"])


def test_kernels_of_every_variant_this_cpu_runs():
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DVIDGEN_CPU_VARIANTS=runnable")
    shown = build_and_run(ROOT / "build" / "cpp_tests", *options)
    ran = [line.removeprefix("variant ") for line in shown.splitlines() if "variant " in line]
    assert ran[-1] == "baseline"
    if (module := native.load()) is not None:
        features = module.cpu_features()
        assert ran == [name for name in reversed(native.CPU_VARIANTS) if features.get(name, True)]


def test_kernels_for_bf16_products_without_them():
    if has_bf16_products():
        pytest.skip("this CPU has them")
    build_and_run(
        ROOT / "build" / "cpp_tests_bf16",
        "-DVIDGEN_EMULATE_BF16=ON",
        "-DVIDGEN_CPU_VARIANTS=runnable",
    )


@pytest.mark.parametrize(
    "variants", ["best", pytest.param("runnable", marks=pytest.mark.long)], ids=str
)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_under_sanitizer(sanitizer, variants):
    """The variants are one source: the widest vectors show most of what there is to see."""
    folder = f"cpp_tests_{sanitizer.replace(',', '_')}"
    build_and_run(
        ROOT / "build" / (folder if variants == "best" else f"{folder}_{variants}"),
        f"-DVIDGEN_SANITIZE={sanitizer}",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        f"-DVIDGEN_CPU_VARIANTS={variants}",
    )
