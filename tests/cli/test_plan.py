import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidgen.bench import measure
from vidgen.plan.workload import Workload


def test_plan_prints_buckets_memory_and_dollars(vidgen: Any, recipe: Path) -> None:
    status, out, err = vidgen("plan", recipe, "--gpu", "h200", "--gpus", "16")
    assert status == 0, err
    assert "64px x 17" in out
    assert "10 steps of at most" in out
    assert "USD" in out


def test_plan_as_json_and_with_batches_found(vidgen: Any, recipe: Path) -> None:
    plans = [
        json.loads(vidgen("plan", recipe, "--json", "--price", "3", *more)[1])
        for more in ((), ("--fit-batches",))
    ]
    assert plans[0]["gpus"] == 8
    assert plans[0]["dollars"] == pytest.approx(plans[0]["gpu_days"] * 72)
    assert plans[1]["rows"][1]["batch"] > plans[0]["rows"][1]["batch"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--gpu", "h2000"), "no figures for the GPU 'h2000' (did you mean h200?)"),
        (("--efficiency", "30"), "'30' is not a number above 0 and at most 1"),
        (("--price", "free"), "'free' is not a price in dollars"),
        (("--gpus", "6", "parallel.context=4"), "the nearest that do are 4 and 8"),
        (("--checkpoint", "soon"), "'soon' is not a number of seconds"),
        (("--gpus", "10000", "--mtbf", "1"), "10000 GPUs fail every 0.36 s, which leaves no time"),
    ],
)
def test_wrong_arguments(vidgen: Any, recipe: Path, argv: tuple[str, ...], message: str) -> None:
    status, _, err = vidgen("plan", recipe, *argv)
    assert status == 2
    assert message in err


def test_failures_leave_less_with_more_gpus(vidgen: Any, recipe: Path) -> None:
    shares = [
        json.loads(vidgen("plan", recipe, "--json", "--gpus", n)[1])["failures"]["effective"]
        for n in ("224", "10000")
    ]
    assert 1 > shares[0] > shares[1] > 0.5
    poor = vidgen("plan", recipe, "--gpus", "10000", "--mtbf", "5000", "--restart", "600")[1]
    assert "failures: one in 0.5 hours at 5000 GPU hours each" in poor


def test_search_needs_a_gpu(vidgen: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = vidgen("plan", recipe, "--search")
    assert status == 2
    assert "--search measures on a GPU" in err


def test_searched_batches_are_measured(
    vidgen: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's model on the CPU, which plays a GPU with room for 400 video tokens; every pass
    takes one second, so memory alone decides."""

    class Bench(measure.Bench):
        def __init__(self, load: Workload, device: torch.device, dtype: torch.dtype) -> None:
            assert (device.type, dtype) == ("cuda", torch.bfloat16)
            super().__init__(load, torch.device("cpu"), torch.float32)
            self.model.register_forward_pre_hook(self.check_memory, with_kwargs=True)

        def check_memory(self, _: object, args: object, inputs: dict[str, Any]) -> None:
            batch, tokens, _ = inputs["x_BVD"].shape
            if batch * tokens > 400:
                raise torch.OutOfMemoryError

    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "Bench", Bench)
    monkeypatch.setattr(measure, "time", clock)
    status, out, err = vidgen("plan", recipe, "--search")
    assert status == 0, err
    head, *rows = [line.split() for line in out.splitlines()]
    assert head[:2] == ["bucket", "batch"]
    # An image is 4 x 4 tokens, 17 frames 5 x 4 x 4.
    found = {" ".join(row[:3]): row[3:6] for row in rows}
    assert found == {"64px x 1": ["25", "1000", "1000"], "64px x 17": ["5", "1000", "1000"]}


def test_figures_of_this_machine(vidgen: Any, recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "doctor.json"
    rates = {"copy": 4e12, "host to device": 5e10, "device to host": 5e10}
    found = {"gpus": [{"name": "NVIDIA H200", "memory": 1e9}], "bandwidth": {"gpu": rates}}
    file.write_text(json.dumps(found))
    shown = json.loads(vidgen("plan", recipe, "--gpu", file, "--json")[1])
    assert shown["gpu"]["memory"] == 1e9
    status, _, err = vidgen("plan", recipe, "--links", file)
    assert status == 2
    assert "has no figures of machines" in err


def test_plan_says_what_blocks_keep_and_what_would_be_better(vidgen: Any) -> None:
    stage1 = Path(__file__).resolve().parents[2] / "recipes/stage1.yaml"
    status, out, err = vidgen("plan", stage1, "--gpus", "224")
    assert status == 0, err
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("blocks, dual + single"))
    assert "8 recompute, 11 keep + 38 recompute" in lines[at + 1]
    assert lines[at + 2].startswith("  better: recompute=auto")
    assert "offload products" in lines[at + 2]
    auto = json.loads(vidgen("plan", stage1, "--gpus", "224", "--json", "recompute=auto")[1])
    said = json.loads(vidgen("plan", stage1, "--gpus", "224", "--json")[1])
    assert auto["rows"][0]["keeps"] == said["rows"][0]["best"]
    assert auto["days"] < said["days"]


def test_roofline_prints_parts_levers_and_assumptions(vidgen: Any) -> None:
    status, out, err = vidgen("plan", "stage1", "--roofline", "--gpu", "h200")
    assert status == 0, err
    assert out.startswith("stage1, 256px x 129, batch 3, on h200: a prediction\n")
    assert re.search(r"^matmuls +1\.91 +51% +tensor cores, 70% of the peak$", out, flags=re.M)
    assert re.search(r"^products kept, ops at 80% +2\.8\d +1\.0\d$", out, flags=re.M)
    assert "assumed of h200: 989 TFLOP/s" in out
    found = json.loads(vidgen("plan", "stage1", "--roofline", "--json")[1])
    assert found["bucket"] == "256px x 129"
    assert found["predictions"][0]["what"] == "as the recipe is"
