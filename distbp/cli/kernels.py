"""Which kernels a command computes with: its recipe says so, and is read for that before NumPy is loaded.

What cannot be read here is refused later, with a reason, by what reads all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbp.cli.recipe_text import read_text, read_yaml
from distbp.errors import InputError
from distbp.kernels import choose_portable

_UNREADABLE = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_LARGEST_HEADER = 100_000_000  # of a safetensors file, as its own reader has it


def choose_kernels(recipe_name: str | None, changes: list[str], resumed: Path | None) -> None:
    """Choose those of a recipe or, where a run is ``resumed``, those of its newest checkpoint."""
    _choose(lambda: _changed_recipe(recipe_name, changes) if resumed is None else _recipe_of_run(resumed))


def choose_kernels_of_model(path: Path) -> None:
    """Choose those that the model in ``path``, a file or the folder of a run, was trained with."""
    file = path / "model.safetensors" if path.is_dir() else path
    _choose(lambda: json.loads(_metadata(file)["recipe"]))


def _choose(recipe: Callable[[], dict[str, Any]]) -> None:
    with suppress(*_UNREADABLE):
        if recipe().get("bits") == "portable":
            choose_portable()


def _changed_recipe(recipe_name: str | None, changes: list[str]) -> dict[str, Any]:
    """Return the recipe with those of ``changes`` that are of a key as a whole."""
    where, text = read_text(recipe_name)
    pairs = [change.partition("=") for change in changes]
    return dict(read_yaml(text, where)) | {key: read_yaml(value, where) for key, _, value in pairs}


def _recipe_of_run(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").glob("step-*.safetensors"))
    recipe: dict[str, Any] = json.loads(_metadata(newest)["run"])["recipe"]
    return recipe


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, without the package, which loads NumPy."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata: dict[str, str] = json.loads(file.read(min(size, _LARGEST_HEADER)))["__metadata__"]
    return metadata
