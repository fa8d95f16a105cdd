"""`vidgen doctor --distributed`: every axis and collective, and the slow ones by name."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vidgen as package
from vidgen.cli.doctor_distributed import read_mesh, report
from vidgen.errors import UserError
from vidgen.runtime.parallel.cluster_check import _slow


@pytest.mark.slow
def test_four_ranks_on_a_mesh_of_two_axes() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vidgen", "doctor", "--distributed", "--json"]
    children = [
        subprocess.Popen(
            [*command, "--mesh", "data=2,context=2", "--message", "1"],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(package.__file__).parents[1]),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "4",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "CUDA_VISIBLE_DEVICES": "",
                "GLOO_SOCKET_IFNAME": "lo",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    try:
        said = [child.communicate(timeout=200) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * 4, said
    assert [bool(out) for out, _ in said] == [True, False, False, False]
    found = json.loads(said[0][0])
    measured = {(row["axis"], row["collective"], tuple(row["ranks"])) for row in found["axes"]}
    groups = {
        "data": [(0, 2), (1, 3)],
        "context": [(0, 1), (2, 3)],
        "all": [(0, 1, 2, 3)],
    }
    collectives = ("all-reduce", "all-gather", "ring hop", "all-to-all")
    assert measured == {
        (axis, name, ranks) for axis in groups for name in collectives for ranks in groups[axis]
    }
    assert all(row["bytes_per_s"] > 0 for row in found["axes"] + found["links"])
    assert [(link["from"], link["to"]) for link in found["links"]] == [
        *((0, 1), (1, 2), (2, 3), (3, 0))
    ]
    assert "context" in "\n".join(report(found))


def test_what_is_slow_is_named() -> None:
    everyone = [(f"node{rank // 2}", 10.0 if rank != 3 else 5.0, {}, {}) for rank in range(4)]
    links = [
        {"from": rank, "to": (rank + 1) % 4, "bytes_per_s": 1e9 if rank != 1 else 3e8}
        for rank in range(4)
    ]
    assert _slow(everyone, links) == [
        "rank 3 on node1 has 50% of the median attention speed",
        "link from rank 1 (node0) to rank 2 (node1) has 30% of the median link's bandwidth",
    ]


@pytest.mark.parametrize("text", ["data", "data=0", "data=2,data=2", "=4", "data=2,context=3"])
def test_a_mesh_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--mesh"):
        read_mesh(text, 4)


def test_one_process_is_told_how_to_start_more(vidgen: Any) -> None:
    status, _, err = vidgen("doctor", "--distributed")
    assert status == 2
    assert "torchrun --nproc-per-node 2 -m vidgen doctor --distributed" in err
