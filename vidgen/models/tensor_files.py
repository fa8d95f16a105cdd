"""Safetensors files read and written a tensor at a time, in the memory of one tensor."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from vidgen import limits
from vidgen.errors import UserError
from vidgen.runtime import dtypes
from vidgen.runtime.checkpoint import find_step
from vidgen.runtime.files import read_bytes, replacing

DTYPES, DTYPE_NAMES = dtypes.by_name(), dtypes.names()
READ_CHUNK = 256 << 20  # bytes a system call; Linux stops a little short of 2 GiB
PathOrTensors = str | os.PathLike[str] | Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class TensorInfo:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """Named tensors that can be read by rows, wherever they lie."""

    where: str  # how error messages name it
    infos: dict[str, TensorInfo]
    metadata: dict[str, str]
    readers: int  # threads that may read at once, to some use

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        """Fill `out` (contiguous, on the CPU, the source's dtype) from row `row` onwards."""
        ...


class TensorDict:
    """Tensors that are in memory already."""

    readers = 1

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.where = "the given tensors"
        self.tensors = tensors
        self.infos = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        self.metadata: dict[str, str] = {}

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        out.copy_(self.tensors[name][row : row + out.shape[0]] if out.dim() else self.tensors[name])


class TensorFiles:
    """One safetensors file or the shards of one checkpoint; a context manager."""

    readers = 4  # one thread copies out of the page cache more slowly than a good disk reads

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = str(path)
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}  # name -> file descriptor, byte offset
        self._descriptors: list[int] = []
        try:
            for file, expected in _files_of(Path(path)):
                self._open(file, expected)
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path, expected: set[str] | None) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        self._descriptors.append(descriptor)
        header, start = _read_header(file, descriptor)
        self.metadata.update(header.pop("__metadata__", {}))
        names = header.keys() if expected is None else expected
        for name in names:
            if name not in header:
                raise UserError(f"{file}: tensor '{name}' is in the index but not in the file")
            if name in self.infos:
                raise UserError(f"{file}: tensor '{name}' is in another shard too")
            entry = header[name]
            if entry["dtype"] not in DTYPES:
                raise UserError(f"{file}: tensor '{name}' has the unknown type {entry['dtype']}")
            self.infos[name] = TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
            self._places[name] = (descriptor, start + entry["data_offsets"][0])

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        info = self.infos[name]
        assert (out.dtype, out.shape[1:]) == (info.dtype, info.shape[1:]), name
        descriptor, offset = self._places[name]
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        offset += row * row_bytes
        view = memoryview(_bytes_of(out))
        while len(view):
            try:
                got = os.preadv(descriptor, [view[:READ_CHUNK]], offset)
            except OSError as error:
                raise UserError(
                    f"{self.where}: cannot be read: {error.strerror} (at tensor '{name}')"
                ) from error
            if not got:
                raise UserError(f"{self.where}: ended while '{name}' was read; copy it again")
            offset += got
            view = view[got:]

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_tensors(
    source: TensorSource, expected: Shapes, allowed_missing: Iterable[str] = ()
) -> None:
    """Refuse a wrong, missing or extra tensor by name."""
    problems = []
    allowed = set(allowed_missing)
    for name, shape in expected.items():
        if name not in source.infos:
            if name not in allowed:
                problems.append(f"tensor '{name}' {list(shape)} is missing")
            continue
        info = source.infos[name]
        if info.shape != shape:
            problems.append(f"tensor '{name}' is {list(info.shape)}, expected {list(shape)}")
        elif not info.dtype.is_floating_point or info.dtype.itemsize < 2:
            problems.append(f"tensor '{name}' is {info.dtype}, expected a float of 16 bits or more")
    for name, info in source.infos.items():
        if name not in expected:
            problems.append(f"tensor '{name}' {list(info.shape)} is not part of this model")
    if problems:
        more = f"; and {len(problems) - 3} more like these" if len(problems) > 3 else ""
        raise UserError(f"{source.where}: {'; '.join(problems[:3])}{more}")


