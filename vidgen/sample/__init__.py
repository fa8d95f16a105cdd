"""Sampling: prompts in, videos out."""

from vidgen.sample.files import make_requests, write_samples
from vidgen.sample.pipeline import Pipeline, Request

__all__ = ["Pipeline", "Request", "make_requests", "write_samples"]
