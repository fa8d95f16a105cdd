"""Text to image to video: an image model draws the frame that a video then begins with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from vidgen.data.index.buckets import parse_resolution, shape_of
from vidgen.errors import UserError
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.pipeline import Pipeline
from vidgen.sample.request import Request
from vidgen.sample.run import agreed, free_names, make_folder, write_sample

RESOLUTION = "768px"  # as published, whatever the video's
GUIDANCE = 4.0  # FLUX.1-dev reads it as an input


def draw_first_frames(
    painter: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    *,
    resolution: str = RESOLUTION,
    guidance: float = GUIDANCE,
    team: Team = ALONE,
) -> list[Request]:
    """Requests that begin with a picture of `painter`'s, which is kept beside the videos."""
    for request in requests:
        if request.condition != "t2v":
            raise UserError(f"an image model draws the first frame itself: no {request.condition}")
        if request.frames == 1:
            raise UserError("a first frame needs a video to begin; give more than 1 frame")
    paths = agreed(free_names(make_folder(out), [".png"] * len(requests), "first-"))
    pictures = [_picture(painter, request, resolution, guidance) for request in requests]
    for picture in pictures:
        painter.check(picture)
    mine = list(zip(pictures, paths, strict=True))[team.index :: team.count]
    features = painter.features([picture for picture, _ in mine])
    for picture, path in mine:
        video = painter.video(picture, features, team=team)
        if team.leads:
            write_sample(path, video, picture, painter.source, painter.weights_hash)
    if dist.is_initialized():
        dist.barrier()  # every rank of a team reads the file
    return [
        replace(request, condition="i2v_head", ref=(str(path),))
        for request, path in zip(requests, paths, strict=True)
    ]


def _picture(painter: Pipeline, request: Request, resolution: str, guidance: float) -> Request:
    """The video's prompt, seed and aspect ratio."""
    area, _ = parse_resolution(resolution)
    unit = painter.autoencoder.compression[1] * painter.system.model.patch_size
    height, width = shape_of(area, request.width / request.height, unit)
    return replace(request, frames=1, height=height, width=width, guidance=guidance)
