"""On a GPU: after warm-up a step pins no memory, waits for nothing, and copies behind the work."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.data import DataConfig, open_loader

pytestmark = pytest.mark.gpu

PINNING = ("cudaHostAlloc", "cudaMallocHost", "cudaHostRegister", "cuMemHostAlloc")
SYNCHRONISING = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")


def spans(events: list[Any], word: str) -> list[tuple[float, float]]:
    return [
        (e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA and word in e.name.lower()
    ]


def test_steps_neither_pin_nor_wait_and_copies_overlap(clip_set: Any) -> None:
    cfg = DataConfig(
        manifest=str(Path(clip_set.manifest)),
        buckets={"32px": {"17": {"batch": 8}}},
        workers=2,
        prefetch=3,
    )
    matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with open_loader(cfg, seed=0, rank=0, world=1, device="cuda") as loader:

        def step() -> None:
            batch = next(loader)
            assert batch.video_BTHWC.is_cuda
            for _ in range(60):
                matrix @ matrix
            batch.video_BTHWC.float().mean()

        for _ in range(6):
            step()
        registrations = loader._arena.stats().registrations
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(8):
                step()
        assert loader._arena.stats().registrations == registrations == 1
    events = profile.events()
    names = {event.name for event in events}
    assert not [name for name in names if name.startswith(PINNING)]
    # One is the profiler's own, as it stops.
    waits = [event for event in events if event.name.startswith(SYNCHRONISING)]
    assert len(waits) <= 1
    copies = spans(list(events), "memcpy htod")
    products = spans(list(events), "gemm") + spans(list(events), "nvjet")
    assert copies
    assert products
    hidden = [c for c in copies if any(p[0] < c[1] and c[0] < p[1] for p in products)]
    assert len(hidden) >= 0.8 * len(copies)
