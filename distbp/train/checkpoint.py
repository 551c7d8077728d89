"""Checkpoints: the state of a run in one safetensors file, with a checksum for each tensor.

A checkpoint is written beside its target, synced and renamed, by a thread of its own; the newest and the best are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distbp.errors import InputError
from distbp.train import tensor_file
from distbp.train.evaluator import TALLY
from distbp.train.files import unwritten, write_bytes
from distbp.train.recipe import Recipe
from distbp.train.state import State, vector_names

FORMAT = "distbp checkpoint 2"
FOLDER = "checkpoints"
BEST_NAME = "best.safetensors"
_PATTERN = "step-*.safetensors"


def to_bytes(state: State, recipe: Recipe) -> bytes:
    """Return a checkpoint of a run of ``recipe``, whose shards are set, as the content of a file."""
    return tensor_file.to_bytes(FORMAT, recipe.header() | state.header(), state.arrays())


def save_checkpoint(path: Path, state: State, recipe: Recipe) -> None:
    """Write a checkpoint to ``path``, whole or not at all."""
    write_bytes(path, to_bytes(state, recipe))


def load_checkpoint(path: Path) -> tuple[Recipe, State]:
    """Return what ``save_checkpoint`` wrote.

    Raises
    ------
    InputError
        Where ``path`` is no checkpoint, or any bit of it was changed.
    """
    remedy = "use another checkpoint of the run"
    header, tensors = tensor_file.read(path, FORMAT, "checkpoint", remedy)
    with tensor_file.understood(path, "checkpoint", remedy):
        recipe = Recipe.of_header(header, str(path))
        state = State.of(header, tensors)
    _check(recipe, state, path)
    return recipe, state


def _check(recipe: Recipe, state: State, path: Path) -> None:
    """Raise InputError where ``state`` cannot be of a run of ``recipe``."""
    names, dtype = vector_names(recipe), np.dtype(recipe.dtype)
    shapes = {(v.shape, v.dtype) for v in state.vectors.values()}
    fits = set(names) == set(state.vectors) and len(shapes) == 1 and shapes == {((*shapes,)[0][0], dtype)}
    fits = fits and (state.ledger is None) == recipe.is_synchronous
    fits = fits and state.tally.shape == (recipe.shards, len(TALLY)) and state.tally.dtype == np.float64
    if not fits:
        given = f"{', '.join(f'{name} {v.dtype}{v.shape}' for name, v in state.vectors.items())}, step {state.step}"
        raise InputError(f"the state of its recipe: {', '.join(names)}", given, "use another checkpoint", str(path))
    wrong = next(_contradictions(recipe, state), None)
    if wrong is not None:
        raise InputError("a state that fits its recipe and itself", wrong, "use another checkpoint", str(path))


def _contradictions(recipe: Recipe, state: State) -> Iterator[str]:
    """Say what in ``state`` cannot be, of arrays of the right shapes."""
    for name, array in [*state.vectors.items(), ("the tally", state.tally)]:
        if not np.all(np.isfinite(array)):
            yield f"{name} that is not finite"
    _, rows, correct = state.tally.T
    if np.any(rows < 0) or np.any(correct < 0) or np.any(correct > rows):
        yield "a tally of less than no rows, or of more right ones than there are"
    records = [*state.history, *(state.ledger.unseen if state.ledger else [])]
    epochs, steps = ([record[key] for record in records] for key in ("epoch", "step"))
    if epochs != [*range(1, 1 + len(epochs))] or len(epochs) > recipe.epochs:
        yield f"a history of the epochs {epochs} of {recipe.epochs}"
    elif steps and steps != [epoch * steps[0] for epoch in epochs]:
        yield f"a history in which epochs end after the steps {steps}"
    elif steps and not steps[-1] <= state.step <= min(recipe.epochs, len(epochs) + 1) * steps[0]:
        yield f"step {state.step} after a history that ends with step {steps[-1]}"
    rule = recipe.early_stopping
    if rule and any(rule.metric not in record.get("validation", {}) for record in state.history):
        yield f"a history without the validation {rule.metric}, to stop early by"


class Checkpoints:
    """The checkpoints of one run, in a folder.

    Parameters
    ----------
    folder:
        Of the run.
    keep:
        How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / FOLDER, keep
        self.due: dict[str, tuple[State, Recipe]] = {}
        self.best: tuple[State, Recipe] | None = None
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.error: OSError | None = None

    def write(self, state: State, recipe: Recipe) -> None:
        """Have a checkpoint written, and the best one if there is a new one; one that still waits is left out.

        ``state`` must not change any more. Raises TrainingError where an earlier one could not be written.
        """
        self._begin({"newest": (state, recipe)})
        self._raise()

    def _begin(self, due: dict[str, tuple[State, Recipe]]) -> threading.Thread | None:
        """Have these checkpoints written, and the best one if there is a new one; return the thread that does it."""
        with self.lock:
            self.due |= due
            if self.best is not None:
                self.due["best"], self.best = self.best, None
            if self.due and self.thread is None:
                self.thread = threading.Thread(target=self._write_due, name="checkpoint")
                self.thread.start()
            return self.thread

    def remember(self, state: State, recipe: Recipe) -> None:
        """Take the state with the best metric so far; it is written with the next checkpoint."""
        self.best = (state, recipe)

    def _write_due(self) -> None:
        while True:
            with self.lock:
                if not self.due:
                    self.thread = None
                    return
                name = "newest" if "newest" in self.due else "best"  # where room is short, a run can go on from that
                state, recipe = self.due.pop(name)
            try:
                self._write(name, state, recipe)
            except OSError as error:
                self.error = error

    def _write(self, name: str, state: State, recipe: Recipe) -> None:
        self.folder.mkdir(exist_ok=True)
        for half in self.folder.glob(".*.safetensors.*"):  # of a process that died
            half.unlink(missing_ok=True)
        if name == "best":
            save_checkpoint(self.folder / BEST_NAME, state, recipe)
            return
        save_checkpoint(self.folder / f"step-{state.step:012d}.safetensors", state, recipe)
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)

    def wait(self) -> None:
        """Return when all is written; raise TrainingError where it could not be."""
        if not self.paths():
            self.best = None  # a run without other checkpoints needs none of its best
        thread = self._begin({})
        if thread is not None:
            thread.join()
        self._raise()

    def _raise(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise unwritten(f"checkpoints into {self.folder}", error)

    def paths(self) -> list[Path]:
        """Return the checkpoints but for the best one, the newest first."""
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def newest(self) -> tuple[Recipe, State, list[InputError]]:
        """Return recipe and state of the newest whole checkpoint, and what is wrong with those that are newer.

        Raises
        ------
        InputError
            Where there is none.
        """
        refused: list[InputError] = []
        for path in self.paths():
            try:
                return *load_checkpoint(path), refused
            except InputError as error:
                refused.append(error)
        given = "; ".join(map(str, refused)) or f"none in {self.folder}"
        raise InputError("a whole checkpoint", given, "start the run anew, with another --out", "--resume")
