"""Which kernels a command computes with: its recipe says so, and is read for that before NumPy is loaded.

What cannot be read here is refused later, with a reason, by what reads all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbp.cli.recipe_file import bits_of
from distbp.errors import InputError
from distbp.kernels import choose_portable

_UNREADABLE = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_LARGEST_HEADER = 100_000_000  # of a safetensors file, as its own reader has it


def choose_kernels(recipe_name: str | None, changes: list[str], resumed: Path | None) -> None:
    """Choose those of a recipe or, where a run is ``resumed``, those of its newest checkpoint."""
    _choose(lambda: bits_of(recipe_name, changes) if resumed is None else _recipe_in(_newest(resumed)).get("bits"))


def choose_kernels_of_model(path: Path) -> None:
    """Choose those that the model in ``path``, a file or the folder of a run, was trained with."""
    file = path / "model.safetensors" if path.is_dir() else path
    _choose(lambda: _recipe_in(file).get("bits"))


def _choose(bits: Callable[[], object]) -> None:
    with suppress(*_UNREADABLE):
        if bits() == "portable":
            choose_portable()


def _newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*.safetensors"))


def _recipe_in(path: Path) -> dict[str, Any]:
    """Return the recipe in a model or checkpoint, read without the package safetensors, which loads NumPy."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(min(size, _LARGEST_HEADER)))["__metadata__"]
    recipe: dict[str, Any] = json.loads(metadata["run"])["recipe"]
    return recipe
