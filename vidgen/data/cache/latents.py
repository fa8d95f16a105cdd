"""A cache of latents and text features, one file a clip, for training without the encoders."""

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen import limits
from vidgen.data.cache.entries import DamagedEntry, checksum, header_of, read_file
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime.files import read_json
from vidgen.runtime.work import ResultFolder, log_damage, unsealed

_log = logging.getLogger(__name__)
_VERSION = 2
_SETTINGS = "cache.json"
_DEFAULTS = {"rolling": False}  # of folders made before there was a choice
TENSORS = ("latent_CTHW", "tokens_LD", "pooled_D")


@dataclass(frozen=True)
class LatentEntry:
    latent_CTHW: Tensor
    tokens_LD: Tensor
    pooled_D: Tensor
    fields: dict[str, Any]  # what the key was made of
    given: dict[str, Tensor] = field(default_factory=dict)
    """Latents (C, T, H, W) of the clip's pieces, each encoded by itself: what conditions give."""


class LatentCache(ResultFolder):
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
        self.rolling_bytes, self._written = rolling_bytes, 0
        # All ranks together write an eighth at most between two looks at the folder.
        self._look_after = 0 if rolling_bytes is None else rolling_bytes // (8 * ranks)
        rolling = rolling_bytes is not None
        super().__init__(
            root,
            {"version": _VERSION, "rolling": rolling, **settings},
            settings_name=_SETTINGS,
            suffix=".safetensors",
            label="cache",
            defaults=_DEFAULTS,
        )
        if rolling:
            self.make_room()

    def get(self, key: str) -> LatentEntry | None:
        """The entry; None where there is none, or (logged) where its file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(key)
        try:
            _, record, content = read_file(path)
            tensors = load(content)
            latent, tokens, pooled = (tensors.pop(name) for name in TENSORS)
            fields = record["fields"]
        except FileNotFoundError:
            return None
        except OSError as error:
            log_damage(path, f"cannot be read: {error.strerror or error}")
            return None
        except (DamagedEntry, SafetensorError, KeyError) as error:
            log_damage(path, str(error))
            return None
        return LatentEntry(latent, tokens, pooled, fields, tensors)

    def put(self, key: str, entry: LatentEntry) -> None:
        """Write the entry's file, whole or not at all."""
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
        record = {"fields": entry.fields, "crc32c": checksum(header_of(plain), entry.fields, data)}
        # One key: of several, safetensors writes them in any order.
        content = save(tensors, {"entry": json.dumps(record)})
        self.write(key, content)
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
    settings = read_json(path, at_most=limits.JSON_BYTES, expect=dict)
    return _DEFAULTS | dict(unsealed(path, settings))
