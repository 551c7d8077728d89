"""The state of a run between two steps: small and whole. From it the same bits follow, on any number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distbp.train.evaluator import TALLY
from distbp.train.recipe import Recipe

WEIGHTS, BEST = "weights", "best"


def vector_names(recipe: Recipe) -> list[str]:
    """Return the names of the vectors, each as long as the weights, that are the state of a run of ``recipe``."""
    names = [WEIGHTS, *(f"optimizer.{name}" for name in recipe.optimizer.state)]
    return [*names, BEST] if recipe.early_stopping else names


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
    """

    step: int
    vectors: Mapping[str, np.ndarray]
    tally: np.ndarray
    history: list[dict[str, Any]]
    seconds: float

    def detached(self) -> State:
        """Return the same in memory of its own."""
        vectors = {name: vector.copy() for name, vector in self.vectors.items()}
        return State(self.step, vectors, self.tally.copy(), self.history, self.seconds)

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
