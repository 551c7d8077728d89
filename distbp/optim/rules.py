"""Update rules. Each works in place on one block of a slice, small enough to stay in cache.

In the formulas w are the weights, g is the mean gradient, η the learning rate, t = 1, 2, ... the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distbp.errors import InputError
from distbp.options import Options

OPTIMIZERS: dict[str, type[Optimizer]] = {}
"""Every optimizer that exists, by its name in recipes."""


def _require(condition: bool, expected: str, given: float, where: str) -> None:
    if not condition:
        raise InputError(expected, str(given), "change it", where)


class Optimizer(Options, ABC):
    """An update rule with its options.

    ``state`` names the vectors that it keeps beside the weights, all zero at the start. With ``weight_decay`` λ, which
    leaves biases out, g + λ w stands for g (L2 regularisation); AdamW decouples it.
    """

    state: ClassVar[tuple[str, ...]] = ()
    decoupled_decay: ClassVar[bool] = False

    learning_rate: float
    weight_decay: float

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()
        OPTIMIZERS[cls.name] = cls

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.learning_rate > 0.0, "a learning_rate > 0", self.learning_rate, self.name)
        _require(self.weight_decay >= 0.0, "a weight_decay ≥ 0", self.weight_decay, self.name)

    @abstractmethod
    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        """Apply step ``t`` to the block ``w`` (n,) in place.

        ``g`` (n,) holds the mean gradient and may be overwritten, ``scratch`` (n,) anything; ``lr`` is η at this step.
        """

    def decay(self, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray) -> None:
        """Apply weight decay to a part ``w`` (n,) of a block, before ``update``."""
        if self.decoupled_decay:
            np.multiply(w, 1.0 - lr * self.weight_decay, out=w)
        else:
            np.multiply(w, self.weight_decay, out=scratch)
            np.add(g, scratch, out=g)


@dataclass(eq=False)
class SGD(Optimizer):
    """w ← w - η g."""

    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        np.multiply(g, lr, out=g)
        np.subtract(w, g, out=w)


@dataclass(eq=False)
class Momentum(Optimizer):
    """u ← μ u + g;  w ← w - η u (Polyak, 1964; as in torch.optim.SGD)."""

    state: ClassVar[tuple[str, ...]] = ("u",)

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 <= self.momentum < 1.0, "a momentum in [0, 1)", self.momentum, self.name)

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        (u,) = state
        np.multiply(u, self.momentum, out=u)
        np.add(u, g, out=u)
        np.multiply(u, lr, out=scratch)
        np.subtract(w, scratch, out=w)


@dataclass(eq=False)
class Nesterov(Momentum):
    """u ← μ u + g;  w ← w - η (g + μ u) (Sutskever et al., ICML 2013; as in torch.optim.SGD)."""

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        (u,) = state
        np.multiply(u, self.momentum, out=u)
        np.add(u, g, out=u)
        np.multiply(u, self.momentum, out=scratch)
        np.add(g, scratch, out=g)
        np.multiply(g, lr, out=g)
        np.subtract(w, g, out=w)


@dataclass(eq=False)
class RMSProp(Optimizer):
    """v ← ρ v + (1 - ρ) g²;  w ← w - η g / (sqrt(v) + ε) (Tieleman and Hinton, 2012)."""

    state: ClassVar[tuple[str, ...]] = ("v",)

    learning_rate: float = 0.01
    rho: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 <= self.rho < 1.0, "a rho in [0, 1)", self.rho, self.name)
        _require(self.epsilon > 0.0, "an epsilon > 0", self.epsilon, self.name)

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        (v,) = state
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1.0 - self.rho, out=scratch)
        np.multiply(v, self.rho, out=v)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.multiply(g, lr, out=g)
        np.divide(g, scratch, out=g)
        np.subtract(w, g, out=w)


@dataclass(eq=False)
class Adagrad(Optimizer):
    """v ← v + g²;  w ← w - η g / (sqrt(v) + ε) (Duchi et al., JMLR 12, 2011)."""

    state: ClassVar[tuple[str, ...]] = ("v",)

    learning_rate: float = 0.01
    epsilon: float = 1e-10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epsilon > 0.0, "an epsilon > 0", self.epsilon, self.name)

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        (v,) = state
        np.multiply(g, g, out=scratch)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.multiply(g, lr, out=g)
        np.divide(g, scratch, out=g)
        np.subtract(w, g, out=w)


@dataclass(eq=False)
class Adam(Optimizer):
    """m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  w ← w - η m̂ / (sqrt(v̂) + ε) (Kingma and Ba, ICLR 2015).

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ). Kept are M = m / (1 - β₁) and V = v / (1 - β₂), which saves two passes
    over the block; the missing factors go into η and ε.
    """

    state: ClassVar[tuple[str, ...]] = ("M", "V")

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 <= self.beta1 < 1.0, "a beta1 in [0, 1)", self.beta1, self.name)
        _require(0.0 <= self.beta2 < 1.0, "a beta2 in [0, 1)", self.beta2, self.name)
        _require(self.epsilon > 0.0, "an epsilon > 0", self.epsilon, self.name)

    def update(self, t: int, lr: float, w: np.ndarray, g: np.ndarray, scratch: np.ndarray, *state: np.ndarray) -> None:
        M, V = state
        factor1 = (1.0 - self.beta1) / (1.0 - self.beta1**t)  # m̂ = factor1 · M
        factor2 = math.sqrt((1.0 - self.beta2) / (1.0 - self.beta2**t))  # sqrt(v̂) = factor2 · sqrt(V)
        np.multiply(M, self.beta1, out=M)
        np.add(M, g, out=M)
        np.multiply(g, g, out=g)
        np.multiply(V, self.beta2, out=V)
        np.add(V, g, out=V)
        np.sqrt(V, out=scratch)
        np.add(scratch, self.epsilon / factor2, out=scratch)
        np.divide(M, scratch, out=scratch)
        np.multiply(scratch, lr * factor1 / factor2, out=scratch)
        np.subtract(w, scratch, out=w)


@dataclass(eq=False)
class AdamW(Adam):
    """Adam with decoupled weight decay, w ← (1 - η λ) w before the step (Loshchilov and Hutter, ICLR 2019)."""

    decoupled_decay: ClassVar[bool] = True

    weight_decay: float = 0.01
