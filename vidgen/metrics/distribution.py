"""Distances between two samples of vectors: energy distance and Fréchet distance."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of rows; zero for equal distributions.

    Pairs of a row with itself are left out, so that the estimate has no bias; it may be negative.
    """
    a, b = _rows(x), _rows(y)
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"energy distance needs two rows on each side, got {len(a)} and {len(b)}")
    return float(2 * _apart(a, b).mean() - _within(a) - _within(b))


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Between Gaussians fitted to the rows: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    a, b = _rows(x), _rows(y)
    gap = a.mean(0) - b.mean(0)
    one, other = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    half = _root(one)
    cross = np.linalg.eigvalsh(half @ other @ half)
    shared = np.sqrt(np.maximum(cross, 0)).sum()
    return float(gap @ gap + np.trace(one) + np.trace(other) - 2 * shared)


def _rows(x: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(x, dtype=np.float64)
    return rows[:, None] if rows.ndim == 1 else rows


def _apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.square(a[:, None, :] - b[None, :, :]).sum(-1))


def _within(a: NDArray[np.float64]) -> float:
    return float(_apart(a, a).sum() / (len(a) * (len(a) - 1)))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
