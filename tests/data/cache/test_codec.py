"""Batches of latents: from a cache, from a part of one, from a damaged one."""

import os
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from vidgen.data import DataConfig, open_loader
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.encode import encode_manifest
from vidgen.data.cache.entries import ABSENT, EntryRequest, Layout
from vidgen.data.cache.latents import LatentCache, facts_of, settings_of
from vidgen.data.config import LatentsConfig
from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.data.loader import Latents, Loader
from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.models.text.builtin import BuiltinText
from vidgen.models.text.config import TextConfig

TEXT = BuiltinText(TextConfig(length=8, token_width=8, pooled_width=6))
BUCKETS = {"32px": {"5-33": {"batch": 4}}}


@pytest.fixture
def some(clip_set: Any, tmp_path: Path) -> Path:
    """A manifest, of its own files, of the first twelve clips."""
    for i in range(12):
        shutil.copy(clip_set.manifest.parent / f"{i}.mp4", tmp_path)
    write_manifest(tmp_path / "some.parquet", clip_set.rows[:12])
    return tmp_path / "some.parquet"


def config(manifest: Path, **changes: Any) -> DataConfig:
    fields: dict[str, Any] = {"manifest": str(manifest), "buckets": BUCKETS, "workers": 0}
    return DataConfig(**(fields | changes))


def encode(
    manifest: Path,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    conditions: Collection[str] = (),
) -> str:
    cfg = config(manifest)
    codec = codec_of(cfg, folder, dtype, conditions)
    return str(encode_manifest(cfg, Manifest.open(manifest), codec, device="cpu"))


class Counted(BlockDCT):
    calls = 0
    threads: ClassVar[set[str]] = set()

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        Counted.calls += 1
        Counted.threads.add(threading.current_thread().name)
        return super().encode(*args, **kwargs)


def opened(
    manifest: Path,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    conditions: Collection[str] = (),
    ahead: int = 0,
    rolling_bytes: int | None = None,
    **changes: Any,
) -> Loader:
    latents = LatentsConfig(folder=str(folder), ahead=ahead)
    cfg = config(manifest, latents=latents, **changes)
    codec = codec_of(cfg, folder, dtype, conditions, rolling_bytes)
    return open_loader(cfg, seed=3, rank=0, world=1, device="cpu", codec=codec)


def codec_of(
    cfg: DataConfig,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    conditions: Collection[str] = (),
    rolling_bytes: int | None = None,
) -> ClipCodec:
    autoencoder = Counted(BlockDCTConfig())
    settings = settings_of({}, facts_of(autoencoder, TEXT), dtype, suffix=True)
    return ClipCodec(
        LatentCache(folder, settings, rolling_bytes=rolling_bytes),
        autoencoder,
        TEXT,
        cfg,
        suffix=True,
        device="cpu",
        dtype=dtype,
        conditions=conditions,
    )


def take(loader: Loader, count: int) -> list[tuple[list[int], Latents]]:
    Counted.calls = 0
    batches = [next(loader) for _ in range(count)]
    found = []
    for batch in batches:
        assert batch.latents is not None
        found.append((batch.keys, batch.latents))
        with pytest.raises(ValueError, match="of latents"):
            _ = batch.video_BTHWC
    return found


