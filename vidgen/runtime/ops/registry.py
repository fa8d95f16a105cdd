"""Registers the ops with torch: schema, kernel, fake kernel, gradient."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("vidgen", "FRAGMENT")


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> None:
    """Register one op; gradient and setup_context are those of torch.library.register_autograd."""
    name = schema.partition("(")[0]
    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"vidgen::{name}", fake, lib=_library)
    if gradient is not None:
        torch.library.register_autograd(
            f"vidgen::{name}", gradient, setup_context=setup_context, lib=_library
        )
