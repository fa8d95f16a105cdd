"""Where the time of a forward and backward goes: attention, matrix products, fused ops, gaps."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

# The first pattern that an operation's or a kernel's name matches says what part it is.
PARTS = (
    ("attention", r"attention|attn|flash|fmha|sdpa|merge"),
    ("matmul", r"gemm|nvjet|cutlass|xmma|matmul|splitK|addmm|aten::b?mm\b|aten::linear"),
    ("fused ops", r"vidgen|modulate|gated|qk_norm|rope|gelu|triton"),
    ("copies", r"memcpy|memset|copy|cat\b|CatArray|contiguous|aten::fill_|aten::zero_"),
)
OTHER, GAPS = "other", "gaps"
_NAMED = 3  # operations listed for each part


def part_of(name: str) -> str:
    for part, pattern in PARTS:
        if re.search(pattern, name, re.IGNORECASE):
            return part
    return OTHER


def breakdown(step: Callable[[], None], device: torch.device) -> list[dict[str, Any]]:
    """A row a part, its ms and share adding up to the step; profiled once, after a warm-up."""
    step()
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with (
        torch.profiler.profile(
            activities=[activity.CPU, activity.CUDA] if cuda else [activity.CPU]
        ) as profile,
        torch.profiler.record_function("whole step"),
    ):
        step()
    events = profile.events() or []
    whole = next(event for event in events if event.name == "whole step")
    if cuda:
        kernels = [
            (event.name, event.time_range.start, event.time_range.end)
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA and event.name != "whole step"
        ]
        times = _sum((name, end - start) for name, start, end in kernels)
        start = min(start for _, start, _ in kernels)
        total = max(end for _, _, end in kernels) - start
        busy = covered((start, end) for _, start, end in kernels)
    else:
        inside = [event for event in events if event.name != "whole step"]
        times = _sum((event.name, event.self_cpu_time_total) for event in inside)
        total = whole.cpu_time_total
        busy = min(sum(sum(named.values()) for named in times.values()), total)
    return rows(times, total, busy)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Time in which at least one of the spans runs."""
    total = latest = 0.0
    first = True
    for start, end in sorted(spans):
        if first or start > latest:
            total, latest, first = total + end - start, end, False
        elif end > latest:
            total, latest = total + end - latest, end
    return total


def rows(times: dict[str, dict[str, float]], total: float, busy: float) -> list[dict[str, Any]]:
    """Times are in microseconds; kernels that run side by side share the time they cover."""
    summed = sum(sum(named.values()) for named in times.values()) or 1.0
    found = []
    for part in (*(name for name, _ in PARTS), OTHER):
        named = times.get(part, {})
        spent = sum(named.values()) * busy / summed
        longest = sorted(named, key=lambda name: -named[name])[:_NAMED]
        found.append(
            {
                "part": part,
                "ms": spent / 1e3,
                "share": spent / total,
                "longest": ", ".join(name[:40] for name in longest),
            }
        )
    gaps = max(total - busy, 0.0)
    found.append({"part": GAPS, "ms": gaps / 1e3, "share": gaps / total, "longest": ""})
    return found


def _sum(times: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, microseconds in times:
        found[part_of(name)][name] += microseconds
    return found
