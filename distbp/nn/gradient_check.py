"""Central differences in float64: whether ``backward`` gives the derivative of ``forward``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distbp.nn.layer import Layer, Shape
from distbp.nn.losses import Loss
from distbp.nn.sequential import Sequential
from distbp.nn.vector import aligned_zeros

_FLOAT64 = np.dtype(np.float64)


def check_layer(layer: Layer, input_shape: Shape, *, n_rows: int = 4, seed: int = 0, tolerance: float = 1e-7) -> None:
    """Compare ``layer.backward`` with central differences of ``layer.forward``.

    Differentiates L = Σ r · forward(x), r random, by every input and every parameter, at random values.

    Raises
    ------
    AssertionError
        Where a derivative is off by more than ``tolerance``, relative to the largest one.
    """
    rng = np.random.default_rng(seed)
    network = Sequential(layer)
    layout = network.build(input_shape, _FLOAT64)
    weights, gradient = aligned_zeros(layout.size, _FLOAT64), aligned_zeros(layout.size, _FLOAT64)
    for view in layout.views(weights).values():
        view[...] = rng.standard_normal(view.shape)
    network.bind(weights, n_rows)
    layer.allocate(network.shapes[0], n_rows, _FLOAT64, needs_dx=True)  # bind leaves dx out for the lowest layer
    layer.weight = network.gradient(weights).views[0]
    network.use(network.gradient(gradient))
    layer.resize(n_rows)
    x = rng.standard_normal((n_rows, *input_shape))
    r = rng.standard_normal((n_rows, *network.output_shape))

    def loss() -> float:
        network.randomise(seed, [0], 0)  # the same draws each time
        return float(np.sum(r * layer.forward(x.copy())))

    loss()
    dx = layer.backward(r.copy())
    assert dx is not None, f"{layer}: backward returned no dL/dx"
    _compare(f"{layer}: dL/dx", dx.copy(), x, loss, tolerance)
    for name, view in layout.views(weights).items():
        _compare(f"{layer}: dL/d{name}", layout.views(gradient)[name].copy(), view, loss, tolerance)


def check_loss(loss: Loss, *, n_rows: int = 4, n_out: int = 3, seed: int = 0, tolerance: float = 1e-7) -> None:
    """Compare the derivative that ``loss.forward`` writes with central differences of the sum that it returns.

    Raises
    ------
    AssertionError
        Where a derivative is off by more than ``tolerance``, relative to the largest one.
    """
    rng = np.random.default_rng(seed)
    loss.allocate(n_rows, n_out, _FLOAT64)
    t = loss.targets(loss.example(rng, n_rows, n_out), n_out, _FLOAT64)
    z = rng.standard_normal((n_rows, n_out))
    loss.forward(z, t)
    _compare(f"{loss}: dL/dz", loss.dz.copy(), z, lambda: float(np.sum(loss.forward(z, t))), tolerance)


def _compare(what: str, analytic: np.ndarray, x: np.ndarray, f: Callable[[], float], tolerance: float) -> None:
    h = 1e-5
    numeric = np.empty_like(x)
    for place in np.ndindex(x.shape):
        kept = x[place]
        x[place] = kept + h
        above = f()
        x[place] = kept - h
        below = f()
        x[place] = kept
        numeric[place] = (above - below) / (2 * h)
    error = np.max(np.abs(analytic - numeric)) / max(1.0, np.max(np.abs(numeric)))
    assert error <= tolerance, f"{what} differs from central differences by {error:.1e} (relative)"
