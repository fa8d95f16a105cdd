"""Reading a DCP's `.metadata`, a pickle, without running what it may hold."""

import builtins
import importlib
import io
import math
import os
import pickle
from pathlib import Path
from typing import Any

from vidgen import limits
from vidgen.errors import UserError
from vidgen.printable import one_line
from vidgen.runtime import files

_BUILTINS = {"list", "dict", "set", "tuple", "frozenset", "slice", "complex", "bytearray"}
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.distributed._shard.metadata": {"ShardMetadata"},
}
_KINDS = {"dtype", "layout", "memory_format"}  # `torch.float32`, `torch.strided` by their names


def read_metadata(folder: str | os.PathLike[str]) -> Any:
    """The `Metadata` of a DCP directory; refuses a pickle that names anything else than its
    classes."""
    from torch.distributed.checkpoint.metadata import Metadata

    path = Path(folder) / ".metadata"
    try:
        data = files.read_bytes(path, at_most=limits.JSON_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a DCP directory: it holds no .metadata; expected one"
        ) from None
    try:
        found = _Restricted(io.BytesIO(data), path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle fails in any of its classes
        reason = one_line(error)[:200]
        raise UserError(f"{path} is damaged: {type(error).__name__}: {reason}") from None
    if not isinstance(found, Metadata):
        raise UserError(f"{path} holds {type(found).__name__}; expected a DCP's Metadata")
    _check_tensors(path, found)
    check_files(path, found)
    return found


def reader(folder: str | os.PathLike[str]) -> Any:
    """A DCP reader whose metadata come through `read_metadata`."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            metadata = read_metadata(folder)
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(folder)


def planner() -> Any:
    """A DCP planner whose objects are plain values: torch's own unpickles anything."""
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            key = read_item.dest_index.fqn
            try:
                self.state_dict[key] = torch.load(value, weights_only=True)
            except Exception:  # a damaged or hostile pickle; torch's text says how to run it
                raise UserError(
                    f"its object {one_line(key)!r} cannot be read: it is damaged, or its pickle "
                    "names more than plain values"
                ) from None

    return Planner(flatten_state_dict=False, flatten_sharded_tensors=False)


def check_files(path: Path, metadata: Any) -> None:
    """Tensors are read from the folder itself and from no other."""
    for info in (metadata.storage_data or {}).values():
        name = getattr(info, "relative_path", None)
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{path} names the file {one_line(name)!r}; expected one beside it")


def _check_tensors(path: Path, metadata: Any) -> None:
    """What would be allocated is no more than the directory holds."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = metadata.state_dict_metadata
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise UserError(f"{path} is damaged: its keys are not texts")
    tensors = [entry for entry in entries.values() if isinstance(entry, TensorStorageMetadata)]
    try:
        wanted = sum(math.prod(one.size) * one.properties.dtype.itemsize for one in tensors)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from None
    held = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    if wanted > held:
        raise UserError(f"{path} describes tensors of {wanted} bytes; its files hold {held}")


class _Restricted(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return getattr(builtins, name)
        if name in _CLASSES.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if module == "torch":
            import torch

            value = getattr(torch, name, None) if name.isidentifier() else None
            if type(value).__name__ in _KINDS:
                return value
        raise UserError(
            f"{self._path} names {one_line(f'{module}.{name}')}, which a DCP does not need and "
            "which could run code; it was not read"
        )
