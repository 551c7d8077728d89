"""Recipes, and changes to them from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbp.cli.recipe_text import read_text, read_yaml
from distbp.errors import InputError
from distbp.train import Recipe
from distbp.train.recipe import DEFAULTS, TABLES, options_of, spelled_out


def read_recipe(name: str | Path | None, changes: list[str]) -> Recipe:
    """Return the recipe ``name``, a file or one of those that come along, with ``changes`` of the form key=value.

    Keys are paths, as in ``optimizer.adam.learning_rate`` or ``model.0.dense``; the name of what is set may be left
    out, as in ``optimizer.learning_rate`` or ``model.0.units``. Values are YAML.

    Raises
    ------
    InputError
        Where the file or a change cannot be read, or the outcome is no recipe.
    """
    where, text = read_text(name)
    values = read_yaml(text, where)
    if not isinstance(values, dict):
        raise InputError("keys and values", type(values).__name__, "write for example `epochs: 10`", where)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError("key=value", repr(change), "write for example --set epochs=20", "--set")
        values = _changed(values, key.split("."), read_yaml(value, f"--set {key}"), f"--set {key}", is_top=True)
    return Recipe.parse(values, where)


def _changed(
    old: Any,
    path: list[str],
    value: Any,
    where: str,
    table: Mapping[str, type[Any]] | None = None,
    *,
    is_top: bool = False,
) -> Any:
    """Return ``old`` with ``value`` at ``path``; where something of ``table`` is named, its name may be left out."""
    if not path:
        return value
    name, *rest = path
    if table is not None and not isinstance(old, list):
        named, options = spelled_out(old, table)
        if name not in table or name in options_of(table.get(named)):
            return {named: _changed(options, path, value, where)}
        if not rest and any(name in options_of(cls) for cls in table.values()):
            remedy = f"write out what is meant: {where}.{options_of(table[name])[0]}"
            raise InputError(f"an option of {named}", f"{name}, which is a name as well", remedy, where)
        before = options if name == named else {}
        return {name: _changed(before, rest, value, where)}
    if isinstance(old, list):
        if not name.isdigit() or int(name) >= len(old):
            raise InputError(f"a number from 0 to {len(old) - 1}", repr(name), "count from 0", where)
        items = list(old)
        items[int(name)] = _changed(items[int(name)], rest, value, where, table)
        return items
    values = dict(old) if isinstance(old, dict) else {}
    below = TABLES.get(name) if is_top else None
    before = values.get(name, DEFAULTS.get(name) if below else None)
    values[name] = _changed(before, rest, value, where, below)
    return values
