"""The network: one vector, shapes, initial weights, dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distbp import InputError, nn
from distbp.nn import LAYERS, LOSSES, aligned_zeros
from distbp.randomness import generator

FLOAT32 = np.dtype(np.float32)


def bound(*layers, shape=(6,), n_rows=4, seed=0, dtype=FLOAT32):
    network = nn.Sequential(*layers)
    layout = network.build(shape, dtype)
    weights = aligned_zeros(layout.size, dtype)
    network.initialise(weights, seed)
    network.bind(weights, n_rows)
    return network, layout, weights


def test_all_parameters_are_views_of_one_vector_on_cache_lines():
    network, layout, weights = bound(nn.Dense(5), nn.ReLU(), nn.Dense(3))
    for segment in layout.segments:
        assert segment.offset * 4 % 64 == 0
    assert np.shares_memory(network.layers[0].weight.W, weights)
    assert network.layers[0].weight.W.shape == (5, 6)
    assert layout.n_parameters == 5 * 6 + 5 + 3 * 5 + 3


def test_sha256_is_of_the_numbers_without_the_gaps():
    import hashlib

    _, layout, weights = bound(nn.Dense(5), nn.Dense(3))
    numbers = b"".join(view.astype("<f4").tobytes() for view in layout.views(weights).values())
    assert len(numbers) == 4 * layout.n_parameters
    assert layout.sha256(weights) == hashlib.sha256(numbers).hexdigest()


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("glorot_normal", 2 / 700),
        ("glorot_uniform", 2 / 700),
        ("he_normal", 2 / 400),
        ("he_uniform", 2 / 400),
        ("lecun_normal", 1 / 400),
        ("lecun_uniform", 1 / 400),
        ("zeros", 0),
    ],
)
def test_initial_weights_have_the_variance_of_their_source(init, variance):
    network, _, _ = bound(nn.Dense(300, init=init), shape=(400,))
    W = network.layers[0].weight.W
    assert abs(W.mean()) < 4 * math.sqrt(variance / W.size) + 1e-12
    assert W.var() == pytest.approx(variance, rel=0.02)
    assert not network.layers[0].weight.b.any()


@pytest.mark.parametrize(("layer", "init"), [(nn.ReLU(), "he_normal"), (nn.Tanh(), "glorot_uniform")])
def test_the_default_initialiser_fits_the_activation_that_follows(layer, init):
    _, _, default = bound(nn.Dense(5), nn.Dropout(0.1), layer)
    _, _, named = bound(nn.Dense(5, init=init), nn.Dropout(0.1), layer)
    np.testing.assert_array_equal(default, named)


def test_a_shape_that_does_not_fit_names_the_layer():
    with pytest.raises(InputError, match=r"layer 1_dense: expected rows of shape \(n,\); given rows of shape \(8, 8\)"):
        nn.Sequential(nn.ReLU(), nn.Dense(3)).build((8, 8), FLOAT32)


def test_the_wrong_last_activation_is_refused():
    network = nn.Sequential(nn.Dense(3), nn.Sigmoid())
    network.build((4,), FLOAT32)
    with pytest.raises(InputError, match="end the model with softmax"):
        network.fuse(LOSSES["categorical_cross_entropy"]())


def test_dropout_drops_by_key_and_keeps_the_mean():
    network, _, _ = bound(nn.Dropout(0.25), shape=(1000,), n_rows=50)
    x = np.ones((50, 1000), np.float32)
    network.randomise(7, 2, 3)
    first = network.layers[0].forward(x).copy()
    network.randomise(7, 2, 3)
    np.testing.assert_array_equal(network.layers[0].forward(x), first)
    network.randomise(7, 2, 4)
    assert (network.layers[0].forward(x) != first).any()
    assert np.mean(first == 0) == pytest.approx(0.25, abs=0.01)
    assert first.mean() == pytest.approx(1.0, abs=0.01)
    network.settle()
    assert network.layers[0].forward(x) is x


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"dropout"}))
@pytest.mark.parametrize("n_rows", [1, 40])
def test_an_activation_after_a_dense_layer_gives_what_both_give_apart(name, n_rows):
    """The activation adds the bias and works in place, block by block; nothing of that may show."""
    (layer,) = list(LAYERS[name].examples())[:1]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_rows, 6)).astype(np.float32)
    network, _, weights = bound(nn.Dense(2000), layer, n_rows=n_rows)
    weights[:] = rng.standard_normal(len(weights))
    network.resize(n_rows)
    z = x @ network.layers[0].weight.W.T + network.layers[0].weight.b
    together = network.layers[1].forward(network.layers[0].forward(x)).copy()
    if not layer.is_activation:
        return
    alone = LAYERS[name].examples()[0]
    alone.allocate((2000,), n_rows, FLOAT32, needs_dx=True)
    np.testing.assert_allclose(together, alone.forward(z.copy()), rtol=2e-6, atol=1e-6)
    dy = rng.standard_normal(together.shape).astype(np.float32)
    np.testing.assert_allclose(layer.backward(dy.copy()), alone.backward(dy.copy()), rtol=2e-5, atol=1e-6)


def test_random_draws_depend_on_their_key_alone():
    a, b = generator(1, "order", 0, 3).random(4), generator(1, "order", 3, 0).random(4)
    assert (a != b).all()
    np.testing.assert_array_equal(a, generator(1, "order", 0, 3).random(4))
