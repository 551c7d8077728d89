"""The folder of a run: held by one process, with the checkpoints in it."""

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


class HeldFolder(Watcher):
    """A folder that one process holds, and writes the checkpoints of a run into; a watcher.

    Parameters
    ----------
    keep:
        How many checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.checkpoints, self.hold = folder, Checkpoints(folder, keep), Hold()

    def claim(self, where: str) -> None:
        """Hold the folder, which must exist.

        Raises
        ------
        InputError
            About ``where``, if another process does, or checkpoints would be written outside of it.
        """
        inside = self.checkpoints.folder
        if inside.is_symlink():
            given = f"{inside}, a link to {inside.readlink()}"
            raise InputError("a folder of the run's own for its checkpoints", given, "remove the link", where)
        if not self.hold.take(self.folder):
            given = f"{self.folder}, where another process is training"
            raise InputError("a folder that no run writes to", given, "let it end, or end it", where)

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        if is_best:
            self.checkpoints.remember(state, recipe)
        else:
            self.checkpoints.write(state, recipe)


class RunFolder(HeldFolder):
    """The folder in which ``Trainer.fit`` keeps the checkpoints of a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _KEPT)

    def take(self, *, is_resumed: bool) -> None:
        """Take the folder for a run that begins or ``is_resumed``.

        Raises
        ------
        InputError
            Where it cannot be written to, or holds another run, or another process trains there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim("checkpoint")
        except OSError as error:
            given = f"{self.folder} ({error.strerror})"
            raise InputError("a folder that can be written", given, "choose another", "checkpoint") from None
        if self.checkpoints.paths() and not is_resumed:
            given = f"{self.folder}, which holds the checkpoints of a run"
            remedy = "go on with it: fit(..., resume=True), or choose another folder"
            raise InputError("a folder without checkpoints", given, remedy, "checkpoint")


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
