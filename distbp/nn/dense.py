"""The fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distbp.errors import InputError
from distbp.nn.initialisers import INITIALISERS
from distbp.nn.layer import Layer, Shape
from distbp.nn.vector import Parameter


@dataclass(eq=False)
class Dense(Layer):
    """y = x Wᵀ + b;  x (batch, n_in), W (n_out, n_in), b (n_out,), y (batch, n_out).

    Parameters
    ----------
    units:
        n_out.
    init:
        A name of ``INITIALISERS``; by default the one that suits the activation that follows.
    bias:
        Whether there is a b.
    """

    units: int
    init: str | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        if self.units < 1:
            raise InputError("units of at least 1", str(self.units), "give the number of outputs", where="dense")
        if self.init is not None and self.init not in INITIALISERS:
            raise InputError(f"an initialiser of {', '.join(INITIALISERS)}", self.init, "choose one", where="dense")

    @classmethod
    def examples(cls) -> list[Layer]:
        return [cls(5), cls(3, bias=False)]

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise InputError("rows of shape (n,)", f"rows of shape {shape}", "put a `flatten` layer before it")
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        W = Parameter((self.units, shape[0]), self.init or "default")
        return {"W": W, "b": Parameter((self.units,), "zeros", decay=False)} if self.bias else {"W": W}

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        super().allocate(shape, n_rows, dtype, needs_dx=needs_dx)
        self.adds_bias = self.bias
        self.ones = self.hold("ones", n_rows, (), dtype)
        self.ones.fill(1.0)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        np.dot(x, self.weight.W.T, out=self.y)  # (batch, n_out)
        if self.adds_bias:
            np.add(self.y, self.weight.b, out=self.y)
        return self.y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        np.dot(dy.T, self.x, out=self.gradient.W)  # (n_out, n_in)
        if self.bias:
            np.dot(self.ones, dy, out=self.gradient.b)  # the sum over the batch
        if self.dx is None:
            return None
        return np.dot(dy, self.weight.W, out=self.dx)  # (batch, n_in)
