"""Learning-rate schedules: the factor on the learning rate, as a function of the step alone.

``step`` counts from 0; ``n_steps`` is the length of the run and ``epoch_steps`` of one epoch. Linear warm-up may
precede any of them: over the first n = ``warmup_steps`` the factor rises as 1/n, 2/n, ..., then the schedule starts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from distbp.errors import InputError
from distbp.options import Options

SCHEDULES: dict[str, type[Schedule]] = {}
"""Every schedule that exists, by its name in recipes."""


class Schedule(Options, ABC):
    """A factor on the learning rate, with linear warm-up."""

    warmup_steps: int

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()
        SCHEDULES[cls.name] = cls

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 0:
            raise InputError("warmup_steps ≥ 0", str(self.warmup_steps), "change it", self.name)

    def factor(self, step: int, n_steps: int, epoch_steps: int) -> float:
        """Return the factor at ``step``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step - self.warmup_steps, max(n_steps - self.warmup_steps, 1), epoch_steps)

    @abstractmethod
    def after_warmup(self, step: int, n_steps: int, epoch_steps: int) -> float:
        """Return the factor at ``step``, both counted from the end of the warm-up."""


@dataclass(eq=False)
class Constant(Schedule):
    """1."""

    warmup_steps: int = 0

    def after_warmup(self, step: int, n_steps: int, epoch_steps: int) -> float:
        return 1.0


@dataclass(eq=False)
class Step(Schedule):
    """gamma^k after every k-th ``every_epochs`` epochs."""

    every_epochs: int = 10
    gamma: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every_epochs < 1:
            raise InputError("every_epochs ≥ 1", str(self.every_epochs), "change it", self.name)
        _require_factor(self.gamma, "gamma", self.name)

    def after_warmup(self, step: int, n_steps: int, epoch_steps: int) -> float:
        return self.gamma ** (step // (epoch_steps * self.every_epochs))


@dataclass(eq=False)
class Exponential(Schedule):
    """gamma^e after e epochs, e a real number."""

    gamma: float = 0.95
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_factor(self.gamma, "gamma", self.name)

    def after_warmup(self, step: int, n_steps: int, epoch_steps: int) -> float:
        return self.gamma ** (step / epoch_steps)


@dataclass(eq=False)
class Cosine(Schedule):
    """From 1 to ``final`` along half a cosine over the rest of the run (Loshchilov and Hutter, ICLR 2017)."""

    final: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.final <= 1.0:
            raise InputError("final in [0, 1]", str(self.final), "change it", self.name)

    def after_warmup(self, step: int, n_steps: int, epoch_steps: int) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(step / n_steps, 1.0)))


def _require_factor(value: float, name: str, where: str) -> None:
    if not 0.0 < value <= 1.0:
        raise InputError(f"{name} in (0, 1]", str(value), "change it", where)
