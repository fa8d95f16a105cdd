"""Training from a cache of latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidgen.data import BucketConfig, DataConfig, open_loader
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.latents import LatentCache, facts_of, settings_of
from vidgen.data.index.manifest import write_manifest
from vidgen.data.read.video import write_video
from vidgen.diffusion.condition_names import NAMED
from vidgen.diffusion.config import ConditionConfig, FlowConfig
from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.models.mmdit import MMDiTConfig
from vidgen.models.text.builtin import BuiltinText
from vidgen.models.text.config import TextConfig
from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.batch_encoder import BatchEncoder
from vidgen.train.encoders import Encoders
from vidgen.train.report.metrics import read_metrics
from vidgen.train.step import make_example

MakeRecipe = Callable[..., Recipe]


def losses(recipe: Recipe) -> list[tuple[float, float]]:
    Trainer(recipe).run()
    return [(r["loss"], r["grad_norm"]) for r in read_metrics(Path(recipe.run_dir))]


def test_a_run_from_the_cache_is_the_run_that_made_it_without_encoders(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def recipe(name: str) -> Recipe:
        return tiny(
            f"data.latents={tmp_path / 'cache'}", "train.steps=4", "data.workers=0", run=name
        )

    made = losses(recipe("rolling"))
    assert "latents: cached 0 / computed 12" in capsys.readouterr().out

    def refuse(*args: object) -> None:
        raise AssertionError("an encoder was built")

    monkeypatch.setattr("vidgen.train.encoders.build_autoencoder", refuse)
    monkeypatch.setattr("vidgen.train.encoders.build_text", refuse)
    assert losses(recipe("cached")) == made
    assert "latents: cached 12 / computed 0" in capsys.readouterr().out


def test_a_cache_of_another_encoder_is_refused(tiny: MakeRecipe, tmp_path: Path) -> None:
    where = f"data.latents={tmp_path / 'cache'}"
    Trainer(tiny(where)).loader.close()
    with pytest.raises(UserError, match=r"encoders\.text\.length=8, this run has 9"):
        Trainer(tiny(where, "text.length=9"))
    with pytest.raises(UserError, match="suffix=False, this run has True"):
        Trainer(tiny(where, "conditions.suffix=true"))


def test_a_rolling_cache_gives_the_losses_of_a_run_without_one(
    tiny: MakeRecipe, tmp_path: Path, capsys: Any
) -> None:
    """The clips are as long as their buckets: whole and in the middle are the same window."""
    given = ("model.cond_embed=true", "conditions.weights={t2v: 1, i2v_head: 2, i2v_loop: 2}")
    without = losses(tiny(*given, "train.steps=10", run="without"))
    latents = f"data.latents={{folder: {tmp_path / 'rolling'}, ahead: 2, rolling_gb: 1e-4}}"
    rolling = tiny(*given, latents, "train.steps=10", "checkpoint.every=4", run="rolling")
    Trainer(rolling).run(stop_after=4)
    assert losses(rolling) == without  # ten steps, the last six of them after a resume
    said = capsys.readouterr().out.splitlines()[-2]
    assert "latents: cached " in said
    assert int(said.split("computed ")[1].split()[0]) > 0


def test_all_conditions_are_had_from_the_cache_bit_for_bit(tmp_path: Path) -> None:
    manifest = make_clips(tmp_path, frames=[41] * 6 + [37] * 2 + [9] * 4 + [1] * 4)
    buckets = {"32px_ar1:1": {n: BucketConfig(batch=2) for n in ("41", "37", "9", "1")}}
    spelled = ("frames@0,0.5,-1", "every@16", "clip@4:13", "any_frames")
    weights = dict.fromkeys([*NAMED, *spelled], 1.0)
    cfg = DataConfig(manifest=str(manifest), buckets=buckets, workers=0)
    autoencoder = BlockDCT(BlockDCTConfig())
    text = BuiltinText(TextConfig(length=8, token_width=16, pooled_width=16))
    model = MMDiTConfig(in_channels=96, vec_in_dim=16, context_in_dim=16)
    assert model.cond_embed
    encode = BatchEncoder(
        Encoders(autoencoder, text),
        ConditionConfig(weights=weights, suffix=False),
        seed=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    settings = settings_of({}, facts_of(autoencoder, text), torch.float32, suffix=False)
    codec = ClipCodec(
        LatentCache(tmp_path / "cache", settings),
        autoencoder,
        text,
        cfg,
        suffix=False,
        device="cpu",
        dtype=torch.float32,
        conditions=list(weights),
    )
    how: dict[str, Any] = {"seed": 4, "rank": 0, "world": 1, "device": "cpu"}
    masks = set()
    # A batch for each of the two epochs is encoded, in the third all are read.
    with open_loader(cfg, **how) as clips, open_loader(cfg, **how, codec=codec) as latents:
        for _ in range(40):
            a, b = (
                make_example(next(loader), encode, model, FlowConfig())
                for loader in (clips, latents)
            )
            assert a.cond_BVD is not None
            assert b.cond_BVD is not None
            for one, other in (
                (a.noisy_BVD, b.noisy_BVD),
                (a.target_BVD, b.target_BVD),
                (a.cond_BVD, b.cond_BVD),
                (a.text.tokens_BLD, b.text.tokens_BLD),
                (a.text.pooled_BD, b.text.pooled_BD),
            ):
                assert torch.equal(one, other)
            mask_BV = a.cond_BVD[..., 0].unflatten(1, a.grid)[..., 0, 0]
            masks |= {"".join(".x"[int(x)] for x in row) for row in mask_BV}
        assert latents.computed == 16
    eleven = {"x..........", "..........x", "x.........x", "xxxxxxxxx..", "..xxxxxxxxx"}
    assert eleven <= masks
    assert {".....x.....", "x....x....x", "x...x...x..", ".xxx......."} <= masks
    assert "." in masks
    assert len([mask for mask in masks if len(mask) == 11]) > 12  # any_frames: sets of all kinds


def test_a_condition_that_no_clip_can_be_given_is_refused(tiny: MakeRecipe, tmp_path: Path) -> None:
    given = ("model.cond_embed=true", "conditions.weights={every@4: 1}")
    for more in ((), (f"data.latents={tmp_path / 'cache'}",)):
        with pytest.raises(UserError, match="every@4 fits no length of video: every@4 leaves noth"):
            Trainer(tiny(*given, *more))


def make_clips(folder: Path, frames: list[int]) -> Path:
    rows = []
    for number, count in enumerate(frames):
        video = np.random.default_rng(number).integers(0, 255, (count, 32, 32, 3), np.uint8)
        write_video(folder / f"{number}.mp4", video, 24.0)
        shape = {"num_frames": count, "height": 32, "width": 32, "fps": 24.0}
        rows.append({"path": f"{number}.mp4", "text": f"clip {number}", **shape})
    write_manifest(folder / "clips.parquet", rows)
    return folder / "clips.parquet"
