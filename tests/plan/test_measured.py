"""Measured figures replace the data sheet's, and only those."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.plan.measured import gpu_measured, with_links
from vidgen.runtime.observe.gpus import GPUS

DOCTOR = {
    "gpus": [{"name": "NVIDIA H200", "memory": 150e9}],
    "bandwidth": {"gpu": {"copy": 4.1e12, "host to device": 55e9, "device to host": 52e9}},
}


def written(folder: Path, found: Any) -> str:
    path = folder / "found.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return str(path)


def test_what_doctor_measured(tmp_path: Path) -> None:
    gpu = gpu_measured(written(tmp_path, DOCTOR))
    assert (gpu.memory, gpu.memory_bandwidth, gpu.host_link) == (150e9, 4.1e12, 52e9)
    assert (gpu.flops, gpu.network) == (GPUS["h200"].flops, GPUS["h200"].network)
    assert gpu.name == "h200, measured"


def test_the_slowest_link_of_each_axis(tmp_path: Path) -> None:
    rows = [("ranks of a machine", 390e9), ("ranks of a machine", 350e9), ("machines", 43e9)]
    axes = [{"axis": axis, "bytes_per_s": rate} for axis, rate in rows]
    gpu = with_links(GPUS["h200"], written(tmp_path, {"axes": axes}))
    assert (gpu.node_link, gpu.network) == (350e9, 43e9)
    one = with_links(GPUS["h200"], written(tmp_path, {"axes": axes[:1]}))
    assert (one.node_link, one.network) == (390e9, GPUS["h200"].network)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"gpus": []}, "has no figures of a GPU"),
        ({**DOCTOR, "gpus": [{"name": "NVIDIA T4", "memory": 1}]}, "'NVIDIA T4', whose FLOP/s"),
        ("{", "is not what `vidgen doctor --json` writes"),
        ("[]", "not a mapping"),
    ],
)
def test_files_of_something_else(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gpu_measured(written(tmp_path, found))
    with pytest.raises(UserError, match="has no figures of machines"):
        with_links(GPUS["h200"], written(tmp_path, {"axes": []}))
