"""tools/gpu_check.sh with stand-ins for GPU, compiler and Python: what is cut is said to be cut."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vidgen.cli.main import parse
from vidgen.plan.workload import workload_of
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "tools/gpu_check.sh").read_text()
PYTHON = """\
#!/bin/bash
case "$*" in
    *bench_lane*) sleep ${SLOW:-0} ;;
    *doctor*) exit ${DOCTOR:-0} ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/gpu_check.sh", tmp_path / "tools")
    for name, script in (
        ("tools/bootstrap.sh", "#!/bin/sh\n"),
        ("bin/nvidia-smi", "#!/bin/sh\necho NVIDIA H200\n"),
        ("bin/nvcc", "#!/bin/sh\n"),
        ("bin/python", PYTHON),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def check(clone: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [clone / "tools/gpu_check.sh"],
        env={"PATH": path, "VIDGEN_PYTHON": str(clone / "bin/python"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_parts_pass_and_their_times_are_shown(clone: Path) -> None:
    done = check(clone)
    assert done.returncode == 0, done.stderr
    assert "gpu-check: all passed in" in done.stdout
    assert "results are in profiles/results/nvidia-h200" in done.stdout
    for name in parts():
        assert re.search(rf"^{re.escape(name)[:40]}.* ok$", done.stdout, flags=re.M), name


@pytest.mark.slow
def test_what_runs_out_of_time_is_cut_and_said_so(clone: Path) -> None:
    # The parts before the slow one take no time, but a busy machine starts their processes slowly.
    done = check(clone, SLOW="60", VIDGEN_GPU_CHECK_SECONDS="12")
    assert done.returncode == 3
    assert (
        "nothing failed, but these were cut and say nothing: copies through lanes;" in done.stderr
    )
    assert re.search(r"^copies through lanes .*cut after \d+ s$", done.stdout, flags=re.M)
    assert re.search(r"^loading clips .*cut: no time was left$", done.stdout, flags=re.M)


def test_what_fails_is_named_after_everything_ran(clone: Path) -> None:
    done = check(clone, DOCTOR="7")
    assert done.returncode == 1
    assert re.search(r"gpu-check: failed after \d+ s: what this machine is$", done.stderr.strip())
    assert re.search(r"^what this machine is .*FAILED \(7\)$", done.stdout, flags=re.M)


def test_no_gpu(clone: Path) -> None:
    (clone / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert "no NVIDIA GPU is visible here" in check(clone).stderr


def commands() -> list[list[str]]:
    """SECONDS, NAME, COMMAND... of every part."""
    joined = SCRIPT.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("part ")]


def parts() -> list[str]:
    return [command[1].replace("$gpu", "NVIDIA H200") for command in commands()]


def test_every_part_can_be_typed() -> None:
    assert len(commands()) > 10
    for _, name, _, *arguments in commands():
        if arguments[0] == "-m":
            if arguments[1] == "vidgen":
                parse(arguments[2], arguments[3:])
            continue
        script = ROOT / arguments[0]
        text = script.read_text()
        for flag in (word for word in arguments if word.startswith("--")):
            assert f'"{flag}"' in text, f"{name}: {script.name} has no {flag}"


def test_buckets_are_the_recipes() -> None:
    for _, _, _, *arguments in commands():
        if arguments[:3] != ["-m", "vidgen", "bench"] or arguments[3] == "ops":
            continue  # the ops are measured without a recipe
        recipe = read_recipe(ROOT / arguments[4], [], Recipe)
        names = {bucket.name for bucket in workload_of(recipe).buckets}
        asked = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--bucket"]
        assert set(asked) <= names
