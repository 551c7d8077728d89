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
        ("torch_uniform", 1 / 1200),
        ("zeros", 0),
    ],
)
def test_initial_weights_have_the_variance_of_their_source(init, variance):
    network, _, _ = bound(nn.Dense(300, init=init), shape=(400,))
    W = network.layers[0].weight.W
    assert abs(W.mean()) < 4 * math.sqrt(variance / W.size) + 1e-12
    assert W.var() == pytest.approx(variance, rel=0.02)


def test_every_initialiser_is_tested_for_its_variance():
    (mark,) = test_initial_weights_have_the_variance_of_their_source.pytestmark
    assert {init for init, _ in mark.args[1]} == set(nn.INITIALISERS)


@pytest.mark.parametrize(
    ("init", "variance"), [("glorot_uniform", 2 / 10_100), ("lecun_uniform", 1 / 100), ("torch_uniform", 1 / 300)]
)
def test_biases_are_drawn_as_the_weights_of_one_more_input(init, variance):
    network, _, _ = bound(nn.Dense(10_000, bias_init=init), shape=(100,))
    b = network.layers[0].weight.b
    assert abs(b.mean()) < 4 * math.sqrt(variance / b.size)
    assert b.var() == pytest.approx(variance, rel=0.05)
    limit = math.sqrt(3 * variance)
    assert 0.99 * limit < np.abs(b).max() <= np.float32(limit)


def test_the_default_depends_on_the_place_of_the_layer_and_draws_biases():
    layers = [nn.Flatten(), nn.Dense(5), nn.ReLU(), nn.Dense(4), nn.Dropout(0.1)]
    layers += [nn.Dense(4), nn.Dense(3), nn.Softmax()]
    inits = [None, "torch_uniform", None, "glorot_uniform", None, "glorot_uniform", "torch_uniform", None]
    pairs = zip(layers, inits, strict=True)
    named = [nn.Dense(layer.units, init, bias_init="lecun_uniform") if init else layer for layer, init in pairs]
    np.testing.assert_array_equal(bound(*layers)[2], bound(*named)[2])


def test_a_named_initialiser_leaves_the_defaults_of_all_others():
    named, _, _ = bound(nn.Dense(5), nn.ReLU(), nn.Dense(3, init="zeros"))
    default, _, _ = bound(nn.Dense(5), nn.ReLU(), nn.Dense(3))
    assert not named.layers[2].weight.W.any()
    np.testing.assert_array_equal(named.layers[2].weight.b, default.layers[2].weight.b)
    np.testing.assert_array_equal(named.layers[0].weight.W, default.layers[0].weight.W)
    np.testing.assert_array_equal(named.layers[0].weight.b, default.layers[0].weight.b)


def test_initial_draws_depend_on_seed_and_name_alone():
    """Neither other layers nor other parameters of the same layer change what a parameter draws."""
    _, layout, weights = bound(nn.Dense(5), nn.ReLU(), nn.Dense(3))
    _, other, larger = bound(nn.Dense(5, bias_init="zeros"), nn.ReLU(), nn.Dense(3), nn.ReLU(), nn.Dense(2))
    np.testing.assert_array_equal(layout.views(weights)["0_dense.W"], other.views(larger)["0_dense.W"])
    np.testing.assert_array_equal(layout.views(weights)["2_dense.b"], other.views(larger)["2_dense.b"])
    _, _, again = bound(nn.Dense(5), nn.ReLU(), nn.Dense(3), seed=1)
    assert (layout.views(weights)["0_dense.W"] != layout.views(again)["0_dense.W"]).all()
    assert (layout.views(weights)["0_dense.b"] != layout.views(again)["0_dense.b"]).all()


@pytest.mark.parametrize("option", ["init", "bias_init"])
def test_an_unknown_initialiser_is_refused_with_the_names_of_all(option):
    with pytest.raises(InputError, match=rf"dense, {option}: expected an initialiser of .*torch_uniform.*'xavier'"):
        nn.Dense(3, **{option: "xavier"})


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
    network.randomise(7, [2], 3)
    first = network.layers[0].forward(x).copy()
    network.randomise(7, [2], 3)
    np.testing.assert_array_equal(network.layers[0].forward(x), first)
    network.randomise(7, [2], 4)
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
