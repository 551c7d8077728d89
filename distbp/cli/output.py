"""The folder that a run leaves behind: model.safetensors, metrics.jsonl, result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distbp.errors import InputError
from distbp.train import Outcome
from distbp.train.files import write_bytes

_FILES = ("model.safetensors", "metrics.jsonl", "result.json")


class Output:
    """Writes the files of one run; a watcher of it. The folder is taken at once, and given back by ``abandon``.

    Raises
    ------
    InputError
        Where the folder cannot be written, or holds a run already.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = _next_folder(Path("runs"), name) if folder is None else folder
        self.has_begun = False
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

    def end(self) -> None:
        pass

    def finish(self, outcome: Outcome) -> None:
        """Write the model and the result."""
        outcome.model.save(self.folder / "model.safetensors")
        write_bytes(self.folder / "result.json", (json.dumps(outcome.summary(), indent=2) + "\n").encode())


def _next_folder(parent: Path, name: str) -> Path:
    """Return the first of parent/name-1, parent/name-2, ... that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
