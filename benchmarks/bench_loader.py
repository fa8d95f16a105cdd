"""The video loader beside torch's DataLoader, on 720p H.264 files made here, in 256px buckets.

    python benchmarks/bench_loader.py

Two workers each, the same windows of the same files, each in a process of its own. The DataLoader's
data set reads them with PyAV and scales with FFmpeg, decoding from the start, or from the key frame
before the window; or with torchcodec, which scales too. SPDL decodes in as many threads. Those two
need FFmpeg's libraries; where they do not load the reason is kept.

Memory is what all processes of a loader take together, above what this one took before, pages that
several share counted once: the most it was, its mean while decoding cannot keep up, and its mean
when everything is read that may be read ahead.
"""

import argparse
import contextlib
import gc
import importlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vidgen.data import BucketConfig, DataConfig, open_loader
from vidgen.data.index.manifest import write_manifest
from vidgen.data.index.order import sample_draws
from vidgen.runtime.observe import results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORKERS = 2
FILE_FRAMES, CLIPS, BATCH = 300, 128, 4  # more clips than are read: no epoch ends on the way
HEIGHT, WIDTH = 192, 336  # 256px in 16:9
MEASURED = {33: 24, 129: 12}  # frames of a clip to clips read
STEPS = 5  # of a device slower than decoding


def make_files(folder: Path) -> Path:
    """Four 720p files with x264's defaults (key frames up to 250 apart, b-frames), 16 rows each;
    returns their manifest."""
    for number in range(4):
        write_file(folder / f"{number}.mp4", number)
    rows = [
        {
            "path": f"{i % 4}.mp4",
            "text": "",
            "num_frames": FILE_FRAMES,
            "height": 720,
            "width": 1280,
            "fps": 24.0,
        }
        for i in range(CLIPS)
    ]
    write_manifest(folder / "clips.parquet", rows)
    return folder / "clips.parquet"


