"""Our fused operations beside eager torch, as a fraction of what a plain copy moves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vidgen.runtime import ops
from vidgen.runtime.observe.hardware import best_time, copy_bandwidth
from vidgen.text_table import table

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One operation on large inputs, and the bytes it cannot help moving, each tensor once."""

    op: str
    call: Callable[[], Result]
    inputs: tuple[Tensor, ...]  # those that get a gradient
    forward_bytes: int
    backward_bytes: int


@dataclass(frozen=True)
class Row:
    op: str
    direction: str
    implementation: str
    ms: float
    gb_per_s: float
    of_copy: float
    eager_ms: float


def cases(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, heads: int
) -> list[Case]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    head = width // heads
    x, y = random(1, tokens, width), random(1, tokens, width)
    shift, scale, gate = (random(1, width) for _ in range(3))
    q, k = random(1, tokens, heads, head), random(1, tokens, heads, head)
    q_scale, k_scale = random(head), random(head)
    angles = torch.rand(tokens, head // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    hidden = random(1, tokens, 4 * width)
    size = x.numel() * x.element_size()
    return [
        Case(
            "modulate",
            lambda: ops.modulate(x, shift, scale),
            (x, shift, scale),
            2 * size,  # x; out
            3 * size,  # grad, x; grad of x
        ),
        Case(
            "gated_residual",
            lambda: ops.gated_residual(x, y, gate),
            (x, y, gate),
            3 * size,
            3 * size,  # grad, y; grad of y: that of x is the grad itself
        ),
        Case(
            "gated_residual_modulate",
            lambda: ops.gated_residual_modulate(x, y, gate, shift, scale),
            (x, y, gate, shift, scale),
            4 * size,
            6 * size,  # two grads, residual, y; grads of x and y
        ),
        Case(
            "qk_norm_rope",
            lambda: ops.qk_norm_rope(q, k, q_scale, k_scale, cos, sin),
            (q, k, q_scale, k_scale),
            4 * size,
            6 * size,
        ),
        Case("gelu_tanh", lambda: ops.gelu_tanh(hidden), (hidden,), 8 * size, 12 * size),
    ]


def measure(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    width: int,
    heads: int,
    repeats: int,
) -> dict[str, Any]:
    copy = copy_bandwidth(device, tokens * width * dtype.itemsize, repeats)
    chosen = {
        row.op: row.implementation
        for row in ops.table()
        if row.chosen and row.device == device.type
    }
    rows = []
    for case in cases(device, dtype, tokens, width, heads):
        ours = timed(case, device, repeats)
        with ops.use("reference"):
            eager = timed(case, device, repeats)
        for direction, moved in (
            ("forward", case.forward_bytes),
            ("backward", case.backward_bytes),
        ):
            seconds = ours[direction]
            rows.append(
                Row(
                    op=case.op,
                    direction=direction,
                    implementation=chosen[case.op],
                    ms=seconds * 1e3,
                    gb_per_s=moved / seconds / 1e9,
                    of_copy=moved / seconds / copy,
                    eager_ms=eager[direction] * 1e3,
                )
            )
    return {
        "shapes": {"batch": 1, "tokens": tokens, "width": width, "heads": heads},
        "copy_gb_per_s": copy / 1e9,
        "rows": [asdict(row) for row in rows],
    }


def timed(case: Case, device: torch.device, repeats: int) -> dict[str, float]:
    with torch.no_grad():
        forward = best_time(case.call, device, repeats)
    result = case.call()
    outputs = result if isinstance(result, tuple) else (result,)
    grads = tuple(torch.ones_like(out) for out in outputs)

    def backward() -> None:
        torch.autograd.grad(outputs, case.inputs, grads, retain_graph=True)

    return {"forward": forward, "backward": best_time(backward, device, repeats)}


def report(result: dict[str, Any]) -> list[str]:
    rows = [["operation", "", "runs", "ms", "GB/s", "of copy", "eager ms", "faster"]]
    rows += [
        [
            row["op"],
            row["direction"],
            row["implementation"],
            f"{row['ms']:.3g}",
            f"{row['gb_per_s']:.3g}",
            f"{row['of_copy']:.0%}",
            f"{row['eager_ms']:.3g}",
            f"{row['eager_ms'] / row['ms']:.2g}x",
        ]
        for row in result["rows"]
    ]
    shapes = ", ".join(f"{name} {value}" for name, value in result["shapes"].items())
    copy = f"a plain copy moves {result['copy_gb_per_s']:.3g} GB/s"
    return [f"{result['device']}, {result['dtype']}, {shapes}; {copy}", *table(rows)]
