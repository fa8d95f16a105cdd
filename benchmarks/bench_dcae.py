"""Encoding and decoding with the Video DC-AE: frames a second, peak memory, and where time goes.

    python benchmarks/bench_dcae.py              # on a GPU: the published width, 256px and 768px
    python benchmarks/bench_dcae.py --short      # the first shape alone

Random weights; a quarter of the width and one block a stage on a CPU. Rows: the module as torch
runs it, ours, ours in channels-last memory, the module through torch.compile, and diffusers'
HunyuanVideo VAE at the same pixels, which takes one frame more. Rulers of the same run: a large
matrix product, and a 3 x 3 x 3 convolution of large channel counts, in the same dtype. What is
larger than a tile goes through tiles. On a GPU, peak memory is all that is allocated; on a CPU what
the first call adds to the process. Rows are kept as they come: a run cut short leaves what it had.
"""

import argparse
import ctypes
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vidgen.models.geometry import Geometry
from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig
from vidgen.models.video_dcae.layers import (
    AttentionBlock,
    Conv3d,
    Downsample,
    GatedConv,
    LinearAttention,
    Project,
    ResBlock,
    RMSNorm3d,
    Upsample,
)
from vidgen.runtime.observe import results

Shape = tuple[int, int, int]  # frames, height, width
Row = dict[str, Any]
NARROW: dict[str, Any] = {
    "widths": (32, 64, 128, 128, 256, 256), "encoder_depths": (1,) * 6,
    "decoder_depths": (1,) * 6, "latent_channels": 32, "tile_size": 64, "tile_frames": 8,
}  # fmt: skip
GPU_SHAPES: list[Shape] = [(32, 256, 256), (128, 768, 768)]
CPU_SHAPES: list[Shape] = [(8, 64, 64), (8, 96, 96)]
LAST = torch.channels_last_3d
# What a module's own time is, without that of the modules in it.
PARTS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv3d, "convolutions"),
    (RMSNorm3d, "norms"),
    (LinearAttention, "linear attention"),
    (Downsample, "changes of resolution"),
    (Upsample, "changes of resolution"),
    (Project, "changes of resolution"),
    (ResBlock, "activations and residuals"),
    (GatedConv, "activations and residuals"),
    (AttentionBlock, "activations and residuals"),
)


class Bench:
    def __init__(self, device: torch.device, rounds: int, budget_s: float) -> None:
        self.device, self.rounds, self.budget_s = device, rounds, budget_s
        self.gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        side, channels, frames = (8192, 512, 16) if self.gpu else (1024, 64, 8)
        a, b = (self.random(side, side) for _ in range(2))
        self.matmul = 2 * side**3 / self.seconds(lambda: a @ b)
        x = self.random(2, channels, frames, 64, 64).contiguous(memory_format=LAST)
        weight = self.random(channels, channels, 3, 3, 3).contiguous(memory_format=LAST)
        flops = 2 * 27 * channels * x.numel()
        self.conv = flops / self.seconds(lambda: nn.functional.conv3d(x, weight, padding=1))

    def random(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device).to(self.dtype) * 2 - 1

    def seconds(self, call: Callable[[], object], warm: bool = False) -> float:
        """The median of as many calls as `rounds` and the time allow, after one to warm up."""
        if not warm:
            self.once(call)
        taken: list[float] = []
        while len(taken) < self.rounds and (not taken or sum(taken) < self.budget_s):
            taken.append(self.once(call))
        return statistics.median(taken)

    def once(self, call: Callable[[], object]) -> float:
        self._finish()
        start = time.perf_counter()
        call()
        self._finish()
        return time.perf_counter() - start

    def row(self, what: str, way: str, shape: Shape, call: Callable[[], object], flops: int) -> Row:
        peak = self._peak_gib(call)  # warms up, too
        seconds = self.seconds(call, warm=True)
        return {
            "what": what,
            "way": way,
            "shape": "x".join(map(str, shape)),
            "frames_per_s": shape[0] / seconds,
            "ms": seconds * 1e3,
            "tflop_per_s": flops / seconds / 1e12,
            "of_matmul": flops / seconds / self.matmul,
            "of_conv": flops / seconds / self.conv,
            "peak_gib": peak,
        }

    def _peak_gib(self, call: Callable[[], object]) -> float | None:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            self.once(call)
            return torch.cuda.max_memory_allocated() / 2**30
        reset = Path("/proc/self/clear_refs")
        if not reset.exists():
            self.once(call)
            return None
        ctypes.CDLL(None).malloc_trim(0)  # or the call would be given what others left
        reset.write_text("5")
        before = _status_kib("VmRSS")
        self.once(call)
        return (_status_kib("VmHWM") - before) / 2**20

    def _finish(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def _status_kib(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1])


