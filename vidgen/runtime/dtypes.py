"""The dtypes of safetensors files: their names there, their sizes, and torch's names.

No torch at import: loader workers read entries without it.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Name in a file: (name in torch, bytes).
_TABLE = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
SIZES = {name: size for name, (_, size) in _TABLE.items()}


@cache
def by_name() -> "dict[str, torch.dtype]":
    import torch

    return {name: getattr(torch, torch_name) for name, (torch_name, _) in _TABLE.items()}


@cache
def names() -> "dict[torch.dtype, str]":
    return {dtype: name for name, dtype in by_name().items()}
