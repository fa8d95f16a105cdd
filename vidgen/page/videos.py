"""Videos in a page: cards, and players that keep several videos at the same moment."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidgen.page.kit import NOTHING, Html, join, text, unfold

SHOWN = 18  # videos; the rest unfold
_SMALL = 128  # pixels: smaller videos are enlarged without smoothing, as they really are


@dataclass(frozen=True)
class VideoCard:
    """An mp4 with what is said below it; it becomes part of the page."""

    path: Path
    caption: str
    chips: Html = NOTHING
    size: tuple[int, int] | None = None  # (height, width), for the page's layout


@dataclass(frozen=True)
class Comparison:
    """Videos of one thing, side by side: one player starts, stops and seeks all of them."""

    title: str
    videos: Sequence[VideoCard]


def gallery(cards: Sequence[VideoCard], lead: str, *, shown: int = SHOWN) -> Html:
    """A button that stops all, the first `shown` videos, and the others to unfold."""
    figures = [_figure(card, "autoplay loop") for card in cards]
    body = Html(
        f'<div class="bar-top"><p class="lead">{text(lead)}</p>'
        '<button class="play" type="button" hidden>Pause videos</button></div>'
        f'<div class="videos">{join(figures[:shown])}</div>'
    )
    if rest := figures[shown:]:
        hidden = Html(f'<div class="videos">{join(rest)}</div>')
        body = join((body, unfold(f"Show the other {len(rest)}", hidden)))
    return body


def comparisons(items: Sequence[Comparison]) -> Html:
    return join(_comparison(item) for item in items)


def _comparison(item: Comparison) -> Html:
    # Without the script the videos still play, each by itself, by the browser's own controls.
    figures = join(_figure(video, 'controls preload="auto"') for video in item.videos)
    return Html(
        f'<div class="compare" role="group" aria-label="{text(item.title)}">'
        f'<h3>{text(item.title)}</h3><div class="videos">{figures}</div>'
        '<div class="player" hidden><button class="toggle" type="button">Play</button>'
        '<button class="back" type="button" aria-label="One frame back">&minus;1</button>'
        '<button class="on" type="button" aria-label="One frame on">+1</button>'
        '<input type="range" min="0" max="1000" value="0" aria-label="Position"></div></div>'
    )


def _figure(card: VideoCard, how: str) -> Html:
    data = base64.b64encode(card.path.read_bytes()).decode("ascii")
    height, width = card.size or (1, 1)
    small = ' class="small"' if card.size and max(card.size) <= _SMALL else ""
    return Html(
        f'<figure class="card"><video{small} style="aspect-ratio:{width}/{height}" '
        f'{how} muted playsinline tabindex="0" aria-label="{text(card.caption)}" '
        f'src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption><p>{text(card.caption)}</p>{card.chips}</figcaption></figure>"
    )
