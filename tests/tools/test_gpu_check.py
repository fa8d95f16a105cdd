"""make gpu-check with faults in its stages, on machines that lack things, and dry."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from vidgen.cli.main import parse
from vidgen.plan.workload import workload_of
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tools/gpu_check"


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, PROGRAM / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    del sys.modules[name]
    return module


STAGES = _module("stages").STAGES
NAMES = [stage.name for stage in STAGES]

# Stands for every stage's program: keeps one row, then does what FAULTS says of its result.
STAND_IN = """\
import json, os, pathlib, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1]) if "--out" in words else None
if out:
    row = {"what": out.stem, "s": 1.0}
    if out.stem.startswith("mfu"):
        row |= {"bucket": "256px x 129", "videos_per_s": 1.0, "mfu": 0.5}
    out.write_text(json.dumps({"rows": [row]}))
fault = json.loads(os.environ["FAULTS"]).get(out.stem if out else " ".join(words))
if fault == "exception":
    raise RuntimeError("a kernel is wrong")
if fault == "memory":
    raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
if fault == "killed":
    os.kill(os.getpid(), 9)
if fault == "timeout":
    time.sleep(600)
"""


def key(stage: Any) -> str:
    return stage.result or " ".join(stage.small[0])


def check(
    folder: Path, *words: str, faults: dict[str, str] | None = None, seconds: float = 300
) -> "subprocess.CompletedProcess[str]":
    stand_in = folder.parent / "stand_in.py"
    stand_in.write_text(STAND_IN)
    return subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "--dry", "--folder", str(folder), *words),
            *("--python", f"{sys.executable} -S {stand_in}"),
        ],
        env={
            **os.environ,
            "FAULTS": json.dumps(faults or {}),
            "VIDGEN_GPU_CHECK_SECONDS": str(seconds),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def verdicts(folder: Path) -> dict[str, str]:
    lines = (folder / "dry/stages.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {e["stage"]: f"{e['verdict']} {e['why']}".strip() for e in entries if "stage" in e}


def packed(folder: Path) -> set[str]:
    with tarfile.open(folder / "dry.tar.gz") as archive:
        return set(archive.getnames())


def rows_of(folder: Path) -> set[str]:
    found = (folder / "dry/results/dry").glob("*.json")
    return {path.stem for path in found if json.loads(path.read_text())["rows"]}


@pytest.mark.slow
def test_every_stage_fails_in_its_own_way_and_the_others_run(tmp_path: Path) -> None:
    """An exception, an out-of-memory and a kill by turns: each stage has one of them."""
    kinds = {"exception": "FAILED exit status 1, RuntimeError: a kernel is wrong"}
    kinds |= {"memory": "FAILED out of memory", "killed": "FAILED ended by SIGKILL"}
    for first in range(len(kinds)):
        order = [list(kinds)[(first + i) % len(kinds)] for i in range(len(STAGES))]
        faults = {key(stage): kind for stage, kind in zip(STAGES, order, strict=True)}
        folder = tmp_path / str(first)
        done = check(folder, faults=faults)
        assert done.returncode == 1
        assert "gpu-check: failed after" in done.stderr
        found = verdicts(folder)
        assert list(found) == NAMES
        assert list(found.values()) == [kinds[kind] for kind in order]
        assert rows_of(folder) == {stage.result for stage in STAGES if stage.result}
        expected = {f"dry/{name}.log" for name in NAMES} | {"dry/verdict.txt", "dry/table.md"}
        assert expected <= packed(folder)
        assert "| dry | [mfu_stage1]" in (folder / "dry/table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "attention", "doctor"])
def test_a_stage_that_takes_too_long_is_cut(tmp_path: Path, name: str) -> None:
    """A dry stage has all the time that is left: what ran before it stays, the rest is told."""
    folder = tmp_path / "out"
    stage = next(stage for stage in STAGES if stage.name == name)
    done = check(
        folder, "--only", f"smoke,attention,doctor,{name}", faults={key(stage): "timeout"},
        seconds=30,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    found = verdicts(folder)
    order = ["smoke", "attention", "doctor"]
    place = order.index(name)
    assert [found[n] for n in order[:place]] == ["ok"] * place
    assert re.fullmatch(r"cut after \d+ s", found[name])
    assert [found[n] for n in order[place + 1 :]] == ["cut no time was left"] * (2 - place)
    assert rows_of(folder) >= {s.result for s in STAGES if s.name in order[: place + 1] if s.result}
    assert "dry/table.md" in packed(folder)
    assert "to go on: make gpu-check RESUME=1" in done.stderr


@pytest.mark.slow
def test_a_timeout_cuts_one_stage_alone(tmp_path: Path) -> None:
    """On a GPU every stage has a limit of its own: each in turn, in one process of the runner."""
    program = f"""