def ours(config: VideoDCAEConfig, bench: Bench) -> VideoDCAE:
    with torch.device(bench.device):
        model = VideoDCAE(config)
    model.init_weights()
    return model.to(bench.dtype).eval().requires_grad_(False)


def as_torch_runs_it(model: VideoDCAE) -> VideoDCAE:
    """The same weights in plain convolutions."""
    plain = VideoDCAE.__new__(VideoDCAE)
    nn.Module.__init__(plain)
    plain.config, plain.latent_channels = model.config, model.latent_channels
    with torch.device("meta"):
        twin = VideoDCAE(model.config)
    plain.encoder, plain.decoder = twin.encoder, twin.decoder
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv3d):
                setattr(module, name, _plain(child))
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.eval().requires_grad_(False)


def _plain(conv: Conv3d) -> nn.Conv3d:
    return nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )


def flops_of(call: Callable[[Tensor], object], *shape: int) -> int:
    """As torch counts them, the zeros of the padding included; nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        call(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def dcae_rows(
    bench: Bench, config: VideoDCAEConfig, shape: Shape, compiled: bool, keep: Callable[[Row], None]
) -> None:
    model = ours(config, bench)
    plain = as_torch_runs_it(model)
    video = bench.random(1, 3, *shape)
    latent = bench.random(1, config.latent_channels, *Geometry.of(model).latent_grid(*shape))
    with torch.device("meta"):
        weightless = VideoDCAE(config)
    flops = [
        flops_of(weightless.encode, *video.shape),
        flops_of(weightless.decode, *latent.shape),
    ]

    def both(way: str, module: VideoDCAE, memory: torch.memory_format) -> None:
        x, z = (t.contiguous(memory_format=memory) for t in (video, latent))
        keep(bench.row("encode", way, shape, lambda: module.encode(x), flops[0]))
        keep(bench.row("decode", way, shape, lambda: module.decode(z), flops[1]))

    both("torch", plain, torch.contiguous_format)
    both("ours", model, torch.contiguous_format)
    model.to(memory_format=LAST)
    both("ours, channels last", model, LAST)
    if compiled:
        plain.to(memory_format=LAST)
        plain.encoder.compile()
        plain.decoder.compile()
        both("torch.compile, channels last", plain, LAST)
        torch.compiler.reset()


def hunyuan_rows(bench: Bench, shape: Shape, keep: Callable[[Row], None]) -> None:
    """In tiles of the same size where one is needed; its posterior's mean."""
    from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
    from vidgen.models.hunyuan_vae.model import build

    widths = (128, 256, 512, 512) if bench.gpu else (32, 64, 128, 128)
    tiles = {"tile_size": 256, "tile_frames": 32} if bench.gpu else {"tile_size": 64}
    config = HunyuanVAEConfig(
        path="", block_out_channels=widths, temporal_tiling=bench.gpu, **tiles
    )
    vae, weightless = build(config), build(config)
    vae.to_empty(device=bench.device)
    for param in vae.parameters():
        nn.init.normal_(param, std=0.02)
    nn.Module.to(vae, bench.dtype)  # diffusers' own `to` warns of a case that is not here
    vae.eval().requires_grad_(False)
    frames, height, width = shape[0] + 1, *shape[1:]
    video = bench.random(1, 3, frames, height, width)
    latent = bench.random(1, config.latent_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    calls: dict[str, tuple[Tensor, Any]] = {
        "encode": (video, lambda vae, x: vae.encode(x).latent_dist.mean),
        "decode": (latent, lambda vae, z: vae.decode(z).sample),
    }
    way, more = "HunyuanVideo VAE, diffusers", (frames, height, width)
    for what, (x, call) in calls.items():
        flops = flops_of(lambda meta, call=call: call(weightless, meta), *x.shape)
        keep(bench.row(what, way, more, lambda x=x, call=call: call(vae, x), flops))


def profile(bench: Bench, model: VideoDCAE, way: str, shape: Shape, keep: Any) -> None:
    """Each part's share of the time that encoding keeps the device busy."""
    video = bench.random(1, 3, *shape)
    if "last" in way:
        model.to(memory_format=LAST)
        video = video.contiguous(memory_format=LAST)
    model.encode(video)
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([activity.CUDA] if bench.gpu else [])]
    with ExitStack() as hooks:
        for module in model.encoder.modules():
            part = next((part for kind, part in PARTS if isinstance(module, kind)), None)
            if part is not None:
                _mark(module, part, hooks)
        with torch.profiler.profile(activities=kinds) as watched:
            model.encode(video)
            bench._finish()
    spent: dict[str, float] = defaultdict(float)
    attribute = "self_device_time_total" if bench.gpu else "self_cpu_time_total"
    for event in watched.events() or []:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel's time is told by the operation that started it
        inside: Any = event
        while inside is not None and not inside.name.startswith("part: "):
            inside = inside.cpu_parent
        part = inside.name.removeprefix("part: ") if inside is not None else "other"
        spent[part] += getattr(event, attribute)
    total = sum(spent.values())
    for part, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        keep(
            {
                "what": "encode, profile",
                "way": way,
                "shape": "x".join(map(str, shape)),
                "part": part,
                "ms": microseconds / 1e3,
                "share": microseconds / total,
            }
        )


