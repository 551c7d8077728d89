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
    ValidationInfo,
    field_validator,
)

from distbp.errors import InputError
from distbp.nn import LAYERS, LOSSES, CategoricalCrossEntropy, Layer, Loss, Sequential, check_distinct
from distbp.optim import OPTIMIZERS, SCHEDULES, Adam, Constant, Optimizer, Schedule
from distbp.options import Options, is_misplaced, settle
from distbp.train.foreign_keys import hint, name_for, synonym
from distbp.train.mode import MODES, Mode, Synchronous


def unknown(kind: str, given: str, valid: typing.Iterable[str]) -> InputError:
    """Return the error for a name that does not exist, with the names that do."""
    valid = sorted(valid)
    meant = name_for(given, valid) or next(iter(difflib.get_close_matches(given, valid, 1)), None)
    remedy = f"did you mean {meant}?" if meant else "choose one of these"
    return InputError(f"{kind} of: {', '.join(valid)}", repr(given), remedy)


def spelled_out(value: object, table: Mapping[str, type[Any]]) -> tuple[str, Any]:
    """Return the name and the options of ``name``, ``{name: first option}`` or ``{name: {option: ...}}``.

    The options are those of ``table`` by name; what stands for the first one where there is none is returned as it is.
    """
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or len(value) != 1:
        form = "a name, or {name: {option: value}}"
        raise InputError(form, repr(value), f"write for example {next(iter(table))}")
    ((name, options),) = value.items()
    if options is None:
        return str(name), {}
    if not isinstance(options, Mapping) and name in table and (fields := dataclasses.fields(table[name])):
        return str(name), {fields[0].name: options}
    return str(name), options


def options_of(cls: type[Any] | None) -> list[str]:
    """Return the names of the options of ``cls``, a dataclass."""
    return [] if cls is None else [field.name for field in dataclasses.fields(cls)]


def _build(table: Mapping[str, type[Any]], kind: str, value: object) -> object:
    """Return the instance that ``value`` names: ``name``, ``{name: first option}`` or ``{name: {option: ...}}``."""
    if isinstance(value, Options):
        settle(value)
        return value
    if isinstance(value, type) and issubclass(value, Options):
        raise InputError(f"{kind} with its options", f"the class {value.__name__}", f"write {value.__name__}(...)")
    name, options = spelled_out(value, table)
    if name not in table:
        raise unknown(kind, str(name), table)
    cls = table[name]
    fields = options_of(cls)
    if not isinstance(options, Mapping):
        raise InputError(f"{name} without options", repr(options), f"write just {name}")
    for option in options:
        if option not in fields:
            error = unknown(f"an option of {name}", str(option), fields or ["(none)"])
            meant = synonym(str(option), fields)
            raise error if meant is None else InputError(error.expected, error.given, f"did you mean {meant}?")
        if is_misplaced(options[option], typing.get_type_hints(cls)[option]):
            raise InputError("a number", repr(options[option]), "correct it", f"{name}.{option}")
    try:
        return TypeAdapter(cls).validate_python(dict(options), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
            raise cause from None
        place = ".".join(str(part) for part in first["loc"])
        given = "nothing" if first["type"] == "missing" else repr(first["input"])
        raise InputError(first["msg"].lower(), given, "correct it", f"{name}.{place}") from None


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
    check_distinct(layers)
    return layers


TABLES: dict[str, Mapping[str, type[Any]]] = {
    "model": LAYERS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "mode": MODES,
}
"""What may be named under these keys of a recipe; ``model`` is a list of them."""
DEFAULTS = {
    "loss": CategoricalCrossEntropy.name,
    "optimizer": Adam.name,
    "schedule": Constant.name,
    "mode": Synchronous.name,
}
"""What is named there where nothing is."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        if is_misplaced(value, cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("a number")
        return value


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


def _early_stopping(value: object) -> object:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


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
    early_stopping: Annotated[EarlyStopping | None, BeforeValidator(_early_stopping)] = Field(
        None, description="true for the defaults"
    )
    coordinators: Literal["all", 1] = Field("all", description="all: every worker updates a slice; 1: one does")
    mode: NamedMode = Field(default_factory=Synchronous, description="whom a worker waits for")

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], where: str = "recipe", strangers: Mapping[str, str] | None = None
    ) -> Recipe:
        """Return the recipe in ``values``; raise InputError, with the path of the key, where it is none.

        ``strangers``, as the method of this name gives them, are what must have been defined before.
        """
        for name, module in dict(strangers or {}).items():
            if not any(name in table for table in TABLES.values()):
                raise _undefined(name, module, where)
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, where) from None

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain values that ``parse`` takes."""
        return self.model_dump(mode="json", exclude_none=True)

    def header(self) -> dict[str, Any]:
        """Return the recipe as ``of_header`` takes it, for the header of a file."""
        return {"recipe": self.dump(), "strangers": self.strangers()}

    @classmethod
    def of_header(cls, header: Mapping[str, Any], where: str) -> Recipe:
        """Return the recipe in the ``header`` of a file; raise KeyError or InputError where there is none."""
        return cls.parse(header["recipe"], where, header.get("strangers"))

    def strangers(self) -> dict[str, str]:
        """Return what is named here and does not come with distbp, each with the module that defines it."""
        parts: list[Any] = [*self.model, self.loss, self.optimizer, self.schedule, self.mode]
        modules = {part.name: type(part).__module__ for part in parts}
        return {name: module for name, module in modules.items() if module.partition(".")[0] != "distbp"}

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


def _undefined(name: str, module: str, where: str) -> InputError:
    """Return the error for a recipe that names what ``module`` defines, which was not imported."""
    source, remedy = f"the module {module!r}", "import that first, in Python"
    if module == "__main__":
        source, remedy = "a script or a notebook", "define it first, best in a module that both import"
    return InputError(f"{name}, which {source} defines, to be defined", "a process that has not", remedy, where)


def _explain(error: ValidationError, where: str) -> InputError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("float", "str")]
    place = f"{where}: {'.'.join(path)}"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause.at(f"{place} ({cause.where})" if cause.where else place)
    if first["type"] == "extra_forbidden":
        told = hint(path[-1], first["input"])
        if told is not None:
            return InputError("a key of a recipe", repr(path[-1]), told, place)
        parts: dict[str, type[_Part]] = {"data": DataRecipe, "early_stopping": EarlyStopping}
        part = parts[path[0]] if len(path) > 1 else Recipe
        return unknown("a key", path[-1], part.model_fields).at(place)
    given = "nothing" if first["type"] == "missing" else repr(first["input"])
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return InputError(message[0].lower() + message[1:], given, "correct it", place)
