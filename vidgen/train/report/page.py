"""report.html: what a run made and how it went, in one file that opens without a network."""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from string import Template
from typing import Any

from vidgen.page.charts import (
    Line,
    Mark,
    line_chart,
    phase_class,
    smoothed,
    stacked_bars,
)
from vidgen.train.report.metrics import Record, read_metrics
from vidgen.version import __version__

SHOWN_VIDEOS = 18  # the rest unfold


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
    adherence: Sequence[Adherence] = (),
    targets: Mapping[str, float] | None = None,
    environment: Mapping[str, Any],
    recipe: str = "",
    marks: Sequence[Mark] = (),
) -> Path:
    """Write `run_dir`/report.html from the run's metrics.jsonl and what is given here.

    `facts` are the figures at the top, `phases` the seconds of each part of the whole command,
    `targets` the fraction each attribute should reach, `marks` steps to point out in the curves.
    """
    run_dir = Path(run_dir)
    sections = [
        _adherence_section(adherence, targets or {}),
        _videos_section(videos),
        _training_section(read_metrics(run_dir), marks),
        _phases_section(phases),
        _environment_section(environment, recipe),
    ]
    template = resources.files("vidgen.train.report").joinpath("report_template.html")
    page = Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        facts=_facts(facts),
        sections="\n".join(filter(None, sections)),
        footer=f"Written by vidgen {escape(__version__)}. This file needs no network.",
    )
    path = run_dir / "report.html"
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _section(name: str, lead: str, body: str) -> str:
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{escape(name)}</h2>{lead}{body}</section>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _facts(facts: Mapping[str, object]) -> str:
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts card">{"".join(tiles)}</dl>' if facts else ""


def _adherence_section(columns: Sequence[Adherence], targets: Mapping[str, float]) -> str:
    if not columns:
        return ""
    names = list(dict.fromkeys(name for column in columns for name in column.scores))
    head = "".join(
        f'<th scope="col" class="{"control" if c.control else ""}">{escape(c.title)}'
        f"<br>{_count(c.videos, 'video')}</th>"
        for c in columns
    )
    if targets:
        head += '<th scope="col">Target</th>'
    rows = []
    for name in names:
        cells = "".join(_score_cell(c.scores.get(name), c.control) for c in columns)
        if targets:
            cells += f"<td>{f'at least {targets[name]:.0%}' if name in targets else ''}</td>"
        rows.append(f'<tr><th scope="row">{escape(name.capitalize())}</th>{cells}</tr>')
    table = (
        f'<div class="card scroll"><table><thead><tr><th scope="col">As asked</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    lead = "Fraction of sampled videos in which a judge that sees only pixels finds what was asked."
    if any(c.control for c in columns):
        lead += " The control is the same model without its text: what guessing scores."
    return _section("Does it do what the prompt says?", lead, table)


def _score_cell(score: float | None, control: bool) -> str:
    if score is None:
        return "<td></td>"
    kind = ' class="control"' if control else ""
    return f'<td{kind}><div class="score"><b>{_percent(score)}</b>{_bar(score)}</div></td>'


def _bar(fraction: float, colour: str = "") -> str:
    width = 100 * min(max(fraction, 0.0), 1.0)
    kind = f' class="{colour}"' if colour else ""
    return f'<span class="bar"><i{kind} style="width:{width:.1f}%"></i></span>'


def _percent(fraction: float) -> str:
    # Rounding must not turn a near miss into a full score.
    digits = 0 if fraction in (0, 1) or 0.005 <= fraction < 0.995 else 1
    return f"{100 * fraction:.{digits}f}%"


def _videos_section(videos: Sequence[VideoEntry]) -> str:
    if not videos:
        return ""
    judged = [v for v in videos if v.verdict]
    right = sum(all(v.verdict.values()) for v in judged)
    lead = _count(len(videos), "video")
    if judged:
        lead += f", {right} of {len(judged)} right in everything judged"
    cards = [_figure(video) for video in videos]
    body = (
        f'<div class="bar-top"><p class="lead">{lead}.</p>'
        '<button class="play" type="button" hidden>Pause videos</button></div>'
        f'<div class="videos">{"".join(cards[:SHOWN_VIDEOS])}</div>'
    )
    if rest := cards[SHOWN_VIDEOS:]:
        body += (
            f"<details><summary>Show the other {len(rest)}</summary>"
            f'<div class="videos">{"".join(rest)}</div></details>'
        )
    return _section("Sampled videos", "", body)


def _figure(video: VideoEntry) -> str:
    data = base64.b64encode(video.path.read_bytes()).decode("ascii")
    height, width = video.size or (1, 1)
    # A few dozen pixels are blown up: as squares they show what is really there.
    small = ' class="small"' if video.size and max(video.size) <= 128 else ""
    chips = "".join(_chip(name, ok, video.seen.get(name)) for name, ok in video.verdict.items())
    chips += "".join(f'<span class="chip">{escape(tag)}</span> ' for tag in video.tags)
    return (
        f'<figure class="card"><video{small} style="aspect-ratio:{width}/{height}" '
        f'autoplay loop muted playsinline tabindex="0" aria-label="{escape(video.prompt)}" '
        f'src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption><p>{escape(video.prompt)}</p>{chips}</figcaption></figure>"
    )


def _chip(name: str, right: bool, seen: str | None) -> str:
    kind, sign = ("good", "\u2713") if right else ("bad", "\u2717")
    word = "right" if right else "wrong"
    instead = "" if right or seen is None else f": {seen}"
    return (
        f'<span class="chip {kind}" title="{escape(name)} is {word}{escape(instead)}">'
        f"{sign} {escape(name)}{escape(instead)}</span> "
    )


def _training_section(records: Sequence[Record], marks: Sequence[Mark]) -> str:
    if not records:
        return _section("Training", "No step was recorded.", "")
    cards = []
    if loss := _points(records, "loss"):
        lines = [Line("loss", loss, "raw"), Line("smoothed", smoothed(loss), "smooth")]
        note = "Every step, and smoothed." + _missing_note(records, "loss", len(loss))
        cards.append(_card("Loss", line_chart("Loss", lines, marks=marks), note))
    if bars := _breakdown(records):
        cards.append(bars)
    if norm := _points(records, "grad_norm"):
        lines = [Line("norm", norm, "raw"), Line("smoothed", smoothed(norm), "smooth")]
        note = "Before clipping." + _missing_note(records, "grad_norm", len(norm))
        cards.append(_card("Gradient norm", line_chart("Gradient norm", lines, marks=marks), note))
    if lr := _points(records, "lr"):
        chart = line_chart("Learning rate", [Line("lr", lr, "plain")], from_zero=True)
        cards.append(_card("Learning rate", chart))
    if wait := _data_wait(records):
        lines = [Line("wait", wait, "raw"), Line("smoothed", smoothed(wait), "smooth")]
        chart = line_chart("Waiting for data, percent of the step", lines, from_zero=True)
        note = f"Percent of the step's time; {fmean(y for _, y in wait):.1f} % on average."
        cards.append(_card("Waiting for data", chart, note))
    return _section("Training", _speed(records), f'<div class="grid">{"".join(cards)}</div>')


def _card(name: str, body: str, note: str = "") -> str:
    note = f'<p class="legend">{escape(note)}</p>' if note else ""
    return f'<div class="card"><h3>{escape(name)}</h3>{body}{note}</div>'


def _points(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(r["step"], float(r[name])) for r in records if name in r and math.isfinite(r[name])]


def _missing_note(records: Sequence[Record], name: str, finite: int) -> str:
    lost = sum(name in r for r in records) - finite
    return f" {_count(lost, 'step')} without a finite value." if lost else ""


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
        f"{_count(len(records), 'step')}. Medians of the second half: {', '.join(said)}."
        if said
        else ""
    )


