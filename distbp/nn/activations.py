"""Activations: element by element, but for Softmax.

``apply`` writes y and, beside it, the slope dy/dx; ``backward`` is then the same product for all of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.errors import InputError
from distbp.nn.dense import Dense
from distbp.nn.layer import Layer, Shape

_BLOCK_BYTES = 1 << 17
"""Rows are worked on in blocks of about this size, which stay in the L2 cache from one operation to the next."""


class Activation(Layer):
    """A layer without parameters whose output row i depends on input row i alone; ``dx`` is written over ``dy``.

    Right after a dense layer it works in place on that layer's output and adds the bias, while a block is in cache.
    """

    is_activation: ClassVar[bool] = True
    is_stackable: ClassVar[bool] = True
    slope_dtype: ClassVar[type | None] = None
    n_scratch: ClassVar[int] = 0
    """How many scratch blocks ``apply`` needs."""

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        super().allocate(shape, n_rows, dtype, needs_dx=False)
        self.slope = self.hold("slope", n_rows, shape, np.dtype(self.slope_dtype or dtype))
        row_bytes = math.prod(shape) * dtype.itemsize
        self.block_rows = min(n_rows, max(1, _BLOCK_BYTES // row_bytes))
        self.scratch = np.zeros((self.n_scratch, self.block_rows, *shape), dtype)
        self.dense: Dense | None = None

    def follow(self, dense: Dense) -> None:
        """Work in place on the output of ``dense``, and add its bias."""
        self.dense = dense
        dense.adds_bias = False
        del self._buffers["y"]

    def forward(self, x: np.ndarray) -> np.ndarray:
        dense, slope = self.dense, self.slope
        y = self.y if dense is None else x
        self.y = y
        b = dense.weight.b if dense is not None and dense.bias else None
        n_rows, n = len(x), self.block_rows
        for i in range(0, n_rows, n):
            block = x[i : i + n]
            if b is not None:
                np.add(block, b, out=block)
            scratch = self.scratch if n_rows - i >= n else self.scratch[:, : n_rows - i]
            self.apply(block, y[i : i + n], slope[i : i + n], *scratch)
        return y

    @abstractmethod
    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        """Write the outputs of some rows ``x`` into ``y``, which may be ``x``, and dy/dx into ``slope``."""

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return np.multiply(dy, self.slope, out=dy)


@dataclass(eq=False)
class Identity(Activation):
    """y = x."""

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        np.copyto(y, x)
        slope.fill(1.0)


@dataclass(eq=False)
class Sigmoid(Activation):
    """y = σ(x) = 1 / (1 + exp(-x));  dy/dx = y (1 - y)."""

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        sigmoid(x, y)
        np.subtract(1.0, y, out=slope)
        np.multiply(slope, y, out=slope)


@dataclass(eq=False)
class Tanh(Activation):
    """y = tanh x;  dy/dx = 1 - y²."""

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        np.tanh(x, out=y)
        np.multiply(y, y, out=slope)
        np.subtract(1.0, slope, out=slope)


@dataclass(eq=False)
class ReLU(Activation):
    """y = max(x, 0)."""

    slope_dtype: ClassVar[type | None] = bool
    n_scratch: ClassVar[int] = 1

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        (zeros,) = scratch  # NumPy compares two arrays four times as fast as an array and a number
        np.greater(x, zeros, out=slope)
        np.maximum(x, zeros, out=y)


@dataclass(eq=False)
class LeakyReLU(Activation):
    """y = x where x > 0, else negative_slope · x (Maas et al., ICML 2013)."""

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.negative_slope < 1.0:
            given = str(self.negative_slope)
            raise InputError("a negative_slope in [0, 1)", given, "give the slope below zero", where=self.name)

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        np.greater(x, 0.0, out=slope)
        np.maximum(slope, self.negative_slope, out=slope)
        np.multiply(x, slope, out=y)


@dataclass(eq=False)
class ELU(Activation):
    """y = x where x > 0, else α (exp x - 1) (Clevert et al., ICLR 2016);  dy/dx = 1, else y + α."""

    alpha: float = 1.0
    n_scratch: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0.0:
            raise InputError("alpha > 0", str(self.alpha), "give minus the limit below zero", where=self.name)

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        (positive,) = scratch
        np.maximum(x, 0.0, out=positive)
        np.greater(x, 0.0, out=slope)
        np.multiply(slope, 1.0 - self.alpha, out=slope)
        np.minimum(x, 0.0, out=y)
        np.expm1(y, out=y)
        np.multiply(y, self.alpha, out=y)  # 0 where x > 0
        np.add(slope, y, out=slope)
        np.add(slope, self.alpha, out=slope)  # 1 where x > 0
        np.add(y, positive, out=y)


@dataclass(eq=False)
class GELU(Activation):
    """y = x/2 (1 + t), t = tanh(c (x + 0.044715 x³)), c = sqrt(2/π): the tanh form of Hendrycks and Gimpel, 2016.

    dy/dx = (1 + t)/2 + x/2 (1 - t²) c (1 + 3 · 0.044715 x²).
    """

    n_scratch: ClassVar[int] = 2

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        c, a = math.sqrt(2.0 / math.pi), 0.044715
        t, u = scratch
        np.multiply(x, x, out=u)  # x²
        np.multiply(u, c * a, out=t)
        np.add(t, c, out=t)
        np.multiply(t, x, out=t)
        np.tanh(t, out=t)
        np.multiply(u, 3.0 * a * c, out=u)
        np.add(u, c, out=u)
        np.multiply(u, x, out=u)  # x c (1 + 3 a x²)
        np.multiply(t, t, out=slope)
        np.subtract(1.0, slope, out=slope)
        np.multiply(slope, u, out=slope)
        np.add(t, 1.0, out=t)
        np.add(slope, t, out=slope)
        np.multiply(slope, 0.5, out=slope)
        np.multiply(t, 0.5, out=t)
        np.multiply(x, t, out=y)


@dataclass(eq=False)
class SiLU(Activation):
    """y = x σ(x) (Elfwing et al., 2018; also called swish);  dy/dx = σ + y (1 - σ) = y + σ (1 - y)."""

    n_scratch: ClassVar[int] = 1

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        sigma = sigmoid(x, scratch[0])
        np.multiply(x, sigma, out=y)
        np.subtract(1.0, y, out=slope)
        np.multiply(slope, sigma, out=slope)
        np.add(slope, y, out=slope)


@dataclass(eq=False)
class Softplus(Activation):
    """y = log(1 + exp x);  dy/dx = σ(x)."""

    n_scratch: ClassVar[int] = 1

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        sigmoid(x, slope)
        softplus(x, y, scratch=scratch[0])


@dataclass(eq=False)
class Softmax(Activation):
    """y_i = exp(x_i) / Σ_j exp(x_j) over the last axis;  dx = y (dy - Σ_j dy_j y_j)."""

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1:] == (1,):
            remedy = "give the layer before it more units, or end in sigmoid"
            raise InputError("at least 2 numbers to make a softmax of", "1, which would be 1 always", remedy)
        return shape

    def apply(self, x: np.ndarray, y: np.ndarray, slope: np.ndarray, *scratch: np.ndarray) -> None:
        np.subtract(x, np.maximum.reduce(x, axis=-1, keepdims=True), out=y)
        np.exp(y, out=y)
        np.divide(y, np.add.reduce(y, axis=-1, keepdims=True), out=y)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        y, product = self.y, self.slope
        np.multiply(dy, y, out=product)
        np.subtract(dy, np.add.reduce(product, axis=-1, keepdims=True), out=dy)
        return np.multiply(dy, y, out=dy)


def sigmoid(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write 1 / (1 + exp(-x)) into ``out``, as (1 + tanh(x/2)) / 2, which cannot overflow."""
    np.multiply(x, 0.5, out=out)
    np.tanh(out, out=out)
    np.multiply(out, 0.5, out=out)
    return np.add(out, 0.5, out=out)


def softplus(x: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Write log(1 + exp x) into ``out``, as max(x, 0) + log1p(exp(-|x|)), which cannot overflow."""
    np.abs(x, out=scratch)
    np.negative(scratch, out=scratch)
    np.exp(scratch, out=scratch)
    np.log1p(scratch, out=scratch)
    np.maximum(x, 0.0, out=out)
    return np.add(out, scratch, out=out)
