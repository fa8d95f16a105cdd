"""Damaged files of every format that is read: refused by name or read as written, never else."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.robustness.trials import FACTOR, Tally, mutated, rng
from vidgen.data.cache.entries import EntryRequest, Layout
from vidgen.data.cache.latents import LatentCache, LatentEntry, read_settings
from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.data.read.packets import BadClip
from vidgen.data.read.video import probe, read_clip, read_metadata, write_image, write_video
from vidgen.errors import UserError
from vidgen.models.tensor_files import TensorFiles
from vidgen.recipe import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint.dcp import export_dcp
from vidgen.runtime.checkpoint.dcp_metadata import read_metadata as read_dcp_metadata
from vidgen.runtime.content_key import content_key
from vidgen.sample.prompts import read_prompts
from vidgen.sample.recorded import read_record
from vidgen.train.supervise.recovery import SkipList

FRAMES = 24
KINDS = {
    "mp4": "libx264",
    "mov": "mpeg4",
    "mkv": "mjpeg",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "mpeg2video",
}


def level(frame: int) -> int:
    """Grey of a frame; far from that of its neighbours."""
    return 20 + 6 * (10 * frame % 37)


def written(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(FRAMES):
            picture = np.full((48, 64, 3), level(i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def anything(found: object) -> bool:
    """The format has no checksum: that it is read without a failure is all that can be asked."""
    return True


def run(
    row: str,
    path: Path,
    trials: int,
    reads: Sequence[tuple[Callable[[], Any], Callable[[Any], bool]]],
    refusals: tuple[type[Exception], ...] = (UserError,),
    begin: int = 0,
) -> None:
    whole, draw, tally = path.read_bytes(), rng(row), Tally(row, refusals)
    for read, same in reads:
        assert same(read()), "the undamaged file is not read as written"
    for _ in range(trials * FACTOR):
        how, content = mutated(whole, draw, begin)
        path.write_bytes(content)
        for read, same in reads:
            tally.trial(f"{path.name}, {how}", read, same)
    tally.check()


@pytest.mark.parametrize("kind", KINDS)
def test_clips(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a.{kind}", KINDS[kind])

    def shaped(found: np.ndarray) -> bool:
        return found.shape == (FRAMES - 4, 32, 32, 3)

    reads: list[Any] = [
        (lambda: probe(path), lambda info: info.num_frames > 0 and not info.fps <= 0),
        (lambda: read_clip(path, range(FRAMES - 4), size=(32, 32)), shaped),
        (lambda: read_metadata(path), anything),
    ]
    run(f"clips ({kind})", path, 25, reads, (BadClip,))


def test_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    said = {"prompt": "a café", "wide": "猫" * 40, "seed": "7"}
    write_image(path, picture, said)
    text_end = 33 + len(path.read_bytes()) // 2
    reads: list[Any] = [
        # A damaged signature of a chunk hides it; what is read of the others is as written.
        (lambda: read_metadata(path), lambda found: found.items() <= said.items()),
        (lambda: read_clip(path, [0]), lambda found: found.ndim == 4),
    ]
    assert text_end > 33
    run("images (png)", path, 60, reads, (BadClip,))


def test_lost_clusters_leave_no_frame_in_anothers_place(tmp_path: Path) -> None:
    """Whole packets cut out of a Matroska file: each frame read is the one asked for."""
    path = written(tmp_path / "a.mkv", "mjpeg")
    whole, draw = path.read_bytes(), rng("lost clusters")
    with av.open(str(path)) as container:
        begins = sorted(p.pos for p in container.demux(video=0) if p.size)
    tally = Tally("lost clusters (mkv)", (BadClip,))

    def right(found: np.ndarray) -> bool:
        means = found.reshape(len(found), -1).mean(1)
        return all(abs(mean - level(i)) < 4 for i, mean in enumerate(means))

    for _ in range(40 * FACTOR):
        first = draw.randrange(1, FRAMES - 6)
        last = draw.randrange(first + 1, FRAMES - 5)
        span = begins[last] - begins[first]
        hole = draw.choice((b"", bytes(span)))
        path.write_bytes(whole[: begins[first]] + hole + whole[begins[last] :])
        wanted = range(draw.randrange(first + 1, FRAMES - 4))
        tally.trial(f"packets {first}-{last}", lambda w=wanted: read_clip(path, w), right)  # type: ignore[misc]
    tally.check()


def test_latent_entries(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, {"made": "here"})
    values = torch.arange(48.0)
    fields = {"path": "a.mp4", "text": "a cat", "frames": 2}
    key = content_key(fields)
    cache.put(key, LatentEntry(values.view(2, 2, 3, 4), values[:8].view(4, 2), values[:3], fields))
    path = cache.path(key)
    layout = Layout(
        (
            ("latent_CTHW", "F32", (2, 2, 3, 4)),
            ("tokens_LD", "F32", (4, 2)),
            ("pooled_D", "F32", (3,)),
        )
    )
    whole = torch.cat([values, values[:8], values[:3]]).numpy().tobytes()

    def in_worker() -> bytes:
        out = np.zeros(layout.nbytes, np.uint8)
        reason = EntryRequest(str(path), layout)(out)
        if reason is not None:
            raise UserError(reason)
        return out.tobytes()

    def by_key() -> LatentEntry:
        entry = cache.get(key)
        if entry is None:
            raise UserError("is missing")
        return entry

    reads: list[Any] = [
        (in_worker, lambda found: found == whole),
        (
            by_key,
            lambda e: bool(e.fields == fields and (e.latent_CTHW.reshape(-1) == values).all()),
        ),
    ]
    run("latent entries", path, 150, reads)


def test_cache_json(tmp_path: Path) -> None:
    settings = {"encoders": {"text": {"length": 16}}, "dtype": "torch.float32"}
    LatentCache(tmp_path, settings)
    made = read_settings(tmp_path)
    reads: list[Any] = [
        (lambda: read_settings(tmp_path), lambda found: found == made),
        (lambda: LatentCache(tmp_path, settings), anything),
    ]
    run("cache.json", tmp_path / "cache.json", 100, reads)


def test_skip_json(tmp_path: Path) -> None:
    listed = {(0, 17), (2, 5), (11, 4093)}
    SkipList(tmp_path).add(listed, write=True)
    reads: list[Any] = [(lambda: SkipList(tmp_path).positions, lambda found: found == listed)]
    run("skip.json", tmp_path / "skip.json", 150, reads)


def test_manifests(tmp_path: Path) -> None:
    rows = [
        {
            "path": f"clips/{i}.mp4",
            "text": f"clip {i} of a cat",
            "num_frames": 17 + i,
            "height": 32 + 2 * i,
            "width": 48,
            "fps": 24.0 + i / 8,
            "motion": i / 4,
        }
        for i in range(30)
    ]
    path = tmp_path / "clips.parquet"
    (tmp_path / "clips").mkdir()
    for row in rows:
        (tmp_path / str(row["path"])).touch()
    write_manifest(path, rows)
    whole = [Manifest.open(path)[i] for i in range(len(rows))]

    def same(found: Manifest) -> bool:
        return [found[i] for i in range(len(found))] == whole

    run("manifests", path, 120, [(lambda: Manifest.open(path), same)])


def test_checkpoints(tmp_path: Path) -> None:
    tensors = {"model": {"a": torch.arange(3000.0), "b": torch.ones(7, 5, dtype=torch.bfloat16)}}
    step = checkpoint.save(tmp_path, 5, tensors, {"trainer": {"step": 5}}, background=False).path

    def read() -> dict[str, Any]:
        found = checkpoint.read_tensors(step, "model")
        return {"model": found, "objects": checkpoint.read_objects(step)}

    def same(found: dict[str, Any]) -> bool:
        equal = all(torch.equal(found["model"][n], t) for n, t in tensors["model"].items())
        return equal and found["objects"] == {"trainer": {"step": 5}}

    def verified() -> bool:
        if problems := checkpoint.verify(step):
            raise UserError(problems[0])
        return True

    for name in sorted(entry.name for entry in step.iterdir()):
        content = (step / name).read_bytes()
        run(f"checkpoints ({name})", step / name, 20, [(read, same), (verified, bool)])
        (step / name).write_bytes(content)


def test_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5)}, path, {"note": "x"})

    def read() -> None:
        with TensorFiles(path) as found:
            for name, info in found.infos.items():
                found.read(name, torch.empty(info.shape, dtype=info.dtype))

    run("weights (safetensors)", path, 150, [(read, anything)])


def test_recipes(tmp_path: Path) -> None:
    from tests.cli.conftest import RECIPE

    path = tmp_path / "a.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    reads: list[Any] = [(lambda: read_recipe(path), lambda found: isinstance(found, Recipe))]
    run("recipes", path, 80, reads)


def test_tables_of_prompts(tmp_path: Path) -> None:
    for name, text in (
        ("a.jsonl", '{"prompt": "a cat", "seed": 3, "guidance": 7.5}\n' * 3),
        ("a.csv", 'prompt,seed,ref\n"a cat, red",3,a.png\na dog,4,b.png\n'),
        ("a.txt", "a cat\na café\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        run(f"prompts ({name})", path, 60, [(lambda p=path: read_prompts(p), anything)])  # type: ignore[misc]


def test_requests_in_videos() -> None:
    record = {"prompts": ["a cat"], "seed": 3, "steps": 20, "height": 64, "guidance": 7.5}
    record |= {"width": 64, "fps": 24.0, "motion_score": None, "solver": "euler", "ref": []}
    whole, draw = json.dumps(record).encode(), rng("requests")
    tally = Tally("--like", (UserError,))
    for _ in range(300 * FACTOR):
        how, content = mutated(whole, draw)
        text = content.decode("utf-8", "replace")
        tally.trial(
            how,
            lambda t=text: read_record(t, allow_refs=False, own_refs=False),  # type: ignore[misc]
            lambda found: 1 <= found.get("steps", 1) <= 100_000 and not found.get("ref"),
        )
    tally.check()


def test_metadata_of_a_dcp(tmp_path: Path) -> None:
    tensors = {"model": {"a": torch.arange(30.0), "b": torch.ones(7, 5, dtype=torch.bfloat16)}}
    step = checkpoint.save(tmp_path / "c", 5, tensors, {"x": {}}, background=False).path
    export_dcp(step, tmp_path / "dcp")
    path = tmp_path / "dcp" / ".metadata"
    run("DCP metadata", path, 150, [(lambda: read_dcp_metadata(tmp_path / "dcp"), anything)])


def test_a_video_of_ours_says_what_was_written(tmp_path: Path) -> None:
    """The trials above start from files that are read."""
    write_video(tmp_path / "a.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8, metadata={"a": "b"})
    assert read_metadata(tmp_path / "a.mp4")["a"] == "b"
