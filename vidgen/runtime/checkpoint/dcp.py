"""Checkpoints to and from the directories of torch.distributed.checkpoint."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.printable import one_line, printable
from vidgen.runtime.checkpoint.dcp_metadata import planner, read_metadata, reader
from vidgen.runtime.checkpoint.load import groups, read_objects, read_tensors
from vidgen.runtime.checkpoint.save import save

OBJECTS = "vidgen_objects"  # one string: the objects, as JSON
Groups = dict[str, dict[str, str]]  # group, name: key in the directory
# Sections that programs nest a state in, and the names that wrappers of a module add.
OUTER = frozenset({"app", "state"})
WEIGHTS = frozenset({"model", "model_state_dict", "state_dict", "module", "net"})
EMAS = frozenset({"ema", "ema_model", "model_ema"})
OPTIMIZERS = frozenset({"optim", "optimizer", "optimizer_state_dict", "lr_scheduler", "scheduler"})
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def export_dcp(step: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Write a step's groups as a DCP directory with the keys `group.name`; needs their memory."""
    import torch.distributed.checkpoint as dcp

    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already and is not empty; name another directory")
    state: dict[str, Any] = {group: read_tensors(step, group) for group in groups(step)}
    state[OBJECTS] = json.dumps(read_objects(step))
    dcp.save(state, checkpoint_id=destination, no_dist=True)


@dataclass(frozen=True)
class Imported:
    path: Path  # of the step
    layout: str
    left_out: list[str]  # keys that the step does not hold


def import_dcp(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    step: int,
    layout_of: Callable[[Mapping[str, Tensor], str | None], str],
) -> Imported:
    """Save the weights of a DCP directory as a step under root.

    An exported step comes back whole. Of any other directory the weights are taken out of their
    nesting, and optimizer states are left out. `layout_of` says which layout the step records, from
    the weights on the meta device and what an exported step says, and raises where it cannot. No
    pickle of the directory runs code: what a DCP does not need is refused.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    held = read_metadata(source).state_dict_metadata
    entries = {k: entry for k, entry in held.items() if isinstance(entry, TensorStorageMetadata)}
    objects: dict[str, Any] = {}
    recorded: str | None = None
    if OBJECTS in held:
        text: dict[str, Any] = {OBJECTS: ""}
        _load(source, text)
        objects = _objects(source, text[OBJECTS])
        recorded = objects.get("layout", "vidgen")
        keys: Groups = {}
        for key in entries:
            group, _, name = key.partition(".")
            if not group.isidentifier():  # it becomes part of a file's name
                raise UserError(f"{source}: the tensor {printable(key)} is in no group of a step")
            keys.setdefault(group, {})[name] = key
    else:
        keys = unnested(entries, str(source))
    weights = {
        name: torch.empty(entries[key].size, dtype=entries[key].properties.dtype, device="meta")
        for name, key in keys.get("model", {}).items()
    }
    layout = objects["layout"] = layout_of(weights, recorded)
    tensors = {
        group: {
            name: torch.empty(entries[key].size, dtype=entries[key].properties.dtype)
            for name, key in names.items()
        }
        for group, names in keys.items()
    }
    flat = {k: tensors[group][name] for group, names in keys.items() for name, k in names.items()}
    _load(source, flat)
    # What is imported takes no other step's place.
    saving = save(root, step, tensors, objects, keep_last=sys.maxsize, background=False)
    taken = {key for names in keys.values() for key in names.values()} | {OBJECTS}
    return Imported(saving.path, layout, [key for key in held if key not in taken])


def _load(source: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Fill `state` from a DCP directory, in place."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        dcp.load(state, storage_reader=reader(source), planner=planner(), no_dist=True)
    except CheckpointException as error:  # what any rank's part of the work raised
        reason = one_line(next(iter(error.failures.values()))[0])[:300]
        raise UserError(f"{source} cannot be read: {reason}") from None


def unnested(keys: Iterable[str], where: str) -> Groups:
    """The keys of the weights, and of their EMA, by the names that the model gives them.

    Understands a model's own `state_dict`, one in a section such as "model" beside others such as
    "optimizer", all of it in an application's section, and the wrappers of DDP, FSDP and
    torch.compile.
    """
    found = {key: key.split(".") for key in keys}
    if not found:
        raise UserError(f"{where} holds no tensors; expected the weights of a model")
    while len(heads := {parts[0] for parts in found.values()}) == 1 and heads <= OUTER:
        found = {key: parts[1:] for key, parts in found.items()}
    weights = heads & WEIGHTS
    if len(weights) > 1:
        raise UserError(
            f"{where} holds weights in {', '.join(sorted(weights))}; expected one of these"
        )
    if not weights:
        return {"model": {_unwrapped(parts): key for key, parts in found.items()}}
    if others := heads - WEIGHTS - EMAS - OPTIMIZERS:
        raise UserError(
            f"{where} holds {', '.join(sorted(others)[:3])} beside {weights.pop()}; expected "
            "weights, their EMA and an optimizer"
        )
    groups: Groups = {"model": {}}
    for key, parts in found.items():
        if parts[0] in WEIGHTS:
            groups["model"][_unwrapped(parts[1:])] = key
        elif parts[0] in EMAS:
            groups.setdefault("ema", {})[_unwrapped(parts[1:])] = key
    if "ema" in groups and groups["ema"].keys() != groups["model"].keys():
        del groups["ema"]  # the names of some other form, such as an optimizer's
    return groups


def _unwrapped(parts: list[str]) -> str:
    return ".".join(part for part in parts if part not in WRAPPERS)


def _objects(source: str | os.PathLike[str], text: Any) -> dict[str, Any]:
    try:
        objects = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {OBJECTS} is not JSON: {error}") from None
    if not isinstance(objects, dict):
        raise UserError(f"{source}: {OBJECTS} is not a JSON object")
    return objects
