"""Turning a command into requests, and videos into files that say how they were made."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidgen.data.buckets import BucketTable, parse_aspect, parse_resolution, shape_of
from vidgen.data.video import write_image, write_video
from vidgen.diffusion.sampler import Progress
from vidgen.errors import UserError
from vidgen.sample.pipeline import Pipeline, Request


def make_requests(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    seed: int = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    resolution: str | None = None,
    aspect: str | None = None,
    **given: Any,
) -> list[Request]:
    """`samples` requests a prompt, with seeds seed, seed + 1, ...; the rest is the recipe's.

    A sample's seed does not depend on how many prompts or samples there are beside it.
    """
    if (height is None) != (width is None):
        raise UserError("height and width go together; or give a resolution and an aspect")
    if height is not None and (resolution is not None or aspect is not None):
        raise UserError("height and width, or resolution and aspect: not both")
    seen = largest_bucket(pipeline)
    if height is None or width is None:
        height, width = seen[1:]
        if resolution is not None or aspect is not None:
            area, ratio = float(seen[1] * seen[2]), seen[2] / seen[1]
            if resolution is not None:
                area, named = parse_resolution(resolution)
                ratio = named or ratio
            if aspect is not None:
                ratio = parse_aspect(aspect)
            unit = pipeline.autoencoder.compression[1] * pipeline.system.model.patch_size
            height, width = shape_of(area, ratio, unit)
    defaults = pipeline.system.sample
    settings = {
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "guidance_img": defaults.guidance_img,
        "fps": defaults.fps,
        "motion_score": defaults.motion_score,
        **given,
    }
    if "ref" in settings:
        settings["ref"] = tuple(settings["ref"])
    return [
        Request(
            prompt=prompt,
            seed=seed + n,
            frames=seen[0] if frames is None else frames,
            height=height,
            width=width,
            **settings,
        )
        for prompt in prompts
        for n in range(samples)
    ]


def largest_bucket(pipeline: Pipeline) -> tuple[int, int, int]:
    """Frames, height and width of the longest and largest videos trained on, nearest to 16:9."""
    ae = pipeline.autoencoder
    table = BucketTable(
        pipeline.system.data,
        temporal_step=ae.compression[0],
        causal=ae.causal,
        spatial_multiple=ae.compression[1] * pipeline.system.model.patch_size,
    )
    frames = max(bucket.frames for bucket in table.buckets)
    shelf = next(shelf for shelf in table.shelves if frames in shelf.frames)  # by falling area
    height, width = min(shelf.shapes, key=lambda s: abs(math.log(s[1] / s[0] * 9 / 16)))
    return frames, height, width


def batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Neighbouring requests that share a shape, at most `size` of them."""
    batch: list[Request] = []
    for request in requests:
        if batch and (len(batch) == size or request.shared() != batch[0].shared()):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def write_samples(
    pipeline: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    *,
    batch: int = 1,
    crf: int = 18,
) -> list[Path]:
    """Generate and write every request, with a progress bar and a summary.json beside them."""
    from tqdm import tqdm

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the videos: {error.strerror}") from None
    written: list[Path] = []
    records = []
    with tqdm(total=sum(r.steps for r in requests), unit="step", desc="sample") as bar:
        for group in batches(requests, batch):
            began = time.perf_counter()
            videos = pipeline.generate(group, progress=_advance(bar, len(group)))
            seconds = (time.perf_counter() - began) / len(group)
            for request, video in zip(group, videos, strict=True):
                path = _free_name(folder, ".png" if request.frames == 1 else ".mp4")
                write_sample(path, video, request, pipeline.source, crf=crf)
                written.append(path)
                record = {"file": path.name, "seconds": round(seconds, 3), **asdict(request)}
                records.append(record)
    summary = {"source": pipeline.source, "videos": records}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return written


def _advance(bar: Any, videos: int) -> Progress:
    def one_step(done: int, steps: int) -> None:
        bar.update(videos)

    return one_step


def write_sample(
    path: Path, video_THWC: NDArray[np.uint8], request: Request, source: str, *, crf: int = 18
) -> None:
    """One video, whose metadata can make it again."""
    about = {
        "comment": f"{request.prompt} (seed {request.seed}, {source}, vidgen)",
        "prompt": request.prompt,
        "seed": str(request.seed),
        "recipe": source,
        "vidgen_request": request_record(request),
    }
    try:
        if request.frames == 1:
            write_image(path, video_THWC[0])
        else:
            write_video(path, video_THWC, request.fps, crf=crf, metadata=about)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def request_record(request: Request) -> str:
    """As `vidgen sample --like` reads it: keyword arguments of `make_requests`."""
    record = asdict(request)
    record["prompts"] = [record.pop("prompt")]
    return json.dumps(record)


def _free_name(folder: Path, suffix: str) -> Path:
    number = 0
    while (path := folder / f"{number:04d}{suffix}").exists():
        number += 1
    return path
