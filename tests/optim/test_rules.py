"""Optimizers against torch.optim over 200 steps in float64, and against hand-worked steps."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from distbp.errors import InputError
from distbp.optim import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, Momentum, Nesterov, RMSProp

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

CASES = {
    "sgd": (SGD(0.05), lambda t, p: t.SGD(p, lr=0.05)),
    "sgd_decay": (SGD(0.05, 0.1), lambda t, p: t.SGD(p, lr=0.05, weight_decay=0.1)),
    "momentum": (Momentum(0.02, 0.8, 0.05), lambda t, p: t.SGD(p, lr=0.02, momentum=0.8, weight_decay=0.05)),
    "nesterov": (Nesterov(0.02, 0.8), lambda t, p: t.SGD(p, lr=0.02, momentum=0.8, nesterov=True)),
    "rmsprop": (RMSProp(0.01, 0.95, 1e-7, 0.02), lambda t, p: t.RMSprop(p, 0.01, 0.95, 1e-7, weight_decay=0.02)),
    "adagrad": (Adagrad(0.1, 1e-9, 0.01), lambda t, p: t.Adagrad(p, 0.1, eps=1e-9, weight_decay=0.01)),
    "adam": (Adam(0.01, 0.85, 0.98, 1e-6, 0.03), lambda t, p: t.Adam(p, 0.01, (0.85, 0.98), 1e-6, weight_decay=0.03)),
    "adamw": (AdamW(0.01, weight_decay=0.2), lambda t, p: t.AdamW(p, 0.01, weight_decay=0.2)),
}


def follow(optimizer, w, gradient, n_steps):
    """Apply ``n_steps`` steps to ``w`` in place, with decay of all of it."""
    state = [np.zeros_like(w) for _ in optimizer.state]
    scratch = np.empty_like(w)
    for step in range(1, n_steps + 1):
        g = gradient(w)
        if optimizer.weight_decay > 0:
            optimizer.decay(optimizer.learning_rate, w, g, scratch)
        optimizer.update(step, optimizer.learning_rate, w, g, scratch, *state)
    return w


def test_every_optimizer_is_compared():
    assert {optimizer.name for optimizer, _ in CASES.values()} == set(OPTIMIZERS)


@needs_torch
@pytest.mark.parametrize("case", sorted(CASES))
def test_200_steps_follow_torch(case):
    import torch

    optimizer, make = CASES[case]
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 12))
    # Other targets at each step, as with batches: at rest in one minimum, RMSProp magnifies roundings without bound.
    targets = rng.standard_normal((200, 30))
    w0 = rng.standard_normal(12)
    ours = iter(targets)
    w = follow(optimizer, w0.copy(), lambda w: A.T @ np.tanh(A @ w - next(ours)), 200)

    tw = torch.tensor(w0, requires_grad=True)
    theirs = make(torch.optim, [tw])
    for b in targets:
        tw.grad = torch.tensor(A.T @ np.tanh(A @ tw.detach().numpy() - b))
        theirs.step()
    np.testing.assert_allclose(w, tw.detach().numpy(), rtol=0, atol=1e-10)


def test_first_steps_by_hand():
    # w = 1, g = w: SGD with η = 0.1 gives 0.9, 0.81; momentum 0.9 adds 0.9 of the last change
    assert follow(SGD(0.1), np.ones(1), np.copy, 2) == pytest.approx(0.81)
    assert follow(Momentum(0.1, 0.9), np.ones(1), np.copy, 2) == pytest.approx(0.9 - 0.1 * (0.9 * 1 + 0.9))
    # Adam's first step has length η whatever the gradient
    assert follow(Adam(0.01), np.array([5.0]), np.copy, 1) == pytest.approx(4.99)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    w = follow(OPTIMIZERS[name](learning_rate=0.1), np.array([1.0, -2.0]), lambda w: w * [1.0, 3.0], 1000)
    assert np.abs(w).max() < 0.3


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(InputError, match="expected a learning_rate > 0; given 0"):
        SGD(0.0)
    with pytest.raises(InputError, match="beta1"):
        Adam(beta1=1.0)
