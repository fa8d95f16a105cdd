"""Cosine and sine tables of rotary position embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor

_Key = tuple[tuple[int, ...], tuple[int, ...], float, int, torch.device]
_cache: dict[_Key, tuple[Tensor, Tensor]] = {}
_CACHED_GRIDS = 64  # cache size; the oldest entry is evicted. A run has a few dozen buckets


def rope_tables(
    grid: Sequence[int],
    axes_dim: Sequence[int],
    theta: float,
    text_len: int,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (L, P) float32: text_len unrotated text tokens, then those of the grid.

    grid is (T, H, W) in tokens, in (t h w) order; axes_dim is the number of a head's features
    rotated by each axis, so P = sum(axes_dim) / 2. Results are cached: do not write to them.
    """
    if len(grid) != len(axes_dim) or any(d % 2 for d in axes_dim):
        raise ValueError(
            f"rope_tables: axes_dim {axes_dim} needs an even width for each axis of grid {grid}"
        )
    target = torch.empty(0).device if device is None else torch.device(device)
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return _compute(grid, axes_dim, theta, text_len, target)  # may not be a plain tensor
    key = (tuple(grid), tuple(axes_dim), float(theta), text_len, target)
    found = _cache.get(key)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            found = _compute(grid, axes_dim, theta, text_len, target)
        if len(_cache) >= _CACHED_GRIDS:
            _cache.pop(next(iter(_cache)))
        _cache[key] = found
    return found


def _compute(
    grid: Sequence[int], axes_dim: Sequence[int], theta: float, text_len: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    # In float64 on the CPU, for the same bits on every device.
    positions = torch.arange(max(grid), dtype=torch.float64, device="cpu")
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, axes_dim, strict=True)):
        exponent = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
        angle = torch.outer(positions[:length], theta**-exponent)
        shape = [1] * len(grid) + [dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, dim // 2))
    video = torch.cat(angles, dim=-1).flatten(0, -2)
    angle_LP = torch.cat((video.new_zeros(text_len, video.shape[-1]), video))
    return angle_LP.cos().float().to(device), angle_LP.sin().float().to(device)
