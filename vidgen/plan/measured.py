"""A GPU's figures as `vidgen doctor --json` measured them, in place of its maker's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.runtime.observe.gpus import GPUS, Gpu, of_device

_AXES = {"ranks of a machine": "node_link", "machines": "network"}  # of doctor --distributed


def gpu_measured(path: str) -> Gpu:
    """Memory and its bandwidth, and the link to the host; the rest is the data sheet's."""
    found = _read(path)
    gpus, rates = found.get("gpus"), found.get("bandwidth", {}).get("gpu")
    if not gpus or not rates:
        raise UserError(
            f"{path} says nothing of a GPU's speed: write it where there is one, with "
            f"`vidgen doctor --json > {path}`"
        )
    name = gpus[0]["name"]
    known = of_device(name)
    if known is None:
        raise UserError(
            f"{path} is of {name!r}, whose FLOP/s are not known; those of {', '.join(GPUS)} are"
        )
    return replace(
        known,
        name=f"{known.name}, measured",
        memory=gpus[0]["memory"],
        memory_bandwidth=rates["copy"],
        host_link=min(rates["host to device"], rates["device to host"]),
    )


def with_links(gpu: Gpu, path: str) -> Gpu:
    """With the links that `torchrun ... -m vidgen doctor --distributed --json` measured: of each
    axis its slowest group and collective."""
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
        raise UserError(f"{path} is not what `vidgen doctor --json` writes: no mapping")
    return found