def same(one: list[tuple[list[int], Latents]], other: list[tuple[list[int], Latents]]) -> bool:
    return all(
        a == b
        and torch.equal(x.latent_BCTHW, y.latent_BCTHW)
        and torch.equal(x.text.tokens_BLD, y.text.tokens_BLD)
        and torch.equal(x.text.pooled_BD, y.text.pooled_BD)
        and set(x.given) == set(y.given)
        and all(torch.equal(x.given[name], value) for name, value in y.given.items())
        for (a, x), (b, y) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_gives_what_encoding_gives(some: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    with opened(some, tmp_path / "rolling", dtype) as loader:
        made = take(loader, 2)
        assert Counted.calls == loader.computed == 8
        again = take(loader, 4)
        assert loader.cached + loader.computed == 24
        assert loader.computed == Counted.calls + 8 <= 12  # each clip once
    assert again
    assert encode(some, tmp_path / "encoded", dtype) == "cached 0 / computed 12"
    for workers in (0, 2):
        with opened(some, tmp_path / "encoded", dtype, workers=workers) as loader:
            assert same(take(loader, 2), made)
            assert (Counted.calls, loader.cached, loader.computed) == (0, 8, 0)
            assert made[0][1].latent_BCTHW.dtype == dtype
    _, latents = made[0]
    assert latents.text.tokens_BLD.shape == (4, 8, 8)
    assert latents.latent_BCTHW.abs().amax((1, 2, 3, 4)).min() > 0
    said = TEXT.encode([f"clip {made[0][0][0]} 24 FPS, {made[0][0][0] / 2:.0f} motion score."])
    if made[0][0][0]:
        assert torch.equal(latents.text.pooled_BD[:1], said.pooled_BD.to(dtype))


def test_damaged_and_missing_entries_are_computed(
    some: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    encode(some, folder)
    with opened(some, folder) as loader:
        expected = take(loader, 2)
    files = sorted(folder.glob("*/*.safetensors"))
    content = bytearray(files[0].read_bytes())
    content[-9] ^= 1  # one bit of a value
    for path, damaged in zip(files, (bytes(content), b"", b"\xff" * 99, None), strict=False):
        path.unlink() if damaged is None else path.write_bytes(damaged)
    with opened(some, folder) as loader:
        assert same(take(loader, 2), expected)
        take(loader, 14)  # enough epochs to meet every clip
        assert loader.computed == 4
    assert caplog.text.count("is damaged and counts as missing") == 3
    assert encode(some, folder) == "cached 12 / computed 0"


@pytest.mark.parametrize("workers", [0, 2])
def test_encoding_ahead_changes_nothing(some: Path, tmp_path: Path, workers: int) -> None:
    how: dict[str, Any] = {"conditions": ("i2v_loop",), "workers": workers}
    with opened(some, tmp_path / "on the step", **how) as loader:
        expected = take(loader, 7)
        state = loader.state_dict()
        counts = loader.cached, loader.computed
    with opened(some, tmp_path / "ahead", ahead=3, rolling_bytes=10**6, **how) as loader:
        Counted.threads.clear()
        assert same(take(loader, 7), expected)
        assert Counted.threads == {"vidgen-ahead"}
        assert loader.state_dict() == state  # whatever was made beyond
        assert loader.cached + loader.computed == sum(counts)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("vidgen-")]
    # A resume of a resume, the second within an epoch; the first rolled from an empty folder.
    for begin, count in ((0, 2), (2, 3), (5, 2)):
        folder = tmp_path / f"resumed {begin}"
        with opened(some, folder, ahead=2, rolling_bytes=10**6, **how) as loader:
            if begin:
                loader.load_state_dict(state)
            assert same(take(loader, count), expected[begin : begin + count])
            state = loader.state_dict()


def test_a_small_budget_changes_nothing_and_is_kept(some: Path, tmp_path: Path) -> None:
    with opened(some, tmp_path / "all") as loader:
        expected = take(loader, 12)
        assert loader.computed == 12
    size = max(path.stat().st_size for path in (tmp_path / "all").glob("*/*"))
    budget, folder = 5 * size, tmp_path / "rolling"
    with opened(some, folder, ahead=2, rolling_bytes=budget) as loader:
        for batch in expected:
            assert same(take(loader, 1), [batch])
            assert sum(path.stat().st_size for path in folder.glob("*/*.safetensors")) <= budget
        assert loader.computed > 12  # some were dropped and met again


def test_an_entry_that_is_used_is_kept(some: Path, tmp_path: Path) -> None:
    encode(some, tmp_path / "kept")
    path = next((tmp_path / "kept").glob("*/*.safetensors"))
    os.utime(path, (1, 1))
    layout = Layout((("pooled_D", "F32", (6,)),))
    for touch in (False, True):
        assert EntryRequest(str(path), layout, touch)(np.empty(layout.nbytes, np.uint8)) is None
        assert (path.stat().st_mtime > 1) is touch
    layout = Layout((("given_head_1", "F32", (6,)),))
    assert EntryRequest(str(path), layout)(np.empty(layout.nbytes, np.uint8)) == ABSENT


def test_what_fails_ahead_is_said_when_its_batch_is_asked_for(some: Path, tmp_path: Path) -> None:
    with opened(some, tmp_path / "cache", ahead=2) as loader:
        expected = take(loader, 1)
    for i in range(12):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    with opened(some, tmp_path / "cache", ahead=2) as loader:
        for _ in range(2):
            with pytest.raises(UserError, match=r"none of the \d+ clips of bucket"):
                next(loader)
    assert expected


def test_a_clip_that_has_gone_is_passed_over(some: Path, tmp_path: Path) -> None:
    (tmp_path / "4.mp4").write_bytes(b"")
    with opened(some, tmp_path / "cache") as loader:
        keys = {key for batch_keys, _ in take(loader, 4) for key in batch_keys}
        assert set(loader.bad_clips) == {4}
    assert 4 not in keys


def test_crops_and_mirrors_are_refused(some: Path, tmp_path: Path) -> None:
    for change in ({"crop": "random"}, {"flip": True}):
        with pytest.raises(UserError, match=r"set data\.crop=center data\.flip=false"):
            opened(some, tmp_path / "cache", **change)
