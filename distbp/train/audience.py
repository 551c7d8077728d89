"""Those who are told how training goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distbp.errors import TrainingError
from distbp.train.checkpoint import Checkpoints
from distbp.train.exchange import Watcher
from distbp.train.files import unwritten
from distbp.train.pace import UNHEARD, Brake
from distbp.train.recipe import Recipe
from distbp.train.state import State


class Audience(Watcher):
    """Tells several watchers of a run; where one fails, the run stops after the present step, on all workers.

    So it leaves a checkpoint, where there is room for one.

    Parameters
    ----------
    brake:
        Stops the run.

    Attributes
    ----------
    error:
        The first one of a watcher.
    """

    def __init__(self, brake: Brake, *watchers: Watcher) -> None:
        self.brake, self.watchers = brake, watchers
        self.error: TrainingError | None = None

    def attempt(self, act: Callable[..., None], *values: Any, **named: Any) -> None:
        """Do ``act`` with these values; where that fails, stop the run."""
        try:
            act(*values, **named)
        except (OSError, TrainingError) as error:
            failed = error if isinstance(error, TrainingError) else unwritten("how training goes", error)
            self.error = self.error or failed
            self.brake.pull(UNHEARD)

    def settle(self, checkpoints: Checkpoints | None) -> None:
        """Return when all checkpoints are written; raise the error of a watcher, if there was one."""
        if checkpoints is not None:
            self.attempt(checkpoints.wait)
        if self.error is not None:
            raise self.error

    def begin(self, n_steps: int, n_epochs: int) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.begin, n_steps, n_epochs)

    def step(self, step: int) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.step, step)

    def epoch(self, record: dict[str, Any]) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.epoch, record)

    def recovered(self, lost: str, step: int, history: list[dict[str, Any]], n_workers: int) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.recovered, lost, step, history, n_workers)

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.checkpoint, state, recipe, is_best=is_best)

    def end(self) -> None:
        for watcher in self.watchers:
            self.attempt(watcher.end)
