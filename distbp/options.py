"""Options of layers, losses, optimizers, schedules and modes: each has the type that it is declared with."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from distbp.errors import InputError

_ANY = ConfigDict(arbitrary_types_allowed=True)


@dataclasses.dataclass(eq=False)
class Options:
    """A base for dataclasses whose fields are options; a ``__post_init__`` of theirs calls this one first."""

    name: typing.ClassVar[str]

    def __post_init__(self) -> None:
        settle(self)


def settle(item: Options) -> None:
    """Give the options of ``item`` their declared types: 3 for ``numpy.int64(3)`` or 3.0.

    Raises
    ------
    InputError
        For one that cannot have it.
    """
    for name, (annotation, adapter) in _declared(type(item)).items():  # type: ignore[arg-type] # as if classes had no hash
        value = getattr(item, name)
        number = value.item() if isinstance(value, np.generic) else value
        if is_misplaced(number, annotation):
            raise InputError("a number", repr(number), "correct it", f"{item.name}, {name}")
        try:
            settled = adapter.validate_python(number)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise InputError(expected, repr(value), "correct it", f"{item.name}, {name}") from None
        if settled is not value:
            object.__setattr__(item, name, settled)


@functools.cache
def _declared(cls: type[Options]) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """Return the declared types of the options of ``cls``, and what validates them, by name."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # of a class within a function, say
        return {}
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: (hints[name], TypeAdapter(hints[name], config=_ANY)) for name in names}


def is_misplaced(value: object, annotation: object) -> bool:
    """Return whether ``value`` is true or false where ``annotation`` asks for a number; Python has these as 1 and 0."""
    kinds = set(_kinds(annotation))
    return isinstance(value, bool) and bool not in kinds and not kinds.isdisjoint({int, float})


def _kinds(annotation: object) -> Iterator[object]:
    """Yield the types in ``annotation``."""
    is_literal = typing.get_origin(annotation) is typing.Literal
    yield annotation
    for part in typing.get_args(annotation):
        yield from _kinds(type(part) if is_literal else part)
