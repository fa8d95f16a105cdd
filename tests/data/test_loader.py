import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.data import DataConfig, open_loader
from vidgen.data.index.manifest import write_manifest
from vidgen.data.loader import Batch, Loader
from vidgen.errors import UserError


def config(manifest: Path, batch: int = 4, **changes: Any) -> DataConfig:
    fields: dict[str, Any] = {
        "manifest": str(manifest),
        "buckets": {"32px": {"5-33": {"batch": batch}}},
    }
    return DataConfig(**(fields | changes))


def opened(
    manifest: Path,
    rank: int = 0,
    world: int = 1,
    seed: int = 5,
    accumulate: int = 1,
    **changes: Any,
) -> Loader:
    where: dict[str, Any] = {"seed": seed, "rank": rank, "world": world, "accumulate": accumulate}
    return open_loader(config(manifest, **changes), device="cpu", **where)


def prints(batch: Batch) -> list[tuple[int, str]]:
    """Each sample's row and the hash of its pixels."""
    return [
        (key, hashlib.sha256(video.numpy().tobytes()).hexdigest()[:8])
        for key, video in zip(batch.keys, batch.video_BTHWC, strict=True)
    ]


def take(loader: Loader, count: int) -> list[list[tuple[int, str]]]:
    return [prints(next(loader)) for _ in range(count)]


def test_a_batch(clip_set: Any) -> None:
    with opened(clip_set.manifest) as loader:
        batch = next(iter(loader))
    frames = batch.bucket.frames
    assert frames in (17, 33)
    assert batch.video_BTHWC.shape == (4, frames, batch.bucket.height, batch.bucket.width, 3)
    assert batch.video_BTHWC.dtype == torch.uint8
    assert batch.captions == [f"clip {key}" for key in batch.keys]
    assert batch.fps == [24.0] * 4
    assert batch.motion == [None if key == 0 else key / 2 for key in batch.keys]
    for key, video in zip(batch.keys, batch.video_BTHWC, strict=True):
        # As conftest wrote them: the left half tells the clip, the right half the frame.
        left, right = video[:, 16, 4, 0].float(), video[:, 16, 28, 0].float()
        assert (left - (20 + 6 * (key % 37))).abs().max() <= 4
        assert (right - (20 + 6 * (torch.arange(frames) % 37))).abs().max() <= 4


CHANGES: dict[str, Any] = {
    "crop": "random",
    "flip": True,
    "buckets": {"16px": {"5-9": {"batch": 4}}},
}


@pytest.fixture(scope="module")
def reference(clip_set: Any) -> list[list[tuple[int, str]]]:
    """20 steps over several epochs: windows, crops and flips drawn."""
    with opened(clip_set.manifest, workers=1, **CHANGES) as loader:
        assert loader.steps_in_epoch < 10
        return take(loader, 20)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_workers_and_prefetch_change_nothing(
    clip_set: Any, reference: Any, workers: int, prefetch: int
) -> None:
    with opened(clip_set.manifest, workers=workers, prefetch=prefetch, **CHANGES) as loader:
        assert take(loader, 20) == reference


def test_the_cache_changes_nothing(clip_set: Any, reference: Any) -> None:
    with opened(clip_set.manifest, cache_bytes=200_000, **CHANGES) as loader:
        assert take(loader, 20) == reference


def test_the_cache_is_used_and_bounded(clip_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import vidgen.data.read.video as module

    calls = 0
    real = module.read_clip

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "read_clip", counted)
    for room, expected in ((1 << 30, range(30, 33)), (33 * 32 * 32 * 3, range(40, 82))):
        calls = 0
        buckets = {"32px_ar1:1": {17: {"batch": 1}, 33: {"batch": 1}}}
        with opened(clip_set.manifest, buckets=buckets, workers=0, cache_bytes=room) as loader:
            for _ in range(2 * loader.steps_in_epoch):
                next(loader)
        assert calls in expected


SHARES = [(2, 1), (4, 1), (1, 4), (2, 2), (1, 2)]  # ranks, micro-steps


