"""Losses: the sum over a batch, and its derivative with respect to the network's output.

The cross-entropies take logits z; with y = σ(z) or softmax(z), dL/dz = y - t, and no step of it can overflow. A network
that ends in the activation that belongs to its loss is trained on its logits: the activation is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.errors import InputError
from distbp.nn.activations import Sigmoid, Softmax, sigmoid, softplus
from distbp.nn.layer import Layer, snake_case
from distbp.options import Options

LOSSES: dict[str, type[Loss]] = {}
"""Every loss that exists, by its name in recipes."""


@dataclass(eq=False)
class Loss(Options, ABC):
    """A loss of the outputs z (batch, n_out) and the targets t."""

    activation: ClassVar[type[Layer] | None] = None
    """The last activation that this loss contains."""
    is_classifier: ClassVar[bool] = False
    min_outputs: ClassVar[int] = 1
    """A network needs so many outputs for this loss to say anything."""

    def __init_subclass__(cls) -> None:
        cls.name = snake_case(cls.__name__)
        LOSSES[cls.name] = cls

    @abstractmethod
    def targets(self, y: np.ndarray, n_out: int, dtype: np.dtype, numbers: np.ndarray | None = None) -> np.ndarray:
        """Return ``y`` as this loss takes it, for ``n_out`` outputs.

        Raises
        ------
        InputError
            For targets that do not fit; the row is named by its number in ``numbers``, else by its place in ``y``.
        """

    def allocate(self, n_rows: int, n_out: int, dtype: np.dtype) -> None:
        """Make the buffers for at most ``n_rows`` rows; ``dz`` receives dL/dz, ``t`` holds targets."""
        self.t = np.empty((n_rows, n_out), dtype)
        self.dz = np.empty((n_rows, n_out), dtype)
        self.scratch = np.empty((n_rows, n_out), dtype)

    @abstractmethod
    def forward(self, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Return the loss of each row (batch,); write the derivative of their sum into ``self.dz[:len(z)]``."""

    def classes(self, z: np.ndarray) -> np.ndarray:
        """Return the class of each row (batch,), or which classes it has (batch, n_out).

        Raises
        ------
        InputError
            Where the loss is no classifier's.
        """
        remedy = "take the outputs themselves, or train with a cross-entropy"
        raise InputError("classes of a classifier", f"a network that was trained with {self.name}", remedy)

    def correct(self, z: np.ndarray, t: np.ndarray) -> int:
        """Return how many rows are classified rightly, as ``classes`` has it; 0 where the loss is no classifier's."""
        return 0

    @classmethod
    @abstractmethod
    def example(cls, rng: np.random.Generator, n_rows: int, n_out: int) -> np.ndarray:
        """Return targets that the gradient check shall try."""


