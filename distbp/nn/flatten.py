"""From rows of any shape to rows of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.nn.layer import Layer, Shape


@dataclass(eq=False)
class Flatten(Layer):
    """y = x with each row as a vector;  x (batch, ...), y (batch, n).  Nothing is copied."""

    is_stackable: ClassVar[bool] = True

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        super().allocate(shape, 0, dtype, needs_dx=False)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape = x.shape
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy.reshape(self.shape)
