"""Recipes as YAML files, as they are written: read without what they are about, and so without NumPy."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from distbp.errors import InputError

_OWN = resources.files("distbp") / "recipes"
DEFAULT = "digits"
"""The recipe that is trained where none is named."""


def read_text(recipe: str | Path | None) -> tuple[str, str]:
    """Return what the recipe is called in messages, and its text; by default that of ``DEFAULT``."""
    name = DEFAULT if recipe is None else str(recipe)
    path, own = Path(name), {file.name: file for file in _OWN.iterdir() if file.name.endswith(".yaml")}
    file = f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and file in own:
        return file, own[file].read_text()
    names = sorted(own_name.removesuffix(".yaml") for own_name in own)
    if not path.exists():
        near = difflib.get_close_matches(name, names, 1)
        remedy = f"did you mean {near[0]}?" if near else "check the path"
        raise InputError(f"a recipe file, or one of: {', '.join(names)}", f"none: {name} does not exist", remedy)
    try:
        return name, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        given = getattr(error, "strerror", None) or str(error)
        raise InputError("a recipe that can be read", given, "check the path", name) from None


class _Loader(yaml.SafeLoader):
    """Reads YAML without aliases, by which a short text could mean a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which recipes do without")
        return super().compose_node(parent, index)


def read_yaml(text: str, where: str) -> Any:
    """Return what YAML says in ``text``."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - as safe as SafeLoader, of which it is one
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError("YAML", " ".join(str(error).split()), "correct it", where) from None
