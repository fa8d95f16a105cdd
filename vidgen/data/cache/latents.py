"""A cache of latents and text features, one file a clip, for training without the encoders."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.data.cache.entries import DamagedEntry, read_file
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime.crc32c import crc32c

_log = logging.getLogger(__name__)
_VERSION = 2
_SETTINGS = "cache.json"
_ABANDONED_S = 3600.0  # no entry takes so long to write
TENSORS = ("latent_CTHW", "tokens_LD", "pooled_D")


@dataclass(frozen=True)
class LatentEntry:
    latent_CTHW: Tensor
    tokens_LD: Tensor
    pooled_D: Tensor
    fields: dict[str, Any]  # what the key was made of
    given: dict[str, Tensor] = field(default_factory=dict)
    """Latents (C, T, H, W) of the clip's ends, each encoded by itself: what conditions give."""


@dataclass(frozen=True)
class EncodeCounts:
    total: int  # clips of this rank
    cached: int = 0
    computed: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        bad = f" / unreadable {self.unreadable}" if self.unreadable else ""
        return f"cached {self.cached} / computed {self.computed}{bad}"


class LatentCache:
    """A folder whose `cache.json` says what made its entries; they are found by content keys."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        rolling_bytes: int | None = None,
        ranks: int = 1,
    ) -> None:
        """Open or begin a cache; one made with other settings is refused, naming the field.

        `rolling_bytes` is what its entries may take, the `ranks` that write to it together.
        """
        self.root = Path(root)
        self.rolling_bytes, self._written = rolling_bytes, 0
        # All ranks together write an eighth at most between two looks at the folder.
        self._look_after = 0 if rolling_bytes is None else rolling_bytes // (8 * ranks)
        rolling = rolling_bytes is not None
        mine = json.loads(json.dumps({"version": _VERSION, "rolling": rolling, **settings}))
        theirs = read_settings(root)
        if theirs is None:
            self.root.mkdir(parents=True, exist_ok=True)
            text = json.dumps(mine, indent=1)
            _write_whole(self.root / _SETTINGS, lambda partial: partial.write_text(text))
        else:
            for name, there, here in _differences(theirs, mine):
                raise UserError(
                    f"the cache {self.root} was made with {name}={there}, this run has {here}; "
                    "name another folder, or delete this one"
                )
        if rolling:
            self.make_room()

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> LatentEntry | None:
        """The entry; None where there is none, or (logged) where its file is damaged."""
        from safetensors.torch import load

        path = self.path(key)
        try:
            _, record, content = read_file(path)
            tensors = load(content)
            latent, tokens, pooled = (tensors.pop(name) for name in TENSORS)
            fields = record["fields"]
        except FileNotFoundError:
            return None
        except (DamagedEntry, OSError, KeyError) as error:
            log_damage(path, str(error))
            return None
        return LatentEntry(latent, tokens, pooled, fields, tensors)

    def put(self, key: str, entry: LatentEntry) -> None:
        """The file appears whole or not at all."""
        from safetensors.torch import save

        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in {
                **{name: getattr(entry, name) for name in TENSORS},
                **entry.given,
            }.items()
        }
        plain = save(tensors)
        data = memoryview(plain)[8 + int.from_bytes(plain[:8], "little") :]
        record = {"fields": entry.fields, "crc32c": f"{crc32c(data):08x}"}
        # One key: of several, safetensors writes them in any order.
        content = save(tensors, {"entry": json.dumps(record)})
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda partial: partial.write_bytes(content))
        if self.rolling_bytes is not None:
            self._written += len(content)
            if self._written > self._look_after:
                self._written = 0
                self.make_room()

    def make_room(self) -> None:
        """Drop the entries used longest ago until an eighth of the budget is free. Another rank
        that does the same at this time drops the same ones."""
        assert self.rolling_bytes is not None
        self.sweep()
        found = []
        for path in self.root.glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self.rolling_bytes - self.rolling_bytes // 8:
                return
            path.unlink(missing_ok=True)
            held -= size

    def sweep(self) -> None:
        """Remove what processes that were killed left half written."""
        for path in self.root.glob("??/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()


def log_damage(path: Path, reason: str) -> None:
    _log.warning("cache entry %s is damaged and counts as missing: it %s", path, reason)


def settings_of(
    encoders: Mapping[str, Any], facts: Mapping[str, Any], dtype: torch.dtype, suffix: bool
) -> dict[str, Any]:
    """What must agree for entries to be of use: the encoders' configuration and what `facts_of`
    says of them, what is stored, and whether captions have a suffix."""
    return {
        "encoders": dict(encoders),
        "facts": dict(facts),
        "dtype": str(dtype),
        "suffix": suffix,
    }


def facts_of(autoencoder: Autoencoder, text: TextEncoder) -> dict[str, Any]:
    """What a run without the encoders has to know of them."""
    return {
        "latent_channels": autoencoder.latent_channels,
        "compression": list(autoencoder.compression),
        "causal": autoencoder.causal,
        "length": text.length,
        "token_width": text.token_width,
        "pooled_width": text.pooled_width,
    }


def read_settings(root: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What made the cache in a folder; None where there is none."""
    path = Path(root) / _SETTINGS
    if not path.is_file():
        return None
    settings: dict[str, Any] = json.loads(path.read_text())
    return {"rolling": False, **settings}


def content_key(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def _differences(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(field, its value there, its value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in {**there, **here}:
            inner = f"{name}.{key}" if name else key
            found += _differences(there.get(key), here.get(key), inner)
        return found
    return [] if there == here else [(name, there, here)]


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
