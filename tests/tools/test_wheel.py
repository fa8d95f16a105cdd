"""A wheel is all that a machine without a compiler needs: kernels, recipes, the command."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("baseline", "avx2", "avx512", "avx512_bf16")
TOY = (
    *("model.hidden_size=32", "model.axes_dim=[4, 6, 6]", "model.depth=1"),
    *("model.depth_single_blocks=1", "train.steps=4", "checkpoint.every=2", "sample.steps=1"),
    *("data.workers=0", "train.device=cpu"),
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="manylinux wheels are built on Linux"),
]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("auditwheel", reason="the dev extra is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [ROOT / "tools" / "wheel.sh", folder],
        env={**os.environ, "PY": sys.executable, "VIDGEN_CUDA_ARCHS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of a new environment in an empty folder, with no other program on PATH.

    The environment holds vidgen from the wheel; other packages are those of this environment.
    """
    folder = tmp_path_factory.mktemp("clean")
    environment, work = folder / "environment", folder / "work"
    work.mkdir()
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Its directories follow the environment's own; the .pth files in them, such as that of an
    # editable vidgen, are not read.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "others.pth").write_text("\n".join(others))
    named = {"PATH": str(python.parent), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    assert not any(shutil.which(compiler, path=named["PATH"]) for compiler in ("cc", "c++", "g++"))

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python.parent / program, *arguments],
            cwd=work,
            env=named,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_wheel_holds_what_it_should_and_nothing_else(wheel: Path) -> None:
    assert re.search(r"-manylinux_2_\d+_\w+\.whl$", wheel.name), wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "vidgen").rglob("*.py")}
    recipes = {f"vidgen/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    assert modules | recipes <= set(names)
    extra = [n for n in names if n.endswith((".py", ".yaml")) and n not in modules | recipes]
    assert not extra
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "recipes/"))]
    assert [n for n in names if re.fullmatch(r"vidgen/_native\..*\.so", n)]


def test_it_is_the_installed_one_with_every_variant_of_the_kernels(installed: Run) -> None:
    code = "import vidgen, vidgen._native as n; print(vidgen.__file__, *n.compiled_cpu_variants())"
    shown = installed("python", "-c", code)
    assert shown.returncode == 0, shown.stderr
    file, *variants = shown.stdout.split()
    assert not Path(file).is_relative_to(ROOT)
    assert "/clean" in file
    if re.fullmatch("x86_64|AMD64", os.uname().machine):
        assert set(variants) == set(VARIANTS)


def test_recipes_travel_along(installed: Run) -> None:
    shown = installed("vidgen", "recipe", "list")
    assert shown.returncode == 0, shown.stderr
    assert "stage1 " in shown.stdout
    copied = installed("vidgen", "recipe", "copy", "stage3", "mine.yaml")
    assert copied.returncode == 0, copied.stderr
    assert installed("vidgen", "recipe", "diff", "stage3", "mine.yaml").stdout == (
        "the recipes are equal\n"
    )
    planned = installed("vidgen", "plan", "stage1", "--gpus", "224", "recompute=auto")
    assert planned.returncode == 0, planned.stderr


def test_a_toy_quickstart_runs_from_any_folder(installed: Run) -> None:
    shown = installed("vidgen", "quickstart", "--clips", "1", *TOY)
    assert "report: runs/quickstart/report.html" in shown.stdout, shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr
    found = installed("python", "-c", "print(open('runs/quickstart/report.html').read()[:15])")
    assert found.stdout == "<!doctype html>\n"
