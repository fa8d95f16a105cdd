"""Writes README's performance section from profiles/results/*/*.json, between its two marks.

python tools/performance.py [--check | FOLDER]

A folder of results is printed as well, a table a file.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"

# What the README speaks of, and the suites whose results say it.
WANTED = {
    "forward and backward of the 11.9 G model on a GPU, beside the report's pace": ("mfu",),
    "the parts of a block's time on a GPU": ("step",),
    "fused operations beside a device copy, on a GPU": ("ops",),
    "one pass of sampling on a GPU": ("sampling",),
}


def kept() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(machine, suite, its file) of every result."""
    for path in sorted((ROOT / "profiles/results").glob("*/*.json")):
        yield path.parent.name, path.stem, json.loads(path.read_text())


def section() -> str:
    results = list(kept())
    lines = ["| machine | what | file |", "|---|---|---|"]
    for machine, suite, found in results:
        path = f"profiles/results/{machine}/{suite}.json"
        lines.append(f"| {machine} | {suite}{_summary(found)} | [{path}]({path}) |")
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


def _summary(found: dict[str, Any]) -> str:
    """The best MFU of a file that has any, with its pace beside the report's."""
    rows = found.get("rows", [])
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("ratio"), float)]
    if not rows or "mfu" not in rows[0]:
        return ""
    return "".join(
        f"<br>{row['bucket']}: {row['videos_per_s']:.3g} videos/s, MFU {row['mfu']:.1%}, "
        f"{row['ratio']:.2f} times the report's"
        for row in rows
    )


def rewritten(text: str) -> str:
    before, found, rest = text.partition(BEGIN)
    _, also, after = rest.partition(END)
    if not (found and also):
        raise SystemExit(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{section()}\n{END}{after}"


def main() -> None:
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
        if isinstance(rows, list):
            print(f"\n{path}\n{results.table(rows)}")


if __name__ == "__main__":
    main()
