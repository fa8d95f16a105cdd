"""Filling the latent cache: `vidgen encode` beside reading and encoding in turns.

    python benchmarks/bench_encode.py

720p H.264 files made here and an autoencoder with random weights: on a GPU of the published DC-AE's
shape, in 256px buckets; on a CPU a narrow one in 64px buckets, which takes about as long for a clip
as reading it does. Rulers: reading alone in one process, encoding alone. Peers: one clip after the
other in one process, and torch's DataLoader reading for it. The start of worker processes counts.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidgen.data import BucketConfig, DataConfig
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.encode import encode_manifest
from vidgen.data.cache.latents import LatentCache, facts_of, settings_of
from vidgen.data.index.buckets import Bucket, BucketTable, assign
from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.data.read.video import ClipRequest, read_clip, write_video
from vidgen.models.geometry import Geometry
from vidgen.models.text.builtin import BuiltinText
from vidgen.models.text.config import TextConfig
from vidgen.models.video_dcae import VideoDCAE
from vidgen.models.video_dcae.config import VideoDCAEConfig
from vidgen.runtime.observe import results

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAMES, FILE_FRAMES = 32, 65
GEOMETRY = Geometry.of(VideoDCAEConfig())
CONFIG, RESOLUTION = (
    (VideoDCAEConfig(), "256px")
    if DEVICE == "cuda"
    else (
        VideoDCAEConfig(
            widths=(4, 8, 16, 32, 32, 32), encoder_depths=(1, 1, 1, 1, 1, 1), latent_channels=32
        ),
        "64px",
    )
)
TEXT = BuiltinText(TextConfig(length=8)).to(DEVICE)


def make_clips(folder: Path, clips: int) -> Path:
    for number in range(2):
        rng = np.random.default_rng(number)
        coarse = rng.integers(30, 220, (9, 16, 3), np.uint8).repeat(80, 0).repeat(80, 1)
        picture = coarse + rng.integers(0, 12, coarse.shape, np.uint8)
        panned = [np.roll(picture, (t, 2 * t), (0, 1)) for t in range(FILE_FRAMES)]
        write_video(folder / f"{number}.mp4", np.stack(panned), 24.0)
    shape = {"num_frames": FILE_FRAMES, "height": 720, "width": 1280, "fps": 24.0}
    rows = [{"path": f"{i % 2}.mp4", "text": str(i), **shape} for i in range(clips)]
    write_manifest(folder / "clips.parquet", rows)
    return folder / "clips.parquet"


class Run:
    """One way of filling a new cache with the manifest's clips."""

    def __init__(self, manifest: Path, folder: Path, autoencoder: VideoDCAE) -> None:
        self.cfg = DataConfig(
            manifest=str(manifest), buckets={RESOLUTION: {str(FRAMES): BucketConfig(batch=1)}}
        )
        self.done_at: list[float] = []
        settings = settings_of({}, facts_of(autoencoder, TEXT), torch.float32, suffix=False)
        self.codec = ClipCodec(
            LatentCache(folder, settings),
            autoencoder,
            TEXT,
            self.cfg,
            suffix=False,
            device=DEVICE,
            dtype=torch.float32,
        )
        self.manifest = Manifest.open(manifest)
        table = BucketTable(self.cfg, GEOMETRY)
        assigned = assign(table, self.manifest, None).bucket_of_row
        self.buckets: list[Bucket] = [table.buckets[number] for number in assigned]

    def fields(self, row: int) -> dict[str, Any]:
        return self.codec.fields(self.manifest[row], self.buckets[row])

    def request(self, row: int) -> ClipRequest:
        return self.codec.request(self.manifest[row], self.fields(row))

    def one_after_the_other(self) -> None:
        self._encode(read(self.request(row)) for row in range(len(self.buckets)))

    def by_dataloader(self, workers: int) -> None:
        clips = Clips([self.request(row) for row in range(len(self.buckets))])
        self._encode(DataLoader(clips, batch_size=None, num_workers=workers))

    def by_vidgen(self, workers: int) -> None:
        encode_manifest(
            replace(self.cfg, workers=workers),
            self.manifest,
            self.codec,
            device=DEVICE,
            geometry=GEOMETRY,
            progress=lambda _: self.done_at.append(time.perf_counter()),
        )

    def _encode(self, pixels: Iterable[Tensor]) -> None:
        for row, pixels_THWC in enumerate(pixels):
            self.codec.encode(pixels_THWC, row, self.fields(row))
            self.done_at.append(time.perf_counter())

    def reading_alone(self) -> None:
        for row in range(len(self.buckets)):
            read(self.request(row))
            self.done_at.append(time.perf_counter())

    def encoding_alone(self) -> None:
        pixels_THWC = read(self.request(0))
        self._encode(pixels_THWC for _ in self.buckets)


class Clips(Dataset[Tensor]):
    def __init__(self, requests: list[ClipRequest]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, row: int) -> Tensor:
        return read(self._requests[row])


def read(request: ClipRequest) -> Tensor:
    return torch.from_numpy(
        read_clip(request.path, request.frame_indices, size=request.size, expect=request.expect)
    )


WAYS: dict[str, Callable[[Run], None]] = {
    "ruler: reading alone, one process": Run.reading_alone,
    "ruler: encoding alone": Run.encoding_alone,
    "one after the other": Run.one_after_the_other,
    "vidgen encode, 1 worker": lambda run: run.by_vidgen(1),
    "vidgen encode, 2 workers": lambda run: run.by_vidgen(2),
    "DataLoader, 1 worker": lambda run: run.by_dataloader(1),
    "DataLoader, 2 workers": lambda run: run.by_dataloader(2),
    "vidgen encode again: all there": lambda run: run.by_vidgen(1),
}


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", help="the file of results, if not the machine's own")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    autoencoder = VideoDCAE(CONFIG).to(DEVICE).eval().requires_grad_(False)
    settings = {
        "device": DEVICE,
        "clips": args.clips,
        "clip": f"{FRAMES} of {FILE_FRAMES} frames, {RESOLUTION}",
    }
    rows = results.Kept("encode", settings, args.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_clips(folder, args.clips)
        first = Run(manifest, folder / "first", autoencoder)
        first.codec.encode(read(first.request(0)), 0, first.fields(0))
        for what, way in WAYS.items():
            run = Run(manifest, folder / "cache", autoencoder)
            begun = time.perf_counter()
            way(run)
            seconds = time.perf_counter() - begun
            rows.add(
                {
                    "what": what,
                    "clips_per_s": args.clips / seconds,
                    "s_to_first_clip": run.done_at[0] - begun,
                }
            )
            if not what.startswith("ruler: reading") and "DataLoader, 2" not in what:
                shutil.rmtree(folder / "cache")
    before = next(r["clips_per_s"] for r in rows if r["what"] == "one after the other")
    slower = min(r["clips_per_s"] for r in rows if r["what"].startswith("ruler"))
    for row in rows:
        row["times_one_after_the_other"] = row["clips_per_s"] / before
        row["of_slower_ruler"] = row["clips_per_s"] / slower
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--clips", "4")


def test_encode(suite: Callable[..., None]) -> None:
    suite(main, "encode", QUICK)


if __name__ == "__main__":
    main()
