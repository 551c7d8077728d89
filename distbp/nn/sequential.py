"""The network: layers one after another, over one vector of weights and one of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from distbp.errors import InputError
from distbp.nn.activations import Activation
from distbp.nn.dense import Dense
from distbp.nn.initialisers import BETWEEN, ENDS
from distbp.nn.layer import Layer, Shape
from distbp.nn.losses import Loss
from distbp.nn.vector import Layout
from distbp.randomness import generator, set_key


@dataclass(frozen=True)
class Gradient:
    """A vector of gradients and, for each layer, the views of it that ``backward`` writes into."""

    vector: np.ndarray
    views: list[SimpleNamespace]


def check_distinct(layers: Sequence[Layer]) -> None:
    """Raise InputError where one layer object stands at two places: each needs weights and buffers of its own."""
    for i, layer in enumerate(layers):
        first = next(j for j, other in enumerate(layers) if other is layer)
        if first < i:
            given = f"the same {layer.name} as layer {first}"
            remedy = "write a second layer in its place (layers cannot share weights yet)"
            raise InputError("a layer object of its own for every place", given, remedy, f"layer {i}_{layer.name}")


class Sequential:
    """Layers one after another.

    Parameters
    ----------
    *layers:
        The layers from input to output.

    Notes
    -----
    ``build`` fixes the shapes, ``fuse`` the loss, ``bind`` the memory; then ``logits`` and ``backward`` may be called.
    Between the two, for one batch, nothing else may be computed with the same network.
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise InputError("at least one layer", "none", "name the layers from input to output", where="model")
        check_distinct(layers)
        self.layers = list(layers)

    def build(self, input_shape: Shape, dtype: np.dtype) -> Layout:
        """Fix the shapes for input rows of ``input_shape``; return the layout of the parameters.

        Raises
        ------
        InputError
            Where a layer cannot take the rows that it is given; the message names the layer.
        """
        self.input_shape = tuple(input_shape)
        self.shapes = [self.input_shape]  # shapes[i] goes into layer i
        for i, layer in enumerate(self.layers):
            try:
                self.shapes.append(layer.output_shape(self.shapes[-1]))
            except InputError as error:
                raise error.at(f"layer {self.layer_name(i)}") from None
        of_layers = [layer.parameters(shape) for layer, shape in zip(self.layers, self.shapes, strict=False)]
        with_parameters = [i for i, parameters in enumerate(of_layers) if parameters]
        ends = with_parameters[:1] + with_parameters[-1:]
        parameters = [
            (f"{self.layer_name(i)}.{name}", parameter.with_default(ENDS if i in ends else BETWEEN))
            for i in with_parameters
            for name, parameter in of_layers[i].items()
        ]
        self.layout = Layout(parameters, np.dtype(dtype))
        self.lowest = with_parameters[0] if with_parameters else len(self.layers)
        self.logit_layers = self.layers
        return self.layout

    def layer_name(self, i: int) -> str:
        """Return the name of layer ``i`` in messages and files: its position and kind, as in ``2_dense``."""
        return f"{i}_{self.layers[i].name}"

    @property
    def output_shape(self) -> Shape:
        return self.shapes[-1]

    def initialise(self, weights: np.ndarray, seed: int) -> None:
        """Draw the initial weights into the vector ``weights``."""
        weights.fill(0.0)
        views = self.layout.views(weights)
        for segment in self.layout.segments:
            views[segment.name][...] = segment.parameter.draw(generator(seed, "weights", segment.name))

    def bind(self, weights: np.ndarray, n_rows: int, *, backward: bool = True) -> None:
        """Use the vector ``weights``, and make the buffers for batches of at most ``n_rows`` rows."""
        for i, layer in enumerate(self.layers):
            layer.allocate(self.shapes[i], n_rows, self.layout.dtype, needs_dx=backward and i > self.lowest)
        for layer, views in zip(self.layers, self._views(weights), strict=True):
            layer.weight = views
        for below, layer in pairwise(self.logit_layers):
            if isinstance(below, Dense) and isinstance(layer, Activation):
                layer.follow(below)
        self.n_rows, self.n_shards = -1, 1
        self._generators: list[list[np.random.Generator]] = [[] for _ in self.layers]
        self._rooms: dict[int, np.ndarray] = {}  # for each layer that computes more rows than it is given

    def gradient(self, vector: np.ndarray) -> Gradient:
        """Return ``vector`` with the views that ``use`` needs."""
        return Gradient(vector, self._views(vector))

    def use(self, gradient: Gradient) -> None:
        """Let ``backward`` write into ``gradient`` from now on."""
        for layer, views in zip(self.layers, gradient.views, strict=True):
            layer.gradient = views

    def _views(self, vector: np.ndarray) -> list[SimpleNamespace]:
        """Return, for each layer, the views of ``vector`` by the names that the layer gave them."""
        namespaces = {self.layer_name(i): SimpleNamespace() for i in range(len(self.layers))}
        for name, view in self.layout.views(vector).items():
            layer, parameter = name.split(".")
            setattr(namespaces[layer], parameter, view)
        return list(namespaces.values())

    def fuse(self, loss: Loss) -> None:
        """Leave the last activation to ``loss`` where the loss contains it: ``logits`` then ends before it.

        Raises
        ------
        InputError
            Where the last activation is another than the one that the loss contains, or the output is no vector or
            too short for the loss.
        """
        last, where = self.layers[-1], f"layer {self.layer_name(len(self.layers) - 1)}"
        if len(self.output_shape) != 1:
            given = f"rows of shape {self.output_shape}"
            raise InputError("output rows of shape (n,)", given, "end with flatten or dense", where)
        if self.output_shape[0] < loss.min_outputs:
            expected = f"at least {loss.min_outputs} outputs for the loss {loss.name}"
            remedy = "give the last layer an output for each class, or take binary_cross_entropy"
            raise InputError(expected, f"{self.output_shape[0]}", remedy, where)
        contained = loss.activation is not None and isinstance(last, loss.activation)
        if loss.activation is not None and last.is_activation and last.name != "identity" and not contained:
            fitting = loss.activation.name
            expected = f"a network that ends in {fitting} or in its logits, for the loss {loss.name}"
            raise InputError(expected, f"one that ends in {last.name}", f"end the model with {fitting}", where)
        self.logit_layers = self.layers[:-1] if contained else self.layers
        self.backward_layers = self.logit_layers[self.lowest :][::-1]

    @property
    def is_stackable(self) -> bool:
        """Whether the rows of several shards can be computed together."""
        return all(layer.is_stackable for layer in self.layers)

    def stack(self, n_shards: int) -> None:
        """Let the rows from now on be those of so many shards, as many of each, one shard after another."""
        if n_shards != self.n_shards:
            self.n_shards = n_shards
            for layer in self.layers:
                layer.n_shards = n_shards

    def randomise(self, seed: int, shards: Sequence[int], step: int) -> None:
        """Train from now on: give layers that draw at random the generators for these ``shards`` at this ``step``."""
        for i, layer in enumerate(self.layers):
            if layer.is_random:
                rekeyed = self._generators[i]
                while len(rekeyed) < len(shards):
                    rekeyed.append(generator(0, "unused"))
                for own, shard in zip(rekeyed, shards, strict=False):
                    set_key(own, seed, layer.name, i, shard, step)
                layer.generators = rekeyed[: len(shards)]
                layer.generator = rekeyed[0]

    def settle(self) -> None:
        """Evaluate from now on: nothing is drawn at random."""
        for layer in self.layers:
            layer.generator = None

    def resize(self, n_rows: int) -> None:
        """Let the buffers of all layers have the rows of the next batch."""
        if n_rows != self.n_rows:
            self.n_rows = n_rows
            for layer in self.layers:
                layer.resize(n_rows)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return what the loss takes, for the rows ``x`` (batch, ...): a view of a buffer, (batch, n_out)."""
        self.resize(len(x))
        for layer in self.logit_layers:
            x = layer.forward(x)
        return x

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of all layers for the rows ``x``: a view of a buffer, (batch, n_out)."""
        self.resize(len(x))
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def in_block(self, x: np.ndarray, layer_rows: Sequence[int], *, logits: bool) -> np.ndarray:
        """Return the outputs for the rows ``x``, or what the loss takes, where layer i computes ``layer_rows[i]`` rows.

        Rows that a layer is not given hold anything.
        """
        layers = self.logit_layers if logits else self.layers
        for i, (layer, n_rows) in enumerate(zip(layers, layer_rows, strict=False)):
            if len(x) < n_rows:
                x = self._filled_up(i, x, n_rows)
            layer.resize(n_rows)
            x = layer.forward(x[:n_rows])
        self.n_rows = -1
        return x

    def _filled_up(self, i: int, x: np.ndarray, n_rows: int) -> np.ndarray:
        """Return the rows ``x``, and after them others that layer ``i`` was given before, or zeros."""
        room = self._rooms.get(i)
        if room is None or len(room) < n_rows:
            room = self._rooms[i] = np.zeros((n_rows, *x.shape[1:]), x.dtype)
        room[: len(x)] = x
        return room[:n_rows]

    def first_not_finite(self, x: np.ndarray) -> str | None:
        """Return the first layer whose output for the rows ``x`` is not finite everywhere; None where all are."""
        self.resize(len(x))
        for i, layer in enumerate(self.logit_layers):
            x = layer.forward(x)
            if not np.all(np.isfinite(x)):
                return f"layer {i} ({layer.name})"
        return None

    def backward(self, dz: np.ndarray) -> None:
        """Write the sums over the batch of the derivatives into the gradient in use; ``dz`` is overwritten."""
        dy: np.ndarray | None = dz
        for layer in self.backward_layers:
            assert dy is not None  # only the lowest layer returns None
            dy = layer.backward(dy)