def open_source(
    source: PathOrTensors, group: str = "model"
) -> AbstractContextManager[TensorSource]:
    """Tensors, published weights, or a training run or one of its steps.

    `group` says which weights of a training checkpoint to read: model or ema.
    """
    if isinstance(source, Mapping):
        return nullcontext(TensorDict(source))
    if (step := find_step(source)) is not None:
        from vidgen.models.trained_weights import TrainedWeights

        return TrainedWeights(step, group)
    return TensorFiles(source)


def destination_file(path: str | os.PathLike[str], overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as one file; name it {path.name}.safetensors")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: is not a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; remove it, or allow it to be overwritten")
    return path


def write_tensors(
    path: str | os.PathLike[str],
    infos: Mapping[str, TensorInfo],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write the tensors as they come, in the order of `infos`; the file appears when complete."""
    path = Path(path)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, info in infos.items():
        header[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    try:
        free = shutil.disk_usage(path.parent).free
        if free < offset + len(head):
            raise UserError(
                f"{path}: needs {offset / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
            )
        _write(path, head, infos, tensors)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _write(
    path: Path,
    head: bytes,
    infos: Mapping[str, TensorInfo],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    expected = iter(infos.items())
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name, tensor in tensors:
            given = (name, TensorInfo(tensor.dtype, tuple(tensor.shape)))
            if given != next(expected, None):
                raise ValueError(f"{given} is not the tensor the header announces next")
            file.write(_bytes_of(tensor.contiguous()))
        if (left := next(expected, None)) is not None:
            raise ValueError(f"{left} was announced in the header and never given")


def _bytes_of(tensor: Tensor) -> memoryview:
    # numpy has no bfloat16, so the bytes are taken before it looks.
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def _files_of(path: Path) -> list[tuple[Path, set[str] | None]]:
    """The files to read, and of each the tensors its index promises (None: all it holds)."""
    if path.is_file() and path.name.endswith(".index.json"):
        return _files_of_index(path)
    if path.is_file() or not path.exists():
        return [(path, None)]
    indexes = sorted(path.glob("*.safetensors.index.json"))
    shards = sorted(path.glob("*.safetensors"))
    if len(indexes) > 1:
        names = ", ".join(index.name for index in indexes)
        raise UserError(f"{path}: holds several checkpoints ({names}); name one of them")
    if indexes:
        return _files_of_index(indexes[0])
    if not shards:
        raise UserError(f"{path}: holds no .safetensors file")
    return [(shard, None) for shard in shards]


def _files_of_index(index: Path) -> list[tuple[Path, set[str] | None]]:
    try:
        text = read_bytes(index, at_most=limits.HEADER_BYTES)
        weight_map = json.loads(text)["weight_map"]
        files: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise UserError(f"{index}: names {file!r}; expected files of its own folder")
            files.setdefault(file, set()).add(name)
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: is not an index of safetensors shards") from error
    return [(index.parent / file, names) for file, names in sorted(files.items())]


def _read_header(file: Path, descriptor: int) -> tuple[dict, int]:
    """The parsed header and where the data starts; every claim it makes is checked."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise UserError(f"{file}: is not a safetensors file, or is cut short ({size} bytes)")
    if length > limits.HEADER_BYTES:
        raise UserError(
            f"{file}: has a safetensors header of {length} bytes; at most {limits.HEADER_BYTES} "
            "are read"
        )
    start = 8 + length
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        end = 0
        _check_types(header)
        spans = sorted(
            (*entry["data_offsets"], math.prod(entry["shape"]), entry["dtype"])
            for name, entry in header.items()
            if name != "__metadata__"
        )
        for first, last, elements, dtype in spans:
            width = DTYPES[dtype].itemsize if dtype in DTYPES else None
            if first != end or (width and last - first != elements * width):
                raise ValueError(f"tensor at {first}")
            end = last
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: has a damaged safetensors header ({error})") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if start + end != size:
        raise UserError(
            f"{file}: is cut short or damaged: the header describes {start + end} bytes, "
            f"the file has {size}; copy it again"
        )
    return header, start


def _check_types(header: dict) -> None:
    """JSON has numbers of other kinds, which compare equal."""
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in entry.values()):
                raise TypeError("its metadata are not texts")
            continue
        for number in (*entry["shape"], *entry["data_offsets"]):
            if type(number) is not int or number < 0:
                raise TypeError(f"tensor {name!r} has {number!r} for a size")
