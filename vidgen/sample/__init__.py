"""Sampling: prompts in, videos out."""

from vidgen.sample.first_frame import draw_first_frames, start_from_pictures
from vidgen.sample.pipeline import Pipeline
from vidgen.sample.request import Request, make_requests
from vidgen.sample.run import sample_to_folder

__all__ = [
    "Pipeline",
    "Request",
    "draw_first_frames",
    "make_requests",
    "sample_to_folder",
    "start_from_pictures",
]
