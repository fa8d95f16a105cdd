"""Alignment with DINOv2: which frames stand behind which token, and where gradients go."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.models.dinov2 import DINOv2
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import PRESETS, MMDiT, Seams
from vidgen.models.mmdit.parallel import split_over
from vidgen.recipe.schema import AlignmentConfig, OptimConfig, ParallelConfig
from vidgen.runtime.parallel import World
from vidgen.train.objectives.alignment import Alignment
from vidgen.train.ranks import Ranks

pytest.importorskip("transformers", reason="the text extra is not installed")

CPU = torch.device("cpu")
CONFIG = replace(
    PRESETS["tiny"], in_channels=6, patch_size=1, depth=2, vec_in_dim=5, context_in_dim=7
)
TEXT = 3


@dataclass
class Compression:
    """All of an autoencoder that alignment asks for."""

    causal: bool
    latent_channels: int = 6
    compression: tuple[int, int, int] = (4, 32, 32)

    def encode(self, video_BCTHW: Tensor, seeds: Any) -> Tensor:
        raise AssertionError("alignment needs no latents")

    decode = encode


DCAE = Compression(causal=False)


def random_model() -> MMDiT:
    torch.manual_seed(1)
    model = MMDiT(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def aligned(folder: Path, seams: Seams, ae: Compression = DCAE) -> Alignment:
    return Alignment(
        AlignmentConfig(weight=0.5, path=str(folder), hidden=24),
        OptimConfig(lr=3e-3, eps=1e-8),
        CONFIG,
        ae,
        Ranks(ParallelConfig(), World(0, 1, 0, CPU), CONFIG, torch.float32),
        seams,
        seed=4,
        device=CPU,
        dtype=torch.float32,
    )


def clip(grid: tuple[int, int, int], frames: int, batch: int = 2) -> tuple[dict[str, Any], Tensor]:
    """What the model takes, and pixels that differ from frame to frame and from place to place."""
    made = torch.Generator().manual_seed(grid[0])
    video = grid[0] * grid[1] * grid[2]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made)

    given = {
        "x_BVD": normal(batch, video, CONFIG.in_channels),
        "grid": grid,
        "txt": normal(batch, TEXT, 7),
        "vec": normal(batch, 5),
        "t": torch.rand(batch, generator=made),
        "cond": normal(batch, video, CONFIG.cond_channels),
    }
    shape = (batch, frames, grid[1], grid[2], 3)
    blocks = torch.randint(0, 256, shape, generator=made, dtype=torch.uint8)
    return given, blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize(
    ("causal", "frames", "spans"),
    [
        (False, 12, [(0, 4), (4, 8), (8, 12)]),
        (True, 9, [(0, 1), (1, 5), (5, 9)]),
        (False, 1, [(0, 1)]),
        (True, 1, [(0, 1)]),
    ],
)
def test_every_frame_stands_behind_one_latent(
    causal: bool, frames: int, spans: list[tuple[int, int]]
) -> None:
    ae = Compression(causal)
    found = [Geometry.of(ae).frames_behind(latent, frames) for latent in range(len(spans))]
    assert [(span.start, span.stop) for span in found] == spans


@pytest.mark.parametrize(("causal", "frames"), [(False, 12), (True, 9), (False, 1)])
def test_the_loss_is_minus_the_cosine_to_each_tokens_features(
    dinov2_folder: Path, causal: bool, frames: int
) -> None:
    ae = Compression(causal)
    alignment = aligned(dinov2_folder, Seams(), ae)
    grid = (1 if frames == 1 else 3, 2, 3)
    given, pixels = clip(grid, frames)
    left: list[Tensor] = []
    model = random_model()
    model.single_blocks[0].register_forward_hook(lambda _, __, out: left.append(out[0][:, TEXT:]))
    model(**given, seams=alignment.seams)
    found = alignment.losses(pixels, grid)
    assert found.shape == (2,)
    assert (found.abs() <= 1).all()

    dinov2 = DINOv2(dinov2_folder, device=CPU, dtype=torch.float32)
    projected = alignment.projection(left[0]).unflatten(1, grid)
    for sample in range(2):
        cosines = []
        for latent in range(grid[0]):
            behind = pixels[sample, Geometry.of(ae).frames_behind(latent, frames)]
            wanted = torch.stack([dinov2(frame[None], *grid[1:])[0] for frame in behind]).mean(0)
            cosines.append(F.cosine_similarity(projected[sample, latent], wanted, dim=-1))
        expected = -torch.stack(cosines).mean()
        torch.testing.assert_close(found[sample], expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_first_three_layers_and_the_projection(dinov2_folder: Path) -> None:
    alignment = aligned(dinov2_folder, Seams())
    model = random_model()
    given, pixels = clip((2, 2, 3), 8)
    model(**given, seams=alignment.seams)
    alignment.losses(pixels, (2, 2, 3)).mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("single_blocks.1.", "final_layer."))
    assert all(p.grad is not None and p.grad.any() for p in alignment.projection.parameters())
    assert not any(p.requires_grad for p in alignment._features._model.parameters())


def test_layer_and_projection_learn_to_tell_the_features(dinov2_folder: Path) -> None:
    alignment, model = aligned(dinov2_folder, Seams()), random_model()
    given, pixels = clip((2, 2, 3), 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        model(**given, seams=alignment.seams)
        loss = alignment.losses(pixels, (2, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        alignment.finish_gradients()
        optimizer.step()
        alignment.update(lr=3e-3)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def run(net: MMDiT, alignment: Alignment, given: dict[str, Any], pixels: Tensor) -> list[Tensor]:
    for module in (net, alignment.projection):
        module.zero_grad()
    net(**given, seams=alignment.seams)
    losses = alignment.losses(pixels, given["grid"])
    losses.mean().backward()
    every = [*net.parameters(), *alignment.projection.parameters()]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
    return [losses.detach(), torch.cat([grad.reshape(-1) for grad in grads])]


# Text and video of the last are fewer than the ranks: one has no video at all.
CLIPS = [((3, 2, 3), 12), ((1, 1, 2), 1)]


def share_a_sample(rank: int, world: int, folder: Path, dinov2: str) -> list[float]:
    """The largest relative difference of losses and of gradients, clip by clip."""
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    group = World(rank, world, 0, CPU).context_group(world)
    split = Seams(split=split_over(group, lambda _: 1))
    net, worst = random_model(), []
    for grid, frames in CLIPS:
        given, pixels = clip(grid, frames)
        wanted = run(net, aligned(Path(dinov2), Seams()), given, pixels)
        found = run(net, aligned(Path(dinov2), split), given, pixels)
        dist.all_reduce(found[1])  # FSDP's average over ranks
        found[1] /= world
        pairs = zip(found, wanted, strict=True)
        worst.append(max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs))
    dist.barrier()
    dist.destroy_process_group()
    return worst


def test_ranks_that_share_a_sample_find_the_same(
    ranks: Callable[..., list[Any]], dinov2_folder: Path
) -> None:
    for found in ranks(share_a_sample, 3, str(dinov2_folder), timeout=120):
        assert max(found) < 1e-4, json.dumps(found)
