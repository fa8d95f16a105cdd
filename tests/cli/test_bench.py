import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.models.mmdit import MMDiTConfig
from vidgen.models.mmdit.flops import flops
from vidgen.runtime import native
from vidgen.runtime.ops.catalogue import OPS

SMALL = ("--device", "cpu", "--repeats", "1")


@pytest.mark.skipif(native.load() is None, reason=native.reason())
def test_ops_reports_every_op_beside_copy_and_peer(vidgen: Any, tmp_path: Path) -> None:
    out = tmp_path / "ops.json"
    sizes = ("--tokens", "33", "--width", "64", "--heads", "2")
    status, shown, err = vidgen("bench", "ops", *SMALL, *sizes, "--out", out)
    assert status == 0, err
    result = json.loads(out.read_text())
    assert result["settings"] | {"tokens": [33], "width": 64, "heads": 2} == result["settings"]
    measured = {(row["op"], row["direction"], row["implementation"]) for row in result["rows"]}
    assert {op for op, *_ in measured} == set(OPS)
    for op, entry in OPS.items():
        for implementation in ("compiled", "eager"):
            assert (op, "forward", implementation) in measured
            backward = entry.backward and op != "attention_mlp"  # its gradients are views
            assert ((op, "backward", implementation) in measured) == backward
    assert all(row["ms"] > 0 and row["fraction_of_copy"] > 0 for row in result["rows"])
    assert "torch" in result["versions"]
    assert all(op in shown for op in OPS)


