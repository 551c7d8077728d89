"""Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.errors import InputError
from distbp.nn.layer import Layer, Shape


@dataclass(eq=False)
class Dropout(Layer):
    """Set each number to zero with probability ``rate`` in training, and scale the others by 1 / (1 - rate).

    The identity outside training. Srivastava et al., "Dropout", JMLR 15, 2014.
    """

    rate: float
    is_random: ClassVar[bool] = True
    is_stackable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.rate < 1.0:
            raise InputError("a rate in [0, 1)", str(self.rate), "give the part to drop", where="dropout")

    @classmethod
    def examples(cls) -> list[Layer]:
        return [cls(0.4), cls(0.0)]

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        super().allocate(shape, n_rows, dtype, needs_dx=False)
        self.scale = self.hold("scale", n_rows, shape, dtype)  # 0 where dropped, else 1 / (1 - rate)

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self.generator is None:
            return x
        scale = self.scale
        for generator, part in zip(self.generators, self.by_shard(scale), strict=True):
            generator.random(dtype=scale.dtype.type, out=part)
        np.greater_equal(scale, self.rate, out=scale)
        np.multiply(scale, 1.0 / (1.0 - self.rate), out=scale)
        return np.multiply(x, scale, out=self.y)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return np.multiply(dy, self.scale, out=dy)
