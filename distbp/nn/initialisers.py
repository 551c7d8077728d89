"""Initial weights: ``INITIALISERS`` maps a name to a function (generator, shape) -> array.

For a weight of shape (n_out, n_in), the variance is 2 / (n_in + n_out) for Glorot (Glorot and Bengio, AISTATS 2010),
2 / n_in for He (He et al., ICCV 2015) and 1 / n_in for LeCun (LeCun et al., "Efficient BackProp", 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Initialiser = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n_in, n_out) of a weight of shape (n_out, n_in)."""
    return math.prod(shape[1:]), shape[0]


def _normal(variance: Callable[[int, int], float]) -> Initialiser:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape) * math.sqrt(variance(*_fans(shape)))

    return draw


def _uniform(variance: Callable[[int, int], float]) -> Initialiser:
    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        limit = math.sqrt(3.0 * variance(*_fans(shape)))
        return rng.uniform(-limit, limit, shape)

    return draw


def _zeros(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _glorot(n_in: int, n_out: int) -> float:
    return 2.0 / (n_in + n_out)


def _he(n_in: int, _: int) -> float:
    return 2.0 / n_in


def _lecun(n_in: int, _: int) -> float:
    return 1.0 / n_in


INITIALISERS: dict[str, Initialiser] = {
    "glorot_normal": _normal(_glorot),
    "glorot_uniform": _uniform(_glorot),
    "he_normal": _normal(_he),
    "he_uniform": _uniform(_he),
    "lecun_normal": _normal(_lecun),
    "lecun_uniform": _uniform(_lecun),
    "zeros": _zeros,
}
