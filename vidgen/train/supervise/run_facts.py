"""What decides a run's results on one rank: compared between ranks, and by a run that resumes."""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import vidgen
from vidgen.config import to_dict
from vidgen.data.index.manifest import Manifest
from vidgen.errors import UserError
from vidgen.recipe.reader import leaves
from vidgen.runtime import native
from vidgen.train.supervise.agreement import listed
from vidgen.version import __version__

Facts = dict[str, str]

VARIABLES = ("VIDGEN_OPS", "VIDGEN_ATTENTION", "VIDGEN_CPU")
# Packages that compute or decode: another version may give other numbers.
PACKAGES = (
    *("torch", "triton", "numpy", "av", "torchcodec", "pyarrow", "safetensors"),
    *("transformers", "diffusers", "torchao", "flash-attn"),
)
_SHOWN = 60  # characters of a value in a message


def of_rank(recipe: Any, options: Mapping[str, Any]) -> Facts:
    """What must be equal on all ranks: recipe, options, environment, versions, code."""
    facts = {".".join(keys): json.dumps(value) for keys, value in leaves(to_dict(recipe))}
    facts |= {f"option {name}": json.dumps(value) for name, value in options.items()}
    facts |= {name: os.environ.get(name, "(unset)") for name in VARIABLES}
    return facts | versions()


def of_manifest(manifest: Manifest) -> Facts:
    """A digest of each column."""
    return {f"the manifest's {name}": digest for name, digest in manifest.digests.items()}


def versions() -> Facts:
    return {
        "the Python version": platform.python_version(),
        **{f"the version of {name}": _version(name) for name in PACKAGES},
        "vidgen's compiled module": "missing" if native.load() is None else "present",
        "vidgen's code": f"{__version__}, {code_digest(Path(vidgen.__file__).parent)}",
    }


def of_resume(device: torch.device, ranks: int) -> Facts:
    """What the last bits of a result depend on beside the recipe; saved with every checkpoint."""
    facts = {
        **versions(),
        **{name: os.environ.get(name, "(unset)") for name in VARIABLES},
        "the number of ranks": str(ranks),
        "the processor": _device_name(device),
    }
    if device.type == "cpu":
        module = native.load()
        facts["the variant of the CPU kernels"] = "none" if module is None else module.cpu_variant()
        facts["the number of threads"] = str(torch.get_num_threads())
    return facts


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """One line for a run that resumes where results may have other last bits; None: nothing
    changed, or the checkpoint is of a version that kept no facts."""
    found = [
        f"{name} ({then[name]} -> {now[name]})"
        for name in now
        if name in then and then[name] != now[name]
    ]
    if not found:
        return None
    return (
        f"resumed with another environment than the checkpoint was saved in: {', '.join(found)}; "
        "the last bits of results may differ from an undisturbed run's"
    )


def check_equal(facts: list[Facts]) -> None:
    """Raise one line that names the keys in which ranks differ, with the values of each rank."""
    keys = dict.fromkeys(key for one in facts for key in one)
    different = [key for key in keys if len({one.get(key) for one in facts}) > 1]
    if not different:
        return
    first, *more = different
    by_value: dict[str, list[int]] = {}
    for rank, one in enumerate(facts):
        by_value.setdefault(one.get(first, "(absent)"), []).append(rank)
    values = ", ".join(f"{_short(value)} on {listed(ranks)}" for value, ranks in by_value.items())
    others = f" (and so do {_some(more)})" if more else ""
    raise UserError(
        f"the ranks of this run differ in {first}: {values}{others}; start every rank with the "
        "same recipe, options, environment, data and code"
    )


@functools.cache
def code_digest(folder: Path) -> str:
    """Of the package's Python sources, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else value[: _SHOWN - 3] + "..."


def _some(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
