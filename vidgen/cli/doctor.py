"""`vidgen doctor`: what this machine has, what will run on it, and why the rest will not."""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidgen.errors import UserError

EXAMPLE = """\
  vidgen doctor
  vidgen doctor --json --dir /data/checkpoints
  torchrun --nproc-per-node 8 -m vidgen doctor --distributed
  torchrun --nproc-per-node 8 -m vidgen doctor --distributed --mesh data=2,context=4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--dir", metavar="DIR", default=".", help="whose disk to measure (default: here)"
    )
    parser.add_argument("--no-measure", action="store_true", help="leave the measurements out")
    parser.add_argument(
        "--distributed", action="store_true", help="measure what torchrun's ranks do together"
    )
    parser.add_argument(
        "--mesh", metavar="AXIS=RANKS,...", help="along these axes (default: machines, their ranks)"
    )
    parser.add_argument(
        "--message", metavar="MIB", type=int, default=64, help="MiB of a message (default: 64)"
    )


def run(args: argparse.Namespace) -> None:
    if args.distributed:
        from vidgen.cli.doctor_distributed import check_ranks

        check_ranks(args.mesh, args.message, args.json)
        return
    directory = Path(args.dir)
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise UserError(f"--dir {args.dir}: not a directory this user can write to")
    found = examine(directory, measure=not args.no_measure)
    print(json.dumps(found, indent=2) if args.json else "\n".join(report(found)))


def examine(directory: Path, measure: bool = True) -> dict[str, Any]:
    """Everything the command prints, as plain JSON."""
    import torch

    from vidgen.runtime import attention, checkpoint, native, ops
    from vidgen.runtime.observe import hardware

    module = native.load()
    found: dict[str, Any] = {
        "versions": hardware.versions(),
        "tools": hardware.tools(),
        "native": {
            "available": module is not None,
            "reason": "built" if module is not None else native.reason(),
            "cpu_variants": module.cpu_variants() if module else [],
            "cpu_variant": module.cpu_variant() if module else "",
            "cuda_architectures": module.cuda_architectures if module else "",
        },
        "cpu": hardware.cpu(),
        "memory": hardware.memory(),
        "gpus": hardware.gpus(),
        "ops": [_row(row) for row in ops.table()],
        "attention": [_row(row) for row in attention.backends()],
    }
    features = {
        "io_uring": hardware.io_uring(),
        "O_DIRECT": hardware.o_direct(directory),
        "pinned memory": hardware.pinned_memory(),
        "compiled checkpoint writer": checkpoint.writer(directory),
    }
    found["features"] = {
        name: {"available": available, "reason": reason}
        for name, (available, reason) in features.items()
    }
    if measure:
        found["bandwidth"] = {
            "memory copy": hardware.memory_bandwidth(),
            "disk": hardware.disk_bandwidth(directory),
        }
        if torch.cuda.is_available():
            found["bandwidth"]["gpu"] = hardware.device_bandwidth()
    return found


def _row(row: Any) -> dict[str, Any]:
    return dict(row) if isinstance(row, dict) else asdict(row)


def report(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        width = max((len(name) for name, _ in rows), default=0)
        lines.append(title)
        lines.extend(f"  {name:<{width}}  {text}".rstrip() for name, text in rows)
        lines.append("")

    section("versions", list(found["versions"].items()))
    section("tools", list(found["tools"].items()))
    native = found["native"]
    built = [("vidgen._native", ("yes: " if native["available"] else "no: ") + native["reason"])]
    if native["available"]:
        variants = ", ".join(native["cpu_variants"])
        built.append(("cpu kernels", f"{native['cpu_variant']} of {variants} (VIDGEN_CPU selects)"))
        built.append(("cuda kernels", native["cuda_architectures"] or "not built"))
    section("compiled module", built)
    cpu, memory = found["cpu"], found["memory"]
    have = [name for name, present in cpu["features"].items() if present]
    lack = [name for name, present in cpu["features"].items() if not present]
    lockable = "no limit" if memory["lockable"] is None else _bytes(memory["lockable"])
    section(
        "processor and memory",
        [
            (
                "cpu",
                f"{cpu['name']}, {cpu['usable cores'] or cpu['cores']} of {cpu['cores']} cores",
            ),
            ("has", " ".join(have) or "none of the features used"),
            ("has not", " ".join(lack) or "-"),
            ("memory", f"{_bytes(memory['total'])}, {_bytes(memory['available'])} free"),
            ("lockable", lockable),
        ],
    )
    section(
        "gpus",
        [
            (str(i), f"{gpu['name']}, {gpu['capability']}, {_bytes(gpu['memory'])}")
            for i, gpu in enumerate(found["gpus"])
        ]
        or [("none", "runs on the CPU")],
    )
    section(
        "operations (VIDGEN_OPS picks)",
        [
            (f"{_mark(row)} {row['op']} on {row['device']}: {row['implementation']}", row["reason"])
            for row in found["ops"]
        ],
    )
    section(
        "attention (VIDGEN_ATTENTION picks)",
        [(f"{_mark(row)} {row['name']}", row["reason"] or "") for row in found["attention"]],
    )
    section(
        "system",
        [
            (name, ("yes: " if row["available"] else "no: ") + row["reason"])
            for name, row in found["features"].items()
        ],
    )
    if "bandwidth" in found:
        section("bandwidth, measured just now", _bandwidth(found["bandwidth"]))
    return lines[:-1]


def _bandwidth(bandwidth: dict[str, Any]) -> list[tuple[str, str]]:
    disk = bandwidth["disk"]
    speed = _rate(disk["write"]) if disk["write"] else f"not measured: {disk['reason']}"
    rows = [
        ("memory copy", f"{_rate(bandwidth['memory copy'])} (read + write)"),
        ("disk write", f"{speed} ({disk['method']}, {_bytes(disk['bytes'])})"),
    ]
    for name, value in bandwidth.get("gpu", {}).items():
        rows.append((f"gpu {name}", _rate(value)))
    return rows


def _mark(row: dict[str, Any]) -> str:
    """* runs, + could run, - cannot."""
    return "*" if row.get("chosen") else "+" if row["available"] else "-"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _rate(value: float) -> str:
    return f"{value / 1e9:.1f} GB/s" if value >= 1e9 else f"{value / 1e6:.0f} MB/s"
