"""Trains tiny recipes on one thread, in this process and in child processes."""

from tests.train.conftest import _one_thread, start, start_ranks, vidgen_main

__all__ = ["_one_thread", "start", "start_ranks", "vidgen_main"]