import dataclasses, pathlib, sys
sys.path.insert(0, {str(PROGRAM)!r})
from runner import Folder, Runner
from stages import STAGES
path = pathlib.Path({str(tmp_path / "gpu")!r})
(path / "rows").mkdir(parents=True)
runner = Runner(Folder(path, path / "rows"), lambda: 99.0, dry=False,
                python=(sys.executable, "-S", {str(tmp_path / "stand_in.py")!r}))
short = [
    dataclasses.replace(s, seconds=2, needs=(), commands=s.commands[:1]) for s in STAGES
]
runner.run(short, set())
assert [o.said for o in runner.outcomes] == ["cut: after 2 s"] * len(STAGES), runner.outcomes
"""
    (tmp_path / "stand_in.py").write_text(
        STAND_IN.replace('.get(out.stem if out else " ".join(words))', ' and "timeout"')
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "FAULTS": '{"all": 1}'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_resume_runs_only_what_has_not_passed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ("--only", "smoke lane")
    assert check(folder, *words, faults={"lane": "exception"}).returncode == 1
    done = check(folder, *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert verdicts(folder) == {"smoke": "kept from an earlier run", "lane": "ok"}
    done = check(folder, "--only", "flux")
    assert "flux is no stage; there are: smoke, tests, mfu" in done.stderr


@pytest.mark.slow
def test_a_missing_package_is_named_and_the_others_run(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "hidden = ('av', 'pydantic')\n"
        "u.find_spec = lambda name, *rest: None if name in hidden else real(name, *rest)\n"
    )
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    done = subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "--dry", "--folder", str(tmp_path / "out")),
            *("--only", "smoke,mfu,encode"),
            *("--python", f"{sys.executable} -S {stand_in}"),
        ],
        env={**os.environ, "FAULTS": "{}", "PYTHONPATH": str(hidden)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    so = "install them, or name a folder of their wheels in VIDGEN_WHEELS"
    assert verdicts(tmp_path / "out") == {
        "smoke": "ok",
        "mfu": f"cut needs pydantic: {so}",
        "encode": f"cut needs pydantic, av: {so}",
    }


@pytest.mark.slow
def test_gpu_tests_are_collected_without_what_they_do_not_use(tmp_path: Path) -> None:
    for name in ("av", "pydantic", "pyarrow", "transformers", "diffusers", "tensorboard"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})\n")
    paths = [word for word in stage("tests").small[0] if word.startswith("tests/")]
    done = subprocess.run(
        [sys.executable, *stage("tests").small[0]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert len(paths) > 5


def stage(name: str) -> Any:
    return next(stage for stage in STAGES if stage.name == name)


def test_every_test_that_needs_a_gpu_is_in_a_stage() -> None:
    paths = {w for s in STAGES for c in s.commands for w in c if w.startswith("tests/")}
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if re.search(r"pytest\.mark\.gpu\b", path.read_text())
        and path not in (Path(__file__), ROOT / "tests/conftest.py")
    }
    assert marked
    left_out = {m for m in marked if not any(m == p or m.startswith(f"{p}/") for p in paths)}
    assert left_out == set()


def test_the_limits_add_up_to_the_whole_time() -> None:
    module = _module("stages")
    first = sum(stage.seconds for stage in STAGES if not stage.rest)
    assert module.SETUP_S + first + module.VERDICT_S <= module.TOTAL_S <= 540
    assert [stage.rest for stage in STAGES] == sorted(stage.rest for stage in STAGES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("sizes", ["commands", "small"])
def test_every_command_can_be_typed(sizes: str) -> None:
    for stage in STAGES:
        for program, *words in getattr(stage, sizes):
            asked = [words[i + 1] for i, word in enumerate(words) if word == "--bucket"]
            if (program, words[0]) == ("-m", "vidgen"):
                parse(words[1], words[2:])
                if asked and sizes == "commands":
                    names = workload_of(read_recipe(ROOT / words[3], [], Recipe)).buckets
                    assert set(asked) <= {bucket.name for bucket in names}
            elif program != "-m":
                text = (ROOT / program).read_text()
                for flag in (word for word in words if word.startswith("--")):
                    assert f'"{flag}"' in text, f"{stage.name}: {program} has no {flag}"


def test_architectures_are_the_documents_and_the_compile_checks() -> None:
    table = _module("stages").ARCHITECTURES
    document = (ROOT / "docs/install.md").read_text()
    rows = re.findall(r"^\| `sm_(\w+)` \| ([^|]+) \| (yes|no) \|", document, flags=re.M)
    assert {name: (gpus, said == "yes") for name, gpus, said in rows} == table
    script = (ROOT / "tools/compile_cuda.sh").read_text()
    checked = re.search(r"set -- ([\w ]+)", script)
    assert checked is not None
    assert checked[1].split() == [name for name, (_, compiled) in table.items() if compiled]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The script beside stand-ins for the set-up, the GPU's tools and Python."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/gpu_check.sh", tmp_path / "tools")
    for name, script in (
        ("tools/bootstrap.sh", "#!/bin/sh\necho bootstrap $VIDGEN_CUDA\n"),
        ("bin/nvidia-smi", "#!/bin/sh\necho NVIDIA H200\n"),
        ("bin/nvcc", "#!/bin/sh\n"),
        ("bin/python", '#!/bin/sh\necho "python $*"\n'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def set_up(clone: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{clone / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        [clone / "tools/gpu_check.sh", *words],
        env={"PATH": path, "VIDGEN_PYTHON": str(clone / "bin/python"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_script_sets_up_and_hands_over(clone: Path) -> None:
    done = set_up(clone, "--only", "mfu", VIDGEN_WHEELS="wheels")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "python tools/gpu_check/wheels.py wheels"
    assert lines[1] == "bootstrap 1"
    assert re.fullmatch(r"python tools/gpu_check --elapsed \d+ --only mfu", lines[-1])


def test_no_gpu(clone: Path) -> None:
    (clone / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert "no NVIDIA GPU is visible here" in set_up(clone).stderr
    assert set_up(clone, "--dry").stdout.splitlines()[0] == "bootstrap"


def test_wheels_fill_in_only_what_is_missing(tmp_path: Path) -> None:
    for name in ("torch-1.0-py3-none-any.whl", "not_there_at_all-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    found = _module("wheels").missing(tmp_path)
    assert [wheel.name for wheel in found] == ["not_there_at_all-1.0-py3-none-any.whl"]


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Two real stages; `make gpu-check DRY=1` runs all of them."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "--dry", "--folder", str(tmp_path), "--only", "smoke,ops"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpu-check: all passed in" in done.stdout
    assert rows_of(tmp_path) == {"smoke", "ops"}
    assert {"dry/results/dry/ops.json", "dry/ops.log", "dry/table.md"} <= packed(tmp_path)
