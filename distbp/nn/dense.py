"""The fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.errors import InputError
from distbp.nn.initialisers import BIAS, INITIALISERS
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
        A name of ``INITIALISERS`` for W; by default torch_uniform in the first and the last layer with parameters,
        glorot_uniform between them.
    bias:
        Whether there is a b.
    bias_init:
        A name of ``INITIALISERS`` for b, drawn as the weight of one more input would be.
    """

    units: int
    init: str | None = None
    bias: bool = True
    bias_init: str = BIAS
    is_stackable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units < 1:
            raise InputError("units of at least 1", str(self.units), "give the number of outputs", where="dense")
        for option, init in (("init", self.init), ("bias_init", self.bias_init)):
            if init is not None and init not in INITIALISERS:
                expected = f"an initialiser of {', '.join(INITIALISERS)}"
                raise InputError(expected, repr(init), "choose one", where=f"dense, {option}")

    @classmethod
    def examples(cls) -> list[Layer]:
        return [cls(5), cls(3, bias=False)]

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise InputError("rows of shape (n,)", f"rows of shape {shape}", "put a `flatten` layer before it")
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        (n_in,) = shape
        W = Parameter((self.units, n_in), self.init or "default")
        b = Parameter((self.units,), self.bias_init, decay=False, n_in=n_in)
        return {"W": W, "b": b} if self.bias else {"W": W}

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        super().allocate(shape, n_rows, dtype, needs_dx=needs_dx)
        self.adds_bias = self.bias
        self.ones = self.hold("ones", n_rows, (), dtype)
        self.ones.fill(1.0)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        if self.n_shards == 1:
            np.dot(x, self.weight.W.T, out=self.y)  # (batch, n_out)
        else:
            np.matmul(self.by_shard(x), self.weight.W.T, out=self.by_shard(self.y))  # the same products, in one call
        if self.adds_bias:
            np.add(self.y, self.weight.b, out=self.y)
        return self.y

    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        if self.n_shards > 1:
            return self._backward_by_shard(dy)
        np.dot(dy.T, self.x, out=self.gradient.W)  # (n_out, n_in)
        if self.bias:
            np.dot(self.ones, dy, out=self.gradient.b)  # the sum over the batch
        if self.dx is None:
            return None
        return np.dot(dy, self.weight.W, out=self.dx)  # (batch, n_in)

    def _backward_by_shard(self, dy: np.ndarray) -> np.ndarray | None:
        dys = self.by_shard(dy)  # (n_shards, batch, n_out)
        np.matmul(dys.transpose(0, 2, 1), self.by_shard(self.x), out=self.gradient.W)  # (n_shards, n_out, n_in)
        if self.bias:
            np.matmul(self.ones[None, : dys.shape[1]], dys, out=self.gradient.b[:, None, :])
        if self.dx is None:
            return None
        np.matmul(dys, self.weight.W, out=self.by_shard(self.dx))
        return self.dx
