"""Scaling of features, fitted on the training rows: x' = (x - shift) * factor, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCALINGS = ("none", "standard", "minmax")
"""none; zero mean and unit variance; the range [0, 1]."""


@dataclass(frozen=True)
class Scaling:
    """``shift`` and ``factor``, both of the shape of a row."""

    shift: np.ndarray
    factor: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Scale the rows ``x`` (n, ...) in place."""
        np.subtract(x, self.shift, out=x)
        return np.multiply(x, self.factor, out=x)


def standard(n: int, total: np.ndarray, squares: np.ndarray, dtype: np.dtype) -> Scaling:
    """Return the scaling to zero mean and unit variance; a constant feature becomes 0.

    ``total`` is the sum over ``n`` rows, ``squares`` the sum of the squared differences from the mean.
    """
    deviation = np.sqrt(squares / n)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0.0)
    return Scaling((total / n).astype(dtype), factor.astype(dtype))


def minmax(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> Scaling:
    """Return the scaling of [low, high] to [0, 1]; a constant feature becomes 0."""
    width = high - low
    factor = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0.0)
    return Scaling(low.astype(dtype), factor.astype(dtype))
