"""Text in PNG files, as this and other readers find it."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest

from vidgen.data.read.packets import BadClip
from vidgen.data.read.png import SIGNATURE, read_text
from vidgen.data.read.video import read_clip, read_metadata, write_image


def test_what_is_said_is_read_and_the_picture_is_the_same(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    said = {"prompt": "un café", "wide": "猫, \0 and more", "seed": "7", "empty": ""}
    path = tmp_path / "a.png"
    write_image(path, picture, said)
    assert read_metadata(path) == said
    assert (read_clip(path, [0])[0] == picture).all()
    write_image(path, picture)
    assert read_metadata(path) == {}


def test_every_chunk_is_whole(tmp_path: Path) -> None:
    """Lengths and checksums as the format has them; Latin-1 in tEXt, the rest in iTXt."""
    path = tmp_path / "a.png"
    write_image(path, np.zeros((4, 4, 3), np.uint8), {"prompt": "a", "wide": "猫"})
    png, place, kinds = path.read_bytes(), len(SIGNATURE), []
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        body = png[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(png[place + 8 + length : place + 12 + length])
        kinds.append(body[:4])
        place += 12 + length
    assert kinds[:3] == [b"IHDR", b"tEXt", b"iTXt"]
    assert kinds[-1] == b"IEND"


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")


def png_of(*chunks: bytes) -> io.BytesIO:
    return io.BytesIO(SIGNATURE + chunk(b"IHDR", bytes(13)) + b"".join(chunks))


def test_a_compressed_text_is_left_alone() -> None:
    body = b"wide\0\1\0\0\0" + zlib.compress(b"text")
    assert read_text(png_of(chunk(b"iTXt", body), chunk(b"IEND", b""))) == {}


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([chunk(b"tEXt", b"a\0b")], "cut short"),
        ([chunk(b"tEXt", b"a\0b")[:-1] + b"\0", chunk(b"IEND", b"")], "is damaged"),
        ([chunk(b"iTXt", b"a\0\0\0no end"), chunk(b"IEND", b"")], "cannot be read"),
        ([chunk(b"iTXt", b"a\0\0\0\0\0\xff"), chunk(b"IEND", b"")], "cannot be read"),
        ([b"\xff\xff\xff\xfftEXt"], "more than .* bytes"),
    ],
)
def test_texts_that_cannot_be_read(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(BadClip, match=reason):
        read_text(png_of(*chunks))
