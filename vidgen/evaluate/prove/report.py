"""The table of a proof: as JSON, as text, and as a page with videos side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen.data.synthetic.scene_judge import judge_hash
from vidgen.evaluate.prove import table
from vidgen.evaluate.prove.methods import Method
from vidgen.evaluate.prove.run import SHOWN, Prover
from vidgen.page import kit, videos

SHOWN_COLUMNS = ("all", *table.ATTRIBUTES, "path_error", "ghosting", "sharpness", *table.DISTANCES)
PERCENT = ("all", *table.ATTRIBUTES)


@dataclass(frozen=True)
class Proved:
    label: str
    method: Method
    prover: Prover

    def rows(self) -> list[dict[str, Any]]:
        return self.prover.rows(self.method)


def summarise(
    proved: Sequence[Proved],
    real: Sequence[table.Row],
    other: Sequence[table.Row],
    ceiling: Sequence[table.Row],
) -> dict[str, Any]:
    """Everything the table says, as JSON; the first row is the reference."""
    reference = proved[0].rows()
    found: dict[str, Any] = {
        "judge": judge_hash(),
        "weights": proved[-1].prover.pipeline.weights_hash,
        "prompts": len({item.number for item in proved[0].prover.items}),
        "videos": len(reference),
        "intervals": "95 %, bootstrap over videos; differences paired by prompt and seed",
        "real": table.as_json(table.summarise(real, other)),
        "split_half": table.split_half(real, other),
        "reconstructed": table.as_json(table.summarise(ceiling, other)),
        "methods": {},
    }
    for one in proved:
        rows = one.rows()
        held = [item.held_out for item in one.prover.items]
        request = one.prover.request(one.method, one.prover.items[0])
        found["methods"][one.label] = {
            "figures": table.as_json(table.summarise(rows, real)),
            "held_out": table.as_json(_scores([r for r, h in zip(rows, held, strict=True) if h])),
            "trained": table.as_json(
                _scores([r for r, h in zip(rows, held, strict=True) if not h])
            ),
            "difference": table.as_json(table.compared(rows, reference)),
            "seconds_a_video": round(sum(r["seconds"] for r in rows) / len(rows), 4),
            "passes": sum(one.prover.pipeline.check(request).passes),
        }
    return found


def _scores(rows: Sequence[table.Row]) -> dict[str, Any]:
    names = ("all", *table.ATTRIBUTES, "path_error")
    return {name: table.interval(table.column(rows, name)) for name in names}


def as_text(summary: dict[str, Any]) -> str:
    """One line a method; a star marks a figure whose paired difference excludes zero."""
    width = max(len(name) for name in [*summary["methods"], "reconstructed"])
    head = " ".join(f"{name[:9]:>9}" for name in SHOWN_COLUMNS)
    lines = [f"{'':<{width}} {head} {'s/video':>8} {'passes':>6}"]
    for name in ("real", "reconstructed"):
        lines.append(f"{name:<{width}} {_cells(summary[name], {})}")
    for name, row in summary["methods"].items():
        cells = _cells(row["figures"], row["difference"])
        lines.append(f"{name:<{width}} {cells} {row['seconds_a_video']:>8.2f} {row['passes']:>6}")
    return "\n".join(lines)


def _cells(figures: dict[str, Any], difference: dict[str, Any]) -> str:
    return " ".join(_cell(name, figures.get(name), difference.get(name)) for name in SHOWN_COLUMNS)


def _cell(name: str, figure: list[float] | None, gap: list[float] | None) -> str:
    if figure is None or figure[0] is None:
        return f"{'-':>9}"
    value, low, high = figure
    scale = 100 if name in PERCENT else 1
    digits = 0 if name in PERCENT else 2
    sure = gap is not None and gap[1] is not None and (gap[1] > 0 or gap[2] < 0)
    half = scale * (high - low) / 2
    return f"{f'{scale * value:.{digits}f}±{half:.{digits}f}' + ('*' if sure else ''):>9}"


def write(path: Path, summary: dict[str, Any], proved: Sequence[Proved]) -> Path:
    rows = []
    for name in ("real", "reconstructed"):
        rows.append([name, *(_cell(c, summary[name].get(c), None) for c in SHOWN_COLUMNS), "", ""])
    for name, row in summary["methods"].items():
        cells = [_cell(c, row["figures"].get(c), row["difference"].get(c)) for c in SHOWN_COLUMNS]
        rows.append([name, *cells, f"{row['seconds_a_video']:.2f}", row["passes"]])
    head = ["", *SHOWN_COLUMNS, "s/video", "passes"]
    groups = []
    for item in proved[0].prover.items[:SHOWN]:
        cards = [
            videos.VideoCard(one.prover.video_path(one.method, item), one.label, size=(96, 96))
            for one in proved
            if one.prover.video_path(one.method, item).is_file()
        ]
        if cards:
            groups.append(videos.Comparison(item.prompt, cards))
    return kit.write_page(
        path,
        title="vidgen prove",
        subtitle=f"{summary['videos']} videos a method, judged by pixels alone.",
        facts={"judge": summary["judge"], "weights": summary["weights"][:12]},
        sections=[
            kit.section(
                "Table",
                "Value and half of the 95 % interval; * differs from the first method.",
                kit.table(rows, head=head, classes=["", *["number"] * (len(head) - 1)]),
            ),
            kit.section("Videos", "The same prompt and seed.", videos.comparisons(groups)),
        ],
    )
