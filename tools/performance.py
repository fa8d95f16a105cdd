"""Writes README's performance section from profiles/results/*/*.json, between its two marks.

python tools/performance.py [--check | FOLDER | --table RESULTS]

A folder of results is printed as well, a table a file. --table prints the section that
RESULTS/<machine>/*.json make, and writes nothing.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"

# What the README speaks of, and the suites whose results say it.
WANTED = {
    "forward and backward of the 11.9 G model on a GPU, beside the report's pace": ("mfu",),
    "the parts of a block's time on a GPU": ("step",),
    "fused operations beside a device copy, on a GPU": ("ops",),
    "one pass of sampling on a GPU": ("sampling",),
    "the Video DC-AE on a GPU, and the generator's speed-up with it": ("dcae", "speedup"),
}


def kept(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(machine, suite, its file) of every result."""
    for path in sorted(folder.glob("*/*.json")):
        yield path.parent.name, path.stem, json.loads(path.read_text())


def section(folder: Path = ROOT / "profiles/results") -> str:
    results = list(kept(folder))
    lines = ["| machine | suite | measured |", "|---|---|---|"]
    for machine, suite, found in results:
        path = f"profiles/results/{machine}/{suite}.json"
        lines.append(f"| {machine} | [{suite}]({path}) | {_summary(suite, found)} |")
    missing = [
        what
        for what, suites in WANTED.items()
        if not any(
            suite.startswith(suites) and not machine.startswith("cpu-")
            for machine, suite, _ in results
        )
    ]
    if missing:
        lines += ["", "Not measured yet: " + "; ".join(missing) + "."]
    return "\n".join(lines)


def _summary(suite: str, found: dict[str, Any]) -> str:
    """What a suite's file says in a line or two; nothing for a suite that has no line here."""
    rows = [row for row in found.get("rows", []) if isinstance(row, dict)]
    for name, says in HEADLINES.items():
        if suite.startswith(name):
            return "<br>".join(_said(says, rows))
    return ""


def _said(says: Callable[[list[Row]], Iterator[str]], rows: list[Row]) -> Iterator[str]:
    """What failed on the machine in a row of its own: it has none of the figures."""
    yield from says([row for row in rows if "failed" not in row and "skipped" not in row])
    for row in rows:
        if "failed" in row:
            named = (str(row[key]) for key in NAMES if key in row)
            yield f"{' '.join(named)}: {row['failed']}"