def _breakdown(records: Sequence[Record]) -> str:
    """Stacked bars of each phase's time by step, over a table of the means."""
    timed = [r for r in records if r.get("phases")]
    if not timed:
        return ""
    names = list(dict.fromkeys(name for r in timed for name in r["phases"]))
    # "other" is drawn on top, as what the named phases leave.
    names.sort(key=lambda name: name == "other")
    parts = {name: [r["phases"].get(name, 0.0) for r in timed] for name in names}
    title = "Time of a step by phase, in ms"
    chart = stacked_bars(title, [r["step"] for r in timed], parts)
    means = {name: fmean(values) for name, values in parts.items()}
    total = sum(means.values()) or 1.0
    legend = "".join(
        f'<li><i class="{phase_class(name)}"></i>{escape(name)} '
        f"{mean:.3g} ms, {100 * mean / total:.1f} %</li>"
        for name, mean in means.items()
    )
    legend = f'<ul class="legend"><li>Means over all steps:</li>{legend}</ul>'
    return _card("Time of a step, ms", chart + legend)


def _phases_section(phases: Sequence[tuple[str, float]]) -> str:
    if not phases:
        return ""
    total = sum(seconds for _, seconds in phases) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="bar-cell">{_bar(seconds / total)}</td>'
        f'<td class="number">{seconds:.1f} s</td>'
        f'<td class="number">{100 * seconds / total:.0f}%</td></tr>'
        for name, seconds in phases
    )
    lead = f"{total:.0f} s of wall time in all."
    return _section("Where the time went", lead, f'<div class="card"><table>{rows}</table></div>')


def _environment_section(environment: Mapping[str, Any], recipe: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in _flat(environment)
    )
    body = f'<div class="card"><table class="environment">{rows}</table></div>'
    if recipe:
        body += (
            '<details class="card" style="margin-top:16px"><summary>The recipe in full</summary>'
            f"<pre>{escape(recipe)}</pre></details>"
        )
    return _section("Environment and recipe", "", body)


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