def all_ranks(
    manifest: Path, world: int, accumulate: int, steps: int, **changes: Any
) -> tuple[list[list[tuple[int, str]]], list[Loader]]:
    """The samples of each step, as all ranks and micro-steps read them, and the loaders."""
    batch = 4 // (world * accumulate)
    changes = CHANGES | {"buckets": {"16px": {"5-9": {"batch": batch}}}} | changes
    loaders, ranks = [], []
    for rank in range(world):
        with opened(manifest, rank, world, accumulate=accumulate, **changes) as loader:
            ranks.append(take(loader, steps * accumulate))
            loaders.append(loader)
    read = []
    for step in range(steps):
        micro = range(step * accumulate, (step + 1) * accumulate)
        read.append([sample for m in micro for rank in ranks for sample in rank[m]])
    return read, loaders


@pytest.mark.parametrize(("world", "accumulate"), SHARES)
def test_ranks_and_micro_steps_share_the_same_steps(
    clip_set: Any, reference: Any, world: int, accumulate: int
) -> None:
    read, loaders = all_ranks(clip_set.manifest, world, accumulate, 6, workers=0)
    assert read == reference[:6]
    assert loaders[0].state_dict()["micro_step"] == 0


def test_a_step_has_one_bucket_and_resumes_in_its_middle(clip_set: Any) -> None:
    how: dict[str, Any] = {"accumulate": 3, "batch": 2, "workers": 0}
    with opened(clip_set.manifest, **how) as loader:
        batches = [next(loader) for _ in range(9)]
        state = loader.state_dict()
        assert (state["step"], state["micro_step"]) == (batches[-1].step_in_epoch + 1, 0)
        next(loader)
        state = loader.state_dict()
        assert state["micro_step"] == 1
        rest = take(loader, 4)
    assert [batch.micro_step for batch in batches] == [0, 1, 2] * 3
    for step in range(3):
        assert len({batch.bucket for batch in batches[3 * step : 3 * step + 3]}) == 1
    with opened(clip_set.manifest, **how) as loader:
        loader.load_state_dict(state)
        assert take(loader, 4) == rest
    with (
        opened(clip_set.manifest, accumulate=2, batch=3) as loader,
        pytest.raises(UserError, match="after micro-step 1 of 3, this run has 2 a step"),
    ):
        loader.load_state_dict(state)


def test_batches_from_a_token_budget(clip_set: Any) -> None:
    """One token is 4 frames of 16x16 here: 17 frames of 32x32 are 20 tokens, 33 are 36."""
    buckets = {"32px": {"17": {}, "33": {"batch": 1}}}
    with opened(clip_set.manifest, buckets=buckets, tokens=100, workers=0) as loader:
        sizes = {(b.bucket.frames, len(b.keys)) for b in (next(loader) for _ in range(8))}
    assert sizes == {(17, 5), (33, 1)}
    for tokens, message in ((None, "data.tokens=..."), (19, "set data.tokens=20 or more")):
        with pytest.raises(UserError, match=message):
            opened(clip_set.manifest, buckets=buckets, tokens=tokens)