def _mfu(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "videos_per_s" not in row:
            continue
        beside = f", {row['ratio']:.2f} times the report's" if row.get("ratio") else ""
        fewer = (
            f" (batch {row['batch']}, the largest that fits)" if "in_place_of_batch" in row else ""
        )
        yield (
            f"{row['bucket']}{fewer}: {row['videos_per_s']:.3g} videos/s, "
            f"MFU {row['mfu']:.1%}{beside}"
        )


def _ops(rows: list[Row]) -> Iterator[str]:
    # Rows about the host's part of a call have no fraction and no dtype.
    ours = [r for r in rows if r.get("implementation") == "compiled" and "fraction_of_copy" in r]
    for dtype in dict.fromkeys(row["dtype"] for row in ours):
        parts = sorted(row["fraction_of_copy"] for row in ours if row["dtype"] == dtype)
        yield (
            f"{dtype}: {parts[0]:.0%} to {parts[-1]:.0%} of a copy's bandwidth over "
            f"{len(parts)} passes, median {parts[len(parts) // 2]:.0%}"
        )


def _optim(rows: list[Row]) -> Iterator[str]:
    measured = [row for row in rows if "ms" in row]
    for row in measured:
        average = " with moving average" if row["moving_average"] else ""
        yield (
            f"{row['states']}{average}: {row['ms'] / row['millions']:.2f} ms a million weights, "
            f"{row['of_in_place']:.0%} of the bandwidth of a sum in place"
        )


def _attention(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "both_ms" in row:
            yield (
                f"{row['backend']} {row['dtype']} at {row['length']}: "
                f"{row['forward_fraction_of_matmul']:.0%} of a matmul forward, "
                f"{row['both_ms']:.0f} ms with backward"
            )


def _of_ruler(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "of_ruler" in row and not row["what"].startswith("ruler"):
            yield f"{row['what']}: {row['gb_per_s']:.3g} GB/s, {row['of_ruler']:.0%} of its ruler"


def _loader(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "clips_per_s" not in row:
            continue
        yield (
            f"{row['loader']}, {row['clip'].partition(' ')[0]}: {row['clips_per_s']:.3g} clips/s, "
            f"{row['memory_mb']:.0f} MB"
        )


def _encode(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "times_one_after_the_other" not in row:
            continue
        yield (
            f"{row['what']}: {row['clips_per_s']:.3g} clips/s, "
            f"{row['times_one_after_the_other']:.3g} times one after the other"
        )


def _ring(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "total_over_kernel" not in row:
            continue
        yield (
            f"{row['tokens']} tokens in {row['parts']} parts: {row['total_over_kernel']:.3g} times "
            "the whole kernel's time"
        )


def _step(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "share" not in row:
            continue
        yield f"{row['part']} {row['share']:.0%}"


def _sampling(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if "s_per_pass" not in row:
            continue
        if row.get("blocks_streamed") == 0:  # a model too small to be streamed
            continue
        yield (
            f"{row['shape']}, {row['weights']}: {row['s_per_pass']:.3g} s a pass, "
            f"{row['peak_memory_gb']:.3g} GB"
        )


def _dcae(rows: list[Row]) -> Iterator[str]:
    """Ours with what the same run had beside it, a line a direction and shape."""
    timed = [row for row in rows if "frames_per_s" in row]
    for row in timed:
        if row["way"] != "ours":
            continue
        pixels = row["shape"].partition("x")[2]
        peers = [
            f"{other['way']} {other['frames_per_s']:.3g}"
            for other in timed
            if other is not row
            and other["what"] == row["what"]
            and other["shape"].partition("x")[2] == pixels
        ]
        yield (
            f"{row['what']} {row['shape']}: {row['frames_per_s']:.3g} frames/s, "
            f"{row['of_matmul']:.0%} of a matmul ({'; '.join(peers)})"
        )


def _speedup(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        for what in ("training", "sampling"):
            if f"{what}_speed_up" in row:
                said = row[f"report_{what}_speed_up"]
                beside = f", {said:g} in the report" if said else ""
                yield (
                    f"{what} with {row['latents']} latents, {row['bucket']}: "
                    f"{row[f'{what}_speed_up']:.3g} times as fast "
                    f"({row[f'{what}_flops_ratio']:.3g} by FLOPs{beside})"
                )


# What names a row that has no figures.
NAMES = ("what", "bucket", "backend", "loader", "shape", "states", "tokens", "dtype", "length")

HEADLINES: dict[str, Callable[[list[Row]], Iterator[str]]] = {
    "mfu": _mfu,
    "step": _step,
    "ops": _ops,
    "optim": _optim,
    "attention": _attention,
    "checkpoint": _of_ruler,
    "lane": _of_ruler,
    "loader": _loader,
    "encode": _encode,
    "load": _of_ruler,
    "parallel_ring": _ring,
    "sampling": _sampling,
    "dcae": _dcae,
    "speedup": _speedup,
}


def rewritten(text: str) -> str:
    before, found, rest = text.partition(BEGIN)
    _, also, after = rest.partition(END)
    if not (found and also):
        raise SystemExit(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{section()}\n{END}{after}"


def main() -> None:
    if sys.argv[1:2] == ["--table"]:
        print(section(Path(sys.argv[2])))
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rewritten(text)
    if sys.argv[1:] == ["--check"]:
        if new != text:
            raise SystemExit("README.md is out of date: run python tools/performance.py")
        return
    readme.write_text(new)
    for folder in map(Path, sys.argv[1:]):
        show(folder)


def show(folder: Path) -> None:
    from vidgen.runtime.observe import results

    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text()).get("rows")
        if isinstance(rows, list) and rows:
            print(f"\n{path}\n{results.table(row for row in rows if isinstance(row, dict))}")


if __name__ == "__main__":
    main()
