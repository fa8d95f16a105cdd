"""What no checksum of a step covers: unlisted files, and bytes of listed ones."""

import os
from pathlib import Path

from vidgen.runtime.checkpoint.layout import CHUNK, DTYPES, MANIFEST, read_manifest


def not_checked(path: str | os.PathLike[str]) -> list[str]:
    """One line for each file, or part of one, that `verify` cannot check."""
    path = Path(path)
    manifest = read_manifest(path)
    covered = {name: entry.checked for name, entry in manifest.files.items()}
    for entries in manifest.tensors.values():
        for entry in entries.values():
            for part in entry.slices:
                held = part.box.numel * DTYPES[entry.dtype].itemsize
                under = min(held, len(part.crcs) * CHUNK)
                covered[part.file] = covered.get(part.file, 0) + under
    lines = [
        f"{name}: {entry.size - covered[name]} of its {entry.size} bytes have no checksum"
        for name, entry in manifest.files.items()
        if covered[name] < entry.size
    ]
    listed = {MANIFEST, *manifest.files}
    there = sorted(entry.name for entry in path.iterdir())
    return lines + [f"{name}: not in the manifest" for name in there if name not in listed]
