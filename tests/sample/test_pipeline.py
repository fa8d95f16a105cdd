"""From requests to pixels: each video depends on its own request alone."""

from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vidgen.config import to_dict
from vidgen.diffusion import flow
from vidgen.errors import UserError
from vidgen.models.mmdit import save_weights
from vidgen.models.mmdit.model import compute_modulation
from vidgen.recipe.sampling import SampleConfig
from vidgen.runtime import checkpoint
from vidgen.sample import Pipeline, Request
from vidgen.sample.job import guidance_branches
from vidgen.sample.references import check_references, read_references

Make = Callable[..., Pipeline]
Video = NDArray[np.uint8]

ONE = Request(
    prompt="a red circle",
    seed=3,
    frames=9,
    height=32,
    width=32,
    steps=4,
    guidance=3.0,
    guidance_img=2.0,
    fps=24.0,
    motion_score=4.0,
)


def apart(one: Video, two: Video) -> int:
    """The largest difference, in levels of 255."""
    assert one.shape == two.shape
    return int(np.abs(one.astype(int) - two).max())


def references(name: str, files: dict[str, str]) -> tuple[str, ...]:
    if name == "t2v":
        return ()
    return (files["clip" if name.startswith("v2v") else "left"],)


def test_what_comes_out(pipeline: Pipeline) -> None:
    (video,) = pipeline.generate([ONE])
    assert (video.shape, video.dtype) == ((9, 32, 32, 3), np.uint8)
    assert video.std() > 3
    (image,) = pipeline.generate([replace(ONE, frames=1, height=48)])
    assert image.shape == (1, 48, 32, 3)
    assert pipeline.generate([]) == []


def test_the_same_request_gives_the_same_bits_whatever_ran_before(pipeline: Pipeline) -> None:
    (first,) = pipeline.generate([ONE])
    wide = replace(ONE, frames=5, height=48, width=64, steps=3, seed=8)
    (other,) = pipeline.generate([wide])
    torch.manual_seed(99)
    (again,) = pipeline.generate([ONE])
    assert apart(first, again) == 0
    (other_again,) = pipeline.generate([wide])
    assert apart(other, other_again) == 0


def test_a_video_is_the_same_alone_and_beside_others(pipeline: Pipeline, files: Any) -> None:
    """Bit for bit, whatever the others' shapes and settings."""
    requests = [
        replace(ONE, condition="i2v_head", prompt="a red circle", ref=(files["left"],)),
        replace(ONE, prompt="two blue squares", seed=4, frames=5, height=48, negative="grey"),
        replace(ONE, condition="i2v_loop", prompt="", ref=(files["clip"],), steps=2),
        replace(ONE, condition="i2v_head", prompt="", ref=(files["clip"],)),
    ]
    together = pipeline.generate(requests)
    for request, video in zip(requests, together, strict=True):
        assert apart(pipeline.generate([request])[0], video) == 0
    assert apart(together[0], together[3]) > 3