@dataclass(eq=False)
class SquaredError(Loss):
    """1/2 Σ (z - t)²;  t (batch, n_out)."""

    def targets(self, y: np.ndarray, n_out: int, dtype: np.dtype, numbers: np.ndarray | None = None) -> np.ndarray:
        return _matrix(y, n_out, dtype)

    def forward(self, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        dz, scratch = self.dz[: len(z)], self.scratch[: len(z)]
        np.subtract(z, t, out=dz)
        np.multiply(dz, dz, out=scratch)
        return 0.5 * np.add.reduce(scratch, axis=1, dtype=np.float64)

    @classmethod
    def example(cls, rng: np.random.Generator, n_rows: int, n_out: int) -> np.ndarray:
        return rng.standard_normal((n_rows, n_out))


@dataclass(eq=False)
class BinaryCrossEntropy(Loss):
    """Σ -t log σ(z) - (1 - t) log(1 - σ(z)) = Σ softplus(z) - t z;  t (batch, n_out) in [0, 1].

    A row is right where all its outputs lie on the right side of 1/2.
    """

    activation: ClassVar[type[Layer] | None] = Sigmoid
    is_classifier: ClassVar[bool] = True

    def targets(self, y: np.ndarray, n_out: int, dtype: np.dtype, numbers: np.ndarray | None = None) -> np.ndarray:
        t = _matrix(y, n_out, dtype)
        bad = ~((t >= 0.0) & (t <= 1.0))
        if bad.any():
            row = int(np.argmax(bad.any(axis=1)))
            given = f"{t[row].tolist()} in row {_number(row, numbers)}"
            remedy = "code the classes as 0 and 1, as with (y == y.max()).astype(int)"
            raise InputError("labels in [0, 1]", given, remedy)
        return t

    def forward(self, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        dz, scratch = self.dz[: len(z)], self.scratch[: len(z)]
        softplus(z, dz, scratch=scratch)
        np.multiply(z, t, out=scratch)
        np.subtract(dz, scratch, out=dz)
        losses: np.ndarray = np.add.reduce(dz, axis=1, dtype=np.float64)
        np.subtract(sigmoid(z, dz), t, out=dz)
        return losses

    def classes(self, z: np.ndarray) -> np.ndarray:
        positive = (z > 0.0).astype(np.int64)  # σ(z) > 1/2
        return positive[:, 0] if z.shape[1] == 1 else positive

    def correct(self, z: np.ndarray, t: np.ndarray) -> int:
        return int(np.count_nonzero(np.all(self.classes(z).reshape(z.shape) == (t > 0.5), axis=1)))

    @classmethod
    def example(cls, rng: np.random.Generator, n_rows: int, n_out: int) -> np.ndarray:
        return rng.integers(0, 2, (n_rows, n_out))


@dataclass(eq=False)
class CategoricalCrossEntropy(Loss):
    """Σ -log softmax(z)_t = Σ log Σ_j exp(z_j) - z_t;  t (batch,) integers from 0, or one-hot rows (batch, n_out)."""

    activation: ClassVar[type[Layer] | None] = Softmax
    is_classifier: ClassVar[bool] = True
    min_outputs: ClassVar[int] = 2  # a softmax of one is always 1

    def targets(self, y: np.ndarray, n_out: int, dtype: np.dtype, numbers: np.ndarray | None = None) -> np.ndarray:
        if y.ndim == 2 and y.shape[1] > 1:
            y = _from_one_hot(y, n_out, numbers)
        with np.errstate(invalid="ignore"):  # what is too large is refused below
            t = y.reshape(len(y)).astype(np.intp)
        bad = (t < 0) | (t >= n_out) | (t != y.reshape(len(y)))
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"integer labels from 0 to {n_out - 1}, one for each output of the last layer",
                f"{y.reshape(len(y))[row]} in row {_number(row, numbers)}",
                "number the classes from 0, or give the last layer more outputs",
            )
        return t

    def allocate(self, n_rows: int, n_out: int, dtype: np.dtype) -> None:
        super().allocate(n_rows, n_out, dtype)
        self.t = np.empty(n_rows, np.intp)
        self.numbers = np.arange(n_rows)
        self.place = np.empty(n_rows, np.intp)
        self.row = np.empty(n_rows, dtype)

    def forward(self, z: np.ndarray, t: np.ndarray) -> np.ndarray:
        # Transposed, (n_out, batch): maxima and sums over classes are then few and long loops, along the batch.
        n, n_out = z.shape
        p = self.scratch.reshape(-1)[: n * n_out].reshape(n_out, n)
        flat, row, place = p.reshape(-1), self.row[:n], self.place[:n]
        np.multiply(t, n, place)
        np.add(place, self.numbers[:n], place)
        np.copyto(p, z.T)
        np.maximum.reduce(p, axis=0, out=row)
        np.subtract(p, row, p)  # ≤ 0
        picked = flat.take(place)
        np.exp(p, p)
        if n > 1:
            np.add.reduce(p, axis=0, out=row)
        else:  # NumPy would add up a single column in another order
            row[0] = np.add.accumulate(flat)[-1]
        np.divide(p, row, p)
        flat[place] -= 1.0
        np.copyto(self.dz[:n], p.T)
        np.log(row, row)
        return np.subtract(row, picked, row)

    def classes(self, z: np.ndarray) -> np.ndarray:
        return np.argmax(z, axis=1)

    def correct(self, z: np.ndarray, t: np.ndarray) -> int:
        return int(np.count_nonzero(self.classes(z) == t))

    @classmethod
    def example(cls, rng: np.random.Generator, n_rows: int, n_out: int) -> np.ndarray:
        return rng.integers(0, n_out, n_rows)


def _matrix(y: np.ndarray, n_out: int, dtype: np.dtype) -> np.ndarray:
    """Return ``y`` (batch,) or (batch, n_out) as a matrix of n_out columns."""
    t = y.reshape(len(y), 1) if y.ndim == 1 else y
    if t.ndim != 2 or t.shape[1] != n_out:
        raise InputError(
            f"targets of {n_out} numbers a row, as many as the last layer has outputs",
            f"targets of shape {y.shape}",
            "change the units of the last dense layer, or the targets",
        )
    return np.ascontiguousarray(t, dtype)


def _number(row: int, numbers: np.ndarray | None) -> int:
    return row if numbers is None else int(numbers[row])


def _from_one_hot(y: np.ndarray, n_out: int, numbers: np.ndarray | None) -> np.ndarray:
    if y.shape[1] != n_out:
        raise InputError(
            f"one-hot rows of {n_out} numbers, as many as the last layer has outputs",
            f"rows of {y.shape[1]}",
            "change the units of the last dense layer, or the targets",
        )
    bad = ((y != 0) & (y != 1)).any(axis=1) | (y.sum(axis=1) != 1)
    if bad.any():
        row = int(np.argmax(bad))
        given = f"{y[row].tolist()} in row {_number(row, numbers)}"
        raise InputError("one-hot rows (a single 1, else 0)", given, "correct that row")
    return np.argmax(y, axis=1)
