"""The folder that a run leaves behind: model.safetensors, metrics.jsonl, result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distbp.errors import InputError
from distbp.train import Outcome, Recipe
from distbp.train.checkpoint import Checkpoints
from distbp.train.files import write_bytes
from distbp.train.state import State

_FILES = ("model.safetensors", "metrics.jsonl", "result.json")


class Output:
    """Writes the files of one run; a watcher of it. The folder is taken at once, and given back by ``abandon``.

    Parameters
    ----------
    keep:
        How many checkpoints stay.
    resumed:
        The state that the run goes on from; the folder is that of the run then.

    Raises
    ------
    InputError
        Where the folder cannot be written, or holds a run already.
    """

    def __init__(self, folder: Path | None, name: str, keep: int = 3, resumed: State | None = None) -> None:
        self.folder = _next_folder(Path("runs"), name) if folder is None else folder
        self.checkpoints = Checkpoints(self.folder, keep)
        self.has_begun = resumed is not None
        if resumed is not None:
            lines = [json.dumps(record) + "\n" for record in resumed.history]
            write_bytes(self.folder / "metrics.jsonl", "".join(lines).encode())
            return
        if self.checkpoints.paths():
            given = f"{self.folder}, which holds a run that has not ended"
            remedy = f"go on with it: distbp train --resume {self.folder}; or choose another folder with --out"
            raise InputError("an empty folder", given, remedy, "output")
        try:
            self.is_new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            found = next((file for file in _FILES if (self.folder / file).exists()), None)
            if found is None:
                write_bytes(self.folder / "metrics.jsonl", b"")
        except OSError as error:
            given = f"{self.folder} ({error.strerror})"
            raise InputError("a folder that can be written", given, "choose another with --out", "output") from None
        if found is not None:
            given = f"{self.folder}, which holds {found} of an earlier run"
            raise InputError("an empty folder", given, "choose another with --out, or move that run away", "output")

    def abandon(self) -> None:
        """Leave nothing of a run that did not begin."""
        if not self.has_begun:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            if self.is_new:
                self.folder.rmdir()

    def begin(self, n_steps: int, n_epochs: int) -> None:
        self.has_begun = True

    def step(self, step: int) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        if is_best:
            self.checkpoints.remember(state, recipe)
        else:
            self.checkpoints.write(state, recipe)

    def end(self) -> None:
        pass

    def stop(self) -> None:
        """Wait for the last checkpoint."""
        self.checkpoints.wait()

    def finish(self, outcome: Outcome) -> None:
        """Write the model and the result."""
        self.checkpoints.wait()
        outcome.model.save(self.folder / "model.safetensors")
        write_bytes(self.folder / "result.json", (json.dumps(outcome.summary(), indent=2) + "\n").encode())


def _next_folder(parent: Path, name: str) -> Path:
    """Return the first of parent/name-1, parent/name-2, ... that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
