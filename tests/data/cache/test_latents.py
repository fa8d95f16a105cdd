import contextlib
import json
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from vidgen.data import DataConfig
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.encode import encode_manifest
from vidgen.data.cache.latents import (
    LatentCache,
    LatentEntry,
    facts_of,
    read_settings,
    settings_of,
)
from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.errors import UserError
from vidgen.models.text.encoder import TextFeatures
from vidgen.runtime.content_key import content_key
from vidgen.runtime.work import Counts, Progress


class MeanCodec:
    """Latents are the means of 4x8x8 blocks, the first frame alone."""

    latent_channels = 3
    compression = (4, 8, 8)
    causal = True
    calls = 0

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        self.calls += 1
        assert video_BCTHW.dtype == torch.float32
        assert video_BCTHW.abs().max() <= 1
        first = video_BCTHW[:, :, :1].repeat_interleave(4, 2)
        return torch.nn.functional.avg_pool3d(
            torch.cat([first, video_BCTHW[:, :, 1:]], 2), (4, 8, 8)
        )

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        raise AssertionError("encoding does not decode")


class LengthText:
    length, token_width, pooled_width = 2, 3, 4

    def encode(self, captions: list[str]) -> TextFeatures:
        number = torch.tensor([float(len(caption)) for caption in captions])
        return TextFeatures(number[:, None, None].expand(-1, 2, 3), number[:, None].expand(-1, 4))


BUCKETS = {"32px": {"5-33": {"batch": 1}}}
ENCODERS = {"autoencoder": {"kind": "mean"}, "text": {"length": 2}}


def encode(manifest: Path, out: Path, codec: MeanCodec | None = None, **changes: Any) -> Counts:
    """As `vidgen encode` does; `changes` of the cache's settings, the codec, or `data`."""
    fields = {"manifest": str(manifest), "buckets": BUCKETS, "workers": 0}
    data = DataConfig(**(fields | changes.pop("data", {})))
    encoders = changes.pop("encoders", ENCODERS)
    dtype = changes.pop("dtype", torch.float32)
    autoencoder = codec or MeanCodec()
    settings = settings_of(encoders, facts_of(autoencoder, LengthText()), dtype, suffix=False)
    clips = ClipCodec(
        LatentCache(out, settings),
        autoencoder,
        LengthText(),
        data,
        suffix=False,
        device="cpu",
        dtype=dtype,
        conditions=changes.pop("conditions", ()),
    )
    return encode_manifest(data, Manifest.open(manifest), clips, device="cpu", **changes)


def entries(out: Path) -> list[Path]:
    return sorted(out.glob("*/*.safetensors"))


@pytest.fixture
def some(clip_set: Any, tmp_path: Path) -> Path:
    """A manifest, of its own files, of the first six clips."""
    for i in range(6):
        (tmp_path / f"{i}.mp4").write_bytes((clip_set.manifest.parent / f"{i}.mp4").read_bytes())
    write_manifest(tmp_path / "some.parquet", clip_set.rows[:6])
    return tmp_path / "some.parquet"


