"""Recipes as YAML files, and changes to them from the command line."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distbp.errors import InputError

if TYPE_CHECKING:
    from distbp.train import Recipe

_OWN = resources.files("distbp") / "recipes"
DEFAULT = "digits"
"""The recipe that is trained where none is named."""


def read_recipe(name: str | Path | None, changes: list[str]) -> Recipe:
    """Return the recipe ``name``, a file or one of those that come along, with ``changes`` of the form key=value.

    Keys are paths, as in ``optimizer.adam.learning_rate`` or ``model.0.dense``; the name of what is set may be left
    out, as in ``optimizer.learning_rate`` or ``model.0.units``. Values are YAML.

    Raises
    ------
    InputError
        Where the file or a change cannot be read, or the outcome is no recipe.
    """
    from distbp.train import Recipe

    where, values = _values(name)
    for key, value in _split(changes):
        values = _changed(values, key.split("."), value, f"--set {key}", is_top=True)
    return Recipe.parse(values, where)


def bits_of(name: str | Path | None, changes: list[str]) -> object:
    """Return the value of ``bits`` in such a recipe, which need not be right otherwise; loads no NumPy."""
    return ({"bits": _values(name)[1].get("bits")} | dict(_split(changes)))["bits"]


def _values(name: str | Path | None) -> tuple[str, dict[str, Any]]:
    """Return what the recipe ``name`` is called in messages, and its keys and values."""
    where, text = _read(DEFAULT if name is None else str(name))
    values = _yaml(text, where)
    if not isinstance(values, dict):
        raise InputError("keys and values", type(values).__name__, "write for example `epochs: 10`", where)
    return where, values


def _split(changes: list[str]) -> Iterator[tuple[str, Any]]:
    """Return key and value of each change."""
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError("key=value", repr(change), "write for example --set epochs=20", "--set")
        yield key, _yaml(value, f"--set {key}")


def _read(name: str) -> tuple[str, str]:
    """Return what the recipe ``name`` is called in messages, and its text."""
    path, own = Path(name), {file.name: file for file in _OWN.iterdir() if file.name.endswith(".yaml")}
    file = f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and file in own:
        return file, own[file].read_text()
    names = sorted(recipe.removesuffix(".yaml") for recipe in own)
    if not path.exists():
        near = difflib.get_close_matches(name, names, 1)
        remedy = f"did you mean {near[0]}?" if near else "check the path"
        raise InputError(f"a recipe file, or one of: {', '.join(names)}", f"none: {name} does not exist", remedy)
    try:
        return name, path.read_text() if path.is_file() else _read_once(path)
    except (OSError, UnicodeDecodeError) as error:
        given = getattr(error, "strerror", None) or str(error)
        raise InputError("a recipe that can be read", given, "check the path", name) from None


@functools.cache
def _read_once(path: Path) -> str:
    """Return the text of what can be read but once, such as a pipe."""
    return path.read_text()


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, by which a short text could mean a huge value, and without keys that come twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which recipes do without")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((i for i, key in enumerate(keys) if key in keys[:i]), -1)
            line = node.value[twice][0].start_mark.line + 1
            raise yaml.YAMLError(f"the key {keys[twice]!r} more than once, in line {line}")
        return mapping


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - as safe as SafeLoader, of which it is one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError("YAML", " ".join(str(error).split()), "correct it", where) from None


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
    from distbp.train.recipe import DEFAULTS, TABLES, options_of, spelled_out

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