def _mark(module: nn.Module, part: str, hooks: ExitStack) -> None:
    """A named range around each call of the module."""
    ranges: list[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        ranges.append(torch.profiler.record_function(f"part: {part}"))
        ranges[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks.callback(module.register_forward_pre_hook(enter).remove)
    hooks.callback(module.register_forward_hook(leave).remove)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the first shape alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a row, after its first")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    bench = Bench(torch.device(args.device), args.rounds, args.budget)
    config = VideoDCAEConfig() if bench.gpu else VideoDCAEConfig(**NARROW)
    shapes = (GPU_SHAPES if bench.gpu else CPU_SHAPES)[: 1 if args.short else None]
    settings = {
        "device": args.device,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "autoencoder": asdict(config),
        "matmul_tflop_per_s": bench.matmul / 1e12,
        "conv_tflop_per_s": bench.conv / 1e12,
    }
    print(f"rulers: {bench.matmul / 1e12:.3g} TFLOP/s matmul, {bench.conv / 1e12:.3g} convolution")
    rows: list[Row] = []
    bar = tqdm(total=len(shapes) * (8 if args.no_compile else 10), unit="row")

    def keep(row: Row) -> None:
        rows.append(row)
        bar.update("frames_per_s" in row)
        results.write("dcae", rows, settings={**settings, "finished": False}, out=args.out)

    for shape in shapes:
        dcae_rows(bench, config, shape, not args.no_compile, keep)
        hunyuan_rows(bench, shape, keep)
    for way in ("torch", "ours", "ours, channels last"):
        model = ours(config, bench)
        profile(bench, as_torch_runs_it(model) if way == "torch" else model, way, shapes[0], keep)
    bar.close()
    print(results.table(row for row in rows if "frames_per_s" in row))
    print(results.table(row for row in rows if "share" in row))
    settings["finished"] = True
    print(results.write("dcae", rows, settings=settings, out=args.out))
    return rows


QUICK = ("--short", "--rounds", "1", "--budget", "0", "--no-compile")


def test_dcae(suite: Callable[..., None]) -> None:
    suite(main, "dcae", QUICK)


if __name__ == "__main__":
    main()
