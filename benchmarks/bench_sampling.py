"""One pass of the published model as sampling runs it: seconds, TFLOP/s, memory; and streamed.

    python benchmarks/bench_sampling.py                  # 11.9 G random weights on a GPU; tiny here
    python benchmarks/bench_sampling.py --shapes 256px --memory 24GB --rounds 2
    python benchmarks/bench_sampling.py --model tiny     # the same code in seconds, anywhere

A step takes one to three passes, as the branch plan says. The ruler is a large matrix product in
the same run; of streaming, the same pass with all weights on the device. Seconds of 50 steps follow
from a pass and stand beside those of the public code on one H100 or H800, whose total holds text
encoding and decoding too.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidgen.diffusion.guidance import plan
from vidgen.diffusion.solvers import passes_per_step
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.mmdit import PRESETS, MMDiT, MMDiTConfig, ModulationTable, Seams
from vidgen.models.mmdit.flops import flops
from vidgen.models.mmdit.model import call_block
from vidgen.recipe.sampling import SampleConfig
from vidgen.runtime.observe import results
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import measure_matmul, peak
from vidgen.sample.hooks import RunBlock
from vidgen.sample.memory import MemoryNeeds, activation_bytes, parse_memory, plan_memory
from vidgen.sample.streaming import BlockStream

# 16:9, 129 frames: pixels, tokens, and seconds of 50 steps as published for one GPU.
SHAPES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float | None]] = {
    "256px": ((129, 192, 336), (33, 12, 21), 60.0),
    "768px": ((129, 576, 1024), (33, 36, 64), 1656.0),
    "tiny": ((5, 64, 64), (2, 4, 4), None),
}
STEPS, TEXT = 50, 512
VAE_BYTES = 0.5e9  # of HunyuanVideo's weights in bf16, which stay beside the model


def built(config: MMDiTConfig, device: torch.device, dtype: torch.dtype, streamed: bool) -> Any:
    """A model of random weights, on the device or in host memory to be streamed from."""
    with torch.device("meta"):
        model = MMDiT(config).to(dtype)
    stream = BlockStream(model, device, dtype) if streamed else None
    if stream is None:
        model.to_empty(device=device)
    noise = 0.02 * torch.randn(1 << 22, device=device)
    for param in model.parameters():
        # Repeated noise: drawing 11.9 G numbers in host memory takes longer than the benchmark.
        for chunk in param.data.view(-1).split(len(noise)):
            chunk.copy_(noise[: len(chunk)])
    return model.eval().requires_grad_(False), stream


def passes(
    device: torch.device, model: MMDiT, call: RunBlock, grid: Any, rounds: int
) -> list[float]:
    """Seconds of each pass, the first one left out."""
    config, dtype = model.config, model.img_in.weight.dtype
    video = math.prod(grid)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    given: dict[str, Any] = {
        "grid": grid,
        "txt": random(1, TEXT, config.context_in_dim),
        "vec": random(1, config.vec_in_dim),
        "t": torch.full((1,), 0.5, device=device),
        "cond": random(1, video, config.cond_channels) if config.cond_embed else None,
    }
    x = random(1, video, config.in_channels)
    vec_ND = model.conditioning(given["vec"], given["t"]).expand(2 * STEPS, -1)
    table = ModulationTable.of(model, vec_ND)
    seams = Seams(run_block=call, modulation=table.rows(slice(0, 1)))
    taken = []
    for _ in range(rounds + 1):
        settle(device)
        start = time.perf_counter()
        model(x, **given, seams=seams)
        settle(device)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def planned_passes(grid: tuple[int, int, int], has_image: bool) -> int:
    branches = plan(SampleConfig().guidance_config(), STEPS, grid, has_image=has_image)
    return sum(passes_per_step(branches))


def row(
    name: str,
    how: str,
    config: MMDiTConfig,
    device: torch.device,
    dtype: torch.dtype,
    seconds: list[float],
    ruler: float,
) -> dict[str, Any]:
    video, grid, published = SHAPES[name]
    best = statistics.median(seconds)
    rate = flops(config, grid, TEXT).forward / best
    found = {
        "shape": f"{video[0]}x{video[1]}x{video[2]}",
        "tokens": math.prod(grid) + TEXT,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": how,
        "s_per_pass": best,
        "tflops_per_s": rate / 1e12,
        "fraction_of_matmul": rate / ruler,
        "fraction_of_peak": rate / peak(device, dtype).flops_per_s,
        "peak_memory_gb": peak_memory_gb(device),
        "t2v_50_steps_s": planned_passes(grid, False) * best,
        "i2v_50_steps_s": planned_passes(grid, True) * best,
        "unplanned_50_steps_s": 3 * STEPS * best,
        "published_50_steps_s": published,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["device_in_use_gb"] = (total - free) / 1e9
    return found


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=sorted(PRESETS), default="opensora_v2" if cuda else "tiny"
    )
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--memory", default="24GB", help="to stream within, at the first shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    config = PRESETS[args.model]
    tiny = args.model == "tiny"
    if tiny:
        config = replace(config, vec_in_dim=64, context_in_dim=64)
    shapes = args.shapes or (["tiny"] if tiny else ["256px", "768px"])
    ruler = measure_matmul(device, dtype)

    settings = {"model": args.model, "steps": STEPS, "text": TEXT, "matmul_tflops": ruler / 1e12}
    rows = results.Kept("sampling", settings, args.out)
    model, _ = built(config, device, dtype, streamed=False)
    for name in shapes:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = passes(device, model, call_block, SHAPES[name][1], args.rounds)
        rows.add(row(name, "all on the device", config, device, dtype, taken, ruler))
    del model
    if cuda:
        torch.cuda.empty_cache()

    name = shapes[0]
    video, grid, _ = SHAPES[name]
    model, stream = built(config, device, dtype, streamed=True)
    chunks = 12 * config.depth + 3 * config.depth_single_blocks + 2
    limit = parse_memory(args.memory)
    fitted = plan_memory(
        limit,
        config,
        HunyuanVAEConfig(path=""),
        MemoryNeeds(
            video=video,
            tokens=grid,
            text_length=TEXT,
            around_bytes=stream.around_bytes + int(VAE_BYTES),
            table_bytes=2 * STEPS * chunks * config.hidden_size * dtype.itemsize,
        ),
        dtype,
    )
    # As planned; then half and none of the blocks on the device, to see what streaming costs.
    least = 2 * max(stream.sizes)
    total = sum(stream.sizes)
    for how, room in (
        (f"within {args.memory}", fitted.block_bytes),
        ("half of the blocks streamed", (total + 2 * least) // 2),
        ("every block streamed", least),
    ):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        streamed = stream.keep(room)
        taken = passes(device, model, stream.run_block, grid, args.rounds)
        found = row(name, how, config, device, dtype, taken, ruler)
        found["blocks_streamed"] = streamed
        found["slowdown"] = found["s_per_pass"] / rows[0]["s_per_pass"]
        found["estimated_activations_gb"] = (
            activation_bytes(config, grid, TEXT, dtype.itemsize) / 1e9
        )
        rows.add(found)
        stream.release()
    stream.close()

    print(results.table(rows))
    print(json.dumps({"kept": str(rows.save())}))
    return rows


QUICK = ("--model", "tiny", "--rounds", "1")


def test_sampling(suite: Callable[..., None]) -> None:
    suite(main, "sampling", QUICK)


if __name__ == "__main__":
    main()
