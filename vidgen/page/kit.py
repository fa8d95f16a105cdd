"""Pages in one HTML file that opens without a network: sections, tables, cards, figures.

Every function takes text and escapes it, and returns `Html`, which others take as it is.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from vidgen.runtime.files import write_text
from vidgen.version import __version__


class Html(str):
    """Markup that is already escaped."""

    __slots__ = ()


Text = str | Html
NOTHING = Html("")


def text(value: object) -> Html:
    """Escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(map(text, parts)))


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str = "",
    facts: Mapping[str, object] | None = None,
    sections: Sequence[Html] = (),
) -> Path:
    """Write the page; empty sections are dropped. `facts` are the figures at the top."""
    template = resources.files("vidgen.page").joinpath("page.html")
    page = Template(template.read_text(encoding="utf-8")).substitute(
        title=text(title),
        subtitle=text(subtitle),
        facts=_facts(facts or {}),
        sections="\n".join(filter(None, sections)),
        footer=text(f"Written by vidgen {__version__}. This file needs no network."),
    )
    write_text(path, page)
    return Path(path)


def section(name: Text, lead: Text, body: Html) -> Html:
    lead = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return Html(f"<section><h2>{text(name)}</h2>{lead}{body}</section>")


def card(name: Text, body: Html, note: Text = "") -> Html:
    note = f'<p class="legend">{text(note)}</p>' if note else ""
    return Html(f'<div class="card"><h3>{text(name)}</h3>{body}{note}</div>')


def grid(cards: Iterable[Html]) -> Html:
    return Html(f'<div class="grid">{join(cards)}</div>')


def unfold(summary: Text, body: Html, *, as_card: bool = False) -> Html:
    """Shown when the reader opens it."""
    kind = ' class="card"' if as_card else ""
    return Html(f"<details{kind}><summary>{text(summary)}</summary>{body}</details>")


def table(
    rows: Iterable[Sequence[object]],
    *,
    head: Sequence[object] = (),
    classes: Sequence[str] = (),
    kind: str = "",
) -> Html:
    """The first cell of a row is its heading. `classes` are the columns' CSS classes ("number",
    "control", "bar-cell"), `kind` is the table's."""
    names = [f' class="{name}"' if name else "" for name in classes]

    def line(cells: Sequence[object], tag: str, scope: str) -> Html:
        parts = []
        for i, cell in enumerate(cells):
            name = names[i] if i < len(names) else ""
            parts.append(
                f'<th scope="{scope}"{name}>{text(cell)}</th>'
                if i == 0 or tag == "th"
                else f"<td{name}>{text(cell)}</td>"
            )
        return Html(f"<tr>{''.join(parts)}</tr>")

    above = f"<thead>{line(head, 'th', 'col')}</thead>" if head else ""
    body = join(line(row, "td", "row") for row in rows)
    kind = f' class="{kind}"' if kind else ""
    return Html(f'<div class="card scroll"><table{kind}>{above}<tbody>{body}</tbody></table></div>')


def bar(fraction: float) -> Html:
    width = 100 * min(max(fraction, 0.0), 1.0)
    return Html(f'<span class="bar"><i style="width:{width:.1f}%"></i></span>')


def score(fraction: float | None) -> Html:
    """A percentage beside its bar; empty for None."""
    if fraction is None:
        return NOTHING
    return Html(f'<div class="score"><b>{percent(fraction)}</b>{bar(fraction)}</div>')


def chip(words: Text, kind: str = "", hint: str = "") -> Html:
    """A small label: `kind` "good", "bad" or neither."""
    hint = f' title="{text(hint)}"' if hint else ""
    return Html(f'<span class="{f"chip {kind}".strip()}"{hint}>{text(words)}</span> ')


def preformatted(content: str) -> Html:
    return Html(f"<pre>{text(content)}</pre>")


def legend(lead: Text, entries: Iterable[tuple[str, Text]]) -> Html:
    """What the colours of a chart mean: (CSS class, words)."""
    items = "".join(f'<li><i class="{kind}"></i>{text(words)}</li>' for kind, words in entries)
    return Html(f'<ul class="legend"><li>{text(lead)}</li>{items}</ul>')


def percent(fraction: float) -> str:
    # Rounding must not turn a near miss into a full score.
    digits = 0 if fraction in (0, 1) or 0.005 <= fraction < 0.995 else 1
    return f"{100 * fraction:.{digits}f}%"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _facts(facts: Mapping[str, object]) -> Html:
    tiles = join(
        Html(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>")
        for name, value in facts.items()
    )
    return Html(f'<dl class="facts card">{tiles}</dl>') if facts else NOTHING
