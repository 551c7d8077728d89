"""What is drawn where no initialiser is named learns as well as the best common one (see distbp/nn/initialisers.md)."""

from __future__ import annotations

import numpy as np
import pytest

from distbp import Trainer, nn, optim

COMMON = {
    "glorot_uniform": "zeros",
    "he_normal": "zeros",
    "lecun_normal": "zeros",
    "torch_uniform": "torch_uniform",
}
"""Initialisers of weights, with those of biases that usually go with them."""


def surrogate(x):
    """Three smooth functions of eight inputs."""
    return np.stack([np.sin(3 * x[:, 0]) * x[:, 1], x[:, 2] ** 2 - x[:, 3], np.exp(-(x[:, 4] ** 2)) * x[:, 5]], axis=1)


def arm(x):
    """Where an arm of eight links ends."""
    angles = np.cumsum(x, axis=1)
    return np.stack([np.cos(angles).mean(axis=1), np.sin(angles).mean(axis=1)], axis=1)


def wave(x):
    """Two waves of one input."""
    return np.sin(6 * x) + 0.5 * np.cos(15 * x)


def error_of(f, n_in, activation, seed, **options):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (6000, n_in))
    y = f(x)
    layers = [nn.Dense(64, **options), activation(), nn.Dense(64, **options), activation()]
    layers.append(nn.Dense(y.shape[1], **options))
    recipe = {"loss": "squared_error", "optimizer": optim.Adam(0.001), "batch_size": 32, "epochs": 12, "shards": 1}
    trainer = Trainer(layers, engine="local", seed=seed, **recipe)
    trainer.fit(x[:4000], y[:4000])
    return np.sqrt(np.mean(((trainer.predict(x[4000:]) - y[4000:]) / y.std(axis=0)) ** 2))


@pytest.mark.parametrize(
    ("f", "n_in", "activation"), [(surrogate, 8, nn.ReLU), (wave, 1, nn.ReLU), (wave, 1, nn.Tanh), (arm, 8, nn.Tanh)]
)
def test_the_default_is_within_five_per_cent_of_the_best_common_one(f, n_in, activation):
    def mean_error(**options):
        return np.mean([error_of(f, n_in, activation, seed, **options) for seed in range(3)])

    others = {init: mean_error(init=init, bias_init=bias_init) for init, bias_init in COMMON.items()}
    assert mean_error() < 1.05 * min(others.values()), others
