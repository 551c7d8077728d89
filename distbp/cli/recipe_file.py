"""Recipes as YAML files, and changes to them from the command line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distbp.errors import InputError

if TYPE_CHECKING:
    from distbp.train import Recipe


def read_recipe(path: Path | None, changes: list[str]) -> Recipe:
    """Return the recipe in ``path``, by default the one for ``digits``, with ``changes`` of the form key=value.

    Keys are paths, as in ``optimizer.adam.learning_rate`` or ``model.0.dense``; values are YAML.

    Raises
    ------
    InputError
        Where the file or a change cannot be read, or the outcome is no recipe.
    """
    from distbp.train import Recipe

    return Recipe.parse(read_values(path, changes), "digits.yaml" if path is None else str(path))


def read_values(path: Path | None, changes: list[str]) -> dict[str, Any]:
    """Return what ``read_recipe`` makes a recipe of: keys and values that need not be right."""
    try:
        text = (resources.files("distbp") / "recipes" / "digits.yaml").read_text() if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a recipe that can be read", str(error), "check the path", str(path)) from None
    where = "digits.yaml" if path is None else str(path)
    values = _yaml(text, where)
    if not isinstance(values, dict):
        raise InputError("keys and values", type(values).__name__, "write for example `epochs: 10`", where)
    for change in changes:
        _change(values, change)
    return values


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, by which a short text could mean a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which recipes do without")
        return super().compose_node(parent, index)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - as safe as SafeLoader, of which it is one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError("YAML", " ".join(str(error).split()), "correct it", where) from None


def _change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise InputError("key=value", repr(change), "write for example --set epochs=20", "--set")
    place: Any = values
    *path, last = key.split(".")
    for depth, name in enumerate(path):
        if isinstance(place, list):
            place = place[_index(place, name, key)]
            continue
        if not isinstance(place.get(name), (dict, list)):
            given = place.get(name)  # a name alone, as in `optimizer: adam`, may be given options
            place[name] = {given: {}} if isinstance(given, str) and given == [*path, last][depth + 1] else {}
        place = place[name]
    value = _yaml(text, f"--set {key}")
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _index(place: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(place):
        raise InputError(f"a number from 0 to {len(place) - 1}", repr(name), "count from 0", f"--set {key}")
    return int(name)
