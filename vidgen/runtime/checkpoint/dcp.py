"""Checkpoints to and from the directories of torch.distributed.checkpoint."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from vidgen.errors import UserError
from vidgen.runtime.checkpoint.dcp_metadata import planner, read_metadata, reader
from vidgen.runtime.checkpoint.load import groups, read_objects, read_tensors
from vidgen.runtime.checkpoint.save import save

OBJECTS = "vidgen_objects"  # one string: the objects, as JSON
GROUPS = ("model", "ema", "optim")


def export_dcp(step: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Write a step's groups as a DCP directory with the keys `group.name`; needs their memory."""
    import torch.distributed.checkpoint as dcp

    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists already and is not empty; name another directory")
    state: dict[str, Any] = {group: read_tensors(step, group) for group in groups(step)}
    state[OBJECTS] = json.dumps(read_objects(step))
    dcp.save(state, checkpoint_id=destination, no_dist=True)


def import_dcp(
    source: str | os.PathLike[str], root: str | os.PathLike[str], step: int
) -> tuple[Path, list[str]]:
    """Save what a DCP directory holds as a step under root; its path, and the keys left out.

    Keys that begin with the name of a group go there; if there are others, all are the model's.
    Of what is no tensor only the objects of an exported checkpoint are taken. No pickle of the
    directory runs code: what a DCP does not need is refused.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    held = read_metadata(source).state_dict_metadata
    flat: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in held.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    left_out = [key for key in held if key not in flat and key != OBJECTS]
    if OBJECTS in held:
        flat[OBJECTS] = ""
    dcp.load(flat, storage_reader=reader(source), planner=planner(), no_dist=True)
    objects = _objects(source, flat.pop(OBJECTS, "{}"))
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    if all(key.partition(".")[0] in GROUPS for key in flat):
        for key, tensor in flat.items():
            group, _, name = key.partition(".")
            tensors.setdefault(group, {})[name] = tensor
    else:
        tensors["model"] = flat
    # What is imported takes no other step's place.
    saving = save(root, step, tensors, objects, keep_last=sys.maxsize, background=False)
    return saving.path, left_out


def _objects(source: str | os.PathLike[str], text: Any) -> dict[str, Any]:
    try:
        objects = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {OBJECTS} is not JSON: {error}") from None
    if not isinstance(objects, dict):
        raise UserError(f"{source}: {OBJECTS} is not a JSON object")
    return objects
