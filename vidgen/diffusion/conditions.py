"""What a video is conditioned on besides text: given frames, and the caption's suffix.

A condition is a mask channel, 1 on the latent frames that are given, and the latents there.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidgen.diffusion.condition_names import (
    AnyFrames,
    ClipAt,
    EndClip,
    EveryFrame,
    FrameAt,
    Part,
    parse_condition,
)
from vidgen.diffusion.config import ConditionConfig, ConditionName
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.geometry import Geometry

ANY = AnyFrames()
SEARCHED_LATENTS = 256  # latent frames of the longest video considered by `frames_needed`


@dataclass(frozen=True, order=True)
class Piece:
    """Given frames that are encoded together, and apart from all others."""

    first: int  # frame of the video
    frames: int  # 1: an image
    begin: int  # latent frames of the video that they become
    end: int


class DoesNotFit(ValueError):
    """A condition asks for frames that a video of this length cannot be given."""


def caption(text: str, frames: int, fps: float | None, motion_score: float | None) -> str:
    """A caption as the model is trained to read it: frame rate and motion score at its end.

    The frame rate is a whole number, rounded down, as in Open-Sora's public code; NaN is none. An
    image has neither.
    """
    if frames == 1:
        return text
    parts = []
    if fps is not None and not math.isnan(fps):
        parts.append(f"{math.floor(fps)} FPS")
    if motion_score is not None:
        parts.append(f"{round(motion_score)} motion score")
    return f"{text} {', '.join(parts)}." if parts else text


def pieces_of(
    name: ConditionName, frames: int, ae: Autoencoder, rng: random.Random | None = None
) -> list[Piece]:
    """The pieces that a video of so many frames is given, in the order the name spells them.

    Raises `DoesNotFit` where it cannot be given them or nothing is left to generate. `any_frames`
    draws from `rng`.
    """
    geometry, parts = Geometry.of(ae), parse_condition(name)
    fixed = _fixed_pieces(name, parts, frames, geometry)
    if ANY not in parts:
        return list(fixed)
    if rng is None:
        raise DoesNotFit(
            f"{name}: any_frames is for the training mix; say which frames are given, such as "
            "frames@0,-1"
        )
    free = _free(fixed, frames, geometry)
    drawn = rng.sample(free, rng.randint(1, len(free) - 1))
    return [*fixed, *(_latent_piece(latent, frames, geometry) for latent in sorted(drawn))]


def fits(name: ConditionName, frames: int, ae: Autoencoder) -> bool:
    """Whether a video of so many frames can be given these, with others left to generate."""
    try:
        _fixed_pieces(name, parse_condition(name), frames, Geometry.of(ae))
    except DoesNotFit:
        return False
    return True


@lru_cache(maxsize=4096)
def _fixed_pieces(
    name: ConditionName, parts: tuple[Part, ...], frames: int, geometry: Geometry
) -> tuple[Piece, ...]:
    """All but those that `any_frames` draws, for which it leaves room."""
    pieces = tuple(p for part in parts for p in _pieces(part, frames, geometry))
    owner: dict[int, Piece] = {}
    for piece in pieces:
        for latent in range(piece.begin, piece.end):
            if latent in owner:
                raise DoesNotFit(
                    f"{name} gives frames {owner[latent].first} and {piece.first}, which lie in "
                    f"the same latent frame of a video of {frames} frames"
                )
            owner[latent] = piece
    if len(_free(pieces, frames, geometry)) < (2 if ANY in parts else 1):
        raise DoesNotFit(f"{name} leaves nothing to generate of {frames} frames")
    return pieces


def _free(pieces: Sequence[Piece], frames: int, geometry: Geometry) -> list[int]:
    """The latent frames that are not given."""
    given = {latent for piece in pieces for latent in range(piece.begin, piece.end)}
    return [n for n in range(geometry.latent_frames(frames)) if n not in given]


def _pieces(part: Part, frames: int, geometry: Geometry) -> list[Piece]:
    match part:
        case FrameAt(at):
            number = round(at * (frames - 1)) if isinstance(at, float) else at
            return [_frame_piece(_counted(number, frames, part), geometry)]
        case EveryFrame(step):
            return [_frame_piece(number, geometry) for number in range(0, frames, step)]
        case ClipAt(begin, end):
            first = _counted(begin, frames, part)
            stop = frames if end is None or end == frames else _counted(end, frames, part)
            return [_clip_piece(part, first, stop - first, frames, geometry)]
        case EndClip(head, latents):
            count = geometry.pixel_frames(latents + geometry.first)
            if count > frames:
                raise DoesNotFit(f"a clip of {count} frames is outside a video of {frames}")
            return [_clip_piece(part, 0 if head else frames - count, count, frames, geometry)]
        case AnyFrames():
            return []


def _counted(number: int, frames: int, part: Part) -> int:
    """A frame's number from the start."""
    if not -frames <= number < frames:
        raise DoesNotFit(f"{part} is outside a video of {frames} frames")
    return number % frames


def _frame_piece(number: int, geometry: Geometry) -> Piece:
    """A single frame lies at the latent frame that holds it."""
    latent = _latent_of(number, geometry)
    return Piece(number, 1, latent, latent + 1)


