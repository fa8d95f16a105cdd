"""Text inside PNG files: what a picture says of itself."""

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from vidgen import limits
from vidgen.data.read.packets import BadClip

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def with_text(png: bytes, said: Mapping[str, str]) -> bytes:
    """The same picture with a text chunk for every key, before the pixels."""
    header_end = len(SIGNATURE) + 4 + 4 + 13 + 4  # the length, name, fields and checksum of IHDR
    return png[:header_end] + b"".join(_chunk(k, v) for k, v in said.items()) + png[header_end:]


def read_text(file: BinaryIO) -> dict[str, str]:
    """The texts of a PNG file; raises BadClip where a chunk with text is damaged or too long."""
    found = {}
    for kind, body in _texts(file):
        key, _, rest = body.partition(b"\0")
        try:
            if kind == b"tEXt":
                found[key.decode("latin-1")] = rest.decode("latin-1")
            elif rest[:2] == b"\0\0":  # not compressed
                _, _, text = rest[2:].split(b"\0", 2)  # a language, the key in it, the text
                found[key.decode("latin-1")] = text.decode("utf-8")
        except ValueError as error:
            raise BadClip("has a text chunk that cannot be read") from error
    return found


def _chunk(key: str, value: str) -> bytes:
    """tEXt holds Latin-1; what goes beyond it needs iTXt."""
    try:
        kind, body = b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        kind, body = b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8")
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")


def _texts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Chunks with text, checked; the others are skipped unread."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise BadClip("is not a PNG file")
    room = limits.METADATA_BYTES
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"iTXt"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        room -= length
        if room < 0:
            raise BadClip(f"says more than {limits.METADATA_BYTES} bytes of itself")
        body, checksum = file.read(length), file.read(4)
        if zlib.crc32(kind + body) != int.from_bytes(checksum, "big") or len(checksum) < 4:
            raise BadClip("has a text chunk that is damaged")
        yield kind, body
    raise BadClip("is cut short: it has no end chunk")
