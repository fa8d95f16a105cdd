"""Prefetch: worker threads fill leased slots, a lane brings them to the device ahead of time."""

from vidgen.runtime.loader.feed import Feed, Job

__all__ = ["Feed", "Job"]
