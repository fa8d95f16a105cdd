"""Small files that ask for much: refused before anything is built, in little memory."""

import json
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vidgen import limits
from vidgen.data.read.packets import BadClip
from vidgen.data.read.video import probe, read_clip, read_metadata
from vidgen.errors import UserError
from vidgen.models.mmdit.detect import noted_config
from vidgen.models.tensor_files import TensorFiles
from vidgen.recipe import read_recipe
from vidgen.recipe.yaml_text import parse_yaml
from vidgen.runtime import files
from vidgen.sample.recorded import read_record

MOST_KB = 300 << 10


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """The peak of this process does not grow by more than 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KB


def test_aliases_of_aliases() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    text = "\n".join(lines)
    assert len(text) < 1000
    with pytest.raises(UserError, match=r"bomb, line \d+: holds more than 100000 values"):
        parse_yaml(text, "bomb")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 20_000, "levels deep"),
        ("&a [*a]", "levels deep"),
        ("a: " + "9" * 5000, "too many digits"),
    ],
)
def test_deep_and_long_recipes(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_yaml(text, "bomb")


@pytest.mark.parametrize(
    "override", ["model.depth=1000000000", "model.hidden_size=1e12", "train.steps=1000000000000"]
)
def test_sizes_of_recipes(override: str, tmp_path: Path) -> None:
    from tests.cli.conftest import RECIPE

    path = tmp_path / "a.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    with pytest.raises(UserError, match=override.partition("=")[0]):
        read_recipe(path, [override])


def weights(path: Path, header: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


def test_headers_of_weights(tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", b"{", limits.HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(limits.HEADER_BYTES * 40)  # holes take no disk
    with pytest.raises(UserError, match=r"safetensors header of .* bytes; at most"):
        TensorFiles(path)
    for name, header in (
        ("deep", b'{"a":' + b"[" * 200_000),
        ("float", b'{"a":{"dtype":"F32","shape":[0.0],"data_offsets":[0,0]}}'),
        ("negative", b'{"a":{"dtype":"F32","shape":[-1,0],"data_offsets":[0,0]}}'),
        ("notes", b'{"__metadata__":{"a":1}}'),
    ):
        with pytest.raises(UserError, match="damaged safetensors header"):
            TensorFiles(weights(tmp_path / f"{name}.safetensors", header))


def test_a_config_noted_in_weights(tmp_path: Path) -> None:
    note = {"vidgen.config": json.dumps({"depth": 10**9}), "vidgen.layout": "vidgen"}
    header = json.dumps({"__metadata__": note}).encode()
    with (
        TensorFiles(weights(tmp_path / "a.safetensors", header)) as found,
        pytest.raises(UserError, match="notes a model config vidgen cannot read"),
    ):
        noted_config(found)


def test_an_index_names_files_of_its_folder_only(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../a.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match=r"expected files of its own folder|is not an index"):
            TensorFiles(index)


def picture_of(height: int, width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("read", [probe, lambda path: read_clip(path, [0])])
def test_pictures_of_16k_pixels_a_side(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture_of(16384, 16384))
    with pytest.raises(BadClip):
        read(path)


def test_the_size_is_checked_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from vidgen.data.read.video import write_video

    write_video(tmp_path / "a.mp4", np.zeros((3, 32, 48, 3), np.uint8), 8)
    monkeypatch.setattr(limits, "FRAME_PIXELS", 32 * 48 - 1)
    with pytest.raises(BadClip, match="pixels"):
        read_clip(tmp_path / "a.mp4", [0])


def test_texts_in_pictures(tmp_path: Path) -> None:
    body = b"a\0" + b"x" * (limits.METADATA_BYTES + 1)
    chunk = (
        struct.pack(">I", len(body))
        + b"tEXt"
        + body
        + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(BadClip, match="says more than"):
        read_metadata(tmp_path / "a.png")


def test_a_hundred_thousand_prompts() -> None:
    record = json.dumps({"prompts": ["a"] * 100_000})
    with pytest.raises(UserError, match="has 100000 prompts; at most"):
        read_record(record, allow_refs=False, own_refs=False)
    with pytest.raises(UserError, match="steps"):
        read_record('{"prompts": ["a"], "steps": 1000000000000}', allow_refs=False, own_refs=False)


def test_files_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(UserError, match=r"a\.json has more than 1024 bytes"):
        files.read_bytes(path, at_most=1024)


def test_a_worker_cannot_take_more_than_its_limit() -> None:
    """A process of its own: the limit lasts."""
    program = (
        "from vidgen.runtime.loader.worker import limit_memory\n"
        "limit_memory(64 << 20)\n"
        "bytearray(32 << 20)\n"
        "try:\n    bytearray(256 << 20)\n"
        "except MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr
