"""Text to image to video: an image model draws the first frame of a video."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from vidgen.config import to_dict
from vidgen.data.index.buckets import parse_resolution, shape_of
from vidgen.errors import UserError
from vidgen.recipe.image_model import ImageModelConfig
from vidgen.sample.output import agreed, free_names, make_folder, write_sample
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.pipeline import Pipeline, SamplingOptions
from vidgen.sample.request import Request


def start_from_pictures(
    pipeline: Pipeline,
    image: ImageModelConfig,
    requests: Sequence[Request],
    out: str | Path,
    *,
    every: bool = False,
    team: Team = ALONE,
) -> list[Request]:
    """Requests for videos from text alone start from a picture; all others are as they were.

    `every` refuses others instead.
    """
    chosen = [every or (one.condition == "t2v" and one.frames > 1) for one in requests]
    if not any(chosen):
        return list(requests)
    if not pipeline.recipe.model.cond_embed:
        raise UserError(
            "this model takes no image (model.cond_embed is false), so no picture can be its first "
            "frame; add --image-model none"
        )
    for one in requests:
        pipeline.check(one)  # before a picture takes its time
    images = open_images(pipeline, image, announce=team.leads and team.index == 0)
    wanted = [one for one, draw in zip(requests, chosen, strict=True) if draw]
    drawn = iter(draw_first_frames(images, wanted, out, image, team=team))
    images.close()
    return [next(drawn) if draw else one for one, draw in zip(requests, chosen, strict=True)]


def open_images(pipeline: Pipeline, image: ImageModelConfig, *, announce: bool = False) -> Pipeline:
    """The image model beside a video model; `announce` prints its licence."""
    for path in (image.path, getattr(image.autoencoder, "path", None)):
        if path is not None and not Path(path).exists():
            raise UserError(
                f"{path}: there is no such file, which the image model needs "
                "(sample.image_model); to sample without one add --image-model none"
            )
    if announce:
        print(f"first frames by {image.licence}", file=sys.stderr)
    autoencoder = to_dict(image.autoencoder)
    return pipeline.image_pipeline(image.path, autoencoder, image.kind, image.shift)


def draw_first_frames(
    images: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    image: ImageModelConfig,
    *,
    team: Team = ALONE,
) -> list[Request]:
    """Requests that start from pictures drawn by `images` and saved beside the videos."""
    for request in requests:
        if request.condition != "t2v":
            raise UserError(f"an image model draws the first frame itself: no {request.condition}")
        if request.frames == 1:
            raise UserError("a first frame needs a video after it; give more than 1 frame")
    paths = agreed(free_names(make_folder(out), [".png"] * len(requests), "first-"))
    jobs = [images.check(_picture(images, each, image)) for each in requests]
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


def _picture(images: Pipeline, request: Request, image: ImageModelConfig) -> Request:
    """The video's prompt, seed and aspect ratio."""
    area, _ = parse_resolution(image.resolution)
    height, width = shape_of(area, request.width / request.height, images.geometry.side)
    return replace(
        request,
        frames=1,
        height=height,
        width=width,
        steps=image.steps or request.steps,
        guidance=image.guidance,
    )
