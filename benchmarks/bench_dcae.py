"""Encoding and decoding with the Video DC-AE: frames a second and peak memory.

    python benchmarks/bench_dcae.py              # on a GPU: the published width, 256px and 768px
    python benchmarks/bench_dcae.py --short      # one small shape

Random weights. Rows: the module as it is, in channels-last memory, through torch.compile, and
diffusers' HunyuanVideo VAE at the same pixels. The ruler is a large matrix product in the same
dtype: `of_matmul` is the convolutions' and products' FLOPs, counted by torch, over its rate. A
second table says where the time of the fastest goes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig
from vidgen.runtime.observe import results

Shape = tuple[int, int, int]  # frames, height, width
NARROW: dict[str, Any] = {
    "widths": (32, 64, 64, 64, 128, 128), "encoder_depths": (1,) * 6, "decoder_depths": (1,) * 6,
    "latent_channels": 32,
}  # fmt: skip


class Bench:
    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int) -> None:
        self.device, self.dtype, self.rounds = device, dtype, rounds
        side = 8192 if device.type == "cuda" else 1024
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        self.matmul_flops_per_s = 2 * side**3 / self.seconds(lambda: a @ b)

    def seconds(self, call: Callable[[], object]) -> float:
        taken = []
        for _ in range(self.rounds + 1):  # the first warms up
            self._finish()
            start = time.perf_counter()
            call()
            self._finish()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])

    def row(
        self, what: str, way: str, shape: Shape, call: Callable[[], object], flops: int | None
    ) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(call)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        rate = flops / seconds if flops else None
        return {
            "what": what,
            "way": way,
            "shape": "x".join(map(str, shape)),
            "frames_per_s": shape[0] / seconds,
            "ms": seconds * 1e3,
            "tflop_per_s": rate and rate / 1e12,
            "of_matmul": rate and rate / self.matmul_flops_per_s,
            "peak_gib": peak,
        }

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ours(config: VideoDCAEConfig, bench: Bench) -> VideoDCAE:
    with torch.device(bench.device):
        model = VideoDCAE(config)
    model.init_weights()
    return model.to(bench.dtype).eval().requires_grad_(False)


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def dcae_rows(bench: Bench, config: VideoDCAEConfig, shape: Shape) -> list[dict[str, Any]]:
    model = ours(config, bench)
    video = torch.rand(1, 3, *shape, device=bench.device, dtype=bench.dtype) * 2 - 1
    latent = model.encode(video)
    rows = []
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("eager", lambda: None),
        ("channels last", lambda: model.to(memory_format=torch.channels_last_3d)),
        ("channels last, compiled", lambda: (model.encoder.compile(), model.decoder.compile())),
    ]
    flops = {"encode": counted(lambda: model.encode(video)),
             "decode": counted(lambda: model.decode(latent))}  # fmt: skip
    for way, prepare in ways:
        prepare()
        memory = torch.channels_last_3d if "last" in way else torch.contiguous_format
        x, z = (t.contiguous(memory_format=memory) for t in (video, latent))
        rows.append(bench.row("encode", way, shape, lambda x=x: model.encode(x), flops["encode"]))
        rows.append(bench.row("decode", way, shape, lambda z=z: model.decode(z), flops["decode"]))
    return rows


def hunyuan_rows(bench: Bench, shape: Shape, narrow: bool) -> list[dict[str, Any]]:
    """At the same pixels; 4k + 1 frames, so one more."""
    from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
    from vidgen.models.hunyuan_vae.model import build

    widths = (32, 64, 64, 64) if narrow else (128, 256, 512, 512)
    vae: nn.Module = build(HunyuanVAEConfig(path="", block_out_channels=widths))
    vae.to_empty(device=bench.device)
    for param in vae.parameters():
        nn.init.normal_(param, std=0.02)
    nn.Module.to(vae, bench.dtype)
    vae.eval().requires_grad_(False)
    more = (shape[0] + 1, *shape[1:])
    video = torch.rand(1, 3, *more, device=bench.device, dtype=bench.dtype) * 2 - 1

    def encode() -> Tensor:
        latent: Tensor = vae.encode(video).latent_dist.mean  # type: ignore[operator]
        return latent

    with torch.no_grad():
        latent = encode()
        return [
            bench.row("encode", "HunyuanVideo VAE (diffusers)", more, encode, None),
            bench.row(
                "decode",
                "HunyuanVideo VAE (diffusers)",
                more,
                lambda: vae.decode(latent).sample,  # type: ignore[operator]
                None,
            ),
        ]


def profile_rows(bench: Bench, config: VideoDCAEConfig, shape: Shape) -> list[dict[str, Any]]:
    """Where the time of encoding goes, by kernel."""
    model = ours(config, bench).to(memory_format=torch.channels_last_3d)
    video = torch.rand(1, 3, *shape, device=bench.device, dtype=bench.dtype)
    video = video.contiguous(memory_format=torch.channels_last_3d)
    model.encode(video)
    cuda = bench.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if cuda else []
    with torch.profiler.profile(activities=kinds) as profile:
        model.encode(video)
        bench._finish()
    events = profile.key_averages()
    time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
    total = sum(getattr(event, time_of) for event in events)
    top = sorted(events, key=lambda event: -getattr(event, time_of))[:8]
    return [
        {
            "what": "encode, profile",
            "kernel": event.key[:60],
            "calls": event.count,
            "share": getattr(event, time_of) / total,
        }
        for event in top
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one small shape, nothing kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    shapes: list[Shape] = (
        [(32, 256, 256), (128, 768, 768)] if gpu else [(8, 64, 64), (16, 128, 128)]
    )
    shapes = shapes[:1] if args.short else shapes
    bench = Bench(device, dtype, 1 if args.short else args.rounds)
    config = VideoDCAEConfig() if gpu else VideoDCAEConfig(**NARROW, tile_size=64, tile_frames=8)
    rows: list[dict[str, Any]] = []
    for shape in tqdm(shapes, desc="shapes"):
        rows += dcae_rows(bench, config, shape)
        torch.compiler.reset()
        rows += hunyuan_rows(bench, shape, narrow=not gpu)
    print(f"ruler: a matrix product runs at {bench.matmul_flops_per_s / 1e12:.3g} TFLOP/s")
    print(results.table(rows))
    profile = profile_rows(bench, config, shapes[0])
    print(results.table(profile))
    if not args.short:
        settings = {
            "device": str(device),
            "dtype": str(dtype),
            "widths": config.widths,
            "tile": (config.tile_frames, config.tile_size),
            "matmul_tflop_per_s": bench.matmul_flops_per_s / 1e12,
        }
        print(results.write("dcae", [*rows, *profile], settings=settings))


if __name__ == "__main__":
    main()