def test_a_row_is_kept_when_it_is_measured(
    vidgen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidgen.bench import ops

    def interrupted(settings: ops.Settings) -> Any:
        yield {"op": settings.names[0], "ms": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(ops, "measure", interrupted)
    out = tmp_path / "ops.json"
    with contextlib.suppress(KeyboardInterrupt):
        vidgen("bench", "ops", *SMALL, "--op", "gelu_tanh", "--out", out)
    assert json.loads(out.read_text())["rows"] == [{"op": "gelu_tanh", "ms": 1.0}]


def test_mfu_of_a_tiny_model(vidgen: Any, recipe: Path) -> None:
    argv = ("bench", "mfu", recipe, "recompute.single=2", *SMALL, "--dtype", "float32", "--json")
    status, shown, err = vidgen(*argv)
    assert status == 0, err
    rows = json.loads(shown)["rows"]
    assert [row["bucket"] for row in rows] == ["64px x 1", "64px x 17"]
    assert [row["tokens"] for row in rows] == [4 + 16, 4 + 80]
    # Recompute is executed and not needed: it is in HFU alone.
    assert all(0 < row["mfu"] < row["hfu"] for row in rows)


def test_mfu_keeps_what_the_recipe_says(vidgen: Any, recipe: Path) -> None:
    argv = ("bench", "mfu", recipe, *SMALL, "--dtype", "float32", "--bucket", "64px x 1", "--json")
    sent = ("recompute.dual=1", "offload.inputs=true", "offload.single=1", "offload.host_gb=0.05")
    status, shown, err = vidgen(*argv, *sent)
    assert status == 0, err
    result = json.loads(shown)
    assert result["blocks"] == {"offload inputs": 1, "offload": 1, "keep": 1}
    (row,) = result["rows"]
    assert 1 < row["hfu"] / row["mfu"] == pytest.approx(1 + 1 / 3 / 3, rel=0.02)
    assert "buckets: 100%" in err  # progress


def test_mfu_of_one_bucket_at_a_frame_count_of_its_range(vidgen: Any, recipe: Path) -> None:
    argv = ("bench", "mfu", recipe, *SMALL, "--bucket", "64px x 9", "--batch", "3", "--json")
    row = json.loads(vidgen(*argv)[1])["rows"][0]
    assert (row["bucket"], row["tokens"], row["batch"]) == ("64px x 9", 4 + 48, 3)


def test_mfu_of_one_ranks_part(vidgen: Any, recipe: Path) -> None:
    argv = ("bench", "mfu", recipe, *SMALL, "--bucket", "64px x 1", "--dtype", "float32", "--json")
    whole, half = (json.loads(vidgen(*argv, f"parallel.context={n}")[1])["rows"][0] for n in (1, 2))
    flops = [row["tflops"] * row["ms"] for row in (whole, half)]
    assert flops[1] == pytest.approx(flops[0] / 2, rel=1e-6)
    assert half["videos_per_s"] == pytest.approx(half["batch"] / 2 / half["ms"] * 1e3)


def test_the_reports_pace_stands_beside(vidgen: Any) -> None:
    stage1 = Path(__file__).resolve().parents[2] / "recipes/stage1.yaml"
    argv = ("bench", "mfu", stage1, "model=tiny", *SMALL, "--dtype", "float32", "--batch", "1")
    status, shown, err = vidgen(*argv, "--bucket", "256px x 1", "--json")
    assert status == 0, err
    (row,) = json.loads(shown)["rows"]
    assert row["report_videos_per_s"] == pytest.approx(47.6 / 8)
    assert row["ratio"] == pytest.approx(row["videos_per_s"] / (47.6 / 8))


def test_stage_3_is_one_ranks_part_under_its_own_memory_policy(vidgen: Any) -> None:
    stage3 = Path(__file__).resolve().parents[2] / "recipes/stage3.yaml"
    argv = ["bench", "mfu", stage3, *SMALL, "--dtype", "float32", "--batch", "1", "--json"]
    argv += ["--bucket", "768px x 1", "model=tiny", "offload.host_gb=0.1"]
    status, _, err = vidgen(*argv)
    assert status == 2
    assert "share of the 2 heads, which do not divide: measure with parallel.context=2" in err
    status, shown, err = vidgen(*argv, "model.num_heads=4", "model.axes_dim=[4, 6, 6]")
    assert status == 0, err
    result = json.loads(shown)
    assert (result["context"], result["blocks"]) == (4, {"offload inputs": 3})
    (row,) = result["rows"]
    assert row["report_videos_per_s"] == pytest.approx(1.6 / 8)
    assert row["hfu"] / row["mfu"] == pytest.approx(4 / 3)  # every block runs again


def test_step_adds_up(vidgen: Any, recipe: Path) -> None:
    argv = ("bench", "step", recipe, *SMALL, "--dtype", "float32", "--json")
    status, shown, err = vidgen(*argv)
    assert status == 0, err
    parts = {row["part"]: row["share"] for row in json.loads(shown)["rows"]}
    assert sum(parts.values()) == pytest.approx(1, abs=1e-6)
    assert all(parts[name] > 0 for name in ("matmul", "attention", "fused ops"))


def test_dcae_latents_are_a_quarter_of_the_tokens_or_less(
    vidgen: Any, recipe: Path, tmp_path: Path
) -> None:
    """A recipe's generator as it is (8 x 8 pixels a latent, patch 2), and with DC-AE latents."""
    out = tmp_path / "speedup.json"
    argv = ("bench", "dcae", recipe, "parallel.context=2", *SMALL, "--dtype", "float32")
    status, shown, err = vidgen(*argv, "--out", out)
    assert status == 0, err
    own, ours = json.loads(out.read_text())["rows"]
    assert (own["latents"], ours["latents"]) == ("block_dct", "Video DC-AE")
    assert own["bucket"] == ours["bucket"] == "64px x 17"  # the longest
    # The DC-AE takes 16 of the 17 frames, in latents of 4; a causal autoencoder's first is alone.
    assert (own["video_tokens"], ours["video_tokens"]) == (5 * 4 * 4, 4 * 2 * 2)
    for row in (own, ours):
        assert row["training_ms"] > row["sampling_ms"] > 0
        assert row["videos_per_s"] > 0
    assert ours["training_speed_up"] == own["training_ms"] / ours["training_ms"]
    assert ours["sampling_speed_up"] == own["sampling_ms"] / ours["sampling_ms"]
    # Text and what is done once a sample cost the same, so it is less than the tokens' ratio here.
    assert 1 < ours["sampling_flops_ratio"] < 5
    assert ours["report_training_speed_up"] is None
    assert f"{ours['sampling_speed_up']:.3g}x" in shown


def test_dcae_at_the_reports_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """76k tokens against 18k, attention and all: training and sampling run at the report's shape on
    tensors without data, through a tenth of the blocks."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from vidgen.bench import dcae, measure
    from vidgen.models.mmdit import MMDiT
    from vidgen.plan.workload import workload_of
    from vidgen.recipe.reader import read_recipe
    from vidgen.recipe.schema import Recipe

    path = Path(__file__).resolve().parents[2] / "recipes/stage3.yaml"
    full = workload_of(read_recipe(path, [], Recipe))
    assert flops(full.model, (33, 48, 48), 512).training == pytest.approx(1.53e16, rel=0.02)
    depth = ("model.depth=2", "model.depth_single_blocks=4", "recompute.dual=2")
    recipe = read_recipe(path, [*depth, "recompute.single=4"], Recipe)
    passes: list[tuple[int, ...]] = []

    def model(config: MMDiTConfig, *_: object) -> MMDiT:
        made = MMDiT(config)
        made.register_forward_pre_hook(
            lambda _, args, inputs: passes.append(tuple(inputs["x_BVD"].shape)), with_kwargs=True
        )
        return made

    monkeypatch.setenv("VIDGEN_ATTENTION", "sdpa_flash_cpu")
    monkeypatch.setattr(measure, "random_model", model)
    with FakeTensorMode():
        found = dcae.measure(
            torch.device("cpu"), torch.float32, recipe, ["768px x 129"], batch=1, repeats=1
        )
    own, ours = found["rows"]
    assert (own["video_tokens"], ours["video_tokens"]) == (76_032, 18_432)
    # Two steps of one of four ranks, then two sampling passes of the whole.
    assert passes == [
        *[(1, 76_032 // 4, 64)] * 2,
        *[(1, 76_032, 64)] * 2,
        *[(1, 18_432 // 4, 128)] * 2,
        *[(1, 18_432, 128)] * 2,
    ]
    assert all(row["training_ms"] > 0 and row["sampling_ms"] > 0 for row in found["rows"])
    assert ours["training_speed_up"] == own["training_ms"] / ours["training_ms"]
    assert (ours["report_training_speed_up"], ours["report_sampling_speed_up"]) == (5.2, 10.0)
    assert ours["training_flops_ratio"] > 5.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("autoencoder={kind: video_dcae}",), "this recipe uses the Video DC-AE's"),
        (("--bucket", "48px x 1"), "48 pixels is not a multiple of 32"),
    ],
)
def test_dcae_of_a_recipe_it_cannot_compare(
    vidgen: Any, recipe: Path, changes: tuple[str, ...], message: str
) -> None:
    recipe.write_text(recipe.read_text().replace("{64px: ", "{48px: {1: {batch: 1}}, 64px: "))
    status, _, err = vidgen("bench", "dcae", recipe, *SMALL, *changes)
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("mfu",), "bench mfu takes a recipe"),
        (("dcae",), "bench dcae takes a recipe"),
        (("step",), "bench step takes a recipe"),
        (("ops", "r.yaml"), "bench ops takes no recipe, found 'r.yaml'"),
        (("ops", "--width", "65"), "--width 65 does not divide into 24 even heads"),
        (("ops", "--op", "gelu"), "--op 'gelu' is not an op, expected one of: modulate"),
        (("opps",), "invalid choice: 'opps'"),
    ],
)
def test_wrong_arguments(vidgen: Any, argv: tuple[str, ...], message: str) -> None:
    status, _, err = vidgen("bench", *argv)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("argv", [("bench", "mfu"), ("plan",)])
def test_an_autoencoders_recipe(vidgen: Any, argv: tuple[str, ...]) -> None:
    dcae = Path(__file__).resolve().parents[2] / "recipes/dcae.yaml"
    status, _, err = vidgen(*argv, dcae)
    assert status == 2
    assert "trains an autoencoder; this command needs a transformer's recipe" in err
    assert len(err.splitlines()) == 1


def test_a_bucket_the_recipe_lacks(vidgen: Any, recipe: Path) -> None:
    status, _, err = vidgen("bench", "mfu", recipe, *SMALL, "--bucket", "64px x 99")
    assert status == 2
    assert 'is not in the recipe; expected one of: "64px x 1", "64px x 17"' in err
