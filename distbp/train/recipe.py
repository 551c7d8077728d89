"""The recipe: all that defines a run. What is not in it (workers, engine, machines) cannot change the weights."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from distbp.errors import InputError
from distbp.nn import LAYERS, LOSSES, CategoricalCrossEntropy, Layer, Loss, Sequential, check_distinct
from distbp.optim import OPTIMIZERS, SCHEDULES, Adam, Constant, Optimizer, Schedule
from distbp.train.mode import MODES, Mode, Synchronous


class _MisfitError(ValueError):
    """Carries an InputError through pydantic."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


def unknown(kind: str, given: str, valid: typing.Iterable[str]) -> InputError:
    """Return the error for a name that does not exist, with the names that do."""
    valid = sorted(valid)
    near = difflib.get_close_matches(given, valid, 1)
    remedy = f"did you mean {near[0]}?" if near else "choose one of these"
    return InputError(f"{kind} of: {', '.join(valid)}", repr(given), remedy)


def _build(table: Mapping[str, type[Any]], kind: str, value: object) -> object:
    """Return the instance that ``value`` names: ``name``, ``{name: first option}`` or ``{name: {option: ...}}``."""
    if isinstance(value, (Layer, Loss, Optimizer, Schedule, Mode)):
        return value
    name: str
    options: Any
    if isinstance(value, str):
        name, options = value, None
    elif isinstance(value, Mapping) and len(value) == 1:
        ((key, options),) = value.items()
        name = str(key)
    else:
        form = "a name, or {name: {option: value}}"
        raise _MisfitError(InputError(form, repr(value), f"write for example {next(iter(table))}"))
    if name not in table:
        raise _MisfitError(unknown(kind, str(name), table))
    cls = table[name]
    fields = [field.name for field in dataclasses.fields(cls)]
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        if not fields:
            raise _MisfitError(InputError(f"{name} without options", repr(options), f"write just {name}"))
        options = {fields[0]: options}
    for option in options:
        if option not in fields:
            raise _MisfitError(unknown(f"an option of {name}", str(option), fields or ["(none)"]))
    try:
        return TypeAdapter(cls).validate_python(dict(options), strict=False)
    except InputError as error:
        raise _MisfitError(error) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        given = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise _MisfitError(InputError(first["msg"].lower(), given, "correct it", f"{name}.{place}")) from None


def _config(item: Any) -> str | dict[str, Any]:
    """Return ``item`` as a recipe has it: the inverse of ``_build``."""
    options = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {item.name: options} if options else item.name


def _builder(table: Mapping[str, type[Any]], kind: str) -> BeforeValidator:
    return BeforeValidator(lambda value: _build(table, kind, value))


_as_config = PlainSerializer(_config, return_type=object)
NamedLayer = Annotated[Layer, _builder(LAYERS, "a layer"), _as_config]
NamedLoss = Annotated[Loss, _builder(LOSSES, "a loss"), _as_config]
NamedOptimizer = Annotated[Optimizer, _builder(OPTIMIZERS, "an optimizer"), _as_config]
NamedSchedule = Annotated[Schedule, _builder(SCHEDULES, "a schedule"), _as_config]
NamedMode = Annotated[Mode, _builder(MODES, "a mode"), _as_config]


def _layers(value: object) -> object:
    return value.layers if isinstance(value, Sequential) else value


def _distinct(layers: list[Layer]) -> list[Layer]:
    try:
        check_distinct(layers)
    except InputError as error:
        raise _MisfitError(error) from None
    return layers


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class DataRecipe(_Part):
    """The rows: where they come from and how they are prepared."""

    source: str = Field("digits", description="digits, a folder of IDX or .npy files, or an .npz file")
    validation: float | str | None = Field(
        None, description="a fraction of the training rows, or a source whose training rows are used"
    )
    scaling: Literal["none", "standard", "minmax"] = Field("none", description="fitted on the training rows")


class EarlyStopping(_Part):
    """Stop when a validation metric has not improved for ``patience`` epochs; the best weights are kept."""

    metric: Literal["loss", "accuracy"] = "loss"
    patience: int = Field(5, ge=1)
    min_delta: float = Field(0.0, ge=0.0)


class Recipe(_Part):
    """What is trained on what.

    Equal recipes give equal weights, bit for bit, where the arithmetic is the same (``distbp.train.arithmetic``); but
    for the modes in which a worker does not wait for the others.
    """

    data: DataRecipe = DataRecipe()
    model: Annotated[
        list[NamedLayer],
        BeforeValidator(_layers),
        AfterValidator(_distinct),
        Field(min_length=1, description="layers from input to output"),
    ]
    loss: NamedLoss = Field(default_factory=CategoricalCrossEntropy)
    optimizer: NamedOptimizer = Field(default_factory=Adam)
    schedule: NamedSchedule = Field(default_factory=Constant)
    clip_norm: float | None = Field(None, gt=0.0, description="largest global norm of the mean gradient")
    batch_size: int = Field(32, ge=1, description="rows a step, of all shards together")
    row_limit: int | None = Field(None, ge=1, description="most rows computed at once: bounds memory")
    epochs: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)
    shards: int | None = Field(None, ge=1, description="by default the number of workers at the first launch")
    dtype: Literal["float32", "float64"] = "float32"
    blas_threads: int = Field(1, ge=1, description="threads of each worker's matrix products")
    bits: Literal["fastest", "portable"] = Field(
        "fastest", description="portable: the same on every x86-64 processor with AVX2 and FMA"
    )
    early_stopping: EarlyStopping | None = None
    coordinators: Literal["all", 1] = Field("all", description="all: every worker updates a slice; 1: one does")
    mode: NamedMode = Field(default_factory=Synchronous, description="whom a worker waits for")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Return the recipe in ``values``; raise InputError, with the path of the key, where it is none."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, where) from None

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain values that ``parse`` takes."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def is_synchronous(self) -> bool:
        """Whether all workers take every step together."""
        return isinstance(self.mode, Synchronous)

    @property
    def wants_server(self) -> bool:
        """Whether an engine that can have a parameter server beside the workers should have one."""
        return self.coordinators == 1 or not self.is_synchronous

    def network(self) -> Sequential:
        """Return a network of its own for one worker."""
        return Sequential(*copy.deepcopy(self.model))

    def loss_function(self) -> Loss:
        """Return a loss of its own for one worker."""
        return copy.deepcopy(self.loss)


def _explain(error: ValidationError, where: str) -> InputError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("float", "str")]
    place = f"{where}: {'.'.join(path)}"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, _MisfitError):
        inner = cause.error
        return inner.at(f"{place} ({inner.where})" if inner.where else place)
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[_Part]] = {"data": DataRecipe, "early_stopping": EarlyStopping}
        part = parts[path[0]] if len(path) > 1 else Recipe
        return unknown("a key", path[-1], part.model_fields).at(place)
    given = "nothing" if first["type"] == "missing" else repr(first["input"])
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return InputError(message[0].lower() + message[1:], given, "correct it", place)