def test_videos_made_together_are_the_same_to_rounding(pipeline: Pipeline, files: Any) -> None:
    """To one level of 255: matrix products of another size may round differently."""
    requests = [
        replace(ONE, condition="i2v_head", prompt=prompt, seed=seed, ref=(files[ref],), negative=no)
        for prompt, seed, ref, no in (
            ("a red circle", 3, "left", ""),
            ("two blue squares", 4, "right", "grey"),
            ("", 3, "clip", ""),
        )
    ]
    called: list[int] = []
    pipeline.model.register_forward_hook(lambda *_: called.append(1))
    alone = pipeline.generate(requests)
    passes = len(called)
    called.clear()
    together = pipeline.generate(requests, together=True)
    assert 3 * len(called) == passes
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other) <= 1
    assert apart(together[0], together[2]) > 3
    with pytest.raises(ValueError, match="may differ in text, seed and references only"):
        pipeline.generate([ONE, replace(ONE, steps=5)], together=True)
    assert pipeline.generate([], together=True) == []


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue square"},
        {"seed": 4},
        {"negative": "grey"},
        {"steps": 5},
        {"solver": "heun"},
        {"guidance": 4.0},
        {"fps": 12.0},
        {"motion_score": 7.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_counts(pipeline: Pipeline, change: dict[str, Any]) -> None:
    (base,), (moved,) = (pipeline.generate([r]) for r in (ONE, replace(ONE, **change)))
    assert apart(base, moved) > 0


@pytest.mark.parametrize(
    "name", ["t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail"]
)
def test_planned_guidance_equals_the_full(make_pipeline: Make, files: Any, name: Any) -> None:
    frames = 37 if name.startswith("v2v") else 9
    request = replace(ONE, condition=name, frames=frames, ref=references(name, files))
    for sample in (
        {},
        {"oscillate_text": False},
        {"oscillate_img": False, "dynamic_img": False},
        {"oscillate_text": False, "oscillate_img": False},
    ):
        pipeline = make_pipeline(sample=sample)
        (planned,) = pipeline.generate([request])
        (full,) = pipeline.generate([request], full_guidance=True)
        assert apart(planned, full) <= 1
    if name != "t2v":
        (other,) = pipeline.generate([replace(request, guidance_img=6.0)])
        assert apart(full, other) > 1


@pytest.mark.parametrize(
    ("rule", "text", "image"),
    [({}, 100, 130), ({"oscillate_text": True, "dynamic_rule": "public"}, 80, 110)],
    ids=["report", "public"],
)
def test_branches_run_in_50_steps(
    make_pipeline: Make, files: Any, rule: dict[str, Any], text: int, image: int
) -> None:
    defaults = SampleConfig(**rule)
    pipeline = make_pipeline(sample={"oscillate_after": defaults.oscillate_after, **rule})
    assert replace(pipeline.recipe.sample, steps=50) == defaults
    default = replace(
        ONE, steps=50, guidance=defaults.guidance, guidance_img=defaults.guidance_img, frames=5
    )
    called: list[int] = []
    pipeline.model.register_forward_hook(lambda *_: called.append(1))
    for name, expected in (("t2v", text), ("i2v_head", image)):
        called.clear()
        request = replace(default, condition=name, ref=references(name, files))
        assert sum(pipeline.check(request).passes) == expected
        pipeline.generate([request])
        assert len(called) == expected


@pytest.mark.parametrize(
    "name",
    ["i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail", "frames@4", "clip@4:9+frames@12"],
)
def test_what_was_given_is_kept_in_every_item(pipeline: Pipeline, files: Any, name: Any) -> None:
    """As the autoencoder keeps it: the video shows its round trip of the pieces."""
    ae = pipeline.autoencoder
    long = name.startswith(("v2v", "clip"))
    requests = [
        replace(ONE, condition=name, frames=41 if long else 17, ref=(files[ref],), seed=n)
        for n, ref in enumerate(["clip"] if long else ["left", "right"])
    ]
    for request, video in zip(requests, pipeline.generate(requests), strict=True):
        found = check_references(name, request.ref, ae, request.frames)
        pieces = read_references(found, (32, 32), torch.device("cpu"))
        for (piece, _, _), shown in zip(map(astuple, found), pieces, strict=True):
            first, frames, *_ = piece
            kept = ae.decode(ae.encode(shown[None], [0]))[0].permute(1, 2, 3, 0)
            expected = ((kept + 1) * 127.5).round().byte().numpy()
            # Away from the head the first frame of a clip stands for four.
            skip = int(first > 0 and frames > 1)
            assert apart(video[first + skip : first + frames], expected[skip:]) <= 1


def test_clips_are_put_back_only_where_the_recipe_says_so(make_pipeline: Make, files: Any) -> None:
    """The public code puts back images alone; what is denoised is the same either way."""
    both = make_pipeline(), make_pipeline(sample={"keep_given": "images"})
    clip = replace(ONE, condition="v2v_head", frames=41, ref=(files["clip"],))
    one, other = (pipeline.generate([clip])[0] for pipeline in both)
    assert apart(one[:33], other[:33]) > 3
    assert apart(one[33:], other[33:]) == 0
    image = replace(ONE, condition="i2v_tail", ref=(files["left"],))
    one, other = (pipeline.generate([image])[0] for pipeline in both)
    assert apart(one, other) == 0


def test_rounded_times_are_what_the_model_reads(
    make_pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the table of modulation as computed in each pass, whose time is t in bf16."""
    exact, rounded = make_pipeline(), make_pipeline(flow={"round_t": "bf16"})
    (video,) = rounded.generate([ONE])
    assert apart(exact.generate([ONE])[0], video) > 0
    read: list[torch.Tensor] = []

    class Computed:
        def __init__(self, *args: Any) -> None: ...

        def of(self, current: Any) -> Any:
            return compute_modulation

    monkeypatch.setattr("vidgen.sample.denoise.TabulatedModulation", Computed)
    rounded.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["t"]), with_kwargs=True
    )
    assert apart(rounded.generate([ONE])[0], video) <= 1
    times = flow.timesteps(4, flow.shift_alpha(rounded.recipe.flow, (3, 4, 4)))
    asked = sorted({float(t) for t in read}, reverse=True)
    assert asked == torch.tensor(times[:4]).bfloat16().tolist()
    assert all(t.dtype == torch.bfloat16 for t in read)


def test_an_image_given_is_not_a_clip_given(pipeline: Pipeline) -> None:
    """The image scale rises over frames for images alone, as published."""
    for name, per_token in (("i2v_tail", True), ("v2v_tail", False)):
        request = replace(ONE, condition=name)
        (first, *_) = guidance_branches(pipeline.recipe, request, (3, 1, 1))
        assert isinstance(first.weights["image"], torch.Tensor) == per_token


def test_a_distilled_model_runs_one_branch_and_reads_the_scale(make_pipeline: Make) -> None:
    pipeline = make_pipeline(model={"guidance_embed": True, "cond_embed": False})
    both = [ONE, replace(ONE, seed=8)]
    for one, other in zip(
        pipeline.generate(both), pipeline.generate(both, together=True), strict=True
    ):
        assert apart(one, other) <= 1
    assert sum(pipeline.check(ONE).passes) == ONE.steps
    videos = [pipeline.generate([replace(ONE, guidance=g)])[0] for g in (2.0, 8.0)]
    assert apart(*videos) > 0


def test_the_suffix_is_what_the_recipe_trained_with(make_pipeline: Make) -> None:
    plain = make_pipeline(conditions={"suffix": False})
    one, two = (plain.generate([replace(ONE, fps=fps)])[0] for fps in (12.0, 24.0))
    assert apart(one, two) == 0


def test_progress_counts_steps(pipeline: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    pipeline.generate([ONE], progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 33}, "height 33 is not a multiple of 16; the nearest are 32 and 48"),
        ({"width": 40}, "width 40 is not a multiple of 16; the nearest are 32 and 48"),
        ({"height": 8}, "height 8 is not a multiple of 16; the nearest is 16"),
        ({"frames": 8}, r"8 frames: this autoencoder takes 4k\+1; the nearest are 5 and 9"),
        ({"frames": 0}, "the nearest is 1"),
        ({"steps": 0}, "steps 0: expected 1 or more"),
        ({"solver": "magic"}, "solver 'magic': expected one of euler, heun, rf_taylor"),
        ({"fps": 0.0}, "fps 0: expected a number above 0"),
        ({"fps": float("nan")}, "fps nan: expected"),
        ({"condition": "i2v_head"}, r"condition i2v_head takes 1 file\(s\); 0 were given"),
        ({"condition": "i2v_head", "frames": 1}, "i2v_head needs at least 5 frames, not 1"),
        ({"condition": "i2v_loop", "frames": 5}, "i2v_loop needs at least 9 frames, not 5"),
        ({"condition": "v2v_tail", "frames": 33}, "v2v_tail needs at least 37 frames, not 33"),
        ({"ref": ("left.png",)}, r"condition t2v takes no reference file\(s\)"),
    ],
)
def test_refusals(pipeline: Pipeline, change: dict[str, Any], message: str) -> None:
    pipeline.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UserError, match=message) as raised:
        pipeline.generate([replace(ONE, **change)])
    assert "\n" not in str(raised.value)


def test_a_model_without_conditions_refuses_them(make_pipeline: Make, files: Any) -> None:
    pipeline = make_pipeline(model={"cond_embed": False})
    assert pipeline.generate([ONE])[0].std() > 3
    with pytest.raises(UserError, match=r"takes no image or video \(model.cond_embed is false\)"):
        pipeline.generate([replace(ONE, condition="i2v_head", ref=(files["left"],))])


def save_run(folder: Path, pipeline: Pipeline, *, averaged: bool) -> Path:
    state = dict(pipeline.model.state_dict())
    groups = {"model": state}
    if averaged:
        groups = {"model": {k: torch.zeros_like(v) for k, v in state.items()}, "ema": state}
    recipe = {**to_dict(pipeline.recipe), "seed": 1}
    root = folder / "checkpoints"
    checkpoint.save(root, 7, groups, {"recipe": recipe}, background=False).wait()
    step = checkpoint.latest(root)
    assert step is not None
    return step


@pytest.mark.parametrize("averaged", [False, True])
def test_from_a_run_and_from_one_step(tmp_path: Path, pipeline: Pipeline, averaged: bool) -> None:
    step = save_run(tmp_path, pipeline, averaged=averaged)
    (expected,) = pipeline.generate([ONE])
    for path in (tmp_path, tmp_path / "checkpoints", step, str(step)):
        loaded = Pipeline.from_checkpoint(path, device="cpu")
        assert loaded.source == "small step-000000007"
        assert apart(loaded.generate([ONE])[0], expected) == 0


def test_no_run_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UserError, match="is no run and no checkpoint: expected a run directory"
        ):
            Pipeline.from_checkpoint(path)


def test_from_published_weights(
    tmp_path: Path, pipeline: Pipeline, recipe: Callable[..., dict[str, Any]]
) -> None:
    weights = tmp_path / "video.safetensors"
    save_weights(pipeline.model, weights, "open-sora")
    whole = {**recipe(), "run_dir": "runs/small", "train": {"steps": 5}}
    loaded = Pipeline.from_weights(weights, whole, device="cpu")
    assert loaded.source == "small video.safetensors"
    assert apart(loaded.generate([ONE])[0], pipeline.generate([ONE])[0]) == 0

    with pytest.raises(UserError, match=r"video\.safetensors") as raised:
        Pipeline.from_weights(weights, recipe(model={"depth": 2}), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": {"luma": 3}}, "model.in_channels does not fit.*set model.in_channels=136"),
        ({"text": {"token_width": 8}}, "set model.context_in_dim=8"),
        ({"text": {"pooled_width": 8}}, "set model.vec_in_dim=8"),
    ],
)
def test_parts_of_other_widths_are_refused(
    make_pipeline: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_pipeline(**changes)
