"""How fast each backend of attention is on this GPU: measured once, remembered on disk.

$XDG_CACHE_HOME/vidgen/attention.json (~/.cache by default) holds, for each machine with its
versions and each kind of call, the fastest backend and every backend's milliseconds. Deleting it is
safe.
"""

import importlib.metadata
import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vidgen.errors import UserError
from vidgen.runtime import files
from vidgen.runtime.attention.backends import Backend, Needs
from vidgen.runtime.attention.mask import K_BLOCK, Q_BLOCK, BlockMask
from vidgen.runtime.attention.soundness import plain_torch
from vidgen.version import __version__

_log = logging.getLogger(__name__)
_PACKAGES = ("flash-attn-4", "flash_attn_3", "flash-attn", "triton")

# Longer calls are measured at this length: the order no longer changes, and memory is spared.
_LONGEST = 16384
_ROUNDS = 3


def path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vidgen" / "attention.json"


def case(needs: Needs, shape: tuple[int, int, int, int]) -> str:
    """The kind of a call: lengths and heads up to the next power of two."""
    batch, queries, keys, heads = shape
    lengths = (1 << (min(n, _LONGEST) - 1).bit_length() for n in (queries, keys, batch * heads))
    return "{} x {}, {} heads, ".format(*lengths) + _kind(needs)


def _kind(needs: Needs) -> str:
    wants = ["forward and backward" if needs.gradient else "forward"]
    wants += ["lse"] if needs.lse else []
    wants += ["blocks"] if needs.blocks else []
    wants += [f"{kind} mask" for kind in sorted(needs.mask)]
    dtype = str(needs.dtype).removeprefix("torch.")
    return f"{dtype}, head dim {needs.head_dim}, {', '.join(wants)}"


@cache
def machine() -> str:
    """What a measurement holds for."""
    versions = [f"vidgen {__version__}", f"torch {torch.__version__}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda: Any = torch._C  # without CUDA it has no such function
    driver = cuda._cuda_getDriverVersion()
    return ", ".join([torch.cuda.get_device_name(), f"driver {driver}", *versions])


def _read() -> dict[str, Any]:
    try:
        found = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def _here() -> dict[str, Any]:
    entries = _read().get(machine())
    return entries if isinstance(entries, dict) else {}


def remembered() -> dict[str, Any]:
    """Of each kind of call that was measured here: the fastest backend, and how large the call."""
    if not torch.cuda.is_available():
        return {}
    return dict(_here())


def known(entries: dict[str, Any], needs: Needs, case: str | None) -> str | None:
    """The fastest backend for a case; where its lengths are not known, for the largest one."""
    if case is not None:
        entry = entries.get(case)
        return entry.get("fastest") if isinstance(entry, dict) else None
    alike = [entry for name, entry in entries.items() if name.endswith(" heads, " + _kind(needs))]
    return max(alike, key=lambda entry: entry["scores"])["fastest"] if alike else None


def fastest(
    rivals: list[Backend], needs: Needs, shape: tuple[int, int, int, int], case: str
) -> str | None:
    """Times them and remembers; None where memory does not suffice for that."""
    times: dict[str, float] = {}
    try:
        with plain_torch(needs.device):
            for backend in rivals:
                times[backend.name] = milliseconds(backend, needs, shape)
    except torch.OutOfMemoryError:
        _log.warning("attention: too little memory to measure %s; the table's order decides", case)
        return None
    name = min(times, key=lambda name: times[name])
    _here()[case] = {"fastest": name, "ms": times, "scores": shape[1] * shape[2]}
    _write(case)
    _log.info("attention, %s: %s is the fastest of %s", case, name, times)
    return name


def milliseconds(
    backend: Backend, needs: Needs, shape: tuple[int, int, int, int], rounds: int = _ROUNDS
) -> float:
    """Of a call on random numbers, with its backward where that is needed; the best of some."""
    batch, queries, keys, heads = shape
    queries, keys = min(queries, _LONGEST), min(keys, _LONGEST)
    options: dict[str, Any] = {"device": needs.device, "dtype": needs.dtype}
    q, k, v = (
        torch.randn(batch, length, heads, needs.head_dim, **options)
        for length in (queries, keys, keys)
    )
    mask = _open_mask(needs, batch, queries, keys)
    scale = needs.head_dim**-0.5
    best = float("inf")
    for attempt in range(rounds + 1):  # the first compiles and warms up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if needs.blocks:
            out, lse = backend.over_block(q, k, v, scale)
            if needs.gradient:
                backend.block_gradients(out, q, k, v, out, lse, scale)
        elif needs.gradient:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                out, lse = backend(leaves[0], leaves[1], leaves[2], mask, scale)
                loss = (out, lse) if needs.lse else (out,)
                torch.autograd.grad(loss, leaves, [torch.ones_like(x) for x in loss])
        else:
            with torch.no_grad():
                backend(q, k, v, mask, scale)
        end.record()
        end.synchronize()
        if attempt:
            best = min(best, start.elapsed_time(end))
    return best


def _open_mask(needs: Needs, batch: int, queries: int, keys: int) -> BlockMask | None:
    if not needs.mask:
        return None
    rows, columns = -(-queries // Q_BLOCK), -(-keys // K_BLOCK)
    blocks = torch.ones(1, 1, rows, columns, dtype=torch.bool, device=needs.device)
    lengths = torch.full((batch,), keys, device=needs.device)
    return BlockMask(
        blocks if "block" in needs.mask else None, lengths if "length" in needs.mask else None
    )


def _write(case: str) -> None:
    """Adds one entry to what other processes may have written meanwhile; never half a file."""
    everything = _read()
    everything.setdefault(machine(), {})[case] = _here()[case]
    target = path()
    try:
        files.write_text(target, json.dumps(everything, indent=1))
    except UserError as error:
        _log.warning("attention: %s; backends are measured again in the next run", error)
