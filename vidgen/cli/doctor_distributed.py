"""`vidgen doctor --distributed`: what the ranks that torchrun started can do together."""

import json
import math
from typing import Any

from vidgen.errors import UserError


def check_ranks(mesh: str | None, message_mib: int, as_json: bool) -> None:
    """Every rank calls this; rank 0 prints."""
    from vidgen.runtime.parallel import start
    from vidgen.runtime.parallel.cluster_check import check_cluster, default_axes
    from vidgen.train.supervise.supervision import Settings, Supervision

    if message_mib < 1:
        raise UserError(f"--message {message_mib}: expected at least 1 MiB")
    with start(timeout_s=120) as world:
        if world.world == 1:
            raise UserError(
                "--distributed measures several ranks and this is one process; start with: "
                "torchrun --nproc-per-node 2 -m vidgen doctor --distributed"
            )
        axes = default_axes(world) if mesh is None else read_mesh(mesh, world.world)
        with Supervision(world, None, Settings(world.timeout_s)):
            found = check_cluster(world, axes, message_mib * 2**20)
        if world.rank == 0:
            print(json.dumps(found, indent=2) if as_json else "\n".join(report(found)))


def read_mesh(text: str, ranks: int) -> dict[str, int]:
    """`data=2,context=4` as {"data": 2, "context": 4}: as many ranks as there are."""
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if not name or not size.isdecimal() or int(size) < 1 or name in axes:
            raise UserError(f"--mesh {text}: expected axes and their ranks, as data=2,context=4")
        axes[name] = int(size)
    if math.prod(axes.values()) != ranks:
        raise UserError(
            f"--mesh {text} is of {math.prod(axes.values())} ranks, and {ranks} were started"
        )
    return axes


def report(found: dict[str, Any]) -> list[str]:
    lines = ["collectives: what each rank sends, of the slowest group"]
    slowest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found["axes"]:
        key = row["axis"], row["collective"]
        if key not in slowest or row["bytes_per_s"] < slowest[key]["bytes_per_s"]:
            slowest[key] = row
    for (axis, name), row in slowest.items():
        lines.append(f"  {axis:<18}  {name:<10}  {_rate(row['bytes_per_s'])}  {_ranks(row)}")
    rates = [link["bytes_per_s"] for link in found["links"]]
    flops = [rank["attention_flops"] for rank in found["ranks"]]
    lines += [
        "",
        f"links from rank to next rank, alone: {_rate(min(rates))} to {_rate(max(rates))}",
        f"attention of a rank: {min(flops) / 1e12:.3g} to {max(flops) / 1e12:.3g} TFLOP/s",
        "",
        *(found["slow"] or ["no rank and no link is slow"]),
    ]
    return lines


def _ranks(row: dict[str, Any]) -> str:
    ranks = row["ranks"]
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"(ranks {shown})"


def _rate(value: float) -> str:
    return f"{value / 1e9:.1f} GB/s" if value >= 1e9 else f"{value / 1e6:.0f} MB/s"
