"""The table of attention backends: what each can do, as data, and how it is called.

To add one: write its `run`, say in `Backend` what it takes, put it in `TABLE` at its rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.runtime.attention.mask import BlockMask

# q, k, v are (B, H, L, D); the result is out (B, H, Lq, D) and, where asked for, LSE (B, H, Lq).
Run = Callable[[Tensor, Tensor, Tensor, BlockMask | None, bool], tuple[Tensor, Tensor | None]]

HALF = frozenset({torch.bfloat16, torch.float16})
FLOAT = HALF | {torch.float32}
DOUBLE = FLOAT | {torch.float64}


@dataclass(frozen=True)
class Needs:
    """What one call asks of a backend."""

    device: str
    dtype: torch.dtype
    head_dim: int
    gradient: bool
    lse: bool
    mask: frozenset[str]

    @property
    def lse_gradient(self) -> bool:
        return self.lse and self.gradient


@dataclass(frozen=True)
class Backend:
    name: str
    run: Run
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    head_dim_multiple: int = 1
    head_dim_max: int = 1024
    gradient: bool = True
    lse: bool = True
    lse_gradient: bool = False
    masks: frozenset[str] = frozenset()

    def refusal(self, needs: Needs) -> str | None:
        """Why this backend cannot serve, or None when it can."""
        if needs.device not in self.devices:
            return f"runs on {', '.join(sorted(self.devices))}, not {needs.device}"
        if needs.dtype not in self.dtypes:
            return f"does not take {str(needs.dtype).removeprefix('torch.')}"
        if needs.head_dim % self.head_dim_multiple or needs.head_dim > self.head_dim_max:
            return (
                f"head dim {needs.head_dim}: needs a multiple of {self.head_dim_multiple} "
                f"up to {self.head_dim_max}"
            )
        if needs.gradient and not self.gradient:
            return "has no backward"
        if needs.lse and not self.lse:
            return "does not return the log-sum-exp"
        if needs.lse_gradient and not self.lse_gradient:
            return "does not differentiate through the log-sum-exp"
        if needs.mask - self.masks:
            return f"does not take a {' and '.join(sorted(needs.mask - self.masks))} mask"
        return None


def _flash_cpu(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, lse: bool
) -> tuple[Tensor, Tensor | None]:
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, sums


def _flash_cuda(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, lse: bool
) -> tuple[Tensor, Tensor | None]:
    out, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return out, sums[..., : q.shape[2]]


def _math(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, lse: bool
) -> tuple[Tensor, Tensor | None]:
    """The definition, with the scores in fp32 or better: what every other backend is checked by."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        allowed = mask.dense(q.shape[2], k.shape[2]).to(q.device)
        scores = scores.masked_fill(~allowed, -torch.inf)
    sums = torch.logsumexp(scores, dim=-1)
    # A row without a key has LSE -inf; exp(-inf - -inf) would be nan where zero is meant.
    probs = torch.exp(scores - torch.where(torch.isneginf(sums), 0.0, sums)[..., None])
    return (probs @ v.to(wide)).to(q.dtype), sums


# In the order of preference: "auto" takes the first that can serve.
TABLE = (
    Backend("sdpa_flash_cpu", _flash_cpu, frozenset({"cpu"}), DOUBLE),
    Backend(
        "sdpa_flash", _flash_cuda, frozenset({"cuda"}), HALF, head_dim_multiple=8, head_dim_max=256
    ),
    Backend(
        "math",
        _math,
        frozenset({"cpu", "cuda", "meta"}),
        DOUBLE,
        lse_gradient=True,
        masks=frozenset({"block", "length"}),
    ),
)
