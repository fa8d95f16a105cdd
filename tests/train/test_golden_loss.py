"""Twenty steps of a small model give the committed losses: bit for bit on the machine they come
from, to rounding elsewhere.

    VIDGEN_WRITE_GOLDEN=1 pytest tests/train/test_golden_loss.py

adds (or replaces) the file of the machine it runs on, tests/golden/losses/<machine>.json. Do so for
a new machine type, or together with a change that is meant to alter the numbers, and say why in
the commit.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.data import open_loader
from vidgen.recipe.schema import Recipe
from vidgen.runtime.ops.dispatch import use
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "losses"

# Every condition, dropped text, two frame counts beside images, EMA, a falling rate.
OVERRIDES = (
    *("model.cond_embed=true", "model.hidden_size=64", "model.axes_dim=[8, 12, 12]"),
    "conditions.weights=!replace {t2v: 1, i2v_head: 2, i2v_loop: 1}",
    *("optim.decay_to=5e-4", "train.steps=20", "checkpoint.every=1000", "seed=11"),
)

# What other instruction sets and libraries may change. Sums in fp32 come out 1e-7 apart in another
# order, and so did these losses between AVX2 and SSE kernels; but AdamW can make much of it: where
# a gradient is all rounding, its sign decides on a whole step of the learning rate. A changed
# formula shows at 1e-2 within a few steps.
TOLERANCE = 2e-3
# A codec of another version may encode the clips a little differently. Moving the shapes of every
# clip by some pixels changed the losses by 2e-2.
OTHER_PIXELS = 5e-2


def machine() -> str:
    """What the bits of fp32 arithmetic depend on: instruction set, processor (the matrix library
    picks kernels by its maker and model), torch."""
    processor = "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        processor = found[1]
    parts = (
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        processor,
        "torch " + torch.__version__.partition("+")[0],
    )
    return "-".join(re.sub(r"[^a-z0-9.]+", "_", part.lower()).strip("_") for part in parts)


def first_batch(recipe: Recipe) -> str:
    """Hash of the pixels and captions training begins with."""
    with open_loader(recipe.data, seed=recipe.seed, rank=0, world=1, device="cpu") as loader:
        batch = next(loader)
    words = json.dumps([batch.captions, batch.keys]).encode()
    return hashlib.sha256(words + batch.video_BTHWC.numpy().tobytes()).hexdigest()


def test_twenty_steps(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDGEN_ATTENTION", "sdpa_flash_cpu")  # whatever else is built here
    recipe = tiny(*OVERRIDES)
    pixels = first_batch(recipe)
    with use("reference"):
        Trainer(recipe).run()
    records = read_metrics(tmp_path / "run")
    losses = [record["loss"] for record in records]
    norms = [record["grad_norm"] for record in records]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.2  # it learns

    if os.environ.get("VIDGEN_WRITE_GOLDEN") == "1":
        FOLDER.mkdir(exist_ok=True)
        golden = {"first_batch": pixels, "loss": losses, "grad_norm": norms}
        (FOLDER / f"{machine()}.json").write_text(json.dumps(golden, indent=1) + "\n")

    files = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    assert files, "no golden losses are committed"
    own = files.get(machine())
    if own is not None and own["first_batch"] == pixels:
        assert losses == own["loss"], "same machine, same pixels: the numerics have changed"
        assert norms == own["grad_norm"]
        return
    for name, golden in files.items():
        _close(losses, golden, name, pixels)


def _close(losses: list[float], golden: dict[str, Any], name: str, pixels: str) -> None:
    same = golden["first_batch"] == pixels
    data = (
        "the decoded pixels are the same, so the numerics differ"
        if same
        else "the decoded pixels differ too: another codec version, or changed data"
    )
    worst = max(abs(a / b - 1) for a, b in zip(losses, golden["loss"], strict=True))
    print(f"losses are {worst:.1e} from those of {name}")
    limit = TOLERANCE if same else OTHER_PIXELS
    assert worst < limit, f"losses are {worst:.1e} from those of {name}; {data}"