def _latent_of(number: int, geometry: Geometry) -> int:
    step = geometry.compression[0]
    return -(-number // step) if geometry.causal else number // step


def _latent_piece(latent: int, frames: int, geometry: Geometry) -> Piece:
    """The last frame behind a latent frame: of all it could be, so that a cache can hold it."""
    return Piece(geometry.frames_behind(latent, frames).stop - 1, 1, latent, latent + 1)


def _clip_piece(part: Part, first: int, count: int, frames: int, geometry: Geometry) -> Piece:
    """A clip is aligned by its end, which must be the end of a latent frame."""
    if count == 1:
        return _frame_piece(first, geometry)
    if not geometry.takes(count):
        raise DoesNotFit(
            f"{part} is {count} frames of {frames}: this autoencoder takes {geometry.frame_form}"
        )
    end = _latent_of(first + count - 1, geometry) + 1
    if geometry.pixel_frames(end) != first + count:
        step = geometry.compression[0]
        form = f"{step}k+1" if geometry.causal else f"a multiple of {step}"
        raise DoesNotFit(
            f"{part} ends before frame {first + count}, within a latent frame: expected {form}"
        )
    return Piece(first, count, end - geometry.latent_frames(count), end)


def frames_needed(name: ConditionName, ae: Autoencoder) -> int:
    """The shortest video a condition makes sense for: it must leave something to generate.

    Raises UserError where there is none with this autoencoder.
    """
    return _frames_needed(name, Geometry.of(ae))


@lru_cache
def _frames_needed(name: ConditionName, geometry: Geometry) -> int:
    why = ""
    for frames in (1, *map(geometry.pixel_frames, range(1, SEARCHED_LATENTS + 1))):
        if geometry.takes(frames):
            try:
                _fixed_pieces(name, parse_condition(name), frames, geometry)
            except DoesNotFit as error:
                why = str(error)
            else:
                return frames
    raise UserError(f"condition {name} fits no length of video: {why}")


def choose_condition(
    config: ConditionConfig, frames: int, ae: Autoencoder, rng: random.Random
) -> ConditionName:
    """One of the conditions that a clip of so many frames can be given, by weight."""
    fitting = {
        name: weight for name, weight in config.weights.items() if weight and fits(name, frames, ae)
    }
    if not fitting:
        return "t2v"
    if config.drop_image is not None:
        given = sum(fitting.values())
        fitting = {name: (1 - config.drop_image) * w / given for name, w in fitting.items()}
        fitting["t2v"] = config.drop_image
    return rng.choices(list(fitting), list(fitting.values()))[0]


def all_pieces(names: Iterable[ConditionName], frames: int, ae: Autoencoder) -> list[Piece]:
    """Every piece that a clip of so many frames may be given."""
    geometry = Geometry.of(ae)
    found: set[Piece] = set()
    for name in names:
        if fits(name, frames, ae):
            parts = parse_condition(name)
            fixed = _fixed_pieces(name, parts, frames, geometry)
            drawn = _free(fixed, frames, geometry) if ANY in parts else []
            found |= {*fixed, *(_latent_piece(n, frames, geometry) for n in drawn)}
    return sorted(found)


def given_latents(
    pieces: Sequence[Piece],
    pixels: Sequence[Tensor],
    ae: Autoencoder,
    grid: tuple[int, int, int],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Mask (1, t, h, w) and latents (C, t, h, w) of one sample.

    `pixels` are (3, T, H, W) of each piece. Each is encoded by itself, so nothing of the video to
    be generated leaks into it.
    """
    for piece, shown in zip(pieces, pixels, strict=True):
        if shown.shape[1] != piece.frames:
            raise ValueError(f"{piece} is {piece.frames} frames, not {shown.shape[1]}")
    parts = [ae.encode(shown[None], [seed])[0] for shown in pixels]
    return place_latents(pieces, parts, ae, grid, device=pixels[0].device if pixels else None)


def place_latents(
    pieces: Sequence[Piece],
    parts: Sequence[Tensor],
    ae: Autoencoder,
    grid: tuple[int, int, int],
    device: torch.device | None,
) -> tuple[Tensor, Tensor]:
    """`given_latents` of pieces that are latents already, each (C, t, h, w)."""
    mask = torch.zeros(1, *grid, device=device)
    latents = torch.zeros(ae.latent_channels, *grid, device=device)
    for piece, part in zip(pieces, parts, strict=True):
        mask[:, piece.begin : piece.end] = 1
        latents[:, piece.begin : piece.end] = part.to(latents.dtype)
    return mask, latents


def cut_piece(piece: Piece, video_CTHW: Tensor) -> Tensor:
    return video_CTHW[:, piece.first : piece.first + piece.frames]


def piece_name(piece: Piece, frames: int) -> str:
    """Of its latents in an entry of a clip of so many frames: "given_head_33", "given_8_1"."""
    if piece.first == 0:
        return f"given_head_{piece.frames}"
    if piece.first + piece.frames == frames:
        return f"given_tail_{piece.frames}"
    return f"given_{piece.first}_{piece.frames}"


def condition_channels(mask_B1THW: Tensor, latents_BCTHW: Tensor) -> Tensor:
    """What the model's `cond_in` reads, before patching: the mask first, then masked latents."""
    return torch.cat([mask_B1THW, mask_B1THW * latents_BCTHW], dim=1)
