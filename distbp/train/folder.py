"""The folder in which ``Trainer.fit`` keeps the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distbp.errors import InputError
from distbp.train.checkpoint import Checkpoints
from distbp.train.exchange import Engine, Watcher
from distbp.train.files import Hold
from distbp.train.recipe import Recipe
from distbp.train.state import State

_KEPT = 3


class RunFolder(Watcher):
    """Writes the checkpoints of a run into a folder; a watcher."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints, self.hold = folder, Checkpoints(folder, _KEPT), Hold()

    def take(self, *, is_resumed: bool) -> None:
        """Take the folder for a run that begins or ``is_resumed``.

        Raises
        ------
        InputError
            Where it cannot be written to, or holds another run, or another process trains there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            is_ours = self.hold.take(self.folder)
        except OSError as error:
            given = f"{self.folder} ({error.strerror})"
            raise InputError("a folder that can be written", given, "choose another", "checkpoint") from None
        if not is_ours:
            given = f"{self.folder}, where another process is training"
            raise InputError("a folder that no run writes to", given, "let it end, or end it", "checkpoint")
        if self.checkpoints.paths() and not is_resumed:
            given = f"{self.folder}, which holds the checkpoints of a run"
            remedy = "go on with it: fit(..., resume=True), or choose another folder"
            raise InputError("a folder without checkpoints", given, remedy, "checkpoint")

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        if is_best:
            self.checkpoints.remember(state, recipe)
        else:
            self.checkpoints.write(state, recipe)


@contextmanager
def hold(engine: Engine, folder: RunFolder | None, *, is_resumed: bool) -> Iterator[None]:
    """Let the first worker hold ``folder`` inside, if there is one."""
    if folder is None:
        yield
        return
    try:
        with engine.agreement():
            if engine.worker == 0:
                folder.take(is_resumed=is_resumed)
        yield
    finally:
        folder.hold.let_go()
