"""The compiled extension module, where it was built, and why not, where it was not."""

import importlib
from functools import cache
from types import ModuleType

from vidgen.errors import UserError


@cache
def _attempt() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("vidgen._native"), ""
    except ModuleNotFoundError:
        return None, "vidgen._native is not built; type: pip install . (or pip install -e .)"
    except ImportError as error:
        return None, f"vidgen._native does not load: {str(error).splitlines()[0]}"


def load() -> ModuleType | None:
    """The extension module, or None where it cannot be had."""
    return _attempt()[0]


def require() -> ModuleType:
    """The extension module, where nothing can stand in for it."""
    module, why = _attempt()
    if module is None:
        raise UserError(why)
    return module


def reason() -> str:
    """Why `load()` returns None; empty when it does not."""
    return _attempt()[1]


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it fp32 is many times faster."""
    native = load()
    return native is not None and native.cpu_features()["avx512_bf16"]
