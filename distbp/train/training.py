"""The job of training: rows from a source or from memory, then a run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from distbp.data import Dataset, Rows, load, precarious, same_source, split
from distbp.data.dataset import MOST_BYTES
from distbp.errors import DifferenceError, InputError, LostError, TrainingError
from distbp.train.arithmetic import require_same
from distbp.train.exchange import Group, Watcher
from distbp.train.pace import Protection
from distbp.train.recipe import Recipe
from distbp.train.run import Outcome, Run
from distbp.train.state import State


@dataclass(frozen=True)
class Training:
    """Train as ``recipe`` says.

    Parameters
    ----------
    dataset:
        The rows; None for those of the recipe's source, which every worker reads for itself.
    is_whole:
        Whether the rows are still to be split into training and validation as the recipe says.
    protection:
        How the run is protected against its end; None for not at all.
    state:
        Where to go on from; None to begin.
    accepts_other_arithmetic:
        Whether to go on although the workers compute with other roundings than those before them: the weights are then
        those of neither.
    """

    recipe: Recipe
    dataset: Dataset | None = None
    is_whole: bool = True
    protection: Protection | None = None
    state: State | None = None
    accepts_other_arithmetic: bool = False

    def perform(self, group: Group, watcher: Watcher | None) -> Outcome:
        state, run, dataset, protection = self.state, None, None, self.protection
        said, is_repeated, rows = "", False, ""
        while True:
            began = time.monotonic()
            try:
                if dataset is None:
                    with group.agreement():
                        dataset = self.rows()
                    if self.is_whole and group.n_workers > 1:
                        _require_same(dataset, self._moment(state), group)
                run = Run(self.recipe, dataset, group, protection, state, rows)
                rows = run.rows
                with group.agreement():
                    if state is not None and not self.accepts_other_arithmetic:
                        require_same(state.arithmetic, run.arithmetic[-1])
                group.run = run
                if said and watcher and self.protection and group.worker == 0:
                    watcher.recovered(said, run.start, list(run.history), group.n_workers)
                said = ""
                return run.train(watcher)
            except LostError as seen:
                if not group.can_recover:
                    raise TrainingError(f"expected all workers to go on; {seen}, and {group.no_recovery}") from None
                states = {} if run is None else run.states()
                moment, lost = group.recover({*states, self._moment(state)}, seen)
                if isinstance(lost, DifferenceError):
                    if is_repeated:
                        raise twice(lost) from None
                    is_repeated = True
                state = states.get(moment, state)
                protection = protection and protection.after_loss().left_after(time.monotonic() - began)
                said = f"{said}; {lost}" if said else str(lost)

    @staticmethod
    def _moment(state: State | None) -> int:
        return 0 if state is None else state.moment

    def rows(self) -> Dataset:
        """Return the rows, with the validation part that the recipe asks for."""
        dataset = load(self.recipe.data.source) if self.dataset is None else self.dataset
        if not self.is_whole:
            return dataset
        if not self.recipe.loss.is_classifier:
            _check_targets(dataset.train, np.dtype(self.recipe.dtype))
        return with_validation(dataset, self.recipe)


def _check_targets(rows: Rows, dtype: np.dtype[Any]) -> None:
    """Raise InputError where the targets of a regression hardly differ any more once they are rounded to ``dtype``."""
    y = np.asarray(rows.y, np.float64).reshape(len(rows), -1)
    narrow, _ = precarious(y.min(axis=0), y.max(axis=0), dtype)
    for column in np.flatnonzero(narrow):
        if (y[:, column].astype(dtype) != y[:, column]).any():
            given = f"numbers from {y[:, column].min()} to {y[:, column].max()}"
            remedy = "subtract their mean beforehand, or set dtype: float64"
            raise InputError(f"targets that differ also in {dtype}", given, remedy, rows.where)


def _require_same(dataset: Dataset, moment: int, group: Group) -> None:
    """Raise InputError on all workers where one has other rows than the first, or goes on from another moment.

    Where all name files of one size and time, a sample of their rows is compared; else the rows, up to ``MOST_BYTES``.
    """
    where = dataset.train.where
    own = [dataset.digest(), *dataset.files]
    told = [json.loads(text) for text in group.allgather_text(json.dumps([own, moment]))]
    all_rows = [rows for rows, _ in told]
    if all(rows[0] == own[0] for rows in all_rows) and not (dataset.files and all(rows == own for rows in all_rows)):
        own = [dataset.digest(MOST_BYTES)]
        all_rows = [json.loads(text) for text in group.allgather_text(json.dumps(own))]
    first_rows, first_moment = all_rows[0], told[0][1]
    with group.agreement():
        if own[0] != first_rows[0]:
            remedy = "read the same rows in the same order everywhere, and draw random ones with a seed"
            raise InputError("the same rows on all workers", "other rows than on worker 0", remedy, where)
        if moment != first_moment:
            given = f"step {moment // 2}, and step {first_moment // 2} on worker 0"
            remedy = "let all workers see the folder of the checkpoints"
            raise InputError("the same state on all workers, to go on from", given, remedy, where)


def twice(lost: DifferenceError) -> TrainingError:
    """Return the error that ends a run whose machines saw different weights again."""
    error = TrainingError(
        f"expected the same weights on all machines; {lost}, for the second time; test the memory and the network of "
        "that machine, or leave it out"
    )
    error.agreed = True
    return error


def with_validation(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Return ``dataset`` with the validation part that the recipe asks for."""
    asked = recipe.data.validation
    if asked is None:
        return dataset
    if dataset.validation is not None:
        given, remedy = f"{asked}, and rows for validation in the source of the training rows", "leave out one of them"
        raise InputError("one set of rows to validate on", given, remedy, "recipe: data.validation")
    if isinstance(asked, str):
        if same_source(asked, recipe.data.source):
            given, remedy = f"{asked}, the source of the training rows", "take a fraction of them, as in 0.1"
            raise InputError("rows of their own for validation", given, remedy, "recipe: data.validation")
        return Dataset(dataset.train, load(asked).train, dataset.test)
    if not 0.0 < asked < 1.0:
        remedy = "write for example 0.1"
        raise InputError("a fraction in (0, 1), or a source", str(asked), remedy, "recipe: data.validation")
    if len(dataset.train) < 2:
        raise InputError("at least 2 rows, to split them", "1", "give more rows", dataset.train.where)
    train, validation = split(len(dataset.train), asked, recipe.seed)
    return Dataset(dataset.train.choose(train), dataset.train.choose(validation), dataset.test)
