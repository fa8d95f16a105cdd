"""Makes docs/report.md, "The report and this code", from tests/report/statements.yaml."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = ROOT / "tests" / "report" / "statements.yaml"
PAGE = ROOT / "docs" / "report.md"

HEAD = """\
# The report and this code

What the technical report of Open-Sora 2.0 states, row by row, and what this code does. This page
is made from `tests/report/statements.yaml` by `python tools/report_page.py`; a test compares every
value below with the recipes and every path with the code.

Where the report and its public code differ, both are offered by name. The recipes `stage1`,
`stage2`, `stage3`, `dcae` and `dcae_adapt` follow the report; `opensora_v2` and
`opensora_v2_dcae`, for the published weights, follow the public code. `vidgen recipe explain
stage1` prints the source of each value.

| verdict | means |
|---|---|
| same | the code does what the report states |
| named | report and public code differ: both by name, the report's by default in its recipes |
| different | on purpose; the reason is in the row |
| not measured | built and tested; the figure needs GPUs or the published weights |
| not built | not there yet |
"""


def read() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load(STATEMENTS.read_text(encoding="utf-8"))
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    counts = ", ".join(
        f"{sum(row['verdict'] == verdict for row in rows)} {verdict}"
        for verdict in ("same", "named", "different", "not measured", "not built")
    )
    lines = [
        HEAD,
        f"{len(rows)} statements: {counts}.",
        "",
        "| § | statement | verdict | code and test |",
    ]
    lines.append("|---|---|---|---|")
    for row in rows:
        verdict = f"**{row['verdict']}**" + (f": {row['why']}" if row.get("why") else "")
        places = [_link(place) for place in (*row["code"], *row["test"])]
        lines.append(
            f"| {row['section']} | {row['statement']} | {verdict} | {'<br>'.join(places)} |"
        )
    lines += [
        "",
        "## Values compared with the recipes",
        "",
        "| § | recipe | value |",
        "|---|---|---|",
    ]
    for row in rows:
        for recipe, values in row.get("values", {}).items():
            shown = ", ".join(f"`{key}` {_shown(value)}" for key, value in values.items())
            lines.append(f"| {row['section']} | {recipe} | {shown} |")
    return "\n".join(lines) + "\n"


def _link(place: str) -> str:
    """`vidgen/a.py:name` and `tests/a.py::test` as links to their files."""
    path, _, name = place.partition(":")
    name = name.lstrip(":")
    return f"[{name or Path(path).name}](../{path})"


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