def write_file(path: Path, seed: int) -> None:
    """A smooth field with some grain, panned, and a disc that crosses it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 220, (16, 32, 3), np.uint8)
    source = av.VideoFrame.from_ndarray(coarse, format="rgb24")
    wide = source.reformat(2048, 1024, "rgb24", interpolation="BICUBIC").to_ndarray()
    wide = np.clip(wide.astype(np.int16) + rng.integers(-6, 7, wide.shape), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:720, :1280]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for t in range(FILE_FRAMES):
            picture = wide[t // 2 : t // 2 + 720, 2 * t : 2 * t + 1280].copy()
            picture[(x - 4 * t) ** 2 + (y - 360) ** 2 < 120**2] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class Clips(Dataset[Any]):
    """The same windows, as one reads them with PyAV; `seek`: from the key frame before."""

    def __init__(self, manifest: Path, frames: int, seek: bool) -> None:
        self._folder, self._frames, self._seek = manifest.parent, frames, seek

    def __len__(self) -> int:
        return CLIPS

    def start(self, row: int) -> int:
        return math.floor(sample_draws(0, 0, row).start * (FILE_FRAMES - self._frames + 1))

    def __getitem__(self, row: int) -> torch.Tensor:
        start = self.start(row)
        frames: list[np.ndarray] = []
        with av.open(str(self._folder / f"{row % 4}.mp4")) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            rate, base = Fraction(24), stream.time_base
            assert base is not None
            if self._seek:
                container.seek(int(start / rate / base), stream=stream)
            for frame in container.decode(stream):
                if round((frame.pts or 0) * base * rate) >= start:
                    small = frame.reformat(WIDTH, HEIGHT, "rgb24", interpolation="BILINEAR")
                    frames.append(small.to_ndarray())
                if len(frames) == self._frames:
                    break
        return torch.from_numpy(np.stack(frames))


def vidgen_batches(manifest: Path, frames: int) -> Iterator[torch.Tensor]:
    buckets = {"256px": {str(frames): BucketConfig(batch=BATCH)}}
    cfg = DataConfig(manifest=str(manifest), buckets=buckets, workers=WORKERS)
    with open_loader(cfg, seed=0, rank=0, world=1, device=DEVICE) as loader:
        for batch in loader:
            assert batch.video_BTHWC.shape[2:4] == (HEIGHT, WIDTH)
            yield batch.video_BTHWC


def torch_batches(clips: Clips) -> Iterator[torch.Tensor]:
    loader = DataLoader(
        clips,
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        pin_memory=DEVICE == "cuda",
        persistent_workers=True,
    )
    while True:
        for batch in loader:
            yield batch.to(DEVICE, non_blocking=True)


class TorchcodecClips(Clips):
    """As torchcodec reads them: each file scanned for its frames, scaled as they are decoded."""

    def __getitem__(self, row: int) -> torch.Tensor:
        decoders = importlib.import_module("torchcodec.decoders")
        transforms = importlib.import_module("torchcodec.transforms")
        decoder = decoders.VideoDecoder(
            str(self._folder / f"{row % 4}.mp4"),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            transforms=[transforms.Resize((HEIGHT, WIDTH))],
        )
        start = self.start(row)
        frames: torch.Tensor = decoder.get_frames_in_range(start, start + self._frames).data
        return frames


def spdl_batches(manifest: Path, frames: int) -> Iterator[torch.Tensor]:
    io = importlib.import_module("spdl.io")
    builder = importlib.import_module("spdl.pipeline").PipelineBuilder()
    clips = Clips(manifest, frames, seek=True)

    def rows() -> Iterator[int]:
        random = np.random.default_rng(0)
        while True:
            yield from random.permutation(CLIPS).tolist()

    def read(row: int) -> Any:
        first = clips.start(row)
        window = ((first - 0.5) / 24, (first + frames - 0.5) / 24)
        packets = io.demux_video(str(manifest.parent / f"{row % 4}.mp4"), timestamp=window)
        scaled = io.get_video_filter_desc(
            timestamp=window,
            scale_width=WIDTH,
            scale_height=HEIGHT,
            scale_algo="bilinear",
            scale_mode=None,
            pix_fmt="rgb24",
        )
        return io.decode_packets(packets, filter_desc=scaled)

    def collate(decoded: list[Any]) -> torch.Tensor:
        batch: torch.Tensor = io.to_torch(io.convert_frames(decoded))
        return batch

    builder.add_source(rows()).pipe(read, concurrency=WORKERS).aggregate(BATCH).pipe(collate)
    pipeline = builder.add_sink(2).build(num_threads=WORKERS + 1)
    with pipeline.auto_stop():
        for batch in pipeline:
            assert batch.shape == (BATCH, frames, HEIGHT, WIDTH, 3)
            yield batch.to(DEVICE, non_blocking=True)


PEERS: dict[str, Callable[[Path, int], Iterator[torch.Tensor]]] = {
    "vidgen": vidgen_batches,
    "DataLoader": lambda *which: torch_batches(Clips(*which, seek=False)),
    "DataLoader, seeking": lambda *which: torch_batches(Clips(*which, seek=True)),
    "DataLoader, torchcodec": lambda *which: torch_batches(TorchcodecClips(*which, seek=True)),
    "SPDL": spdl_batches,
}
NEEDS = {"DataLoader, torchcodec": "torchcodec.decoders", "SPDL": "spdl.io"}


def family() -> list[int]:
    """This process and all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(") ", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    ours = [os.getpid()]
    for pid in ours:
        ours += [child for child, parent in parents.items() if parent == pid]
    return ours


def cpu_seconds() -> float:
    ticks = 0
    for pid in family():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """Of all processes: their own pages, what they share counted once, and the shared files they
    hold open, of which a batch on its way from one to the other is mapped by neither."""
    total, files = 0, {}
    for pid in family():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_File:")):
                total += int(line.split()[1]) * 1024
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(file).startswith(("/dev/shm/", "/memfd:")):
                    status = file.stat()
                    files[status.st_dev, status.st_ino] = status.st_blocks * 512
            except FileNotFoundError:  # closed meanwhile
                continue
    return (total + sum(files.values())) / 2**20


def decode_alone(manifest: Path, frames: int) -> float:
    """The ruler: CPU seconds a clip of FFmpeg's decoder in one thread, each window from its key
    frame on, every frame thrown away."""
    clips, begun = range(0, CLIPS, 32), time.process_time()
    for row in clips:
        start = math.floor(sample_draws(0, 0, row).start * (FILE_FRAMES - frames + 1))
        with av.open(str(manifest.parent / f"{row % 4}.mp4")) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            base = stream.time_base
            assert base is not None
            container.seek(int(start / 24 / base), stream=stream)
            for frame in container.decode(stream):
                if round((frame.pts or 0) * base * 24) >= start + frames - 1:
                    break
    return (time.process_time() - begun) / len(clips)


class Watch:
    """Samples the memory in a thread, while it is entered."""

    def __enter__(self) -> "Watch":
        self.samples: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.05):
            self.samples.append(memory_mb())


