import json
from pathlib import Path
from typing import Any

from vidgen.cli.doctor import examine, report


def test_json_holds_every_section(vidgen: Any, tmp_path: Path) -> None:
    status, out, err = vidgen("doctor", "--json", "--no-measure", "--dir", tmp_path)
    assert status == 0, err
    found = json.loads(out)
    assert set(found) == {
        *("versions", "tools", "native", "cpu", "memory", "gpus"),
        *("ops", "attention", "features"),
    }
    writer = "compiled checkpoint writer"
    assert set(found["features"]) == {"io_uring", "O_DIRECT", "pinned memory", writer}
    assert sum(row["chosen"] for row in found["attention"]) == 1


def test_every_operation_has_one_that_runs_and_a_reason_for_the_rest(tmp_path: Path) -> None:
    rows = examine(tmp_path, measure=False)["ops"]
    for op, device in {(row["op"], row["device"]) for row in rows}:
        same = [row for row in rows if (row["op"], row["device"]) == (op, device)]
        assert sum(row["chosen"] for row in same) == 1
        assert all(row["available"] or row["reason"] for row in same)


def test_report_shows_what_runs_and_why_not() -> None:
    found: dict[str, Any] = {
        "versions": {"vidgen": "1"},
        "tools": {"g++": "not found"},
        "native": {"available": False, "reason": "is not built"},
        "cpu": {"name": "C", "cores": 4, "usable cores": 2, "features": {"avx2": True, "x": False}},
        "memory": {"total": 8 * 2**30, "available": 2**30, "lockable": None},
        "gpus": [{"name": "G", "capability": "sm_90", "memory": 2**37}],
        "ops": [
            row("modulate", "reference", True, "", True),
            row("modulate", "compiled", False, "is not built", False),
        ],
        "attention": [{"name": "math", "available": True, "reason": "", "chosen": False}],
        "features": {"io_uring": {"available": False, "reason": "blocked"}},
        "bandwidth": {
            "memory copy": 2e10,
            "disk": {"method": "buffered + fsync", "bytes": 2**28, "write": 5e8},
            "gpu": {"copy": 4e12},
        },
    }
    text = "\n".join(report(found))
    for line in (
        "vidgen._native  no: is not built",
        "C, 2 of 4 cores",
        "8.0 GiB, 1.0 GiB free",
        "G, sm_90, 128.0 GiB",
        "* modulate on cpu: reference",
        "- modulate on cpu: compiled   is not built",
        "+ math",
        "io_uring  no: blocked",
        "20.0 GB/s (read + write)",
        "500 MB/s (buffered + fsync, 256 MiB)",
        "4000.0 GB/s",
    ):
        assert line in text


def row(op: str, name: str, available: bool, reason: str, chosen: bool) -> dict[str, Any]:
    return {
        "op": op,
        "device": "cpu",
        "implementation": name,
        "available": available,
        "reason": reason,
        "chosen": chosen,
    }


def test_a_directory_that_is_not_there(vidgen: Any) -> None:
    status, _, err = vidgen("doctor", "--dir", "/nowhere")
    assert status == 2
    assert "--dir /nowhere: not a directory" in err
