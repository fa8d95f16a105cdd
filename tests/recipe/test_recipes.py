"""The recipes load, and say what the report's tables say."""

from pathlib import Path

import pytest

from vidgen.data.index.buckets import BucketTable
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit.config import OPENSORA_V2, PRESETS
from vidgen.models.video_dcae import VideoDCAEConfig
from vidgen.plan import plan
from vidgen.recipe.autoencoder import read_any
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
STAGES = ("stage1", "stage2", "stage3")
ADAPTATION = ("dcae_adapt", "dcae_adapt_long")

# Clips a rank takes at each resolution and frame count: the report's tables 5 and 6.
STAGE_1_AND_2 = {
    ("256px", "5-33"): 12,
    ("256px", "37-65"): 6,
    ("256px", "69-97"): 4,
    ("256px", "101-129"): 3,
    ("256px", "1"): 45,
    ("768px", "1"): 13,
    ("1024px", "1"): 7,
}
STAGE_3 = {
    ("768px", "5-33"): 6,
    ("768px", "37-65"): 4,
    ("768px", "69-97"): 3,
    ("768px", "101-129"): 2,
    ("768px", "1"): 38,
}


def read(name: str, *overrides: str) -> Recipe:
    return read_recipe(RECIPES / f"{name}.yaml", list(overrides), Recipe)


def batches(recipe: Recipe) -> dict[tuple[str, str], int]:
    return {
        (resolution, frames): bucket.batch
        for resolution, table in recipe.data.buckets.items()
        for frames, bucket in table.items()
    }


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    recipe = read_any(path, [])
    assert recipe.name == path.stem
    # The demo's three recipes are parts of one run.
    folder = path.stem.replace("demo_", "demo/") if path.stem != "demo" else "demo/generator"
    assert recipe.run_dir == f"runs/{folder}"


def test_batches_are_the_reports() -> None:
    assert batches(read("stage1")) == STAGE_1_AND_2
    assert batches(read("stage2")) == STAGE_1_AND_2
    stage3 = batches(read("stage3"))
    assert {row: n for row, n in stage3.items() if row[0] != "256px"} == STAGE_3


@pytest.mark.parametrize("stage", STAGES)
def test_no_clip_length_falls_between_two_rows(stage: str) -> None:
    """Open-Sora's own table forgets 69 frames; ours has every 4k + 1 up to 129."""
    area = "768px" if stage == "stage3" else "256px"
    covered = set()
    for frames in read(stage).data.buckets[area]:
        first, _, last = frames.partition("-")
        covered |= set(range(int(first), int(last or first) + 1, 4))
    assert covered == set(range(1, 130, 4))


def test_schedules_are_the_reports() -> None:
    one, two, three = map(read, STAGES)
    assert [recipe.train.steps for recipe in (one, two, three)] == [85_000, 13_000, 13_000]
    assert (one.optim.lr, one.optim.drops) == (5e-5, {40_000: 3e-5})
    assert (two.optim.lr, two.optim.drops) == (5e-5, {})
    assert (three.optim.lr, three.optim.drops) == (1e-5, {})
    for recipe in (one, two, three):
        optim = recipe.optim
        assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.999), 1e-15, 0)
        assert optim.clip == 1.0
    assert [recipe.parallel.context for recipe in (one, two, three)] == [1, 1, 4]


def test_one_clip_in_eight_loses_its_image() -> None:
    assert set(read("stage1").conditions.weights) == {"t2v"}
    for stage in ("stage2", "stage3", *ADAPTATION):
        assert read(stage).conditions.drop_image == 0.125
    published = read("opensora_v2").conditions
    assert published.drop_image is None
    assert published.weights["t2v"] / sum(published.weights.values()) == 0.125


def test_the_stages_follow_the_report_and_the_published_weights_their_code() -> None:
    for stage in (*STAGES, *ADAPTATION):
        recipe = read(stage)
        assert recipe.flow.shift == "proportional"
        assert not recipe.sample.oscillate_text
        assert recipe.sample.dynamic_rule == "report"
        assert (recipe.flow.round_t, recipe.sample.keep_given) == ("none", "all")
    published = read("opensora_v2")
    assert published.flow.shift == "public"
    assert published.sample.oscillate_text
    assert published.sample.dynamic_rule == "public"
    assert (published.flow.round_t, published.sample.keep_given) == ("bf16", "images")


def test_models_are_the_published_ones() -> None:
    assert read("stage1").model == PRESETS["opensora_v2_t2v"]
    assert read("stage2").model == read("stage3").model == OPENSORA_V2
    recompute = read("stage3").recompute
    assert recompute.dual == OPENSORA_V2.depth
    assert recompute.single == OPENSORA_V2.depth_single_blocks


def test_adaptation_is_the_reports() -> None:
    """17k steps to 32 frames, 8k to 128, image to video first, third layer, new ends."""
    first, second = map(read, ADAPTATION)
    assert (first.train.steps, second.train.steps) == (17_000, 8_000)
    for recipe in (first, second):
        assert recipe.model == PRESETS["opensora_v2_dcae"]
        assert recipe.autoencoder.kind == "video_dcae"
        assert recipe.autoencoder.tiling
        assert recipe.conditions.weights == {"i2v_head": 1}
        assert (recipe.alignment.layer, recipe.alignment.weight) == (3, 0.5)
        assert recipe.optim.drops == {}
    assert max(frames_of(first)) == 32
    assert max(frames_of(second)) == 128
    assert set(first.train.reinitialise) == {"img_in", "cond_in", "final_layer"}
    # The second goes on from the first's last step, with everything it has learnt.
    assert second.train.reinitialise == ()
    assert second.train.init_from == f"{first.run_dir}/checkpoints/step-{first.train.steps:09d}"


def test_the_published_dcae_generator_gets_raw_latents_in_public_tiles() -> None:
    recipe = read("opensora_v2_dcae")
    assert isinstance(recipe.autoencoder, VideoDCAEConfig)
    assert recipe.autoencoder.std == 1.0
    assert recipe.autoencoder.tiling_rule == "public"
    assert recipe.model == PRESETS["opensora_v2_dcae"]
    assert recipe.flow.shift == "public"
    assert recipe.sample == read("opensora_v2").sample
    assert recipe.conditions.weights == {"t2v": 1, "i2v_head": 7}
    assert max(frames_of(recipe)) == 128
    ours = read("dcae_adapt").autoencoder
    assert isinstance(ours, VideoDCAEConfig)
    assert (ours.std, ours.tiling_rule) == (0.493, "whole")


def frames_of(recipe: Recipe) -> set[int]:
    table = BucketTable(recipe.data, Geometry.of(recipe.autoencoder))
    found = {bucket.frames for bucket in table.buckets}
    assert found == {1, *range(16, max(found) + 1, 4)}  # no length falls between two rows
    return found


@pytest.mark.parametrize("recipe", ADAPTATION)
def test_adaptation_can_be_planned(recipe: str) -> None:
    found = plan(read(recipe), "h200", 160)
    assert all(row.fits for row in found.rows)
    longest = max(row.tokens for row in found.rows)
    assert longest == {32: 8, 128: 32}[max(frames_of(read(recipe)))] * 24 * 24 + 512


@pytest.mark.parametrize("stage", [*STAGES, *ADAPTATION])
def test_a_stage_can_be_made_tiny(stage: str) -> None:
    assert read(stage, "model=tiny").model == PRESETS["tiny"]
