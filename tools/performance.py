"""Generates the performance section of README.md from profiles/results/*/*.json.

python tools/performance.py [--check | FOLDER | --table RESULTS]

--check fails when the section is out of date; the results of a FOLDER are also printed as tables.
--table prints the section for RESULTS/<machine>/*.json and writes nothing.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Headline = tuple[str, str, str]  # what is measured, vidgen's figure, the figures beside it
ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"

# Measurements the README lists as missing until one of these suites has results from a GPU.
WANTED = {
    "forward and backward of the 11.9 G model": ("mfu",),
    "the breakdown of a block's time": ("step",),
    "fused ops": ("ops",),
    "a sampling pass": ("sampling",),
    "the Video DC-AE and the speed-up it gives": ("dcae", "speedup"),
}


def read_results(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (machine, suite, contents) for each results file."""
    for path in sorted(folder.glob("*/*.json")):
        yield path.parent.name, path.stem, json.loads(path.read_text())


def section(folder: Path = ROOT / "profiles/results") -> str:
    results = list(read_results(folder))
    lines = ["| machine | suite | measured | vidgen | compared with |", "|---|---|---|---|---|"]
    for machine, suite, contents in results:
        if headline := summarize(suite, contents):
            path = f"profiles/results/{machine}/{suite}.json"
            lines.append(f"| {machine} | [{suite}]({path}) | {' | '.join(headline)} |")
    missing = [
        what
        for what, suites in WANTED.items()
        if not any(
            suite.startswith(suites) and not machine.startswith("cpu-")
            for machine, suite, _ in results
        )
    ]
    if missing:
        lines += ["", "Not measured on a GPU yet: " + "; ".join(missing) + "."]
    return "\n".join(lines)


def summarize(suite: str, contents: dict[str, Any]) -> Headline | None:
    """The headline figure of a suite and its failed rows; None for a suite that has neither."""
    rows = [row for row in contents.get("rows", []) if isinstance(row, dict)]
    measured = [row for row in rows if "failed" not in row and "skipped" not in row]
    failures = [
        " ".join(str(row[key]) for key in NAMES if key in row) + f": {row['failed']}"
        for row in rows
        if "failed" in row
    ]
    for prefix, headline in HEADLINES.items():
        if suite.startswith(prefix):
            what, figure, peers = headline(measured) or ("", "", "")
            peers = "; ".join(filter(None, [peers, *failures]))
            return (what, figure, peers) if what or failures else None
    return None


def _mfu(rows: list[Row]) -> Headline | None:
    rows = [row for row in rows if "mfu" in row]
    if not rows:
        return None
    row = max(rows, key=lambda row: row["mfu"])
    report = f"{row['ratio']:.2f}x the report's" if row.get("ratio") else ""
    rate = f"{row['videos_per_s']:.3g} videos/s, MFU {row['mfu']:.1%}"
    fewer = f" (batch {row['batch']}, the largest that fits)" if "in_place_of_batch" in row else ""
    return f"forward and backward, {row['bucket']}{fewer}", rate, report


def _ops(rows: list[Row]) -> Headline | None:
    """The median share of a copy's bandwidth, over ops and directions."""
    # Rows that measure the host's overhead of a call have no bandwidth.
    timed = [row for row in rows if "fraction_of_copy" in row]
    shares: dict[str, list[str]] = {}
    for way in dict.fromkeys(row["implementation"] for row in timed):
        for dtype in dict.fromkeys(row["dtype"] for row in timed):
            found = sorted(
                row["fraction_of_copy"]
                for row in timed
                if row["implementation"] == way and row["dtype"] == dtype
            )
            if found:
                shares.setdefault(way, []).append(f"{dtype} {found[len(found) // 2]:.0%}")
    ours = shares.pop("compiled", None)
    if ours is None:
        return None
    peers = "; ".join(f"{way}: {', '.join(texts)}" for way, texts in shares.items())
    return "fused ops, median share of copy bandwidth", ", ".join(ours), peers


def _optim(rows: list[Row]) -> Headline | None:
    """Time per million parameters of AdamW with bf16 moments and EMA, and of torch's AdamW."""
    per_million = {
        (row["states"], row["moving_average"]): row["ms"] / row["millions"]
        for row in rows
        if "ms" in row
    }
    ours = per_million.pop(("bf16", True), None)
    peers = [
        f"{name}, no EMA {ms:.2f} ms" for (name, _), ms in per_million.items() if "torch" in name
    ]
    if ours is None:
        return None
    return "AdamW step and EMA, per million parameters", f"{ours:.2f} ms", ", ".join(peers)


def _attention(rows: list[Row]) -> Headline | None:
    """vidgen's kernel and its fastest peer, in the first dtype at the longest sequence."""
    timed = [row for row in rows if "both_ms" in row]
    ours = [row for row in timed if row["backend"] == "native"]
    if not ours:
        return None
    row = max(ours, key=lambda row: row["length"])
    same = [r for r in timed if r["dtype"] == row["dtype"] and r["length"] == row["length"]]
    peers = sorted((r for r in same if r is not row), key=lambda r: r["both_ms"])
    return (
        f"attention forward and backward, {row['length']} tokens, {row['dtype']}",
        f"{row['both_ms']:.0f} ms",
        ", ".join(f"{peer['backend']} {peer['both_ms']:.0f} ms" for peer in peers[:1]),
    )


