"""Whom a worker waits for: the modes of training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from distbp.errors import InputError
from distbp.options import Options

MODES: dict[str, type[Mode]] = {}
"""Every mode that exists, by its name in recipes."""


class Mode(Options, ABC):
    """How far workers may be apart."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()
        MODES[cls.name] = cls

    @property
    @abstractmethod
    def lead(self) -> float:
        """The most steps that a worker may be ahead of the slowest one."""


@dataclass(eq=False)
class Synchronous(Mode):
    """All workers take every step together: the same bits, however it runs."""

    @property
    def lead(self) -> float:
        return 0


@dataclass(eq=False)
class Bounded(Mode):
    """Stale synchronous parallel: at most ``staleness`` steps ahead of the slowest worker (Ho et al., NIPS 2013)."""

    staleness: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.staleness < 0:
            raise InputError("staleness ≥ 0", str(self.staleness), "change it", self.name)

    @property
    def lead(self) -> float:
        return self.staleness


@dataclass(eq=False)
class Asynchronous(Mode):
    """Nobody waits for anybody (Dean et al., NIPS 2012)."""

    @property
    def lead(self) -> float:
        return math.inf
