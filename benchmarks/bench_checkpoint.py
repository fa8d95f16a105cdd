"""Checkpoints beside their rulers and peers, in turn and several times over: medians count.

    python benchmarks/bench_checkpoint.py --gb 2 --rounds 3

Rulers: one copy of the state off its device; the same bytes written and read by O_DIRECT, one after
another, on the same disk; the same bytes read from the page cache. Peers write what they write by
default; the fsync that makes it durable, which they leave out, is timed beside them.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import transfer
from vidgen.runtime.observe import results

MIB = 1 << 20
BLOCK = 8 * MIB
Groups = dict[str, dict[str, Tensor]]
Samples = dict[str, list[float]]


def make_state(nbytes: int, device: torch.device) -> Groups:
    """Weights, their moving average and AdamW's two moments, in the proportions of an MMDiT."""
    width = 1024
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    shapes += [(6 * width, width), (6 * width,), (4 * width,), (width,), (64,), (64,)]
    members: dict[str, tuple[int, ...]] = {}
    size = 0
    for i, shape in enumerate(cycle(shapes)):
        if size >= nbytes // 4:
            break
        members[f"blocks.{i // len(shapes)}.{i % len(shapes)}.weight"] = shape
        size += 4 * torch.Size(shape).numel()
    noise = torch.randn(6 * width * width, device=device)
    groups: Groups = {}
    for group, keys in {"model": [""], "ema": [""], "optim": [".exp_avg", ".exp_avg_sq"]}.items():
        groups[group] = {
            name + key: noise[: torch.Size(shape).numel()].view(shape).clone()
            for name, shape in members.items()
            for key in keys
        }
    return groups


def bytes_of(groups: Groups) -> int:
    return sum(t.nbytes for members in groups.values() for t in members.values())


