"""Scaling of features, fitted on the training rows: x' = (x - shift) * factor, feature by feature.

It is computed in float64, before the features are rounded to the type of the network: a column such as the seconds
since 1970 keeps what float32 alone would lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distbp.errors import InputError

SCALINGS = ("none", "standard", "minmax")
"""none; zero mean and unit variance; the range [0, 1]."""


@dataclass(frozen=True)
class Scaling:
    """``shift`` and ``factor``, both of the shape of a row, in float64."""

    shift: np.ndarray
    factor: np.ndarray

    def apply(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write the rows ``x`` (n, ...), of any type, scaled into ``out``, of the type of the network."""
        return np.multiply(np.subtract(x, self.shift, dtype=np.float64), self.factor, out=out, casting="same_kind")

    def of_columns(self, columns: np.ndarray) -> Scaling:
        """Return the scaling of these ``columns`` of flattened rows."""
        return Scaling(self.shift.reshape(-1)[columns], self.factor.reshape(-1)[columns])


def standard(n: int, total: np.ndarray, squares: np.ndarray, varies: np.ndarray) -> Scaling:
    """Return the scaling to zero mean and unit variance; a feature that does not vary becomes 0.

    ``total`` is the sum over ``n`` rows, ``squares`` the sum of the squared differences from the mean.
    """
    return _scaling(total / n, np.sqrt(squares / n), varies)


def minmax(low: np.ndarray, high: np.ndarray) -> Scaling:
    """Return the scaling of [low, high] to [0, 1]; a feature that does not vary becomes 0."""
    return _scaling(low, high - low, low < high)


def _scaling(shift: np.ndarray, width: np.ndarray, varies: np.ndarray) -> Scaling:
    factor = np.divide(1.0, width, out=np.zeros_like(width), where=varies)
    bad = ~(np.isfinite(shift) & np.isfinite(width) & np.isfinite(factor))
    if bad.any():
        given = f"column {np.argmax(bad)}, which is too wide or too narrow for that"
        raise InputError("features that can be scaled in float64", given, "scale it beforehand", "scaling")
    return Scaling(shift, factor)
