"""The rows that a command is about."""

from __future__ import annotations

import warnings

from distbp.data import Rows, load, same_source
from distbp.errors import InputError
from distbp.train import Model
from distbp.train.training import with_validation


def rows_of(model: Model, data: str, part: str | None) -> Rows:
    """Return a part of ``data``, by default test, if there is one, else train.

    Those of the model's own source are split as for its training, if they are not those of the test. A warning says so
    if these are rows that the model was trained on.
    """
    dataset, source = load(data), model.recipe.data.source
    name = part or ("test" if "test" in dataset.parts else "train")
    if name != "test" and source != "arrays" and same_source(data, source):
        dataset = with_validation(dataset, model.recipe)
        if part is None:
            warnings.warn(f"{data} has no test part: these are the rows that the model was trained on", stacklevel=2)
    if name not in dataset.parts:
        given = f"{part!r}"
        raise InputError(f"a part of the data, of: {', '.join(dataset.parts)}", given, "choose one of these", "--part")
    return dataset.parts[name]