class Rulers:
    """What memory and disk can do with as many bytes."""

    def __init__(self, nbytes: int, folder: Path, device: torch.device) -> None:
        self.nbytes = nbytes // BLOCK * BLOCK  # whole blocks; times are scaled
        self.scale = nbytes / self.nbytes
        self.folder = folder
        memory = torch.empty(self.nbytes + 4096, dtype=torch.uint8)
        if device.type == "cuda":
            torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        start = -memory.data_ptr() % 4096
        self.host = memory[start : start + self.nbytes]
        noise = torch.randint(0, 256, (BLOCK,), dtype=torch.uint8, device=device)
        self.source = noise.repeat(self.nbytes // BLOCK)
        self.host.copy_(self.source)

    def copy(self) -> float:
        return self._timed(lambda: (self.host.copy_(self.source, non_blocking=True), settle()))

    def write(self) -> float:
        path, data = self.folder / "ruler", self.host.numpy().data

        def work() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
            for at in range(0, self.nbytes, BLOCK):
                assert os.write(fd, data[at : at + BLOCK]) == BLOCK
            os.fsync(fd)
            os.close(fd)

        return self._timed(work)

    def read(self, flags: int) -> float:
        """Of the file that `write` wrote: with as many threads as help."""
        data = self.host.numpy().data

        def work() -> None:
            fd = os.open(self.folder / "ruler", os.O_RDONLY | flags)
            threads = 8 if flags else torch.get_num_threads()
            with ThreadPoolExecutor(threads) as pool:
                for at in range(0, self.nbytes, BLOCK):
                    pool.submit(os.preadv, fd, [data[at : at + BLOCK]], at)
            os.close(fd)

        return self._timed(work)

    def _timed(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * self.scale


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def drop_from_cache(folder: Path) -> None:
    for path in files_in(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fill_cache(folder: Path) -> None:
    for path in files_in(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(BLOCK):
                pass


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def measure_ours(groups: Groups, folder: Path, rulers: Rulers, samples: Samples) -> None:
    settle()
    began = time.perf_counter()
    saving = checkpoint.save(folder / "ours", len(samples["blocked"]), groups, {}, keep_last=1)
    settle()
    samples["blocked"].append(time.perf_counter() - began)
    path = saving.wait()
    assert saving.summary is not None
    samples["written"].append(saving.summary.written_s)

    told: list[checkpoint.LoadReport] = []
    for name, prepare, flags in (
        ("cold", drop_from_cache, os.O_DIRECT),
        ("cached", fill_cache, 0),
    ):
        prepare(rulers.folder)
        if not flags:
            rulers.read(flags)
        samples[f"ruler read {name}"].append(rulers.read(flags))
        prepare(path)
        began = time.perf_counter()
        checkpoint.load(path, groups, report=told.append)
        settle()
        samples[f"load {name}"].append(time.perf_counter() - began)
    samples["amplification"].append(told[-1].amplification)


def peer_torch(groups: Groups, path: Path) -> Callable[[], None]:
    torch.save(groups, path / "state.pt")
    return lambda: None


def peer_safetensors(groups: Groups, path: Path) -> Callable[[], None]:
    from safetensors.torch import save_file

    for group, members in groups.items():
        save_file(members, path / f"{group}.safetensors")
    return lambda: None


def peer_dcp_async(groups: Groups, path: Path) -> Callable[[], None]:
    import torch.distributed.checkpoint as dcp

    future = dcp.async_save(groups, checkpoint_id=path / "dcp")
    return lambda: future.result() and None


def peer_tensornvme(groups: Groups, path: Path) -> Callable[[], None]:
    from tensornvme.async_file_io import AsyncFileWriter

    writer = AsyncFileWriter(str(path / "state.bin"), 16)
    for members in groups.values():
        for tensor in members.values():
            writer.write_tensor(tensor)
    return writer.synchronize


PEERS = {
    "torch.save": peer_torch,
    "safetensors": peer_safetensors,
    "DCP async_save": peer_dcp_async,
    "TensorNVMe": peer_tensornvme,
}


def measure_peers(groups: Groups, folder: Path, peers: dict[str, Samples]) -> None:
    for name, save in PEERS.items():
        path = folder / "peer"
        path.mkdir()
        settle()
        began = time.perf_counter()
        try:
            finish = save(groups, path)
        except ImportError as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)
        else:
            settle()
            times = peers.setdefault(name, defaultdict(list))
            times["training stands still"].append(time.perf_counter() - began)
            finish()
            times["written"].append(time.perf_counter() - began)
            drop_from_cache(path)
            times["written and durable"].append(time.perf_counter() - began)
        shutil.rmtree(path)


def measure_steps(folder: Path, device: torch.device, nbytes: int, steps: int) -> list[results.Row]:
    """A step that multiplies matrices for long enough, without and with a checkpoint after it."""
    groups = make_state(nbytes, device)
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b)
        settle()

    work(5)
    began = time.perf_counter()
    work(20)
    wished = 10 * nbytes / 1e9  # seconds: a disk of 0.1 GB/s keeps up
    count = max(1, round(20 * wished / (time.perf_counter() - began)))
    checkpoint.save(folder / "steps", 0, groups, {}, keep_last=1).wait()
    plain, saved, blocked, waited = [], [], [], []
    for step in range(1, 2 * steps + 1):
        with_save = step % 2 == 0
        began = time.perf_counter()
        if with_save:
            saving = checkpoint.save(folder / "steps", step, groups, {}, keep_last=1)
            blocked.append(time.perf_counter() - began)
        work(count)
        (saved if with_save else plain).append(time.perf_counter() - began)
        if with_save:
            began = time.perf_counter()
            saving.wait()  # the plain step after it must not share the disk's work
            waited.append(time.perf_counter() - began)
    without, with_it = statistics.median(plain), statistics.median(saved)
    return [
        {"what": "step without a checkpoint", "gb": bytes_of(groups) / 1e9, "s": without},
        {
            "what": "step with one",
            "gb": bytes_of(groups) / 1e9,
            "s": with_it,
            "slower": with_it / without - 1,
            "blocked_s": statistics.median(blocked),
            "waited_for_disk_s": statistics.median(waited),
        },
    ]


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="each with and without a checkpoint")
    parser.add_argument("--dir", default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", help="the JSON to write")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="vidgen-bench-") as name:
        folder = Path(name)
        settings = {"method": str(transfer.method(folder)), "rounds": args.rounds}
        rows = results.Kept("checkpoint", settings, args.out)
        measure(args, folder, device, rows)
        for row in measure_steps(folder, device, int(args.gb * 1e9 / 8), args.steps):
            rows.add(row)
    print(results.table(rows))
    print(rows.save())
    return rows


def measure(
    args: argparse.Namespace, folder: Path, device: torch.device, rows: results.Kept
) -> None:
    """`rows` holds the medians of the rounds so far."""
    groups = make_state(int(args.gb * 1e9), device)
    nbytes = bytes_of(groups)
    rulers = Rulers(nbytes, folder, device)
    rulers.copy()  # its pages are touched, as those of checkpoint.reserve are
    checkpoint.reserve(nbytes)
    samples: Samples = defaultdict(list)
    peers: dict[str, Samples] = {}
    for _ in range(args.rounds):
        samples["ruler copy"].append(rulers.copy())
        samples["ruler write"].append(rulers.write())
        measure_ours(groups, folder, rulers, samples)
        (folder / "ruler").unlink()
        shutil.rmtree(folder / "ours")
        if not args.no_peers:
            measure_peers(groups, folder, peers)
        rows.replace(summary(samples, peers, nbytes))


def summary(samples: Samples, peers: dict[str, Samples], nbytes: int) -> list[results.Row]:
    median = {name: statistics.median(values) for name, values in samples.items()}

    def row(what: str, seconds: float, ruler: str | None = None, **more: float) -> results.Row:
        against = {"of_ruler": median[ruler] / seconds} if ruler else {}
        rate = nbytes / seconds / 1e9
        return {"what": what, "gb": nbytes / 1e9, "s": seconds, "gb_per_s": rate} | against | more

    rows = [
        row("ruler: a copy of the state off its device", median["ruler copy"]),
        row("vidgen: training stands still", median["blocked"], "ruler copy"),
        row("vidgen: the first time", samples["blocked"][0], "ruler copy"),
        row("ruler: O_DIRECT write and fsync", median["ruler write"]),
        row("vidgen: written and committed", median["written"], "ruler write"),
    ]
    for name in ("cold", "cached"):
        rows.append(row(f"ruler: read, {name}", median[f"ruler read {name}"]))
        amplification = {"amplification": median["amplification"]}
        rows.append(row(f"vidgen: load, {name}", median[f"load {name}"], f"ruler read {name}"))
        rows[-1] = {**rows[-1], **amplification}
    for name, times in peers.items():
        for part, values in times.items():
            ruler = "ruler copy" if part == "training stands still" else "ruler write"
            rows.append(row(f"{name}: {part}", statistics.median(values), ruler))
    return rows


QUICK = ("--gb", "0.01", "--rounds", "1", "--steps", "2", "--no-peers")


def test_checkpoint(suite: Callable[..., None]) -> None:
    suite(main, "checkpoint", QUICK)


if __name__ == "__main__":
    main()
