"""The form of rows: what a model knows of those that it was trained on, and asks of those that it is given."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, PositiveInt, StrictBool, StrictStr, model_validator


class RowForm(BaseModel):
    """What one row looks like.

    Attributes
    ----------
    input_shape:
        Of its features.
    columns, targets:
        The names of the features, where they came as a data frame; those of several targets, likewise.
    has_flat_targets:
        Whether the targets came in the shape (n,): one output is then predicted in that shape.

    Raises
    ------
    ValueError
        Where names and shape do not fit together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input_shape: tuple[PositiveInt, ...]
    columns: tuple[StrictStr, ...] | None = None
    targets: tuple[StrictStr, ...] | None = None
    has_flat_targets: StrictBool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.columns is not None and self.input_shape != (len(self.columns),):
            raise ValueError(f"{len(self.columns)} columns for rows of shape {self.input_shape}")
        for names in (self.columns, self.targets):
            if names is not None and len(set(names)) < len(names):
                raise ValueError("a name more than once")
        return self
