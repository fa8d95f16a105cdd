"""Text inside PNG files: what a picture says of itself."""

import zlib
from collections.abc import Iterator, Mapping

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def with_text(png: bytes, said: Mapping[str, str]) -> bytes:
    """The same picture with a text chunk for every key, before the pixels."""
    header_end = len(SIGNATURE) + 4 + 4 + 13 + 4  # the length, name, fields and checksum of IHDR
    return png[:header_end] + b"".join(_chunk(k, v) for k, v in said.items()) + png[header_end:]


def read_text(png: bytes) -> dict[str, str]:
    found = {}
    for kind, body in _chunks(png):
        key, _, rest = body.partition(b"\0")
        if kind == b"tEXt":
            found[key.decode("latin-1")] = rest.decode("latin-1")
        elif kind == b"iTXt" and rest[:2] == b"\0\0":  # not compressed
            _, _, text = rest[2:].split(b"\0", 2)  # a language, the key in it, the text
            found[key.decode("latin-1")] = text.decode("utf-8")
    return found


def _chunk(key: str, value: str) -> bytes:
    """tEXt holds Latin-1; what goes beyond it needs iTXt."""
    try:
        kind, body = b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        kind, body = b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8")
    checksum = zlib.crc32(kind + body)
    return len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(SIGNATURE)
    while place + 8 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length