def measure(manifest: Path, peer: str, frames: int) -> dict[str, Any]:
    # What is imported once is no memory of a loader.
    with contextlib.closing(PEERS[peer](manifest, 33)) as batches:  # type: ignore[type-var]
        next(batches)
    gc.collect()
    before = memory_mb()
    batches = PEERS[peer](manifest, frames)
    count = MEASURED[frames] // BATCH
    # Batches were read ahead when the clock starts, and are when it stops.
    for _ in range(2):
        next(batches)
    cpu, begun = cpu_seconds(), time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds, cpu = time.perf_counter() - begun, cpu_seconds() - cpu
    with Watch() as busy:  # not while the clock runs: looking takes time
        for _ in range(count):
            next(batches)
    step, waits, ready = 2 * seconds / count, [], []  # a device busy twice as long as decoding
    next(batches)
    for _ in range(STEPS):
        time.sleep(step)
        begun = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begun)
        ready.append(memory_mb())
    batches.close()  # type: ignore[attr-defined]
    clips = count * BATCH
    return {
        "clip": f"{frames}x{HEIGHT}x{WIDTH} of {FILE_FRAMES}x720x1280",
        "loader": peer,
        "clips_per_s": clips / seconds,
        "cpu_s_per_clip": cpu / clips,
        "memory_mb": max(busy.samples + ready) - before,
        "memory_mean_mb": statistics.mean(busy.samples) - before,
        "memory_ready_mb": statistics.mean(ready) - before,
        "stall_part_of_step": sum(waits) / (STEPS * step),
        "longest_stall_ms": 1e3 * max(waits),
    }


def measured_apart(launcher: str, manifest: Path, peer: str, frames: int) -> dict[str, Any]:
    """`measure` in a new process: nothing an earlier one left in memory counts."""
    command = [*shlex.split(launcher), sys.executable, __file__, "--frames", str(frames)]
    command += ["--one", peer, "--manifest", str(manifest)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def missing_peers() -> dict[str, str]:
    """Those that do not load here, and why."""
    reasons = {}
    for peer, module in NEEDS.items():
        try:
            loaded = importlib.import_module(module)
            if module == "spdl.io":
                loaded.demux_config()  # it loads FFmpeg when it is first used
        except Exception as error:  # of many kinds: a library that is not there, or is too old
            reasons[peer] = textwrap.shorten(str(error).strip().splitlines()[0], 160)
    return reasons


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="*", default=list(MEASURED))
    parser.add_argument("--out", help="the file of results, if not the machine's own")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--launcher", default="", help="runs each measurement: 'taskset -c 0,1'")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(measure(args.manifest, args.one, args.frames[0])))
        return []
    missing = missing_peers()
    peers = [peer for peer in args.peers if peer not in missing]
    settings = {"device": DEVICE, "workers": WORKERS, "batch": BATCH, "av": av.__version__}
    settings |= {f"{peer} does not load": why for peer, why in missing.items()}
    for name in ("torchcodec", "spdl_io"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            settings[name] = metadata.version(name)
    rows = results.Kept("loader", settings, args.out)
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_files(Path(folder))
        for frames in args.frames:
            ruler = decode_alone(manifest, frames)
            here: list[dict[str, Any]] = []
            for peer in peers:
                found = measured_apart(args.launcher, manifest, peer, frames)
                rows.add({**found, "decode_alone_cpu_s": ruler})
                here.append(rows[-1])
            base = next((row for row in here if row["loader"] == "DataLoader"), None)
            for row in here if base else ():
                row["times_dataloader"] = row["clips_per_s"] / base["clips_per_s"]
            rows.save()
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--frames", "5", "--peers", "vidgen")


def test_loader(suite: Callable[..., None]) -> None:
    suite(main, "loader", QUICK)


if __name__ == "__main__":
    main()
