"""The shards of a worker that are computed together get the bits that each of them gets alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp import Trainer, load, nn
from distbp.nn import LAYERS, LOSSES, aligned_zeros

STACKABLE = sorted(name for name, layer in LAYERS.items() if layer.is_stackable)


def gradients(network, loss, x, t, shards):
    """Return losses and gradients of the rows of ``shards``, as many of each, computed together."""
    stack = np.zeros((len(shards), network.layout.size), network.layout.dtype)
    network.use(network.gradient(stack if len(shards) > 1 else stack[0]))
    network.stack(len(shards))
    network.randomise(0, shards, 5)
    losses = loss.forward(network.logits(x), t).copy()
    network.backward(loss.dz[: len(x)])
    network.stack(1)
    return losses, stack


def check(layers, loss, n_shards, n, n_in, dtype, seed):
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    network = nn.Sequential(*layers)
    layout = network.build((n_in,), dtype)
    network.fuse(loss)
    weights = aligned_zeros(layout.size, dtype)
    network.bind(weights, n_shards * n)
    network.initialise(weights, seed)
    n_out = network.output_shape[0]
    loss.allocate(n_shards * n, n_out, dtype)
    x = rng.standard_normal((n_shards * n, n_in)).astype(dtype)
    t = loss.targets(loss.example(rng, n_shards * n, n_out), n_out, dtype)
    losses, stack = gradients(network, loss, x, t, range(n_shards))
    for shard in range(n_shards):
        own = slice(shard * n, (shard + 1) * n)
        alone, gradient = gradients(network, loss, x[own], t[own], [shard])
        np.testing.assert_array_equal(losses[own], alone)
        np.testing.assert_array_equal(stack[shard], gradient[0])


@pytest.mark.parametrize("name", STACKABLE)
def test_every_layer_that_says_so_can_be_stacked(name):
    for layer in LAYERS[name].examples():
        for n in (1, 2, 7):
            check([nn.Dense(9), layer, nn.Dense(3)], LOSSES["categorical_cross_entropy"](), 4, n, 5, "float32", n)


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(1, 100), max_size=2),
    n_out=st.integers(2, 30),
    activation=st.sampled_from([name for name in STACKABLE if LAYERS[name].is_activation and name != "softmax"]),
    loss=st.sampled_from(sorted(LOSSES)),
    n_shards=st.integers(2, 8),
    n=st.integers(1, 20),
    n_in=st.integers(1, 80),
    dtype=st.sampled_from(["float32", "float64"]),
    bias=st.booleans(),
)
def test_stacked_shards_get_the_bits_of_each_alone(widths, n_out, activation, loss, n_shards, n, n_in, dtype, bias):
    hidden = [layer for w in widths for layer in (nn.Dense(w, bias=bias), LAYERS[activation](), nn.Dropout(0.3))]
    check([*hidden, nn.Dense(n_out)], LOSSES[loss](), n_shards, n, n_in, dtype, n)


@pytest.mark.parametrize("options", [{}, {"dtype": "float64", "batch_size": 20}], ids=["float32", "short steps"])
def test_how_many_are_stacked_changes_no_bit(options, monkeypatch):
    digits = load("digits").train
    layers = [nn.Dense(40), nn.Tanh(), nn.Dropout(0.2), nn.Dense(10), nn.Softmax()]
    found = []
    for stacked in (1, 2, 4, 8):
        monkeypatch.setattr("distbp.train.worker.Worker._most_stacked", lambda *_, n=stacked: n)
        outcome = Trainer(layers, shards=11, epochs=2, seed=1, **options).fit(digits.x[:500], digits.y[:500])
        found.append((outcome.weights_sha256, outcome.history[-1]["train"], outcome.metrics))
    assert all(each == found[0] for each in found)
