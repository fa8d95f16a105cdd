"""Text to image to video: an image model draws the first frame of a video."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from vidgen.data.index.buckets import parse_resolution, shape_of
from vidgen.errors import UserError
from vidgen.sample.output import agreed, free_names, make_folder, write_sample
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.pipeline import Pipeline, SamplingOptions
from vidgen.sample.request import Request

RESOLUTION = "768px"  # as published, whatever the video's
GUIDANCE = 4.0  # FLUX.1-dev reads it as an input


def draw_first_frames(
    images: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    *,
    resolution: str = RESOLUTION,
    guidance: float = GUIDANCE,
    team: Team = ALONE,
) -> list[Request]:
    """Requests that start from pictures drawn by `images` and saved beside the videos."""
    for request in requests:
        if request.condition != "t2v":
            raise UserError(f"an image model draws the first frame itself: no {request.condition}")
        if request.frames == 1:
            raise UserError("a first frame needs a video after it; give more than 1 frame")
    paths = agreed(free_names(make_folder(out), [".png"] * len(requests), "first-"))
    jobs = [images.check(_picture(images, each, resolution, guidance)) for each in requests]
    mine = list(zip(jobs, paths, strict=True))[team.index :: team.count]
    features = images.features([job for job, _ in mine])
    for job, path in mine:
        picture = images.video(job, features, SamplingOptions(team=team))
        if team.leads:
            write_sample(path, picture, job.request, images.source, images.weights_hash)
    if dist.is_initialized():
        dist.barrier()  # every rank of a team reads the file
    return [
        replace(request, condition="i2v_head", ref=(str(path),))
        for request, path in zip(requests, paths, strict=True)
    ]


def _picture(images: Pipeline, request: Request, resolution: str, guidance: float) -> Request:
    """The video's prompt, seed and aspect ratio."""
    area, _ = parse_resolution(resolution)
    height, width = shape_of(area, request.width / request.height, images.geometry.side)
    return replace(request, frames=1, height=height, width=width, guidance=guidance)
