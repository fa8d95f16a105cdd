"""What a video is conditioned on besides text: frames at its head or tail, and the caption suffix.

A condition is a mask channel, 1 on the latent frames that are given, and the latents there.
"""

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vidgen.diffusion.config import ConditionConfig, ConditionName
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.geometry import Geometry

Piece = tuple[str, int]  # the end of a clip it lies at ("head" or "tail"), pixel frames

CLIP_LATENTS = 8  # latent frames of a given clip (v2v), besides a causal encoder's first


def caption(text: str, fps: float | None, motion_score: float | None) -> str:
    """A caption as the model is trained to read it: frame rate and motion score at its end."""
    parts = []
    if fps is not None:
        parts.append(f"{fps:g} FPS")
    if motion_score is not None:
        parts.append(f"{round(motion_score)} motion score")
    return f"{text} {', '.join(parts)}." if parts else text


def clip_frames(ae: Autoencoder) -> int:
    """Pixel frames of the clip that v2v_head and v2v_tail are given."""
    geometry = Geometry.of(ae)
    return geometry.pixel_frames(CLIP_LATENTS + geometry.first)


def frames_needed(name: ConditionName, ae: Autoencoder) -> int:
    """The shortest video a condition makes sense for: it must leave something to generate."""
    if name == "t2v":
        return 1
    geometry = Geometry.of(ae)
    images = name.startswith("i2v")
    given = len(given_parts(name, ae)) if images else CLIP_LATENTS + geometry.first
    return geometry.pixel_frames(given + 1)


def choose_condition(
    config: ConditionConfig, frames: int, ae: Autoencoder, rng: random.Random
) -> ConditionName:
    """One of the conditions that a clip of so many frames is long enough for, by weight."""
    fitting = {
        name: weight
        for name, weight in config.weights.items()
        if weight and frames >= frames_needed(name, ae)
    }
    if not fitting:
        return "t2v"
    if config.drop_image is not None:
        given = sum(fitting.values())
        fitting = {name: (1 - config.drop_image) * w / given for name, w in fitting.items()}
        fitting["t2v"] = config.drop_image
    return rng.choices(list(fitting), list(fitting.values()))[0]


def given_parts(name: ConditionName, ae: Autoencoder) -> list[Piece]:
    """The pieces of video a condition is given."""
    ends = {"head": ["head"], "tail": ["tail"], "loop": ["head", "tail"]}.get(name[4:], [])
    frames = clip_frames(ae) if name.startswith("v2v") else 1
    return [(end, frames) for end in ends]


def all_parts(names: Iterable[ConditionName], frames: int, ae: Autoencoder) -> list[Piece]:
    """Every piece that a clip of so many frames may be given."""
    fitting = [name for name in names if frames >= frames_needed(name, ae)]
    return sorted({piece for name in fitting for piece in given_parts(name, ae)})


def given_latents(
    name: ConditionName,
    pieces: Sequence[Tensor],
    ae: Autoencoder,
    grid: tuple[int, int, int],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Mask (1, t, h, w) and latents (C, t, h, w) of one sample.

    `pieces` are the given pixels (3, T, H, W) in the order of `given_parts`. Each is encoded by
    itself, so nothing of the video to be generated leaks into it.
    """
    for (end, frames), piece in zip(given_parts(name, ae), pieces, strict=True):
        if piece.shape[1] != frames:
            raise ValueError(f"{name} is given {frames} frames at its {end}, not {piece.shape[1]}")
    parts = [ae.encode(piece[None], [seed])[0] for piece in pieces]
    return place_latents(name, parts, ae, grid, device=pieces[0].device if pieces else None)


def place_latents(
    name: ConditionName,
    parts: Sequence[Tensor],
    ae: Autoencoder,
    grid: tuple[int, int, int],
    device: torch.device | None,
) -> tuple[Tensor, Tensor]:
    """`given_latents` of pieces that are latents already, each (C, t, h, w)."""
    mask = torch.zeros(1, *grid, device=device)
    latents = torch.zeros(ae.latent_channels, *grid, device=device)
    for (end, _), part in zip(given_parts(name, ae), parts, strict=True):
        place = slice(0, part.shape[1]) if end == "head" else slice(-part.shape[1], None)
        mask[:, place] = 1
        latents[:, place] = part.to(latents.dtype)
    return mask, latents


def cut_pieces(name: ConditionName, video_CTHW: Tensor, ae: Autoencoder) -> list[Tensor]:
    """The given pieces of a training clip."""
    return [cut_piece(piece, video_CTHW) for piece in given_parts(name, ae)]


def piece_name(piece: Piece) -> str:
    """Of its latents where they are kept: "given_head_33"."""
    end, frames = piece
    return f"given_{end}_{frames}"


def cut_piece(piece: Piece, video_CTHW: Tensor) -> Tensor:
    end, frames = piece
    return video_CTHW[:, :frames] if end == "head" else video_CTHW[:, -frames:]


def condition_channels(mask_B1THW: Tensor, latents_BCTHW: Tensor) -> Tensor:
    """What the model's `cond_in` reads, before patching: the mask first, then masked latents."""
    return torch.cat([mask_B1THW, mask_B1THW * latents_BCTHW], dim=1)
