"""One step of AdamW in place, with moments in bfloat16 or float32 and the moving average beside."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.registry import define

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Place:
    """Which random bits round a tensor's moments: a hash of `key` and each element's place.

    Element (l, d) of the (L, D) that are here is number first + l * row + d of the whole tensor.
    """

    key: tuple[int, int]  # 32 bits each
    first: int
    row: int


def adamw(
    param_LD: Tensor,
    grad_LD: Tensor,
    exp_avg_LD: Tensor,
    exp_avg_sq_LD: Tensor,
    average_LD: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    place: Place,
    follow: float = 0.0,
) -> None:
    """Step number `step` (from 1): updates the weights, both moments and their moving average.

    The arithmetic is float32. Moments kept in bfloat16 are rounded up or down at random, with the
    odds that keep the mean. `average` goes `follow` of the way to the new weights.
    """
    beta1, beta2 = betas
    settings = [
        1 - lr * weight_decay,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        lr / (1 - beta1**step),
        (1 - beta2**step) ** -0.5,
        follow,
    ]
    where = [word & _WORD for word in (*place.key, place.first, place.row)]
    tensors = (param_LD, grad_LD, exp_avg_LD, exp_avg_sq_LD, average_LD)
    if dispatch.choose("adamw", param_LD) == "reference":
        reference(*tensors, settings, where)
    else:
        torch.ops.vidgen.adamw(*tensors, settings, where)


def reference(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor | None,
    settings: list[float],
    place: list[int],
) -> None:
    keep, rate1, beta2, rate2, eps, step_size, root, follow = settings
    wide = param.dtype
    m = exp_avg.to(wide).lerp(grad, rate1)
    v = beta2 * exp_avg_sq.to(wide) + rate2 * grad.square()
    param.mul_(keep).sub_(step_size * m / (v.sqrt() * root + eps))
    bits = random_bits(param, place)
    exp_avg.copy_(round_randomly(m, bits & 0xFFFF, exp_avg.dtype))
    exp_avg_sq.copy_(round_randomly(v, bits >> 16, exp_avg_sq.dtype))
    if average is not None:
        average.lerp_(param, follow)


def random_bits(like_LD: Tensor, place: list[int]) -> Tensor:
    """32 bits for each element, as int64."""
    key0, key1, first, row = place
    rows, columns = (torch.arange(n, device=like_LD.device) for n in like_LD.shape)
    x = ((first + rows[:, None] * row + columns) & _WORD) ^ key0
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = x + key1 & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    return x ^ x >> 16


def round_randomly(value: Tensor, bits16: Tensor, dtype: torch.dtype) -> Tensor:
    """To bfloat16, up where 16 random bits carry into the upper half; another type as it is."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    narrow = value.float()
    words = narrow.view(torch.int32).long() & _WORD
    words = (words + bits16) & 0xFFFF0000
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return torch.where(narrow.isnan(), narrow, signed.view(torch.float32)).bfloat16()


def _step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor | None,
    settings: list[float],
    place: list[int],
) -> None:
    if not param.numel():
        return
    rows = (t if t is None else t[None] for t in (param, grad, exp_avg, exp_avg_sq, average))
    # The host reads these: a kernel takes them as they are at its launch.
    numbers = torch.tensor(settings, dtype=torch.float32, device="cpu")
    signed = [word - (1 << 32) if word >> 31 else word for word in place]
    words = torch.tensor(signed, dtype=torch.int32, device="cpu")
    kernels.run("adamw", "forward", *rows, numbers, words)


def _nothing(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor | None,
    settings: list[float],
    place: list[int],
) -> None:
    pass


define(
    "adamw(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq,"
    " Tensor(d!)? average, float[] settings, int[] place) -> ()",
    _step,
    _nothing,
)
