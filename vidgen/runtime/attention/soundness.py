"""Whether a backend computes attention: checked once, on a small case, before "auto" uses it."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vidgen.runtime.attention.backends import Backend, Needs
from vidgen.runtime.attention.mask import K_BLOCK, Q_BLOCK, BlockMask
from vidgen.runtime.ops.merge import merge

_log = logging.getLogger(__name__)
_found: dict[tuple[str, Needs], str] = {}

NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v")


def fault(backend: Backend, needs: Needs) -> str:
    """What is wrong with a backend that says it serves `needs`; empty when nothing is."""
    key = (backend.name, needs)
    if key not in _found:
        with plain_torch(needs.device):
            _found[key] = _examine(backend, needs)
        if _found[key]:
            _log.warning("attention backend %s is not used: %s", backend.name, _found[key])
    return _found[key]


def known_fault(backend: Backend, needs: Needs) -> str:
    """What an earlier check found; empty where none was made."""
    return _found.get((backend.name, needs), "")


@contextmanager
def plain_torch(device: str) -> Iterator[None]:
    """Whatever surrounds the call (fake tensors, counters, hooks, autocast) is left out of it."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x))
        if device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _examine(backend: Backend, needs: Needs) -> str:
    """By the error rule: no further from fp64 than twice what plain torch is in the same dtype."""
    # Odd lengths; with a mask, whole and cut blocks, and queries that see nothing.
    random = torch.Generator().manual_seed(20)
    q_length, k_length = (Q_BLOCK + 9, 2 * K_BLOCK - 27) if needs.mask else (37, 101)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(needs.device, needs.dtype)

    q, grad_out = (normal(2, q_length, 3, needs.head_dim) for _ in range(2))
    k, v = (normal(2, k_length, 3, needs.head_dim) for _ in range(2))
    grad_lse = normal(2, 3, q_length).float() if needs.lse_gradient else None
    mask = _mask(needs)
    scale = needs.head_dim**-0.5
    try:
        found = _results(backend, q, k, v, mask, scale, grad_out, grad_lse, needs)
    except Exception as error:  # of a package we know nothing of
        return f"it fails: {str(error).splitlines()[0] if str(error) else repr(error)}"
    exact = by_definition(
        q.double(),
        k.double(),
        v.double(),
        mask,
        scale,
        grad_out.double(),
        None if grad_lse is None else grad_lse.double(),
    )
    own = None if grad_lse is None else grad_lse.to(needs.dtype)
    eager = by_definition(q, k, v, mask, scale, grad_out, own)
    for name, a, b, c in zip(NAMES, found, eager, exact, strict=False):
        if a.shape != c.shape:
            return f"{name} has shape {tuple(a.shape)}, expected {tuple(c.shape)}"
        if not torch.equal(a.isinf(), c.isinf()) or a.isnan().any():
            return f"{name} is not finite where it should be"
        here, there, truth = (x.double().masked_fill(c.isinf(), 0.0) for x in (a, b, c))
        off, allowed = float((here - truth).abs().max()), float((there - truth).abs().max())
        # Once the result's own rounding, and that of the sums of unit numbers on the way to it.
        wide = torch.finfo(torch.promote_types(needs.dtype, torch.float32)).eps
        tiny = torch.finfo(needs.dtype).eps / 2 * float(truth.abs().max()) + 64 * wide
        if not off <= 2 * allowed + tiny:
            return f"{name} is off by {off:.1e}, plain {needs.dtype} by {allowed:.1e}"
    return ""


def _mask(needs: Needs) -> BlockMask | None:
    if not needs.mask:
        return None
    blocks = torch.tensor([[True, True], [False, True]], device=needs.device)[None, None]
    lengths = torch.tensor([2 * K_BLOCK - 27, K_BLOCK - 5], device=needs.device)
    return BlockMask(
        blocks if "block" in needs.mask else None, lengths if "length" in needs.mask else None
    )


def _results(
    backend: Backend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | None,
    scale: float,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Needs,
) -> list[Tensor]:
    if needs.blocks:
        return _in_blocks(backend, q, k, v, scale, grad_out if needs.gradient else None)
    if not needs.gradient:
        with torch.no_grad():
            return list(backend(q, k, v, mask, scale))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, lse = backend(leaves[0], leaves[1], leaves[2], mask, scale)
        outputs, grads = [out], [grad_out]
        if grad_lse is not None:
            outputs, grads = [out, lse], [grad_out, grad_lse]
        found = torch.autograd.grad(outputs, leaves, grads)
    return [out.detach(), lse.detach(), *found]


def _in_blocks(
    backend: Backend, q: Tensor, k: Tensor, v: Tensor, scale: float, grad_out: Tensor | None
) -> list[Tensor]:
    """The keys in two uneven blocks, as a ring brings them."""
    ks, vs = (x.split([k.shape[1] - 30, 30], dim=1) for x in (k, v))
    out, lse = merge(
        *backend.over_block(q, ks[0], vs[0], scale), *backend.over_block(q, ks[1], vs[1], scale)
    )
    out = out.to(q.dtype)
    if grad_out is None:
        return [out, lse]
    parts = [
        backend.block_gradients(grad_out, q, a, b, out, lse, scale)
        for a, b in zip(ks, vs, strict=True)
    ]
    dqs, dks, dvs = zip(*parts, strict=True)
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = sum((x.to(wide) for x in dqs), torch.zeros_like(q, dtype=wide)).to(q.dtype)
    return [out, lse, grad_q, torch.cat(dks, dim=1), torch.cat(dvs, dim=1)]


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask | None,
    scale: float,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor]:
    """Output, LSE and gradients as plain torch computes them in the tensors' own dtype."""
    q, k, v, grad_out = (x.transpose(1, 2) for x in (q, k, v, grad_out))
    scores = (q @ k.mT) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask.dense(q.shape[2], k.shape[2]), -torch.inf)
    lse = scores.logsumexp(-1)
    probs = torch.exp(scores - torch.where(lse.isneginf(), 0.0, lse)[..., None])
    grad_probs = grad_out @ v.mT
    level = (probs * grad_probs).sum(-1)
    if grad_lse is not None:
        level = level - grad_lse
    grad_scores = probs * (grad_probs - level[..., None]) * scale
    out, grad_q, grad_k, grad_v = (
        x.transpose(1, 2)
        for x in (probs @ v, grad_scores @ k, grad_scores.mT @ q, probs.mT @ grad_out)
    )
    return [out, lse, grad_q, grad_k, grad_v]
