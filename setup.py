"""Builds vidgen/_native*.so with CMake and packs recipes/; the rest is in pyproject.toml.

VIDGEN_CUDA=0|1      leave the GPU kernels out, or insist on them. By default they are built where
                     nvcc is found and either a GPU is visible or VIDGEN_CUDA_ARCHS is set.
VIDGEN_CUDA_ARCHS    what to build them for, e.g. "80;90a;100a"; by default this machine's GPUs.
VIDGEN_CPU_VARIANTS  which CPU kernels to build: native (this CPU's best, and baseline), runnable
                     (all this CPU runs), all, or a list such as "avx2;baseline". An editable
                     install builds native by default, a wheel all.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def stop(message: str) -> None:
    raise SystemExit(f"vidgen: {message}")


def find_compiler() -> None:
    named = os.environ.get("CXX")
    candidates = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        stop(
            f"no C++ compiler: found none of {', '.join(candidates)}, expected one with C++17; "
            "install one (apt install g++) or set CXX to its path"
        )


def find_cmake() -> str:
    found = shutil.which("cmake")
    if found:
        return found
    try:
        import cmake
    except ImportError:
        stop("cmake not found; type: pip install cmake ninja pybind11")
    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")


def find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX")]
    candidates += [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def visible_architectures() -> list[str]:
    """The architectures of this machine's GPUs, as nvcc names them."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    capabilities = sorted({line.strip() for line in answer.splitlines() if line.strip()})
    # From 9.0 on the instructions we may use are those of one architecture only.
    return [
        c.replace(".", "") + ("a" if float(c) >= 9 else "")
        for c in capabilities
        if re.fullmatch(r"\d+\.\d", c)
    ]


def cpu_options(editable: bool) -> list[str]:
    wish = os.environ.get("VIDGEN_CPU_VARIANTS", "") or ("native" if editable else "all")
    names = re.findall(r"[^\s;,]+", wish)
    return [f"-DVIDGEN_CPU_VARIANTS={';'.join(names)}"]


def cuda_options() -> list[str]:
    wish = os.environ.get("VIDGEN_CUDA", "")
    if wish not in ("", "0", "1"):
        stop(f"VIDGEN_CUDA is {wish!r}, expected 0 (leave out), 1 (insist) or unset (if possible)")
    if wish == "0":
        return ["-DVIDGEN_CUDA=OFF"]
    named = os.environ.get("VIDGEN_CUDA_ARCHS", "")
    nvcc = find_nvcc()
    if nvcc is None:
        if wish == "1":
            stop(
                "VIDGEN_CUDA=1 but nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda; "
                "install the CUDA toolkit, or set VIDGEN_CUDA=0"
            )
        return ["-DVIDGEN_CUDA=OFF"]
    architectures = re.findall(r"[^\s;,]+", named) or visible_architectures()
    for architecture in architectures:
        if not re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", architecture):
            stop(f'VIDGEN_CUDA_ARCHS holds {architecture!r}, expected e.g. "80;90a;100a"')
    if not architectures:
        if wish == "1":
            stop(
                "VIDGEN_CUDA=1 but no GPU is visible and VIDGEN_CUDA_ARCHS is not set; "
                'name the architectures, e.g. VIDGEN_CUDA_ARCHS="80;90a"'
            )
        return ["-DVIDGEN_CUDA=OFF"]
    return [
        "-DVIDGEN_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}",
    ]


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        find_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cmake = find_cmake()
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(work),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            *cpu_options(self.inplace or self.editable_mode),
            *cuda_options(),
        ]
        ninja = shutil.which("ninja")
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", str(work), "--target", "_native", "-j"]):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as failure:
                stop(
                    f"the native build failed (exit code {failure.returncode}); its output is above"
                )
        shutil.copy2(next(work.glob("_native*.so")), target)


class PackRecipes(build_py):
    """A wheel holds recipes/ as vidgen/recipes/; an editable install reads them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            packed = Path(self.build_lib) / "vidgen" / "recipes"
            shutil.rmtree(packed, ignore_errors=True)  # what an older build packed
            packed.mkdir(parents=True)
            for recipe in ROOT.glob("recipes/*.yaml"):
                shutil.copy2(recipe, packed)


setup(
    ext_modules=[Extension("vidgen._native", [])],
    cmdclass={"build_ext": CMakeBuild, "build_py": PackRecipes},
)
