"""Ranks that work on the same sample train on the same clip, whichever rank cannot read it."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.data import DataConfig, open_loader
from vidgen.data.read.video import ClipRequest
from vidgen.data.synthetic.shapes import TRAINED, write_dataset
from vidgen.runtime.loader.processes import Lost

BATCHES = 8
# For each case: of each rank, the rows (in the order they are first read) that fail there.
CASES: dict[str, dict[int, list[int]]] = {
    "nothing": {},
    "one clip on rank 1": {1: [1]},
    "one clip on rank 0": {0: [2]},
    "another clip on each": {0: [1], 1: [6]},
    "a replacement too": {0: [0, 9], 1: [0, 1, 8]},
    "the same on both": {0: [3], 1: [3]},
    "in a later batch": {1: [9, 10]},
    "many": {0: [0, 5, 7], 1: [4, 6, 11]},
}
read = ClipRequest.__call__


def _batches(loader: Any) -> list[tuple[list[int], str]]:
    found = []
    for _ in range(BATCHES):
        batch = next(loader)
        digest = hashlib.sha256(batch.video_BTHWC.numpy().tobytes()).hexdigest()
        found.append((batch.keys, digest))
    return found


def _open(manifest: str, workers: int = 0, **more: Any) -> Any:
    config = DataConfig(
        manifest=manifest,
        buckets={"32px_ar1:1": {"9": {"batch": 3}}},
        workers=workers,
        prefetch=2,
        clip_timeout_s=20,
    )
    return open_loader(config, seed=3, rank=0, world=1, device="cpu", **more)


def _fail_for(paths: set[str], how: str) -> Callable[[ClipRequest, np.ndarray], Any]:
    def call(self: ClipRequest, out: np.ndarray) -> Any:
        if self.path not in paths:
            return read(self, out)
        return "injected" if how == "error" else Lost("no answer in 60 s")

    return call


def _read(rank: int, world: int, folder: Path, manifest: str) -> dict[str, Any]:
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "store"), world)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found: dict[str, Any] = {}
    with _open(manifest) as loader:
        rows = [key for keys, _ in _batches(loader) for key in keys]
        paths = {row: str(loader.manifest[row].path) for row in rows}
    order = list(dict.fromkeys(rows))
    for how in ("error", "timeout"):
        for case, failing in CASES.items():
            mine = {paths[order[place]] for place in failing.get(rank, [])}
            ClipRequest.__call__ = _fail_for(mine, how)  # type: ignore[method-assign]
            with _open(manifest, group=dist.group.WORLD) as loader:
                group = _batches(loader)
                bad, replaced = sorted(loader.bad_clips), loader.replaced
            every = {paths[order[p]] for places in failing.values() for p in places}
            ClipRequest.__call__ = _fail_for(every, how)  # type: ignore[method-assign]
            with _open(manifest) as loader:
                alone = _batches(loader)
            found[f"{how}: {case}"] = [group, bad, replaced, alone]
    ClipRequest.__call__ = read  # type: ignore[method-assign]
    dist.destroy_process_group()
    return found


@pytest.mark.slow
def test_ranks_of_a_group_get_the_same_clips(
    ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    manifest = write_dataset(tmp_path, scenes=TRAINED[:12], clips=((9, 2),), side=32, seed=1)
    first, second = ranks(_read, 2, str(manifest))
    assert len(first) == 2 * len(CASES)
    for case in first:
        batches, bad, replaced, alone = first[case]
        assert second[case][:3] == [batches, bad, replaced], case
        # A case is also what one process reads that finds all these clips unreadable, but for
        # clips that a batch before the discovery has held.
        if "replacement" not in case and "many" not in case and "later" not in case:
            assert batches == alone, case
        assert (replaced > 0) == bool(bad) == (not case.endswith("nothing")), case


def test_a_replacement_is_read_by_a_worker(tmp_path: Path) -> None:
    """With workers, as training has them: the slot's bytes come back, and the worker ends."""
    from vidgen.data.read.group import ReadingGroup

    manifest = write_dataset(tmp_path, scenes=TRAINED[:12], clips=((9, 1),), side=32, seed=1)
    with _open(str(manifest), workers=1) as loader:
        plan, contents, samples = (loader._begin())()
        before = contents.clone()
        group: ReadingGroup[Any] = ReadingGroup(
            None,  # type: ignore[arg-type]
            loader._reader,
            loader._cfg,
            {plan.step.bucket: tuple(contents.shape[1:])},
            loader._replace,
        )
        loader._reader.learn({samples[1].clip.row: "on purpose"})
        [(sample, data)] = group._read(plan, [1])
        assert sample.clip.row == loader._reader.choice(plan, 1) != samples[1].clip.row
        loader._replace(contents, 1, plan, sample, data)
        assert contents[0].equal(before[0])
        assert contents[1].equal(data)
        assert not contents[1].equal(before[1])
        del contents, data
