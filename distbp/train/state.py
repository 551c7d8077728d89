"""The state of a run between two steps: small and whole. From it the same bits follow, on any number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

from distbp.train.arithmetic import Arithmetic
from distbp.train.evaluator import TALLY
from distbp.train.recipe import Recipe

WEIGHTS, BEST = "weights", "best"


def vector_names(recipe: Recipe) -> list[str]:
    """Return the names of the vectors, each as long as the weights, that are the state of a run of ``recipe``."""
    names = [WEIGHTS, *(f"optimizer.{name}" for name in recipe.optimizer.state)]
    return [*names, BEST] if recipe.early_stopping else names


class _Record(BaseModel):
    """What must be in the record of an epoch: the rest is only told."""

    model_config = ConfigDict(strict=True)
    epoch: PositiveInt
    step: PositiveInt
    train: dict[str, float]
    seconds: NonNegativeFloat
    examples_per_second: NonNegativeFloat
    validation: dict[str, float] = {}


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    _Record.model_validate(record)
    return record


Record = Annotated[dict[str, Any], AfterValidator(_checked)]
"""The line of metrics.jsonl for an epoch."""


class Ledger(BaseModel):
    """What the parameter server has counted in a mode that does not wait for all.

    Attributes
    ----------
    pushes, updates, rows:
        Pushes that were taken, updates made of them (a push of no rows is none), and rows that these were of.
    steps_of_workers:
        How many steps each has computed.
    largest_lead:
        Of a worker before the slowest one.
    stale_sum, stale_max, stale_sum_of_epoch, stale_max_of_epoch:
        Updates between a pull and the next push, over all pushes and over those of the epoch.
    unseen:
        The records of epochs that are over, but for the metrics that are still to be found.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    steps_of_workers: list[NonNegativeInt]
    pushes: NonNegativeInt = 0
    updates: NonNegativeInt = 0
    rows: NonNegativeInt = 0
    largest_lead: NonNegativeInt = 0
    stale_sum: NonNegativeInt = 0
    stale_max: NonNegativeInt = 0
    stale_sum_of_epoch: NonNegativeInt = 0
    stale_max_of_epoch: NonNegativeInt = 0
    unseen: list[Record] = []


class _Header(BaseModel):
    """What JSON has of a state."""

    model_config = ConfigDict(strict=True)
    step: NonNegativeInt
    history: list[Record]
    seconds: NonNegativeFloat
    ledger: Ledger | None
    arithmetic: list[Arithmetic] = []
    rows: str = ""


@dataclass
class State:
    """All that a run is after ``step`` steps; the rest follows from the recipe.

    Attributes
    ----------
    vectors:
        Weights, optimizer state and, with early stopping, the best weights, by the names of ``vector_names``:
        each (n_elements,).
    tally:
        Losses and rows of each shard since the start of the epoch (n_shards, 3).
    history:
        The records of the epochs that are over.
    seconds:
        Time trained.
    ledger:
        In the modes in which workers push.
    arithmetic:
        What the workers have computed with so far, the newest last; more than one where the user accepted another.
    rows:
        ``Dataset.digest`` of the rows of the run.
    """

    step: int
    vectors: Mapping[str, np.ndarray]
    tally: np.ndarray
    history: list[dict[str, Any]]
    seconds: float
    ledger: Ledger | None = None
    arithmetic: tuple[Arithmetic, ...] = ()
    rows: str = ""

    def detached(self) -> State:
        """Return the same in memory of its own."""
        vectors = {name: vector.copy() for name, vector in self.vectors.items()}
        ledger = self.ledger and self.ledger.model_copy(deep=True)
        return replace(self, vectors=vectors, tally=self.tally.copy(), history=list(self.history), ledger=ledger)

    def header(self) -> dict[str, Any]:
        """Return all but the arrays, as JSON has it."""
        ledger = self.ledger and self.ledger.model_dump()
        arithmetic = [own.model_dump() for own in self.arithmetic]
        figures = {"step": self.step, "history": self.history, "seconds": self.seconds}
        return figures | {"ledger": ledger, "arithmetic": arithmetic, "rows": self.rows}

    @classmethod
    def of(cls, header: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> State:
        """Return the state of this ``header`` and of ``arrays``, which are the vectors and the tally.

        Raises
        ------
        KeyError, ValueError
            Where these are not of a state.
        """
        known = _Header.model_validate(header)
        tally = arrays.pop("tally")
        arithmetic = tuple(known.arithmetic)
        return cls(known.step, arrays, tally, known.history, known.seconds, known.ledger, arithmetic, known.rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the vectors and the tally by their names."""
        return {name: np.ascontiguousarray(vector) for name, vector in self.vectors.items()} | {"tally": self.tally}

    @property
    def moment(self) -> int:
        """Twice the steps, and one more where the record of the epoch that they end is made."""
        has_record = bool(self.history) and self.history[-1]["step"] == self.step
        return 2 * self.step + has_record


class Copy:
    """A place that the workers of one machine copy the state into, each its part.

    Parameters
    ----------
    vectors, tally:
        As of ``State``.
    marks:
        For each worker of the machine the moment (as of ``State``) that its part is of; 0 where there is none.
    own:
        The place of this worker among them.
    """

    def __init__(self, vectors: Mapping[str, np.ndarray], tally: np.ndarray, marks: np.ndarray, own: int) -> None:
        self.vectors, self.tally, self.marks, self.own = vectors, tally, marks, own

    def begin(self) -> None:
        """Say that this worker's part is not to be used."""
        self.marks[self.own] = 0

    def end(self, moment: int) -> None:
        """Say that this worker's part is whole, and of which moment."""
        self.marks[self.own] = moment

    @property
    def moment(self) -> int:
        """The moment that the copy is of; 0 where it is not whole."""
        first = int(self.marks[0])
        return first if np.all(self.marks == first) else 0

    def state(self, history: list[dict[str, Any]], seconds: float) -> State:
        """Return the state that was copied, in the copy's own memory; ``history`` may be longer."""
        history = [record for record in history if 2 * record["step"] + 1 <= self.moment]
        return State(self.moment // 2, self.vectors, self.tally, history, seconds)


def new_copy(names: Sequence[str], n_elements: int, n_shards: int, dtype: np.dtype[Any]) -> Copy:
    """Return a place for a copy in memory of this process, the only worker."""
    vectors = {name: np.zeros(n_elements, dtype) for name in names}
    return Copy(vectors, np.zeros((n_shards, len(TALLY))), np.zeros(1, np.int64), 0)
