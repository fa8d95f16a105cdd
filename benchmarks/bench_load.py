"""Loading published weights: seconds and memory beside the disk's own reading speed.

    python benchmarks/bench_load.py                      # as deep a model as memory allows
    python benchmarks/bench_load.py --depth 19 --single 38 --device cuda   # all 11.9 G parameters

Makes a sharded file set of random numbers in the published layout, drops it from the page cache
before every reading, and takes turns: the rulers (threads reading the same files into one small
buffer each, and into new memory, whose first touch the kernel has to pay for), ours, and the peer
(safetensors' load_file, shard by shard).
"""

import argparse
import gc
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from vidgen.models.mmdit import PRESETS, MMDiT, MMDiTConfig, load_weights
from vidgen.models.mmdit.layouts import published_shapes
from vidgen.models.tensor_files import TensorFiles, TensorInfo, write_tensors
from vidgen.runtime.observe import hardware, results

SHARD = 2 << 30  # bytes
SPAN, BLOCK = 256 << 20, 16 << 20  # what a thread reads in turn, and at once


def make_files(folder: Path, config: MMDiTConfig) -> int:
    """Random bf16 tensors in Open-Sora's layout, sharded, with the index; returns their bytes."""
    noise = torch.randn(1 << 20).to(torch.bfloat16)
    shards: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, shape in published_shapes(config, "open-sora").items():
        info = TensorInfo(torch.bfloat16, shape)
        if filled + info.nbytes > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = info
        filled += info.nbytes
    places = {}
    for number, infos in enumerate(tqdm(shards, desc="random weights", unit="shard")):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = (
            (
                name,
                noise.repeat(-(-info.nbytes // noise.nbytes))[: info.nbytes // 2].view(info.shape),
            )
            for name, info in infos.items()
        )
        write_tensors(folder / file, infos, tensors, {})
        places.update(dict.fromkeys(infos, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(info.nbytes for infos in shards for info in infos.values())


def forget(folder: Path) -> None:
    """Out of the page cache, so that the disk is read."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_only(folder: Path, keep: bool) -> None:
    """The rulers: every byte once, by as many threads as we use, kept nowhere or in new memory."""

    def read(place: tuple[Path, int]) -> None:
        file, start = place
        descriptor = os.open(file, os.O_RDONLY)
        buffer = mmap.mmap(-1, SPAN if keep else BLOCK)
        kept.append(buffer)
        for offset in range(0, SPAN, BLOCK):
            into = memoryview(buffer)[offset : offset + BLOCK] if keep else buffer
            if not os.preadv(descriptor, [into], start + offset):
                break
        os.close(descriptor)

    kept: list[mmap.mmap] = []
    places = [
        (file, start)
        for file in sorted(folder.glob("*.safetensors"))
        for start in range(0, file.stat().st_size, SPAN)
    ]
    with ThreadPoolExecutor(TensorFiles.readers) as pool:
        list(pool.map(read, places))


def ours(folder: Path, config: MMDiTConfig, device: torch.device) -> None:
    with torch.device("meta"):
        model = MMDiT(config).to(torch.bfloat16)
    load_weights(model, folder, device=device)
    finish(device)


def load_file_peer(folder: Path, config: MMDiTConfig, device: torch.device) -> None:
    """Tensors as they are in the files into a module of that shape: no layout is changed."""
    shapes = published_shapes(config, "open-sora")
    target = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device)
        for name, shape in shapes.items()
    }
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            target[name].copy_(tensor)
    finish(device)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(call: Callable[[], None], folder: Path) -> tuple[float, float]:
    """Seconds, and bytes by which host memory peaked above what was there before."""
    forget(folder)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, _status("VmHWM") - before


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) * 1024
    raise KeyError(field)


def affordable() -> tuple[int, int]:
    """Blocks of each kind whose weights are a fifth of the memory that is free."""
    free = (hardware.memory()["available"] or 0) / 5
    pairs = max(1, min(19, int(free // (2 * (36 + 2 * 15) * 3072**2))))
    return pairs, 2 * pairs


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, help="dual-stream blocks")
    parser.add_argument("--single", type=int, help="single-stream blocks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", help="where to make the files (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="one round of a small model")
    parser.add_argument("--out", help="the JSON to write")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    depth, single = (1, 2) if args.short else affordable()
    depth, single = args.depth or depth, args.single or single
    config = replace(PRESETS["opensora_v2"], depth=depth, depth_single_blocks=single)

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="vidgen-load-") as name:
        folder = Path(name)
        size = make_files(folder, config)
        calls = {
            "ruler: read, keep nothing": lambda: read_only(folder, keep=False),
            "ruler: read into new memory": lambda: read_only(folder, keep=True),
            "vidgen load_weights": lambda: ours(folder, config, device),
            "safetensors load_file": lambda: load_file_peer(folder, config, device),
        }
        taken: dict[str, list[tuple[float, float]]] = {what: [] for what in calls}
        settings = {"depth": depth, "depth_single_blocks": single, "device": str(device)}
        rows = results.Kept("load", settings, args.out)
        for _ in range(1 if args.short else args.rounds):
            for what, call in calls.items():
                taken[what].append(measure(call, folder))
                rows.replace(summary(taken, size, size if device.type == "cpu" else 0))
    print(results.table(rows))
    print(rows.save())
    return rows


def summary(
    taken: dict[str, list[tuple[float, float]]], size: int, kept_on_host: int
) -> list[results.Row]:
    """Of the rounds so far; the first call of all is the ruler."""
    ruler = statistics.median(s for s, _ in taken["ruler: read, keep nothing"])
    rows: list[results.Row] = []
    for what, figures in taken.items():
        if not figures:
            continue
        seconds = statistics.median(s for s, _ in figures)
        beyond = max(peak for _, peak in figures)
        rows.append(
            {
                "what": what,
                "gb": size / 1e9,
                "s": seconds,
                "gb_per_s": size / seconds / 1e9,
                "of_ruler": ruler / seconds,
                "host_gib_beyond_weights": (beyond - (0 if "nothing" in what else kept_on_host))
                / 2**30,
            }
        )
    return rows


QUICK = ("--short",)


def test_load(suite: Callable[..., None]) -> None:
    suite(main, "load", QUICK)


if __name__ == "__main__":
    main()