def _checkpoint(rows: list[Row]) -> Headline | None:
    """How fast a save is durable."""
    rate = {row["what"]: row["gb_per_s"] for row in rows if "gb_per_s" in row}
    ours = rate.get("vidgen: written and committed")
    if ours is None:
        return None
    peers = [
        f"{what.partition(':')[0]} {value:.3g}"
        for what, value in rate.items()
        if what.endswith(": written and durable")
    ]
    return "save, durable on disk", f"{ours:.3g} GB/s", ", ".join(peers)


def _of_ruler(rows: list[Row]) -> Headline | None:
    """The first row, beside others of its kind or the physical limit measured with it."""
    timed = [row for row in rows if "of_ruler" in row and not row["what"].startswith("ruler")]
    if not timed:
        return None
    row = timed[0]
    limit = row["gb_per_s"] / row["of_ruler"]
    what = row["what"].removeprefix("vidgen ")
    peers = [f"{p['what']} {p['gb_per_s']:.3g}" for p in timed if "vidgen" in row["what"]]
    return what, f"{row['gb_per_s']:.3g} GB/s", ", ".join([f"ruler {limit:.3g}", *peers[1:]])


def _loader(rows: list[Row]) -> Headline | None:
    """Clips per second of every loader, for the longest clips."""
    rows = [row for row in rows if "clips_per_s" in row]
    longest = max((_frames(row["clip"]) for row in rows), default=0)
    same = [row for row in rows if _frames(row["clip"]) == longest]
    ours = [row for row in same if row["loader"] == "vidgen"]
    if not ours:
        return None
    peers = [f"{r['loader']} {r['clips_per_s']:.3g}" for r in same if r["loader"] != "vidgen"]
    clip = ours[0]["clip"].partition(" ")[0]
    return f"clips of {clip} read", f"{ours[0]['clips_per_s']:.3g} clips/s", "; ".join(peers)


def _frames(clip: str) -> int:
    return int(clip.partition("x")[0])


def _encode(rows: list[Row]) -> Headline | None:
    """The fastest cold run of `vidgen encode`, beside reading and encoding in turn."""
    rate = {row["what"]: row["clips_per_s"] for row in rows if "clips_per_s" in row}
    ours = [value for what, value in rate.items() if what.startswith("vidgen encode,")]
    if not ours:
        return None
    peers = [f"{what} {r:.3g}" for what, r in rate.items() if not what.startswith("vidgen")]
    return "vidgen encode", f"{max(ours):.3g} clips/s", "; ".join(peers)


def _ring(rows: list[Row]) -> Headline | None:
    rows = [row for row in rows if "total_over_kernel" in row]
    if not rows:
        return None
    row = max(rows, key=lambda row: row["parts"])
    what = f"ring attention, {row['tokens']} tokens over {row['parts']} ranks"
    return what, f"{row['total_over_kernel']:.3g}x the time of one kernel", ""


def _step(rows: list[Row]) -> Headline | None:
    parts = ", ".join(f"{row['part']} {row['share']:.0%}" for row in rows if "share" in row)
    return ("where a block's time goes", parts, "") if parts else None


def _sampling(rows: list[Row]) -> Headline | None:
    for row in rows:
        # blocks_streamed is 0 if the model is too small to stream
        if "s_per_pass" in row and row.get("blocks_streamed") != 0:
            what = f"sampling pass, {row['shape']}, {row['weights']}"
            return what, f"{row['s_per_pass']:.3g} s, {row['peak_memory_gb']:.3g} GB", ""
    return None


def _dcae(rows: list[Row]) -> Headline | None:
    """Decoded frames per second of every implementation, at the largest frames."""
    timed = [row for row in rows if "frames_per_s" in row and row["what"] == "decode"]
    largest = max(map(_pixels, timed), default=0)
    rate = {row["way"]: row["frames_per_s"] for row in timed if _pixels(row) == largest}
    ours = [value for way, value in rate.items() if way.startswith("ours")]
    if not ours:
        return None
    shape = next(row["shape"] for row in timed if _pixels(row) == largest)
    peers = [f"{way} {value:.3g}" for way, value in rate.items() if not way.startswith("ours")]
    return f"Video DC-AE decode, {shape}", f"{max(ours):.3g} frames/s", "; ".join(peers)


def _pixels(row: Row) -> int:
    _, height, width = map(int, row["shape"].split("x"))
    return height * width


def _speedup(rows: list[Row]) -> Headline | None:
    for row in rows:
        if "training_speed_up" in row:
            figures = ", ".join(
                f"{row[f'{w}_speed_up']:.3g}x {w}" for w in ("training", "sampling")
            )
            peers = [f"{row['training_flops_ratio']:.3g}x by FLOPs"]
            if row["report_training_speed_up"]:
                peers.append(f"{row['report_training_speed_up']:g}x training in the report")
            what = f"speed-up of {row['latents']} latents, {row['bucket']}"
            return what, figures, ", ".join(peers)
    return None


# The keys that identify a row without figures.
NAMES = ("what", "bucket", "backend", "loader", "shape", "states", "tokens", "dtype", "length")

HEADLINES: dict[str, Callable[[list[Row]], Headline | None]] = {
    "mfu": _mfu,
    "step": _step,
    "ops": _ops,
    "optim": _optim,
    "attention": _attention,
    "checkpoint": _checkpoint,
    "lane": _of_ruler,
    "loader": _loader,
    "encode": _encode,
    "load": _of_ruler,
    "parallel_ring": _ring,
    "sampling": _sampling,
    "dcae": _dcae,
    "speedup": _speedup,
}


def rewrite(text: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{section()}\n{END}{after}"


def main() -> None:
    if sys.argv[1:2] == ["--table"]:
        print(section(Path(sys.argv[2])))
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rewrite(text)
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