def test_resume_of_a_resume_across_worlds_and_workers(clip_set: Any, reference: Any) -> None:
    state: dict[str, Any] | None = None
    read: list[list[tuple[int, str]]] = []
    for world, workers, count in ((1, 1, 3), (2, 0, 4), (4, 4, 1), (1, 2, 5), (2, 1, 7)):
        changes = CHANGES | {"buckets": {"16px": {"5-9": {"batch": 4 // world}}}}
        ranks, states = [], []
        for rank in range(world):
            where: dict[str, Any] = {"rank": rank, "world": world, "workers": workers}
            with opened(clip_set.manifest, **where, **changes) as loader:
                if state is not None:
                    loader.load_state_dict(json.loads(json.dumps(state)))
                ranks.append(take(loader, count))
                states.append(loader.state_dict())
        assert all(s == states[0] for s in states)
        state = states[0]
        read += [[x for part in parts for x in part] for parts in zip(*ranks, strict=True)]
    assert read == reference
    assert len(json.dumps(state)) < 1024


def test_state_is_of_batches_handed_out_not_read_ahead(clip_set: Any) -> None:
    with opened(clip_set.manifest, workers=4, prefetch=6) as loader:
        assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (0, 0)
        batch = next(loader)
        assert (batch.epoch, batch.step_in_epoch) == (0, 0)
        assert loader.state_dict()["step"] == 1
        again = take(loader, 2)
        state = loader.state_dict()
        rest = take(loader, 9)
        loader.load_state_dict(state)  # going back, in the same loader
        assert take(loader, 9) == rest != again


def test_restoring_reads_nothing_that_was_read(clip_set: Any, monkeypatch: Any) -> None:
    with opened(clip_set.manifest) as loader:
        take(loader, 5)
        state = loader.state_dict()
    import vidgen.data.read.video as module

    read: list[Any] = []
    real = module.read_clip
    monkeypatch.setattr(module, "read_clip", lambda *a, **k: (read.append(a[0]), real(*a, **k))[1])
    with opened(clip_set.manifest, workers=0) as loader:
        loader.load_state_dict(state)
        assert read == []
        keys = next(loader).keys
    assert [Path(path).name for path in read] == [f"{key}.mp4" for key in keys]


def test_skip_passes_over_steps(clip_set: Any, reference: Any) -> None:
    with opened(clip_set.manifest, **CHANGES) as loader:
        assert take(loader, 2) == reference[:2]
        loader.skip(11)  # into another epoch
        assert take(loader, 3) == reference[13:16]
        state = loader.state_dict()
        assert state["skipped"] == 11
    with opened(clip_set.manifest, **CHANGES) as loader:
        loader.load_state_dict(state)
        assert loader.skipped == 11
        assert take(loader, 4) == reference[16:]


def test_resume_refuses_what_would_not_be_exact(clip_set: Any, tmp_path: Path) -> None:
    with opened(clip_set.manifest, world=2, batch=2) as loader:
        state = loader.state_dict()
    other = clip_set.manifest.with_name("other.parquet")
    rows = [dict(row) for row in clip_set.rows]
    rows[4]["text"] = "another caption"
    write_manifest(other, rows[:-1])
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"manifest": other}, r"33 rows then, 32 now; column\(s\) path, text, .* differ"),
        ({"seed": 6}, "seed 5, this run 6; resume with seed 5"),
        ({"buckets": {"32px": {"5-17": {"batch": 2}}}}, "data.buckets .* differ"),
        ({"flip": True}, "flip or whether .* differ"),
        ({"fps_max": 12.0}, "fps_max"),
        (
            {"world": 1},
            "2 data-parallel ranks x 1 micro-steps, now there are 1 x 1: .* to 2 times",
        ),
        ({"world": 4}, "now there are 4 x 1: set every data.buckets batch .* to 2/4 times"),
        ({"batch": 3}, "set every data.buckets batch .* back"),
    ]
    for change, message in refusals:
        where: dict[str, Any] = {"manifest": clip_set.manifest, "world": 2, "batch": 2} | change
        with opened(**where) as loader, pytest.raises(UserError, match=message) as caught:
            loader.load_state_dict(state)
        assert "\n" not in str(caught.value)
    with opened(clip_set.manifest, batch=4, workers=3, prefetch=4) as loader:
        loader.load_state_dict(state)  # the same global batch
    with opened(clip_set.manifest) as loader, pytest.raises(UserError, match="version 9"):
        loader.load_state_dict(state | {"version": 9})


def test_bad_clips_are_replaced_counted_and_change_no_other(
    clip_set: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in clip_set.manifest.parent.glob("*.mp4"):
        (tmp_path / path.name).symlink_to(path)
    bad = {
        2: b"",
        7: b"nothing of a video",
        11: (clip_set.manifest.parent / "11.mp4").read_bytes()[:300],
    }
    for row, content in bad.items():
        (tmp_path / f"{row}.mp4").unlink()
        (tmp_path / f"{row}.mp4").write_bytes(content)
    write_manifest(tmp_path / "clips.parquet", clip_set.rows)
    with opened(clip_set.manifest) as loader:
        steps = loader.steps_in_epoch
        good = take(loader, steps)
    runs = []
    for workers in (0, 1, 4):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING),
            opened(tmp_path / "clips.parquet", workers=workers, prefetch=1 + workers) as loader,
        ):
            runs.append((take(loader, steps), loader.replaced))
            assert set(loader.bad_clips) <= set(bad)
        warnings = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
        assert len(warnings) == len(set(warnings)) == len(loader.bad_clips)
    assert runs[0] == runs[1] == runs[2]
    replaced = 0
    for before, after in zip(good, runs[0][0], strict=True):
        for x, y in zip(before, after, strict=True):
            replaced += x[0] in bad
            assert (x == y) == (x[0] not in bad)
            assert y[0] not in bad
        assert len({key for key, _ in after}) == 4
    assert 0 < replaced == runs[0][1]


