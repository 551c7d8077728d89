"""Every layer and loss that exists has the derivative of what it computes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import pytest

from distbp import nn
from distbp.nn import LAYERS, LOSSES, aligned_zeros

FLOAT64 = np.dtype(np.float64)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer_agrees_with_central_differences(name):
    for layer in LAYERS[name].examples():
        nn.check_layer(layer, (5,))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_agrees_with_central_differences(name):
    nn.check_loss(LOSSES[name]())


def test_flatten_takes_rows_of_any_shape():
    nn.check_layer(nn.Flatten(), (2, 3, 2))


def test_a_users_own_layer_is_found_and_checked():
    @dataclass(eq=False)
    class Scale(nn.Layer):
        def parameters(self, shape):
            return {"s": nn.Parameter(shape, "lecun_normal")}

        def forward(self, x):
            self.x = x
            return np.multiply(x, self.weight.s, out=self.y)

        def backward(self, dy):
            np.einsum("bn,bn->n", dy, self.x, out=self.gradient.s)
            return None if self.dx is None else np.multiply(dy, self.weight.s, out=self.dx)

    try:
        assert LAYERS["scale"] is Scale
        nn.check_layer(Scale(), (3,))
    finally:
        del LAYERS["scale"]


def test_the_check_finds_a_wrong_derivative():
    @dataclass(eq=False)
    class Wrong(nn.Tanh):
        def backward(self, dy):
            return 1.001 * super().backward(dy)

    try:
        with pytest.raises(AssertionError, match="differs from central differences"):
            nn.check_layer(Wrong(), (3,))
    finally:
        del LAYERS["wrong"]


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "categorical_cross_entropy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_huge_logits_does_not_overflow(loss, dtype):
    function = LOSSES[loss]()
    function.allocate(2, 3, np.dtype(dtype))
    z = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype)
    y = np.array([[1, 0, 0], [1, 0, 0]])
    t = function.targets(y, 3, np.dtype(dtype))
    total = float(np.sum(function.forward(z, t)))
    if loss == "categorical_cross_entropy":
        assert total == 2e4
        np.testing.assert_array_equal(function.dz, np.array([[0, 0, 0], [-1, 1, 0]], dtype))
    else:
        np.testing.assert_allclose(total, 2e4 + 2 * np.log(2), rtol=1e-6)
        np.testing.assert_array_equal(function.dz, np.array([[0, 0, 0.5], [-1, 1, 0.5]], dtype))


@pytest.mark.parametrize(
    ("last", "loss"), [(nn.Softmax(), "categorical_cross_entropy"), (nn.Sigmoid(), "binary_cross_entropy")]
)
def test_network_with_or_without_its_last_activation_has_the_same_gradient(last, loss):
    gradients = []
    for layers in ([nn.Dense(3)], [nn.Dense(3), last]):
        network, function = nn.Sequential(*layers), LOSSES[loss]()
        layout = network.build((4,), FLOAT64)
        weights, gradient = aligned_zeros(layout.size, FLOAT64), aligned_zeros(layout.size, FLOAT64)
        network.initialise(weights, seed=1)
        network.fuse(function)
        network.bind(weights, 5)
        network.use(network.gradient(gradient))
        function.allocate(5, 3, FLOAT64)
        rng = np.random.default_rng(0)
        t = function.targets(function.example(rng, 5, 3), 3, FLOAT64)
        function.forward(network.logits(rng.standard_normal((5, 4))), t)
        network.backward(function.dz)
        gradients.append(gradient)
    np.testing.assert_array_equal(*gradients)


def _torch_counterparts():
    from torch.nn import functional as F

    return {
        "dense": None,
        "identity": lambda x, _: x,
        "sigmoid": lambda x, _: x.sigmoid(),
        "tanh": lambda x, _: x.tanh(),
        "relu": lambda x, _: x.relu(),
        "leaky_relu": lambda x, layer: F.leaky_relu(x, layer.negative_slope),
        "elu": lambda x, layer: F.elu(x, layer.alpha),
        "gelu": lambda x, _: F.gelu(x, approximate="tanh"),
        "silu": lambda x, _: F.silu(x),
        "softplus": lambda x, _: F.softplus(x, threshold=1e9),
        "softmax": lambda x, _: x.softmax(-1),
        "flatten": lambda x, _: x.flatten(1),
    }


@needs_torch
@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"dropout"}))
def test_layer_agrees_with_torch(name):
    import torch

    rng = np.random.default_rng(0)
    for layer in LAYERS[name].examples():
        network = nn.Sequential(layer)
        layout = network.build((5,), FLOAT64)
        weights, gradient = aligned_zeros(layout.size, FLOAT64), aligned_zeros(layout.size, FLOAT64)
        weights[:] = rng.standard_normal(layout.size)
        network.bind(weights, 7)
        layer.allocate((5,), 7, FLOAT64, needs_dx=True)
        layer.weight = network.gradient(weights).views[0]
        network.use(network.gradient(gradient))
        x, r = 3 * rng.standard_normal((7, 5)), rng.standard_normal((7, *network.output_shape))
        y = layer.forward(x.copy()).copy()
        dx = layer.backward(r.copy())

        tx = torch.tensor(x, requires_grad=True)
        parameters = {k: torch.tensor(v.copy(), requires_grad=True) for k, v in layout.views(weights).items()}
        if name == "dense":
            ty = torch.nn.functional.linear(tx, parameters["0_dense.W"], parameters.get("0_dense.b"))
        else:
            ty = _torch_counterparts()[name](tx, layer)
        (ty * torch.tensor(r)).sum().backward()
        np.testing.assert_allclose(y, ty.detach().numpy(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=0, atol=1e-10)
        for key, view in layout.views(gradient).items():
            np.testing.assert_allclose(view, parameters[key].grad.numpy(), rtol=0, atol=1e-10)


@needs_torch
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_agrees_with_torch(name):
    import torch
    from torch.nn import functional as F

    rng = np.random.default_rng(0)
    loss = LOSSES[name]()
    loss.allocate(9, 4, FLOAT64)
    y = loss.example(rng, 9, 4)
    t, z = loss.targets(y, 4, FLOAT64), 5 * rng.standard_normal((9, 4))
    total = float(np.sum(loss.forward(z, t)))
    tz = torch.tensor(z, requires_grad=True)
    expected = {
        "squared_error": lambda: 0.5 * F.mse_loss(tz, torch.tensor(t), reduction="sum"),
        "binary_cross_entropy": lambda: F.binary_cross_entropy_with_logits(tz, torch.tensor(t), reduction="sum"),
        "categorical_cross_entropy": lambda: F.cross_entropy(tz, torch.tensor(t), reduction="sum"),
    }[name]()
    expected.backward()
    np.testing.assert_allclose(total, expected.item(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss.dz, tz.grad.numpy(), rtol=0, atol=1e-10)
