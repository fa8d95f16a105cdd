"""tools/bootstrap.sh says in one line what a machine lacks, and leaves nothing behind."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools import requirements

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    *("bash", "env", "cat", "sed", "awk", "df", "find", "sort", "cksum", "dirname"),
    *("head", "tail", "tr", "mkdir", "rm", "grep", "sleep"),
]
WORKING_PYTHON = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.12.1"\nexit 0\n'
OLD_PYTHON = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n'
FULL_DISK = '#!/bin/sh\necho header\necho "/dev/disk 1 1 900000 1% /"\n'
COMPILER = "#!/bin/sh\nexit 0\n"


class Machine:
    """A machine that has the usual tools and the given programs, and a clone of the project."""

    def __init__(self, root: Path) -> None:
        self.clone, self.programs = root / "clone", root / "bin"
        self.programs.mkdir()
        shutil.copytree(ROOT / "tools", self.clone / "tools")
        shutil.copy(ROOT / "pyproject.toml", self.clone)
        for name in TOOLS:
            found = shutil.which(name)
            assert found, f"this test needs {name}"
            (self.programs / name).symlink_to(found)

    def install(self, name: str, script: str) -> None:
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)

    def refusal(self, **environment: str) -> str:
        done = subprocess.run(
            [self.clone / "tools" / "bootstrap.sh", "run"],
            env={"PATH": str(self.programs), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert not (self.clone / ".venv").exists()
        lines = (done.stdout + done.stderr).splitlines()
        assert len(lines) == 1, lines
        return lines[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_python(machine: Machine) -> None:
    assert "found no Python, expected 3.11 or newer; install" in machine.refusal()


def test_old_python(machine: Machine) -> None:
    machine.install("python3", OLD_PYTHON)
    assert "found Python 3.8.10, expected 3.11 or newer" in machine.refusal()


def test_python_without_headers(machine: Machine) -> None:
    machine.install("python3", WORKING_PYTHON)
    assert "has no C headers (Python.h); install" in machine.refusal()


@pytest.fixture
def with_python(machine: Machine, tmp_path: Path) -> Machine:
    (tmp_path / "Python.h").touch()
    where = f'case "$2" in *include*) echo {tmp_path};; esac\n'
    machine.install("python3", WORKING_PYTHON.replace("exit 0", where + "exit 0"))
    return machine


def test_no_compiler(with_python: Machine) -> None:
    assert "no C++17 compiler found (tried g++ and clang++)" in with_python.refusal()


def test_named_compiler_that_does_not_work(with_python: Machine) -> None:
    with_python.install("g++", COMPILER)
    assert "CXX=nope does not compile C++17" in with_python.refusal(CXX="nope")


def test_full_disk(with_python: Machine) -> None:
    with_python.install("g++", COMPILER)
    with_python.install("df", FULL_DISK)
    assert "878 MiB free under" in with_python.refusal()


def test_requirements_follow_extras_that_name_extras() -> None:
    project = {
        "name": "vidgen",
        "dependencies": ["torch>=2"],
        "optional-dependencies": {"a": ["x"], "b": ["y>=1"], "dev": ["vidgen[a, b]", "z", "x"]},
    }
    assert requirements.requirements(project, ["dev"]) == ["torch>=2", "x", "y>=1", "z"]


def test_the_development_environment_is_everything() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = set(requirements.requirements(project, ["dev"]))
    assert set(requirements.requirements(project, ["video", "text", "train"])) < listed
