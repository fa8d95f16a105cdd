"""From the measures of every prompt to a table with intervals, paired with the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidgen.metrics.bootstrap import Interval, interval, paired
from vidgen.metrics.distribution import energy_distance, frechet_distance

ATTRIBUTES = (
    *("count", "colour", "shape", "size", "texture", "motion", "speed", "order", "camera"),
)
MEASURES = ("path_error", "ghosting", "sharpness", "contrast", "flicker")
DISTANCES = ("frechet", "diversity")
RESAMPLES = 200  # of the distances, each of which looks at all pairs

Row = Mapping[str, Any]


def value_of(row: Row, name: str) -> float:
    """An attribute or a measure of one video; NaN where it does not apply."""
    if name in MEASURES:
        return float(row[name])
    if name == "all":
        return float(np.mean(list(row["right"].values())))
    return float(row["right"].get(name, np.nan))


def column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([value_of(row, name) for row in rows])


def summarise(rows: Sequence[Row], real: Sequence[Row]) -> dict[str, Interval]:
    """Every figure of one method, with its interval."""
    found = {name: interval(column(rows, name)) for name in ("all", *ATTRIBUTES, *MEASURES)}
    found["frechet"] = _distance(_features(rows), _features(real), frechet_distance)
    ours, true = _places(rows), _places(real)
    if len(ours) >= 2:
        found["diversity"] = _distance(ours, true, energy_distance)
    return found


def compared(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Interval]:
    """Differences to the reference, paired by prompt and seed."""
    return {
        name: paired(column(rows, name), column(reference, name))
        for name in ("all", *ATTRIBUTES, *MEASURES)
    }


def split_half(real: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """The same distances between two sets of real videos: what a perfect model would get."""
    return {
        "frechet": frechet_distance(_features(real), _features(other)),
        "diversity": energy_distance(_places(real), _places(other)),
    }


def _features(rows: Sequence[Row]) -> NDArray[np.float64]:
    return np.array([row["features"] for row in rows], dtype=np.float64)


def _places(rows: Sequence[Row]) -> NDArray[np.float64]:
    places = [place for row in rows for place in row["places"]]
    return np.array(places, dtype=np.float64).reshape(-1, 4)


def _distance(ours: NDArray, true: NDArray, distance: Any) -> Interval:
    rng = np.random.default_rng(0)
    drawn = [
        distance(
            ours[rng.integers(len(ours), size=len(ours))],
            true[rng.integers(len(true), size=len(true))],
        )
        for _ in range(RESAMPLES)
    ]
    # Repeated rows lift every resampled distance; the interval is moved back to the estimate.
    value = distance(ours, true)
    low, high = np.percentile(drawn, [2.5, 97.5]) - np.mean(drawn) + value
    return Interval(float(value), float(low), float(high))


def as_json(found: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """[value, low, high] of each figure, null where there is none."""
    return {
        name: [None if np.isnan(x) else round(x, 5) for x in (i.value, i.low, i.high)]
        for name, i in found.items()
    }
