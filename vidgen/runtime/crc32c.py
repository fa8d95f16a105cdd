"""CRC-32C, the checksum of checkpoint shards: compiled if available, else in Python."""

from functools import cache

from vidgen.runtime import native

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reflected

Bytes = bytes | bytearray | memoryview


def crc32c(buffer: Bytes, seed: int = 0) -> int:
    """The checksum of a contiguous buffer; `seed` is the checksum of the bytes before it."""
    module = native.load()
    if module is None:
        return crc32c_python(buffer, seed)
    checksum: int = module.crc32c(buffer, seed)
    return checksum


def crc32c_python(buffer: Bytes, seed: int = 0) -> int:
    """The same without the extension module, at a few MB/s."""
    table = _table()
    crc = seed ^ 0xFFFFFFFF
    for byte in memoryview(buffer).cast("B"):
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