@pytest.mark.parametrize(("world", "accumulate"), SHARES)
def test_bad_clips_are_replaced_alike_at_any_world(
    clip_set: Any, tmp_path: Path, world: int, accumulate: int
) -> None:
    bad = {1, 4, 5, 12, 13, 20}
    for i in range(len(clip_set.rows)):
        if i in bad:
            (tmp_path / f"{i}.mp4").write_bytes(b"nothing of a video")
        else:
            (tmp_path / f"{i}.mp4").symlink_to(clip_set.manifest.parent / f"{i}.mp4")
    write_manifest(tmp_path / "clips.parquet", clip_set.rows)
    one, (alone,) = all_ranks(tmp_path / "clips.parquet", 1, 1, 10, workers=0)
    read, loaders = all_ranks(tmp_path / "clips.parquet", world, accumulate, 10, workers=0)
    assert read == one
    union = {row: why for loader in loaders for row, why in loader.bad_clips.items()}
    assert union == alone.bad_clips
    assert sum(loader.replaced for loader in loaders) == alone.replaced
    with opened(tmp_path / "clips.parquet", bad_clip_limit=2) as loader:
        with pytest.raises(UserError, match=r"3 clips cannot be read, more than .*limit=2"):
            loader.check_bad_clips(dict(list(union.items())[:3]))
        loader.check_bad_clips(dict(list(union.items())[:2]))


def test_too_many_bad_clips_stop_the_run(clip_set: Any, tmp_path: Path) -> None:
    for i in range(len(clip_set.rows)):
        (tmp_path / f"{i}.mp4").touch()
    write_manifest(tmp_path / "clips.parquet", clip_set.rows)
    for workers in (0, 2):
        with (
            opened(tmp_path / "clips.parquet", workers=workers, bad_clip_limit=3) as loader,
            pytest.raises(UserError, match=r"4 clips cannot be read, more than data.bad_"),
        ):
            next(loader)
        with (
            opened(tmp_path / "clips.parquet", workers=workers) as loader,
            pytest.raises(UserError, match=r"none of the \d+ clips of bucket .* is an empty file"),
        ):
            next(loader)


def test_left_out_clips_are_said(clip_set: Any, caplog: pytest.LogCaptureFixture) -> None:
    with opened(clip_set.manifest):
        pass
    assert "1 an image, and no bucket has 1 frame" in caplog.text


def test_memory_is_fixed_after_opening(clip_set: Any) -> None:
    with opened(clip_set.manifest, workers=2, prefetch=3) as loader:
        take(loader, 12)
        stats = loader._arena.stats()
        assert stats.leases >= 12
        assert stats.registrations == 0  # none on a CPU; one, ever, with CUDA
        assert stats.high_water <= 3 * (4 * 33 * 32 * 32 * 3 + 256) * 2


def test_no_batch_is_an_error_when_opened(clip_set: Any) -> None:
    with pytest.raises(UserError, match="no batch can be made of the 33 clips"):
        opened(clip_set.manifest, batch=40)


def test_making_manifests_of_missing_files_fails(make_manifest: Callable[..., Path]) -> None:
    path = make_manifest([{}, {}])
    (path.parent / "1.mp4").unlink()
    with pytest.raises(UserError, match=r"1 of 2 files looked for are missing"):
        opened(path, batch=1)
