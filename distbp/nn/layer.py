"""The contract of a layer, and the table of all layers by name."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from distbp.nn.vector import Parameter
from distbp.options import Options

Shape = tuple[int, ...]

LAYERS: dict[str, type[Layer]] = {}
"""Every layer that exists, by its name in recipes; a user's own layer enters it when its class is defined."""


def snake_case(name: str) -> str:
    """Return the name that a class has in a recipe: ``LeakyReLU`` -> ``leaky_relu``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _is_abstract(member: object) -> bool:
    return getattr(member, "__isabstractmethod__", False)


@dataclass(eq=False)
class Layer(Options, ABC):
    """One layer: a function of rows, and its derivative.

    A layer of your own is a dataclass whose fields are its options, with ``forward`` and ``backward``; with
    ``parameters`` if it has weights, and ``output_shape`` if its rows change shape. When ``forward`` is called,
    ``self.y`` and ``self.dx`` are buffers with as many rows as the batch, so that a step allocates nothing.
    ``self.weight.NAME`` and ``self.gradient.NAME`` are views of the one vector of weights and the one of gradients.

    Examples
    --------
    A scale for each feature, y = x * s::

        @dataclass(eq=False)
        class Scale(nn.Layer):
            def parameters(self, shape):
                return {"s": nn.Parameter(shape, "lecun_normal")}

            def forward(self, x):                       # x (batch, n)
                self.x = x
                return np.multiply(x, self.weight.s, out=self.y)

            def backward(self, dy):                     # dy (batch, n)
                np.einsum("bn,bn->n", dy, self.x, out=self.gradient.s)
                if self.dx is None:                     # nothing below wants the derivative
                    return None
                return np.multiply(dy, self.weight.s, out=self.dx)

    ``nn.check_layer(Scale(), (3,))`` compares it with central differences.
    """

    is_activation: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    """Whether ``forward`` draws from ``self.generator`` (None outside training)."""
    is_stackable: ClassVar[bool] = False
    """Whether it takes the rows of ``self.n_shards`` shards, as many of each, one shard after another.

    Without parameters and draws, a layer that treats each row by itself may say so. Views of gradients then have an
    axis more in front, that of shards, and ``self.generators`` are those of the shards.
    """

    def __init_subclass__(cls) -> None:
        cls.name = snake_case(cls.__name__)
        abstract = {name for base in cls.__mro__ for name, f in vars(base).items() if _is_abstract(f)}
        if not any(_is_abstract(getattr(cls, name)) for name in abstract):
            LAYERS[cls.name] = cls

    @classmethod
    def examples(cls) -> list[Layer]:
        """Return instances that the gradient check shall try; override it where options have no default."""
        return [cls()]

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of an output row for input rows of ``shape``; raise InputError where it does not fit."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Return the parameters by name, for input rows of ``shape``."""
        return {}

    def allocate(self, shape: Shape, n_rows: int, dtype: np.dtype, *, needs_dx: bool) -> None:
        """Make the buffers for at most ``n_rows`` rows: ``y``, and ``dx`` where the layers below need it."""
        self._buffers: dict[str, np.ndarray] = {}
        self._views: dict[int, dict[str, np.ndarray]] = {}
        self.y = self.hold("y", n_rows, self.output_shape(shape), dtype)
        self.dx = self.hold("dx", n_rows, shape, dtype) if needs_dx else None
        self.weight = SimpleNamespace()
        self.gradient = SimpleNamespace()
        self.generator: np.random.Generator | None = None
        self.generators: list[np.random.Generator] = []
        self.n_shards = 1

    def by_shard(self, rows: np.ndarray) -> np.ndarray:
        """Return a view of ``rows`` (n_shards * batch, ...) by shard (n_shards, batch, ...)."""
        return rows.reshape(self.n_shards, len(rows) // self.n_shards, *rows.shape[1:])

    def hold(self, name: str, n_rows: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """Return a buffer (n_rows, *shape) for the attribute ``name``; ``resize`` keeps it as long as the batch."""
        self._buffers[name] = np.empty((n_rows, *shape), dtype)
        return self._buffers[name]

    def resize(self, n_rows: int) -> None:
        """Let the buffers have the rows of the next batch."""
        if n_rows not in self._views:
            self._views[n_rows] = {name: buffer[:n_rows] for name, buffer in self._buffers.items()}
        self.__dict__.update(self._views[n_rows])

    @abstractmethod
    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the output rows for the input rows ``x`` (batch, ...); keep what ``backward`` needs."""

    @abstractmethod
    def backward(self, dy: np.ndarray) -> np.ndarray | None:
        """Write the sums over the batch of the weights' derivatives into ``self.gradient``; return dL/dx.

        ``dy`` (batch, ...) is dL/dy; it may be overwritten. Where ``self.dx`` is None, nobody wants dL/dx.
        """
