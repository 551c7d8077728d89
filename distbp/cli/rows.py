"""The rows that a command is about."""

from __future__ import annotations

from distbp.data import Dataset, Rows
from distbp.errors import InputError


def rows_of(dataset: Dataset, part: str | None) -> Rows:
    """Return the ``part`` of ``dataset``, by default test, if there is one, else train."""
    name = part or ("test" if "test" in dataset.parts else "train")
    if name not in dataset.parts:
        given = f"{part!r}"
        raise InputError(f"a part of the data, of: {', '.join(dataset.parts)}", given, "choose one of these", "--part")
    return dataset.parts[name]
