"""Initial weights: ``INITIALISERS`` maps a name to a function (generator, shape, n_in) -> array.

For a parameter of shape (n_out, ...) whose outputs each sum ``n_in`` inputs, the variance is

- 2 / (n_in + n_out) for Glorot (Glorot and Bengio, AISTATS 2010),
- 2 / n_in for He (He et al., ICCV 2015),
- 1 / n_in for LeCun (LeCun et al., "Efficient BackProp", 1998),
- 1 / (3 n_in) for ``torch_uniform``: U(-1/√n_in, 1/√n_in), which PyTorch's ``nn.Linear`` uses for weights and biases.

Where no name is given, ``ENDS``, ``BETWEEN`` and ``BIAS`` say what is drawn; initialisers.md says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

ENDS, BETWEEN, BIAS = "torch_uniform", "glorot_uniform", "lecun_uniform"
"""The defaults: for the weights of the first and the last layer, of those between them, and for biases."""

Initialiser = Callable[[np.random.Generator, tuple[int, ...], int], np.ndarray]


def _normal(variance: Callable[[int, int], float]) -> Initialiser:
    def draw(rng: np.random.Generator, shape: tuple[int, ...], n_in: int) -> np.ndarray:
        return rng.standard_normal(shape) * math.sqrt(variance(n_in, shape[0]))

    return draw


def _uniform(variance: Callable[[int, int], float]) -> Initialiser:
    def draw(rng: np.random.Generator, shape: tuple[int, ...], n_in: int) -> np.ndarray:
        limit = math.sqrt(3.0 * variance(n_in, shape[0]))
        return rng.uniform(-limit, limit, shape)

    return draw


def _zeros(_: np.random.Generator, shape: tuple[int, ...], __: int) -> np.ndarray:
    return np.zeros(shape)


def _glorot(n_in: int, n_out: int) -> float:
    return 2.0 / (n_in + n_out)


def _he(n_in: int, _: int) -> float:
    return 2.0 / n_in


def _lecun(n_in: int, _: int) -> float:
    return 1.0 / n_in


def _torch(n_in: int, _: int) -> float:
    return 1.0 / (3.0 * n_in)


INITIALISERS: dict[str, Initialiser] = {
    "glorot_normal": _normal(_glorot),
    "glorot_uniform": _uniform(_glorot),
    "he_normal": _normal(_he),
    "he_uniform": _uniform(_he),
    "lecun_normal": _normal(_lecun),
    "lecun_uniform": _uniform(_lecun),
    "torch_uniform": _uniform(_torch),
    "zeros": _zeros,
}
