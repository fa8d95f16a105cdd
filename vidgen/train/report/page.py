"""report.html: what a training run made and how it went, in one page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vidgen.page import kit
from vidgen.page.charts import (
    Line,
    Mark,
    line_chart,
    phase_class,
    smoothed,
    stacked_bars,
)
from vidgen.page.kit import NOTHING, Html
from vidgen.page.videos import Comparison, VideoCard, comparisons, gallery
from vidgen.train.report.metrics import Record, read_metrics


@dataclass(frozen=True)
class VideoEntry:
    """A sampled video, and for each attribute judged whether it is as the prompt asks.

    `seen` is what the judge saw instead, `tags` are further words such as "held out".
    """

    path: Path
    prompt: str
    verdict: Mapping[str, bool] = field(default_factory=dict)
    seen: Mapping[str, str | None] = field(default_factory=dict)
    tags: Sequence[str] = ()
    size: tuple[int, int] | None = None  # (height, width), for the page's layout

    def card(self) -> VideoCard:
        chips = [_chip(name, ok, self.seen.get(name)) for name, ok in self.verdict.items()]
        chips += map(kit.chip, self.tags)
        return VideoCard(self.path, self.prompt, kit.join(chips), self.size)


@dataclass(frozen=True)
class Adherence:
    """One column of the judge's table: the fraction of videos right, by attribute."""

    title: str
    scores: Mapping[str, float]
    videos: int
    control: bool = False  # a model that cannot know the answer, shown for comparison


def write_report(
    run_dir: str | Path,
    *,
    title: str,
    subtitle: str = "",
    facts: Mapping[str, object],
    phases: Sequence[tuple[str, float]] = (),
    videos: Sequence[VideoEntry] = (),
    compared: Sequence[Comparison] = (),
    adherence: Sequence[Adherence] = (),
    targets: Mapping[str, float] | None = None,
    environment: Mapping[str, Any],
    recipe: str = "",
    marks: Sequence[Mark] = (),
) -> Path:
    """Write `run_dir`/report.html from the run's metrics.jsonl and what is given here.

    `facts` are the figures at the top, `phases` the seconds of each part of the whole command,
    `compared` videos side by side, `targets` the fraction each attribute should reach, `marks`
    steps to point out in the curves.
    """
    run_dir = Path(run_dir)
    return kit.write_page(
        run_dir / "report.html",
        title=title,
        subtitle=subtitle,
        facts=facts,
        sections=[
            _adherence_section(adherence, targets or {}),
            _videos_section(videos),
            kit.section("Side by side", "", comparisons(compared)) if compared else NOTHING,
            _training_section(read_metrics(run_dir), marks),
            _phases_section(phases),
            _environment_section(environment, recipe),
        ],
    )


def _adherence_section(columns: Sequence[Adherence], targets: Mapping[str, float]) -> Html:
    if not columns:
        return NOTHING
    names = list(dict.fromkeys(name for column in columns for name in column.scores))
    head: list[object] = ["As asked"]
    head += [kit.join((c.title, Html("<br>"), kit.counted(c.videos, "video"))) for c in columns]
    rows: list[list[object]] = [
        [name.capitalize(), *(kit.score(c.scores.get(name)) for c in columns)] for name in names
    ]
    if targets:
        head.append("Target")
        for row, name in zip(rows, names, strict=True):
            row.append(f"at least {targets[name]:.0%}" if name in targets else "")
    classes = ["", *("control" if c.control else "" for c in columns)]
    lead = "Fraction of sampled videos in which a judge that sees only pixels finds what was asked."
    if any(c.control for c in columns):
        lead += " The control is the same model without its text: what guessing scores."
    body = kit.table(rows, head=head, classes=classes)
    return kit.section("Does it do what the prompt says?", lead, body)


def _videos_section(videos: Sequence[VideoEntry]) -> Html:
    if not videos:
        return NOTHING
    judged = [v for v in videos if v.verdict]
    right = sum(all(v.verdict.values()) for v in judged)
    lead = kit.counted(len(videos), "video")
    if judged:
        lead += f", {right} of {len(judged)} right in everything judged"
    return kit.section("Sampled videos", "", gallery([v.card() for v in videos], f"{lead}."))


def _chip(name: str, right: bool, seen: str | None) -> Html:
    kind, sign = ("good", "\u2713") if right else ("bad", "\u2717")
    instead = "" if right or seen is None else f": {seen}"
    hint = f"{name} is {'right' if right else 'wrong'}{instead}"
    return kit.chip(f"{sign} {name}{instead}", kind, hint)


