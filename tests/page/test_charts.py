"""Charts are well-formed SVG whose geometry says what the numbers say."""

import re
import xml.etree.ElementTree as ET

import pytest

from vidgen.page.charts import (
    HEIGHT,
    MAX_BARS,
    MAX_BINS,
    WIDTH,
    Line,
    Mark,
    line_chart,
    phase_class,
    smoothed,
    stacked_bars,
)


def parse(svg):
    return ET.fromstring(svg)


def polyline(tree, index=0):
    points = list(tree.iter("polyline"))[index].get("points").split()
    return [tuple(map(float, point.split(","))) for point in points]


def texts(tree):
    return [element.text for element in tree.iter("text")]


def plain(points, **options):
    return parse(line_chart("A & B", [Line("a", points, "plain")], **options))


def test_a_rising_line_rises_and_stays_inside():
    points = polyline(plain([(1, 1.0), (2, 2.0), (3, 3.0)]))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y0 > y1 > y2  # y grows downwards
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_labels_are_round_numbers_around_the_values():
    assert {"0", "0.5", "1", "1.5", "2"} <= set(texts(plain([(1, 0.1), (2, 1.9)], from_zero=True)))
    assert {"20", "40", "60"} <= set(texts(plain([(x, 1.0 + x) for x in range(1, 70)])))


def test_wide_positive_values_get_a_log_axis():
    tree = plain([(1, 1.0), (2, 0.1), (3, 0.01)])
    assert tree.get("aria-label") == "A & B (log scale)"
    (_, y0), (_, y1), (_, y2) = polyline(tree)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert "0.1" in texts(tree)
    assert "log" not in plain([(1, 1.0), (2, -0.01)]).get("aria-label")


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(5, -3.0), (6, -3.0)]])
def test_degenerate_values_still_draw(points):
    drawn = polyline(plain(points))
    assert len(drawn) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_strays_do_not_flatten_the_curve():
    raw = [(x, 1.0 + 0.1 * (x % 2)) for x in range(1, 201)]
    raw[100] = (101, 500.0)
    calm = [(x, 1.05) for x, _ in raw]
    tree = parse(line_chart("loss", [Line("raw", raw, "raw"), Line("s", calm, "smooth")]))
    ys = [y for _, y in polyline(tree, 0)]
    assert max(ys[:100]) - min(ys[:100]) > HEIGHT / 3
    assert min(ys) < -HEIGHT  # the stray leaves the plot, cut off by the nested svg


def test_zero_on_a_log_axis_is_below_the_plot():
    raw = [(x, 1.0 if x != 50 else 0.0) for x in range(1, 101)]
    fall = [(x, 1.0 / x) for x in range(1, 101)]
    tree = parse(line_chart("loss", [Line("raw", raw, "raw"), Line("s", fall, "smooth")]))
    assert polyline(tree, 0)[49][1] > HEIGHT


def test_long_runs_are_thinned_but_keep_their_spike():
    points = [(x, 1.0) for x in range(50_000)]
    points[31_234] = (31_234, 4.0)
    tree = plain(points)
    drawn = polyline(tree)
    assert len(drawn) <= 2 * MAX_BINS
    top = min(y for _, y in drawn)
    assert sum(y == top for _, y in drawn) == 1


def test_marks_are_drawn_where_they_belong():
    tree = plain([(1, 1.0), (101, 2.0)], marks=[Mark(51, "re<sumed"), Mark(500, "outside")])
    (mark,) = [line for line in tree.iter("line") if line.get("class") == "mark"]
    (x0, _), (x1, _) = polyline(tree)
    assert float(mark.get("x1")) == pytest.approx((x0 + x1) / 2, abs=0.2)
    assert "re<sumed" in texts(tree)
    assert "outside" not in texts(tree)


def test_smoothing_follows_without_lag_and_ends_calmly():
    assert smoothed([(x, 3.0) for x in range(40)]) == [(x, pytest.approx(3.0)) for x in range(40)]
    fall = [(x, -2.0 * x) for x in range(40)]
    assert smoothed(fall)[:38] == [(x, pytest.approx(y, abs=1e-9)) for x, y in fall[:38]]
    noisy = smoothed([(x, float(x % 2)) for x in range(400)])
    assert all(abs(y - 0.5) < 0.07 for _, y in noisy[8:])


def rects(tree):
    return [(r.get("class"), float(r.get("y")), float(r.get("height"))) for r in tree.iter("rect")]


def test_bars_stack_in_proportion():
    tree = parse(stacked_bars("ms", [1, 2], {"data": [10.0, 20.0], "forward": [30.0, 20.0]}))
    (a, ya, ha), (b, yb, hb), (c, _, hc), (d, _, hd) = rects(tree)
    assert (a, b, c, d) == ("phase-data", "phase-forward") * 2
    assert hb == pytest.approx(3 * ha, rel=0.01)
    assert hc == pytest.approx(hd, rel=0.01)
    assert yb + hb == pytest.approx(ya, abs=0.02)  # forward sits on data


def test_bars_are_means_with_the_numbers_to_read():
    steps = list(range(1, 2 * MAX_BARS + 1))
    tree = parse(stacked_bars("ms", steps, {"data": [1.0, 3.0] * MAX_BARS}))
    titles = [element.text for element in tree.iter("title")]
    assert len(titles) == MAX_BARS
    assert titles[0] == "steps 1 to 2: 2.0 ms (data 2.0)"


def test_one_slow_bar_is_cut_off_and_marked():
    values = [100_000.0] + [100.0] * 39
    tree = parse(stacked_bars("ms", list(range(1, 41)), {"forward": values}))
    cut = [path for path in tree.iter("path") if path.get("class") == "cut"]
    assert len(cut) == 1
    heights = [height for _, _, height in rects(tree)]
    assert heights[1] > heights[0] / 2
    assert "100000.0 ms" in next(tree.iter("title")).text


def test_unnamed_phases_are_grey():
    assert phase_class("forward") == "phase-forward"
    assert re.fullmatch("phase-other", phase_class('weird "name"'))
