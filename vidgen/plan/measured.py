"""A GPU's figures measured by `vidgen doctor --json`, in place of the data sheet."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.runtime.observe.gpus import GPUS, Gpu, of_device

_AXES = {"ranks of a machine": "node_link", "machines": "network"}  # of doctor --distributed


def gpu_measured(path: str) -> Gpu:
    """Measured memory size, memory bandwidth and host link; the rest is from the data sheet."""
    found = _read(path)
    gpus, rates = found.get("gpus"), found.get("bandwidth", {}).get("gpu")
    if not gpus or not rates:
        raise UserError(
            f"{path} has no figures of a GPU: write it on a machine with a GPU, with "
            f"`vidgen doctor --json > {path}`"
        )
    name = gpus[0]["name"]
    known = of_device(name)
    if known is None:
        raise UserError(
            f"{path} is of {name!r}, whose FLOP/s are unknown; known GPUs: {', '.join(GPUS)}"
        )
    return replace(
        known,
        name=f"{known.name}, measured",
        memory=gpus[0]["memory"],
        memory_bandwidth=rates["copy"],
        host_link=min(rates["host to device"], rates["device to host"]),
    )


def with_links(gpu: Gpu, path: str) -> Gpu:
    """The GPU with the links measured by `torchrun ... -m vidgen doctor --distributed --json`: the
    slowest group and collective of each axis."""
    rates: dict[str, float] = {}
    for row in _read(path).get("axes", []):
        name = _AXES.get(row["axis"])
        if name is not None:
            rates[name] = min(row["bytes_per_s"], rates.get(name, float("inf")))
    if not rates:
        raise UserError(
            f"--links {path} has no figures of machines or of their ranks: write it with "
            f"`torchrun --nproc-per-node 8 -m vidgen doctor --distributed --json > {path}`"
        )
    return replace(gpu, **rates)  # type: ignore[arg-type]


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is not what `vidgen doctor --json` writes: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not what `vidgen doctor --json` writes: it is not a mapping")
    return found
