"""The table of op cases: inputs, the same computation in plain torch, and the bytes that have to be
read and written, each tensor once. `vidgen bench ops`, benchmarks/ and gpu-check share it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.runtime import ops
from vidgen.runtime.ops.adamw import Place

EPS = 1e-6
TEXT = 512  # tokens of the text stream, in cases with two streams


@dataclass(frozen=True)
class Size:
    tokens: int
    width: int
    heads: int


@dataclass(frozen=True)
class Case:
    """`op` is ours, `plain` the same in eager torch; those of `inputs` with a gradient get one."""

    op: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: Sequence[Any]
    forward_bytes: int
    backward_bytes: int | None = None  # None: it has no backward pass


class Inputs:
    """Random tensors of one size, device and dtype."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        self.head = size.width // size.heads
        self.text = min(TEXT, size.tokens // 2)

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(shape, device=self.device)
        return numbers.to(dtype or self.dtype).requires_grad_()

    def tokens(self) -> Tensor:
        return self.random(1, self.size.tokens, self.size.width)

    def per_head(self) -> Tensor:
        return self.random(1, self.size.tokens, self.size.heads, self.head)

    def vectors(self, count: int) -> list[Tensor]:
        return [self.random(1, self.size.width) for _ in range(count)]

    def angles(self) -> tuple[Tensor, Tensor]:
        angle = torch.rand(self.size.tokens, self.head // 2, device=self.device) * 100
        return angle.cos(), angle.sin()


def modulate(given: Inputs) -> Case:
    """x and the result; backward: the gradient, x and its gradient."""
    x = given.tokens()
    return Case(ops.modulate, _modulate, (x, *given.vectors(2)), 2 * x.nbytes, 3 * x.nbytes)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale[:, None]) * F.layer_norm(x, x.shape[-1:], eps=EPS) + shift[:, None]


def gated_residual(given: Inputs) -> Case:
    """x, y and the result; backward: the gradient, y and the gradient of y."""
    x, y = given.tokens(), given.tokens()

    def plain(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return x + gate[:, None] * y

    inputs = (x, y, *given.vectors(1))
    return Case(ops.gated_residual, plain, inputs, 3 * x.nbytes, 3 * x.nbytes)


def gated_residual_modulate(given: Inputs) -> Case:
    """x, y and two results; backward: two gradients, the residual, y and two more."""
    x, y = given.tokens(), given.tokens()

    def plain(x: Tensor, y: Tensor, gate: Tensor, *both: Tensor) -> tuple[Tensor, Tensor]:
        residual = x + gate[:, None] * y
        return residual, _modulate(residual, *both)

    inputs = (x, y, *given.vectors(3))
    return Case(ops.gated_residual_modulate, plain, inputs, 4 * x.nbytes, 6 * x.nbytes)


def qk_norm_rope(given: Inputs) -> Case:
    """q, k and the results; backward: two gradients, q, k and two more."""
    q, k = given.per_head(), given.per_head()

    def plain(q: Tensor, k: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        q_scale, k_scale, cos, sin = rest
        return _rotated(q, q_scale, cos, sin), _rotated(k, k_scale, cos, sin)

    scales = [given.random(given.head) for _ in range(2)]
    inputs = (q, k, *scales, *given.angles())
    return Case(ops.qk_norm_rope, plain, inputs, 4 * q.nbytes, 6 * q.nbytes)


def _rotated(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    normal = F.rms_norm(x, x.shape[-1:], scale, EPS)
    first, second = normal.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def joint_qkv(given: Inputs) -> Case:
    """A projection of text and video into q, k and v; backward: their gradients, the packed q and
    k, and the packed gradient."""
    size, text, heads = given.size, given.text, given.size.heads
    cos, sin = given.angles()

    def op(txt: Tensor, img: Tensor, *scales: Tensor) -> tuple[Tensor, ...]:
        return ops.joint_qkv((txt, img), scales[:2], scales[2:], cos, sin, heads)

    def plain(txt: Tensor, img: Tensor, *scales: Tensor) -> tuple[Tensor, ...]:
        (q1, k1, v1), (q2, k2, v2) = (
            t.unflatten(-1, (3, heads, given.head)).unbind(2) for t in (txt, img)
        )
        first, second = (cos[:text], sin[:text]), (cos[text:], sin[text:])
        q = _rotated(q1, scales[0], *first), _rotated(q2, scales[1], *second)
        k = _rotated(k1, scales[2], *first), _rotated(k2, scales[3], *second)
        return tuple(torch.cat(pair, dim=1) for pair in (q, k, (v1, v2)))

    streams = [given.random(1, n, 3 * size.width) for n in (text, size.tokens - text)]
    scales = [given.random(given.head) for _ in range(4)]
    one = size.tokens * size.width * given.dtype.itemsize
    return Case(op, plain, (*streams, *scales), 6 * one, 8 * one)


def split_streams(given: Inputs) -> Case:
    """Two samples, of which the streams are copies; backward: as many bytes the other way."""
    size, text = given.size, given.text // 2
    joint = given.random(2, size.tokens // 2, size.heads, given.head)

    def plain(joint: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.flatten(2).contiguous() for part in joint.tensor_split((text,), dim=1))

    def op(joint: Tensor) -> tuple[Tensor, Tensor]:
        return ops.split_streams(joint, text)

    return Case(op, plain, (joint,), 2 * joint.nbytes, 2 * joint.nbytes)


def attention_mlp(given: Inputs) -> Case:
    """Attention's output beside the activation of four times as many hidden features."""
    size, hidden = given.size, 4 * given.size.width
    packed = given.random(1, size.tokens, 3 * size.width + hidden).detach()
    attended = given.per_head().detach()
    promise = packed.new_empty(1, 1, 1).expand(1, size.tokens, hidden)

    def op(attended: Tensor, packed: Tensor) -> Tensor:
        return ops.attention_mlp(attended, packed, promise)

    def plain(attended: Tensor, packed: Tensor) -> Tensor:
        mlp = F.gelu(packed[..., 3 * size.width :], approximate="tanh")
        return torch.cat((attended.flatten(2), mlp), dim=-1)

    return Case(op, plain, (attended, packed), 2 * 5 * attended.nbytes)


def gelu_tanh(given: Inputs) -> Case:
    """x and the result; backward: the gradient, x and its gradient."""
    x = given.tokens()

    def plain(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    return Case(ops.gelu_tanh, plain, (x,), 2 * x.nbytes, 3 * x.nbytes)


def copy_rows(given: Inputs) -> Case:
    """The values of a packed projection, made contiguous."""
    size = given.size
    packed = given.random(1, size.tokens, 3, size.heads, given.head).detach()
    values = packed[:, :, 2]
    out = torch.empty(values.shape, dtype=given.dtype, device=given.device)

    def plain(values: Tensor, out: Tensor) -> Tensor:
        return out.copy_(values)

    return Case(ops.copy_rows, plain, (values, out), 2 * out.nbytes)


def video_to_input(given: Inputs) -> Case:
    """A clip of 33 frames: a byte read and a number written for every pixel and channel. Its size
    is the bucket's, not the tokens', but for a tiny size."""
    shape = (1, 33, 256, 448, 3) if given.size.tokens >= 256 else (1, 2, 16, 24, 3)
    u8 = torch.randint(0, 256, shape, dtype=torch.uint8, device=given.device)

    def op(u8: Tensor) -> Tensor:
        return ops.video_to_input(u8, 0.5, 0.5, given.dtype)

    def plain(u8: Tensor) -> Tensor:
        planes = u8.permute(0, 4, 1, 2, 3)
        return ((planes.float() / 255 - 0.5) / 0.5).to(given.dtype).contiguous()

    return Case(op, plain, (u8,), u8.nbytes * (1 + given.dtype.itemsize))


def merge(given: Inputs) -> Case:
    """Two results, one of them a running sum in fp32; backward: the gradient, both and two more."""
    size = given.size
    out_a = given.random(1, size.tokens, size.heads, given.head, dtype=torch.float32)
    out_b = given.per_head()
    lse_a, lse_b = (
        given.random(1, size.heads, size.tokens, dtype=torch.float32).detach() for _ in range(2)
    )

    def plain(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.sigmoid(lse_b - lse_a).transpose(1, 2).unsqueeze(-1)
        return out_a + weight * (out_b.float() - out_a), torch.logaddexp(lse_a, lse_b)

    forward = 2 * out_a.nbytes + out_b.nbytes
    backward = 3 * out_a.nbytes + 2 * out_b.nbytes
    return Case(ops.merge, plain, (out_a, lse_a, out_b, lse_b), forward, backward)


def adamw(given: Inputs) -> Case:
    """A step: weights and both moments read and written, the gradient read. The moments are in the
    case's dtype, the weights in fp32."""
    shape = (given.size.tokens, given.size.width)
    states = torch.bfloat16 if given.dtype == torch.float16 else given.dtype
    param, grad = (torch.randn(shape, device=given.device) for _ in range(2))
    exp_avg, exp_avg_sq = (torch.zeros(shape, dtype=states, device=given.device) for _ in range(2))
    place = Place((1, 2), 0, shape[1])

    def op(param: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        ops.adamw(
            *(param, grad, m, v, None),
            lr=1e-4,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.01,
            step=10,
            place=place,
        )

    def plain(param: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        m.lerp_(grad.to(m.dtype), 0.1)
        v.mul_(0.999).addcmul_(grad.to(v.dtype), grad.to(v.dtype), value=0.001)
        root = (v.float() / (1 - 0.999**10)).sqrt_().add_(1e-8)
        param.mul_(1 - 1e-6).addcdiv_(m.float(), root, value=-1e-4 / (1 - 0.9**10))

    moved = 3 * param.nbytes + 4 * exp_avg.nbytes
    return Case(op, plain, (param, grad, exp_avg, exp_avg_sq), moved)


CASES: dict[str, Callable[[Inputs], Case]] = {
    case.__name__: case
    for case in (
        modulate,
        gated_residual,
        gated_residual_modulate,
        qk_norm_rope,
        joint_qkv,
        split_streams,
        attention_mlp,
        gelu_tanh,
        copy_rows,
        video_to_input,
        merge,
        adamw,
    )
}
