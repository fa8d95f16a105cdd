"""README's performance section is what the kept results say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools/performance.py"), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_readme_is_up_to_date() -> None:
    done = run(ROOT, "--check")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/performance.py").write_text((ROOT / "tools/performance.py").read_text())
    marks = "before\n<!-- performance: begin -->\nold\n<!-- performance: end -->\nafter\n"
    (tmp_path / "README.md").write_text(marks)
    return tmp_path


def test_results_are_shown_and_what_lacks_is_said(copy: Path) -> None:
    assert run(copy, "--check").returncode != 0
    assert run(copy).returncode == 0
    text = (copy / "README.md").read_text()
    assert "Not measured yet: forward and backward of the 11.9 G model" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text

    folder = copy / "profiles/results/nvidia-h200"
    folder.mkdir(parents=True)
    row = {"bucket": "256px x 129", "videos_per_s": 1.25, "mfu": 0.5, "ratio": 3.125}
    (folder / "mfu_stage1.json").write_text(json.dumps({"rows": [row]}))
    assert run(copy, "--check").returncode != 0
    run(copy)
    text = (copy / "README.md").read_text()
    assert "1.25 videos/s, MFU 50.0%, 3.12 times the report's" in text
    assert "forward and backward of the 11.9 G model" not in text
    assert run(copy, "--check").returncode == 0


@pytest.mark.parametrize(
    "suite",
    [
        *("mfu_stage1", "step_stage1", "ops", "optim", "attention", "checkpoint", "lane"),
        *("loader", "encode", "load", "parallel_ring", "sampling", "dcae", "speedup_dcae"),
    ],
)
def test_rows_without_figures_do_not_stop_the_table(copy: Path, suite: str) -> None:
    """Of host time, of what ran out of memory or was left out, and of a suite cut short."""
    folder = copy / "profiles/results/nvidia-h200"
    folder.mkdir(parents=True)
    rows = [
        {"op": "modulate", "direction": "forward", "implementation": "compiled", "host_us": 9.0},
        {"bucket": "256px x 129", "batch": 3, "failed": "out of memory", "ratio": None},
        {"states": "8bit", "moving_average": False, "skipped": "torchao is not installed"},
        {"what": "copy to the device", "loader": "vidgen", "clip": "33 frames", "tokens": 8960},
    ]
    (folder / f"{suite}.json").write_text(json.dumps({"rows": rows}))
    done = run(copy)
    assert done.returncode == 0, done.stderr
    text = (copy / "README.md").read_text()
    assert f"[{suite}](profiles/results/nvidia-h200/{suite}.json) | " in text
    assert "256px x 129: out of memory" in text
    printed = run(copy, "--table", str(copy / "profiles/results"))
    assert printed.stdout.strip() in text


def test_a_smaller_batch_is_said(copy: Path) -> None:
    folder = copy / "profiles/results/nvidia-h100"
    folder.mkdir(parents=True)
    row = {"bucket": "256px x 129", "videos_per_s": 1.0, "mfu": 0.5, "batch": 2}
    (folder / "mfu_stage1.json").write_text(json.dumps({"rows": [row | {"in_place_of_batch": 3}]}))
    run(copy)
    assert (
        "256px x 129 (batch 2, the largest that fits): 1 videos/s"
        in (copy / "README.md").read_text()
    )
