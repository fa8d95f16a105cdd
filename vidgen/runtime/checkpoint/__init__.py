"""Checkpoints: sharded, checked, and on disk either whole or not at all."""

from vidgen.runtime.checkpoint.commit import (
    find_step,
    latest,
    leftovers,
    steps,
    steps_folder,
)
from vidgen.runtime.checkpoint.compare import differences
from vidgen.runtime.checkpoint.coverage import not_checked
from vidgen.runtime.checkpoint.layout import DamagedCheckpoint, held_bytes
from vidgen.runtime.checkpoint.load import (
    About,
    LoadReport,
    describe,
    groups,
    load,
    read_objects,
    read_tensors,
    verify,
)
from vidgen.runtime.checkpoint.reader import GroupReader
from vidgen.runtime.checkpoint.save import SaveSummary, Saving, save
from vidgen.runtime.checkpoint.staging import reserve
from vidgen.runtime.checkpoint.transfer import writer

__all__ = [
    "save",
    "load",
    "find_step",
    "latest",
    "steps",
    "steps_folder",
    "leftovers",
    "describe",
    "differences",
    "groups",
    "not_checked",
    "read_tensors",
    "read_objects",
    "verify",
    "reserve",
    "held_bytes",
    "writer",
    "GroupReader",
    "Saving",
    "SaveSummary",
    "DamagedCheckpoint",
    "LoadReport",
    "About",
]
