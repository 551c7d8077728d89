"""What a driver and its workers tell each other, as bytes: a line of JSON, then arrays as safetensors. No pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from distbp.data import (
    Columns,
    Dataset,
    HeldRows,
    Matrix,
    Partition,
    RowForm,
    Scaling,
    SparseRows,
    places_of_shards,
    share,
)
from distbp.errors import DistbpError, InputError, StoppedError, TrainingError
from distbp.nn import aligned_zeros
from distbp.train import Model, Outcome, Recipe, Training
from distbp.train.arithmetic import Arithmetic
from distbp.train.benchmark import Benchmark
from distbp.train.exchange import Job
from distbp.train.pace import Protection
from distbp.train.state import State

_ERRORS: dict[str, type[DistbpError]] = {cls.__name__: cls for cls in (InputError, StoppedError, TrainingError)}
_ROWS = ("y", "held", "names")
_SPARSE = ("data", "indices", "indptr")


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Return ``header`` and ``arrays`` as bytes."""
    tensors = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("=")) for name, array in (arrays or {}).items()
    }
    return json.dumps(header).encode() + b"\n" + (save(tensors) if tensors else b"")


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what ``pack`` was given."""
    header, _, arrays = message.partition(b"\n")
    return json.loads(header), load(arrays) if arrays else {}


def pack_error(error: DistbpError) -> list[Any]:
    """Return ``error`` as JSON has it."""
    return [type(error).__name__, error.parts()]


def unpack_error(values: list[Any]) -> DistbpError:
    """Return the error that ``pack_error`` was given."""
    name, parts = values
    return _ERRORS[name](*parts)


def pack_job(job: Job[Any]) -> bytes:
    """Return ``job`` without its rows."""
    if isinstance(job, Training):
        protection = None if job.protection is None else dataclasses.asdict(job.protection)
        header, arrays = ({}, {}) if job.state is None else (job.state.header(), job.state.arrays())
        content: dict[str, Any] = {"recipe": job.recipe.dump(), "protection": protection, "state": header}
        content |= {"accepts_other_arithmetic": job.accepts_other_arithmetic}
        return pack({"train": content}, arrays)
    assert isinstance(job, Benchmark)
    return pack({"benchmark": dataclasses.asdict(job)})


def unpack_job(message: bytes, rows: bytes) -> Job[Any]:
    """Return the job that ``pack_job`` was given, with what ``pack_rows`` made of its rows for this worker."""
    header, arrays = unpack(message)
    if "benchmark" in header:
        return Benchmark(**header["benchmark"])
    content = header["train"]
    return Training(
        Recipe.parse(content["recipe"]),
        unpack_rows(rows) if rows else None,
        is_whole=not rows,
        protection=_protection(content["protection"]) if content["protection"] else None,
        state=State.of(content["state"], arrays) if arrays else None,
        accepts_other_arithmetic=content["accepts_other_arithmetic"],
    )


def _protection(content: dict[str, Any]) -> Protection:
    return Protection(**content | {"faults": tuple(content["faults"])})


def pack_checkpoint(state: State, recipe: Recipe, *, is_best: bool) -> bytes:
    """Return what a watcher is told of a checkpoint."""
    return pack({"state": state.header(), "recipe": recipe.dump(), "is_best": is_best}, state.arrays())


def unpack_checkpoint(message: bytes) -> tuple[State, Recipe, bool]:
    """Return what ``pack_checkpoint`` was given."""
    header, arrays = unpack(message)
    return State.of(header["state"], arrays), Recipe.parse(header["recipe"]), header["is_best"]


def pack_rows(dataset: Dataset, recipe: Recipe, worker: int, n_workers: int) -> bytes:
    """Return the rows of the shards that ``worker`` of ``n_workers`` computes."""
    n_shards = recipe.shards or n_workers
    partition = Partition(len(dataset.train), n_shards, recipe.batch_size, recipe.seed)
    shards = share(n_shards, n_workers, worker) if worker < n_workers else range(0)
    header: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for part, places in places_of_shards(dataset, partition, shards).items():
        rows = dataset.parts[part].hold(np.sort(np.concatenate([np.zeros(0, np.int64), *places])))
        header[part] = {"where": rows.where, "n_rows": len(rows), "columns": rows.columns, "targets": rows.targets}
        arrays |= {f"{part}.{name}": getattr(rows, name) for name in _ROWS}
        if isinstance(rows.x, SparseRows):
            header[part]["n_columns"] = rows.x.n_columns
            arrays |= {f"{part}.x.{name}": getattr(rows.x, name) for name in _SPARSE}
        else:
            arrays[f"{part}.x"] = rows.x
    return pack(header, arrays)


def unpack_rows(message: bytes) -> Dataset:
    """Return the rows that ``pack_rows`` was given."""
    header, arrays = unpack(message)
    parts = {}
    for part, content in header.items():
        y, held, names = (arrays[f"{part}.{name}"] for name in _ROWS)
        x: Matrix
        if "n_columns" in content:
            x = SparseRows(**{n: arrays[f"{part}.x.{n}"] for n in _SPARSE}, n_columns=content["n_columns"])
        else:
            x = arrays[f"{part}.x"]
        columns, targets = _columns(content["columns"]), _columns(content["targets"])
        parts[part] = HeldRows(x, y, content["where"], None, columns, targets, content["n_rows"], held, names)
    return Dataset.of(parts)


def pack_result(result: Any) -> bytes:
    """Return what a job gave."""
    if not isinstance(result, Outcome):
        return pack({"figures": result})
    header = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "model"}
    about, arrays = _of_model(result.model)
    return pack({"outcome": header, "model": about}, arrays)


def unpack_result(message: bytes) -> Any:
    """Return what ``pack_result`` was given."""
    header, arrays = unpack(message)
    if "figures" in header:
        return header["figures"]
    return Outcome(model=_model(header["model"], arrays), **header["outcome"])


def pack_ending(error: DistbpError) -> bytes:
    """Return ``error``, which ended a job, with the model that an interrupted run hands over."""
    header: dict[str, Any] = {"error": pack_error(error)}
    arrays: dict[str, np.ndarray] = {}
    if isinstance(error, StoppedError) and error.model is not None:
        header["model"], arrays = _of_model(error.model)
    return pack(header, arrays)


def unpack_ending(message: bytes) -> DistbpError:
    """Return what ``pack_ending`` was given."""
    header, arrays = unpack(message)
    error = unpack_error(header["error"])
    if isinstance(error, StoppedError) and "model" in header:
        error.model = _model(header["model"], arrays)
    return error


def _of_model(model: Model) -> tuple[Any, dict[str, np.ndarray]]:
    """Return what JSON has of ``model``, and its arrays."""
    arrays = {"weights": model.weights}
    if model.scaling is not None:
        arrays |= {"shift": model.scaling.shift, "factor": model.scaling.factor}
    arithmetic = [own.model_dump() for own in model.arithmetic]
    return {"recipe": model.recipe.dump(), "form": model.form.model_dump(), "arithmetic": arithmetic}, arrays


def _model(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    weights = aligned_zeros(len(arrays["weights"]), arrays["weights"].dtype)
    weights[...] = arrays["weights"]
    return Model(
        Recipe.parse(about["recipe"]),
        RowForm(**about["form"]),
        weights,
        Scaling(arrays["shift"], arrays["factor"]) if "shift" in arrays else None,
        tuple(map(Arithmetic.model_validate, about["arithmetic"])),
    )


def _columns(names: list[str] | None) -> Columns | None:
    return None if names is None else tuple(names)