def test_every_clip_is_encoded_and_found_again(some: Path, tmp_path: Path) -> None:
    out, codec, seen = tmp_path / "out", MeanCodec(), []
    counts = encode(some, out, codec, progress=lambda c: seen.append(str(c.counts)))
    assert counts == Counts(total=6, computed=6)
    assert seen[0] == "cached 0 / computed 1"
    assert seen[-1] == "cached 0 / computed 6"
    assert len(entries(out)) == codec.calls == 6
    facts = facts_of(MeanCodec(), LengthText())
    cache = LatentCache(out, settings_of(ENCODERS, facts, torch.float32, suffix=False))
    for path in entries(out):
        entry = cache.get(path.stem)
        assert entry is not None
        assert content_key(entry.fields) == path.stem
        clip, frames = int(entry.fields["path"].split(".")[0]), entry.fields["frames"]
        assert entry.fields["text"] == f"clip {clip}"
        assert frames == 17 + 16 * (clip % 2)
        assert entry.latent_CTHW.shape == (3, 1 + (frames - 1) // 4, 4, 4)
        level = (20 + 6 * clip) / 127.5 - 1  # conftest's left half
        assert (entry.latent_CTHW[:, :, :, 0] - level).abs().max() < 0.04
        assert (entry.tokens_LD == 6).all()
        assert entry.tokens_LD.shape == (2, 3)
        assert entry.pooled_D.shape == (4,)


def test_workers_change_nothing(some: Path, tmp_path: Path) -> None:
    encode(some, tmp_path / "here")
    (tmp_path / "3.mp4").touch()  # whose entry is then another
    content = {}
    for workers in (0, 3):
        out = tmp_path / f"by-{workers}"
        seen: list[Progress] = []
        how = {"data": {"workers": workers}, "conditions": ("i2v_tail",)}
        encode(some, out, progress=seen.append, **how)
        assert [progress.counts.computed for progress in seen] == [1, 2, 3, 4, 5, 6]
        content[workers] = {path.name: path.read_bytes() for path in entries(out)}
    assert content[0] == content[3]
    names = {path.name for path in entries(tmp_path / "here")}
    assert len(names & set(content[0])) == 5


def encode_until_killed(rank: int, world: int, folder: Path, manifest: str, out: str) -> None:
    def kill(progress: Progress) -> None:
        if progress.counts.computed == 3:
            (Path(out) / "00").mkdir(exist_ok=True)
            (Path(out) / "00" / ".half.safetensors.1.tmp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    encode(Path(manifest), Path(out), progress=kill, data={"workers": 2})


def test_a_killed_run_goes_on(ranks: Any, some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ranks(encode_until_killed, 1, str(some), str(out)) == [None]
    kept = {path: path.stat().st_mtime_ns for path in entries(out)}
    assert len(kept) == 3
    (half,) = out.rglob("*.tmp")
    os.utime(half, (0, 0))  # long ago
    assert encode(some, out) == Counts(total=6, cached=3, computed=3)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    encode(some, tmp_path / "whole")
    for path in entries(tmp_path / "whole"):
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_a_stopped_run_goes_on(some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.counts.computed == 2:
            raise Stop

    with pytest.raises(Stop):
        encode(some, out, progress=stop)
    first = {path: path.read_bytes() for path in entries(out)}
    assert len(first) == 2
    assert encode(some, out) == Counts(total=6, cached=2, computed=4)
    assert {path: path.read_bytes() for path in first} == first
    assert encode(some, out) == Counts(total=6, cached=6)
    assert not list(out.rglob("*.tmp"))


def test_damaged_entries_are_computed_again(
    some: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    encode(some, out)
    whole = {path: path.read_bytes() for path in entries(out)}
    short, empty, noise = list(whole)[:3]
    short.write_bytes(whole[short][:-7])
    empty.write_bytes(b"")
    noise.write_bytes(b"\xff" * 300)
    with caplog.at_level(logging.WARNING):
        assert encode(some, out) == Counts(total=6, cached=3, computed=3)
    assert caplog.text.count("is damaged and counts as missing") == 3
    assert {path: path.read_bytes() for path in entries(out)} == whole


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def without_fields(one: Path, other: Path) -> None:
    """As a version that keeps no key would write it: nothing says whose it is."""
    content = one.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    record = json.loads(header["__metadata__"]["entry"])
    del record["fields"]
    header["__metadata__"]["entry"] = json.dumps(record)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    one.write_bytes(len(text).to_bytes(8, "little") + text + content[begin:])


@pytest.mark.parametrize(
    ("move", "recomputed"),
    [
        (swap, 2),
        (lambda one, other: other.write_bytes(one.read_bytes()), 1),
        (lambda one, other: os.replace(one, other), 2),
        (lambda one, other: other.unlink() or other.symlink_to(one), 1),
        (without_fields, 1),
    ],
    ids=["swapped", "copied", "renamed", "linked", "without its key"],
)
@pytest.mark.parametrize("pair", [(0, 2), (1, 3)], ids=["17 frames", "33 frames"])
def test_entries_moved_between_clips_are_computed_again(
    move: Any,
    recomputed: int,
    pair: tuple[int, int],
    some: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of clips of one shape, where nothing else tells them apart."""
    out = tmp_path / "out"
    encode(some, out)
    cache = LatentCache(
        out, settings_of(ENCODERS, facts_of(MeanCodec(), LengthText()), torch.float32, suffix=False)
    )
    held = {path.stem: cache.get(path.stem) for path in entries(out)}
    of_clip = {entry.fields["path"]: key for key, entry in held.items() if entry is not None}
    paths = [cache.path(of_clip[f"{clip}.mp4"]) for clip in pair]
    move(*paths)
    caplog.clear()
    assert encode(some, out) == Counts(total=6, cached=6 - recomputed, computed=recomputed)
    named = [r for r in caplog.messages if "counts as missing: it " in r]
    moved = "has a header that" if move is without_fields else "is the entry of {'path': "
    assert all(moved in line for line in named), named
    assert len(named) >= 1
    for stem, entry in held.items():
        again = cache.get(stem)
        assert again is not None
        assert entry is not None
        assert again.fields == entry.fields
        assert again.latent_CTHW.equal(entry.latent_CTHW)
    assert encode(some, out) == Counts(total=6, cached=6)


def test_a_changed_clip_or_caption_is_computed_again(
    some: Path, clip_set: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode(some, out)
    (tmp_path / "0.mp4").write_bytes((tmp_path / "2.mp4").read_bytes())
    rows = [dict(row) for row in clip_set.rows[:6]]
    rows[1]["text"] = "another"
    write_manifest(some, rows)
    assert encode(some, out) == Counts(total=6, cached=4, computed=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.bfloat16}, "dtype=torch.float32, this run has torch.bfloat16"),
        (
            {"encoders": {"autoencoder": {"kind": "other"}, "text": {"length": 2}}},
            "encoders.autoencoder.kind=mean, this run has other",
        ),
    ],
)
def test_other_settings_are_refused(
    some: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    encode(some, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        encode(some, tmp_path / "out", **change)


def test_ranks_share_the_work(some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = [encode(some, out, rank=rank, world=4) for rank in range(4)]
    assert [c.computed for c in counts] == [2, 2, 1, 1]
    assert encode(some, out).cached == 6


def test_unreadable_clips_are_counted_then_stop(some: Path, tmp_path: Path) -> None:
    (tmp_path / "3.mp4").write_bytes(b"")
    assert encode(some, tmp_path / "out") == Counts(total=6, computed=5, failed=1)
    (tmp_path / "4.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"2 clips failed, more than data\.bad_clip_limit=1"):
        encode(some, tmp_path / "out", data={"bad_clip_limit": 1})


def test_entries_serve_the_conditions_they_were_made_for_and_fewer(
    some: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert encode(some, out).computed == 6
    first = {path: path.read_bytes() for path in entries(out)}
    both = {"conditions": ("i2v_loop", "v2v_head")}  # 33 frames are too few for the latter
    assert encode(some, out, **both) == Counts(total=6, computed=6)
    assert encode(some, out, **both).cached == 6
    assert encode(some, out, conditions=("i2v_head",)).cached == 6
    assert encode(some, out, conditions=("frames@0,-1",)).cached == 6  # the same pieces
    assert encode(some, out).cached == 6
    assert not caplog.text  # nothing was damaged
    for path, before in first.items():
        now, then = load(path.read_bytes()), load(before)
        assert set(now) - set(then) == {"given_head_1", "given_tail_1"}
        assert all(torch.equal(now[name], value) for name, value in then.items())
        assert torch.equal(now["given_head_1"], now["latent_CTHW"][:, :1])  # of a causal encoder
        number = now["given_tail_1"][0, 0, 0, -1] - now["given_head_1"][0, 0, 0, -1]
        frames = 1 + 4 * (now["latent_CTHW"].shape[1] - 1)
        assert abs(number - 6 * (frames - 1) / 127.5) < 0.04  # conftest's right half
    anywhere = {"conditions": ("any_frames", "frames@0.5", "clip@4:9")}
    assert encode(some, out, **anywhere) == Counts(total=6, computed=6)
    assert encode(some, out, **anywhere).cached == encode(some, out, **both).cached == 6
    for path in first:
        now = load(path.read_bytes())
        given = {name for name in now if name.startswith("given_")}
        ends = range(4, 4 * now["latent_CTHW"].shape[1] - 4, 4)
        single = {"given_head_1", "given_tail_1", *(f"given_{end}_1" for end in ends)}
        assert given == single | {"given_4_5"}


def test_given_latents_that_are_damaged_are_computed_again(
    some: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, how = tmp_path / "out", {"conditions": ("i2v_head",)}
    encode(some, out, **how)
    whole = {path: path.read_bytes() for path in entries(out)}
    flipped, swapped = list(whole)[:2]
    header = int.from_bytes(whole[flipped][:8], "little")
    at = json.loads(whole[flipped][8 : 8 + header])["given_head_1"]["data_offsets"][0]
    content = bytearray(whole[flipped])
    content[8 + header + at] ^= 1
    flipped.write_bytes(content)
    # Sound, but of another shape than the bucket's.
    cache = LatentCache(out, {"version": 2} | read_settings(out))  # type: ignore[operator]
    entry = cache.get(swapped.stem)
    assert entry is not None
    short = {"given_head_1": entry.given["given_head_1"][:, :, :1]}
    cache.put(swapped.stem, replace(entry, given=short))
    assert encode(some, out, **how) == Counts(total=6, cached=4, computed=2)
    assert "another checksum" in caplog.text
    assert "given_head_1 as F32 [3, 1, 1, 4]" in caplog.text
    assert {path: path.read_bytes() for path in entries(out)} == whole


def test_a_rolling_folder_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, {}, rolling_bytes=20_000)
    keys = [content_key({"number": number}) for number in range(15)]

    def put(number: int) -> None:
        latent = torch.full((1, 1, 1, 500), float(number))
        fields = {"number": number}
        cache.put(keys[number], LatentEntry(latent, latent[0, 0], latent[0, 0, 0], fields))
        used = 10**9 + number * 10**9
        with contextlib.suppress(FileNotFoundError):
            os.utime(cache.path(keys[number]), ns=(used, used))

    def kept() -> list[int]:
        return sorted(keys.index(path.stem) for path in entries(tmp_path))

    size = 0
    for number in range(12):
        put(number)
        files = [path.stat().st_size for path in entries(tmp_path)]
        size = files[0]
        assert sum(files) <= 20_000
    assert 6000 < size < 7000
    assert kept() == [9, 10, 11][-(20_000 // size) :][-len(kept()) :]
    assert kept()
    oldest = kept()[0]
    os.utime(cache.path(keys[oldest]))  # used now
    for number in range(12, 15):
        put(number)
    assert oldest in kept()
    again = LatentCache(tmp_path, {}, rolling_bytes=7800)  # a smaller budget drops at once
    assert kept() == [oldest]
    assert again.get(keys[oldest]) is not None


def test_only_a_folder_begun_so_is_rolling(tmp_path: Path) -> None:
    LatentCache(tmp_path / "kept", {})
    with pytest.raises(UserError, match="made with rolling=False, this run has True; name another"):
        LatentCache(tmp_path / "kept", {}, rolling_bytes=10**9)
    LatentCache(tmp_path / "rolls", {}, rolling_bytes=10**9)
    with pytest.raises(UserError, match="made with rolling=True, this run has False"):
        LatentCache(tmp_path / "rolls", {})
    # Begun before there was such a thing.
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cache.json").write_text('{"version": 2}')
    LatentCache(tmp_path / "old", {})


def test_no_clip_with_a_bucket(some: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no clip of .* has a bucket: 6 smaller than every"):
        encode(some, tmp_path / "out", data={"buckets": {"64px": {17: {"batch": 1}}}})


def test_half_precision_is_kept(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, {})
    values = torch.arange(6.0).to(torch.bfloat16)
    key = content_key({"a": 1})
    cache.put(key, LatentEntry(values.view(1, 1, 2, 3), values[:2, None], values[:3], {"a": 1}))
    entry = cache.get(key)
    assert entry is not None
    assert torch.equal(entry.latent_CTHW, values.view(1, 1, 2, 3))
    assert entry.latent_CTHW.dtype == torch.bfloat16
    assert entry.fields == {"a": 1}
    assert cache.get("ab13") is None
