"""The compiled extension module, where it was built, and why not, where it was not.

VIDGEN_CPU=baseline|avx2|avx512|avx512_bf16 selects the variant of its CPU kernels; by default the
best that this CPU runs.
"""

import importlib
import os
from functools import cache
from types import ModuleType

from vidgen.errors import UserError

CPU_VARIANTS = ("baseline", "avx2", "avx512", "avx512_bf16")


@cache
def _attempt() -> tuple[ModuleType | None, str]:
    module: ModuleType | None
    why = ""
    try:
        module = found = importlib.import_module("vidgen._native")
    except ModuleNotFoundError:
        module, why = None, "vidgen._native is not built; type: pip install . (or pip install -e .)"
    except ImportError as error:
        module, why = None, f"vidgen._native does not load: {str(error).splitlines()[0]}"
    else:
        if not found.cpu_variants():
            compiled = ", ".join(found.compiled_cpu_variants())
            module, why = None, f"vidgen._native is compiled for {compiled} and this CPU runs none"
    if wish := os.environ.get("VIDGEN_CPU"):
        _select(module, wish, why)
    return module, why


def _select(module: ModuleType | None, wish: str, why: str) -> None:
    """Makes the variant `wish` the one that runs, or raises in one line."""
    if wish not in CPU_VARIANTS:
        *most, last = CPU_VARIANTS
        raise UserError(f"VIDGEN_CPU is {wish!r}, expected {', '.join(most)} or {last}")
    if module is None:
        raise UserError(f"VIDGEN_CPU={wish}, but {why}")
    runnable = module.cpu_variants()
    if wish in runnable:
        module.select_cpu_variant(wish)
    elif wish != "baseline" and not module.cpu_features()[wish]:
        raise UserError(f"VIDGEN_CPU={wish}, but this CPU lacks it; it runs {', '.join(runnable)}")
    else:
        compiled = ", ".join(module.compiled_cpu_variants())
        raise UserError(
            f"VIDGEN_CPU={wish}, but vidgen._native is compiled for {compiled}; "
            "type: VIDGEN_CPU_VARIANTS=all pip install -e ."
        )


def load() -> ModuleType | None:
    """The extension module, or None where it is not available."""
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
