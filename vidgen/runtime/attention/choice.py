"""Which backend runs a call of attention.

A name is obeyed or refused with the reason. "auto" is what VIDGEN_ATTENTION names, if it does; on a
CPU the first backend of the table that can serve; on a GPU the fastest of those that can: measured
once for each kind of call, and remembered in the user's cache folder for this GPU, driver and these
versions. Before "auto" uses or times a backend for the first time, the backend must compute a small
case correctly; the others are not checked.

All ranks of a distributed run must choose alike, and no rank may wait for another in the middle of
a call. So in such a run nothing is measured: the table's order decides, unless `agree()` was called
on every rank; from then on what rank 0 remembers decides. While torch.compile traces, nothing is
measured either: what is remembered of the largest such call decides (`vidgen doctor` measures one),
else the table's order.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.attention import measured
from vidgen.runtime.attention.backends import Backend, Needs
from vidgen.runtime.attention.soundness import fault
from vidgen.runtime.attention.table import TABLE

# batch, queries, keys, heads
Shape = tuple[int, int, int, int]

_decided: dict[tuple[Any, ...], Backend] = {}
_of_rank_0: dict[str, Any] | None = None


def choose(needs: Needs, backend: str = "auto", shape: Shape | None = None) -> Backend:
    """The backend that serves `needs`; one that is named must be able to, or it raises why not."""
    if torch.compiler.is_compiling():
        wants = (needs.gradient, needs.lse, needs.blocks, *sorted(needs.mask))
        return TABLE[_constant(needs.device, needs.dtype, needs.head_dim, wants, backend)]
    wish = os.environ.get("VIDGEN_ATTENTION") or "auto" if backend == "auto" else backend
    key = (wish, needs, shape if needs.device == "cuda" else None)
    if key not in _decided:
        _decided[key] = _named(wish, needs) if wish != "auto" else _automatic(needs, shape)
    return _decided[key]


def choose_for_blocks(
    q_BLHD: torch.Tensor, length: int, gradient: bool, backend: str = "auto"
) -> Backend:
    """The backend for queries and blocks of keys of about `length` tokens each, as in a ring."""
    B, _, H, D = q_BLHD.shape
    needs = Needs(q_BLHD.device.type, q_BLHD.dtype, D, gradient, True, frozenset(), blocks=True)
    return choose(needs, backend, (B, max(length, 1), max(length, 1), H))


@torch.compiler.assume_constant_result
def _constant(
    device: str, dtype: torch.dtype, head_dim: int, wants: tuple[Any, ...], backend: str
) -> int:
    gradient, lse, blocks, *mask = wants
    needs = Needs(device, dtype, head_dim, gradient, lse, frozenset(mask), blocks)
    wish = os.environ.get("VIDGEN_ATTENTION") or "auto" if backend == "auto" else backend
    return TABLE.index(_named(wish, needs) if wish != "auto" else _automatic(needs, None))


def _named(name: str, needs: Needs) -> Backend:
    named = [b for b in TABLE if b.name == name]
    if not named:
        names = ", ".join(dict.fromkeys(b.name for b in TABLE))
        raise UserError(f"attention backend {name!r} does not exist; there are: auto, {names}")
    found = next((b for b in named if needs.device in b.devices), named[0])
    if reason := found.refusal(needs):
        raise UserError(f"attention backend {name!r} cannot serve this call: it {reason}")
    return found


def _automatic(needs: Needs, shape: Shape | None) -> Backend:
    able = [b for b in TABLE if b.exact and b.refusal(needs) is None]
    if not able:
        reasons = "; ".join(f"{b.name} {b.refusal(needs)}" for b in TABLE)
        raise UserError(f"no attention backend can serve this call: {reasons}")
    # From a stable order: those that are better than the last resorts first.
    able.sort(key=lambda b: b.last_resort)
    if needs.device == "cuda":
        fastest = _fastest([b for b in able if not b.last_resort], needs, shape)
        able.sort(key=lambda b: b.name != fastest)
    # The check of a backend may compile it for a minute: only one that is about to run is checked.
    return next((b for b in able if _sound(b, needs)), able[-1])


def _fastest(rivals: list[Backend], needs: Needs, shape: Shape | None) -> str | None:
    """The name of the fastest rival, as remembered or as measured now; None when it is unknown."""
    if len(rivals) < 2:
        return None
    case = None if shape is None else measured.case(needs, shape)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return measured.known(_of_rank_0 or {}, needs, case)
    name = measured.known(measured.remembered(), needs, case)
    if name is not None or shape is None or case is None:
        return name
    sound = [b for b in rivals if _sound(b, needs)]  # all of them are about to be timed
    return measured.fastest(sound, needs, shape, case) if len(sound) > 1 else None


def _sound(backend: Backend, needs: Needs) -> bool:
    # math is what the others are checked by, and of a tensor without numbers nothing can be said.
    return (
        backend.name == "math" or needs.device not in ("cpu", "cuda") or not fault(backend, needs)
    )


def agree(group: dist.ProcessGroup | None = None) -> None:
    """Called once by every rank of a distributed run: what rank 0 has measured decides for all."""
    global _of_rank_0
    told: list[Any] = [measured.remembered() if dist.get_rank(group) == 0 else None]
    dist.broadcast_object_list(told, group=group, group_src=0)
    _of_rank_0 = told[0]
    _decided.clear()


def reset() -> None:
    """Forget what this process has decided, as after a change of the environment."""
    global _of_rank_0
    _of_rank_0 = None
    _decided.clear()