def _training_section(records: Sequence[Record], marks: Sequence[Mark]) -> Html:
    if not records:
        return kit.section("Training", "No step was recorded.", NOTHING)
    cards = []
    if loss := _points(records, "loss"):
        lines = [Line("loss", loss, "raw"), Line("smoothed", smoothed(loss), "smooth")]
        note = "Every step, and smoothed." + _missing_note(records, "loss", len(loss))
        cards.append(kit.card("Loss", line_chart("Loss", lines, marks=marks), note))
    if bars := _breakdown(records):
        cards.append(bars)
    if norm := _points(records, "grad_norm"):
        lines = [Line("norm", norm, "raw"), Line("smoothed", smoothed(norm), "smooth")]
        note = "Before clipping." + _missing_note(records, "grad_norm", len(norm))
        chart = line_chart("Gradient norm", lines, marks=marks)
        cards.append(kit.card("Gradient norm", chart, note))
    if lr := _points(records, "lr"):
        chart = line_chart("Learning rate", [Line("lr", lr, "plain")], from_zero=True)
        cards.append(kit.card("Learning rate", chart))
    if wait := _data_wait(records):
        lines = [Line("wait", wait, "raw"), Line("smoothed", smoothed(wait), "smooth")]
        chart = line_chart("Waiting for data, percent of the step", lines, from_zero=True)
        note = f"Percent of the step's time; {fmean(y for _, y in wait):.1f} % on average."
        cards.append(kit.card("Waiting for data", chart, note))
    return kit.section("Training", _speed(records), kit.grid(cards))


def _points(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(r["step"], float(r[name])) for r in records if name in r and math.isfinite(r[name])]


def _missing_note(records: Sequence[Record], name: str, finite: int) -> str:
    lost = sum(name in r for r in records) - finite
    return f" {kit.counted(lost, 'step')} without a finite value." if lost else ""


def _data_wait(records: Sequence[Record]) -> list[tuple[float, float]]:
    return [
        (r["step"], 100 * r["data_ms"] / r["ms"]) for r in records if "data_ms" in r and r.get("ms")
    ]


def _speed(records: Sequence[Record]) -> str:
    """One sentence of medians over the run's second half, where caches and clocks are warm."""
    late = records[len(records) // 2 :]

    def typical(name: str) -> float | None:
        values = [r[name] for r in late if name in r]
        if not values:
            return None
        return max(values) if name == "memory_gb" else median(values)

    forms = {
        "ms": lambda v: f"{v:.0f} ms a step",
        "videos_per_s": lambda v: f"{v:.3g} videos/s",
        "tokens_per_s": lambda v: f"{v:,.0f} tokens/s",
        "mfu": lambda v: f"MFU {100 * v:.1f} %",
        "hfu": lambda v: f"HFU {100 * v:.1f} %",
        "memory_gb": lambda v: f"{v:.2f} GB of memory at the peak",
    }
    said = [form(v) for name, form in forms.items() if (v := typical(name)) is not None]
    return (
        f"{kit.counted(len(records), 'step')}. Medians of the second half: {', '.join(said)}."
        if said
        else ""
    )


def _breakdown(records: Sequence[Record]) -> Html:
    """Stacked bars of each phase's time by step, over a legend with the means."""
    timed = [r for r in records if r.get("phases")]
    if not timed:
        return NOTHING
    names = list(dict.fromkeys(name for r in timed for name in r["phases"]))
    # "other" is drawn on top, as what the named phases leave.
    names.sort(key=lambda name: name == "other")
    parts = {name: [r["phases"].get(name, 0.0) for r in timed] for name in names}
    title = "Time of a step by phase, in ms"
    chart = stacked_bars(title, [r["step"] for r in timed], parts)
    means = {name: fmean(values) for name, values in parts.items()}
    total = sum(means.values()) or 1.0
    entries = (
        (phase_class(name), f"{name} {mean:.3g} ms, {100 * mean / total:.1f} %")
        for name, mean in means.items()
    )
    legend = kit.legend("Means over all steps:", entries)
    return kit.card("Time of a step, ms", kit.join((chart, legend)))


def _phases_section(phases: Sequence[tuple[str, float]]) -> Html:
    if not phases:
        return NOTHING
    total = sum(seconds for _, seconds in phases) or 1.0
    rows = [
        (name, kit.bar(seconds / total), f"{seconds:.1f} s", f"{100 * seconds / total:.0f}%")
        for name, seconds in phases
    ]
    body = kit.table(rows, classes=("", "bar-cell", "number", "number"))
    return kit.section("Where the time went", f"{total:.0f} s of wall time in all.", body)


def _environment_section(environment: Mapping[str, Any], recipe: str) -> Html:
    body = kit.table(_flat(environment), kind="environment")
    if recipe:
        full = kit.unfold("The recipe in full", kit.preformatted(recipe), as_card=True)
        body = kit.join((body, full))
    return kit.section("Environment and recipe", "", body)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of a nested mapping, its keys joined by dots."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) or "none"))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
