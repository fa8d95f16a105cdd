"""Pages are well formed, escaped, and need nothing from outside."""

from pathlib import Path

import pytest

from tests.page.parser import Page
from vidgen.page import kit
from vidgen.page.kit import Html

EVIL = '<b onload="x">&\'</b>'


def test_everything_is_escaped_but_html(tmp_path: Path) -> None:
    sections = [
        kit.section(EVIL, EVIL, kit.table([[EVIL, EVIL]], head=[EVIL, "x"])),
        kit.section("cards", "", kit.grid([kit.card(EVIL, Html("<i></i>"), EVIL)])),
        kit.section("more", "", kit.unfold(EVIL, kit.preformatted(EVIL))),
        kit.section("chips", "", kit.join((kit.chip(EVIL, "bad", EVIL), EVIL))),
        kit.section("legend", "", kit.legend(EVIL, [("phase-data", EVIL)])),
        Html(""),
    ]
    path = tmp_path / "p.html"
    kit.write_page(path, title=EVIL, subtitle=EVIL, facts={EVIL: EVIL}, sections=sections)
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.all("b")
    assert page.text.count(EVIL) == 18
    assert page.all("span", title=EVIL)
    assert len(page.all("section")) == 5
    assert page.all("i")  # of the card, which is given as Html


def test_a_table_has_headings_for_rows_and_columns() -> None:
    page = Page(
        kit.table([["a", 1], ["b", 2]], head=["name", "n"], classes=("", "number"), kind="k")
    )
    assert [th["scope"] for th in page.all("th")] == ["col", "col", "row", "row"]
    assert [td["class"] for td in page.all("td")] == ["number", "number"]
    assert page.all("table", **{"class": "k"})
    assert not Page(kit.table([["a", 1]])).all("thead")


@pytest.mark.parametrize(
    ("fraction", "words"), [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.998, "99.8%"), (0.001, "0.1%")]
)
def test_rounding_does_not_reach_all_or_nothing(fraction: float, words: str) -> None:
    assert kit.percent(fraction) == words


def test_bars_stay_within_their_track() -> None:
    widths = [Page(kit.bar(x)).all("i")[0]["style"] for x in (-1, 0.25, 7)]
    assert widths == ["width:0.0%", "width:25.0%", "width:100.0%"]
    assert kit.score(None) == ""


def test_counted() -> None:
    assert [kit.counted(n, "video") for n in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
