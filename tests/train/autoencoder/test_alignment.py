"""DINOv2 beside the autoencoder's training: what is compared, what learns, what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from vidgen.errors import UserError
from vidgen.models.dinov2 import DINOv2
from vidgen.models.video_dcae import VideoDCAE
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.runtime import checkpoint
from vidgen.train.autoencoder.alignment import AutoencoderAlignment
from vidgen.train.autoencoder.trainer import AutoencoderTrainer
from vidgen.train.report.metrics import read_metrics

from .test_trainer import manifest, recipe  # noqa: F401  the fixture

CPU = torch.device("cpu")


def aligned(manifest: Path, run: Path, folder: Path, **changes: Any) -> AutoencoderRecipe:  # noqa: F811
    config = {"weight": 0.5, "path": str(folder), "hidden": 24, **changes}
    return recipe(manifest, run, alignment=config, train={"steps": 2})


@pytest.mark.parametrize(("stage", "frames"), [(3, 8), (4, 8), (5, 8), (3, 1)])
def test_each_position_is_compared_with_the_frames_behind_it(
    stage: int, frames: int, dinov2_folder: Path, tmp_path: Path
) -> None:
    given = aligned(tmp_path / "none", tmp_path, dinov2_folder, layer=stage)
    alignment = AutoencoderAlignment(given, CPU, torch.float32)
    span = 1 if frames == 1 else {3: 1, 4: 2, 5: 4}[stage]
    width = given.autoencoder.widths[stage]
    made = torch.Generator().manual_seed(1)
    kept = torch.randn(2, width, frames // span, 2, 3, generator=made)
    pixels = torch.randint(0, 256, (2, frames, 16, 24, 3), generator=made, dtype=torch.uint8)
    found = alignment.losses(kept, pixels)

    dinov2 = DINOv2(dinov2_folder, device=CPU, dtype=torch.float32)
    for clip in range(2):
        cosines = []
        for at in range(frames // span):
            wanted = dinov2(pixels[clip, at * span : (at + 1) * span], 2, 3).mean(dim=0)
            projected = alignment.projection(kept[clip, :, at].permute(1, 2, 0))
            cosines.append(F.cosine_similarity(projected, wanted, dim=-1))
        torch.testing.assert_close(found[clip], -torch.stack(cosines).mean(), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_stages_up_to_the_aligned_one(
    dinov2_folder: Path, tmp_path: Path
) -> None:
    given = aligned(tmp_path / "none", tmp_path, dinov2_folder)
    alignment = AutoencoderAlignment(given, CPU, torch.float32)
    model = VideoDCAE(given.autoencoder)
    model.init_weights(torch.Generator().manual_seed(1))
    pixels = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8)
    video = pixels.permute(0, 4, 1, 2, 3) / 127.5 - 1
    reconstruction, kept = model(video, 3)
    assert kept.shape == (1, given.autoencoder.widths[3], 8, 4, 4)
    assert torch.equal(reconstruction, model(video)[0])
    alignment.losses(kept, pixels).mean().backward()
    touched = {n.rsplit(".blocks")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert {f"encoder.stages.{stage}" for stage in range(3)} <= touched
    assert not any(name.startswith(("decoder", "encoder.stages.3")) for name in touched)


def test_the_projection_learns_and_a_resumed_run_has_the_same_bits(
    manifest: Path,  # noqa: F811
    dinov2_folder: Path,
    tmp_path: Path,
) -> None:
    trainer = AutoencoderTrainer(aligned(manifest, tmp_path / "whole", dinov2_folder))
    assert trainer.alignment is not None
    parameters = list(trainer.alignment.projection.parameters())
    projection = [p.detach().clone() for p in parameters]
    trainer.run()
    assert all(not torch.equal(a, b) for a, b in zip(projection, parameters, strict=True))
    assert all(-1 <= record["alignment"] <= 1 for record in read_metrics(tmp_path / "whole"))

    parts = aligned(manifest, tmp_path / "parts", dinov2_folder)
    for stop in (1, None):
        AutoencoderTrainer(parts).run(stop_after=stop)
    steps = [checkpoint.latest(tmp_path / run / "checkpoints") for run in ("whole", "parts")]
    for group in ("model", "alignment", "alignment_optim"):
        expected, found = (checkpoint.read_tensors(step, group) for step in steps if step)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), group
    with pytest.raises(UserError, match=r"another alignment \(alignment.weight: 0.5 -> 0.25"):
        AutoencoderTrainer(aligned(manifest, tmp_path / "parts", dinov2_folder, weight=0.25))


def test_the_encoder_has_six_stages(dinov2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises((ValidationError, UserError), match="layer is 7: the encoder has 6 stages"):
        aligned(tmp_path / "none", tmp_path, dinov2_folder, layer=7)
