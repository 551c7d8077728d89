"""One contiguous vector for all parameters, and the named, shaped views of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from distbp.nn.initialisers import INITIALISERS

if TYPE_CHECKING:
    from collections.abc import Iterable

ALIGNMENT_BYTES = 64
"""Views start on cache lines; the gaps between them stay zero."""


def aligned_zeros(n: int, dtype: np.dtype) -> np.ndarray:
    """Return ``n`` zeros of ``dtype`` that start on a cache line."""
    n_bytes = n * dtype.itemsize
    raw = np.zeros(n_bytes + ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + n_bytes].view(dtype)


@dataclass(frozen=True)
class Parameter:
    """What a layer asks for.

    Parameters
    ----------
    shape:
        Of the array; the first axis counts outputs.
    initialiser:
        A name of ``INITIALISERS``, or "default": what suits the place of the layer in the network.
    decay:
        Whether weight decay applies; not so for biases.
    n_in:
        How many inputs an output sums, for the variance of the draws; by default the product of all axes but the first.
    """

    shape: tuple[int, ...]
    initialiser: str
    decay: bool = True
    n_in: int | None = None

    def with_default(self, initialiser: str) -> Parameter:
        """Return this parameter, drawn by ``initialiser`` if it asks for the default."""
        return replace(self, initialiser=initialiser) if self.initialiser == "default" else self

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return initial values."""
        n_in = math.prod(self.shape[1:]) if self.n_in is None else self.n_in
        return INITIALISERS[self.initialiser](rng, self.shape, n_in)


@dataclass(frozen=True)
class Segment:
    """Where one parameter lies in the vector: ``size`` elements from ``offset``."""

    name: str
    parameter: Parameter
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.parameter.shape)

    @property
    def stop(self) -> int:
        return self.offset + self.size


class Layout:
    """The order and the places of all parameters in one vector of ``size`` elements of ``dtype``.

    Parameters
    ----------
    parameters:
        (name, parameter) in the order in which they shall lie.
    """

    def __init__(self, parameters: Iterable[tuple[str, Parameter]], dtype: np.dtype) -> None:
        self.dtype = dtype
        step = ALIGNMENT_BYTES // dtype.itemsize
        self.segments: list[Segment] = []
        offset = 0
        for name, parameter in parameters:
            segment = Segment(name, parameter, offset)
            self.segments.append(segment)
            offset = -(-segment.stop // step) * step
        self.size = offset

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained: the size without the gaps."""
        return sum(segment.size for segment in self.segments)

    def views(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return the named, shaped views of ``vector`` (..., size)."""
        above = vector.shape[:-1]
        return {s.name: vector[..., s.offset : s.stop].reshape(*above, *s.parameter.shape) for s in self.segments}

    def decayed(self) -> list[tuple[int, int]]:
        """Return the ranges [start, stop) that weight decay applies to: all but the biases."""
        return [(s.offset, s.stop) for s in self.segments if s.parameter.decay]

    def sha256(self, vector: np.ndarray) -> str:
        """Return the SHA-256 over all parameters in order, without the gaps, as little-endian float32."""
        digest = hashlib.sha256()
        for view in self.views(vector).values():
            digest.update(np.ascontiguousarray(view, dtype="<f4").tobytes())
        return digest.hexdigest()
