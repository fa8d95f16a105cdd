"""A projection of text and video into q, k and v; backward: their gradients, the packed q and
k, and the packed gradient."""

import torch
from ops.bench_qk_norm_rope import turned
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops

TEXT = 512


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    heads, head = size.heads, size.width // size.heads
    text = min(TEXT, size.tokens // 2)
    angle = torch.rand(size.tokens, head // 2, device=device) * 100
    cos, sin = angle.cos(), angle.sin()

    def op(txt: Tensor, img: Tensor, *scales: Tensor) -> tuple[Tensor, ...]:
        return ops.joint_qkv((txt, img), scales[:2], scales[2:], cos, sin, heads)

    def plain(txt: Tensor, img: Tensor, *scales: Tensor) -> tuple[Tensor, ...]:
        (q1, k1, v1), (q2, k2, v2) = (
            t.unflatten(-1, (3, heads, head)).unbind(2) for t in (txt, img)
        )
        first, second = (cos[:text], sin[:text]), (cos[text:], sin[text:])
        q = turned(q1, scales[0], *first), turned(q2, scales[1], *second)
        k = turned(k1, scales[2], *first), turned(k2, scales[3], *second)
        return tuple(torch.cat(pair, dim=1) for pair in (q, k, (v1, v2)))

    streams = [random((1, n, 3 * size.width), device, dtype) for n in (text, size.tokens - text)]
    scales = [random((head,), device, dtype) for _ in range(4)]
    one = size.tokens * size.width * dtype.itemsize
    return Case(op, plain, (*streams, *scales), 6 * one, 8 * one)
