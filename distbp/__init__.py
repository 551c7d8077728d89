"""Data-parallel training of feed-forward networks on CPUs: the same bits on any number of workers.

What is here is imported when it is first asked for, so that ``distbp --help`` waits for no NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distbp.version import __version__ as __version__

if TYPE_CHECKING:
    from distbp import nn, optim
    from distbp.data import load
    from distbp.errors import DistbpError, InputError, TrainingError
    from distbp.train import Model, Outcome, Recipe, Watcher
    from distbp.trainer import Trainer

__all__ = [
    "DistbpError",
    "InputError",
    "Model",
    "Outcome",
    "Recipe",
    "Trainer",
    "TrainingError",
    "Watcher",
    "load",
    "nn",
    "optim",
]

_HOMES = {
    "data": ("load",),
    "errors": ("DistbpError", "InputError", "TrainingError"),
    "train": ("Model", "Outcome", "Recipe", "Watcher"),
    "trainer": ("Trainer",),
}
_ROOMS = {"nn", "optim", "engine", *_HOMES}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"distbp.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"distbp.{home}"), name)
    raise AttributeError(f"module 'distbp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
