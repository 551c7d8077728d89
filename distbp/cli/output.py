"""The folder that a run leaves behind: model.safetensors, metrics.jsonl, result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distbp.errors import InputError
from distbp.train import Outcome, Run
from distbp.train.files import write_bytes

_FILES = ("model.safetensors", "metrics.jsonl", "result.json")


class Output:
    """Writes the files of one run; a watcher of it.

    Raises
    ------
    InputError
        Where the folder cannot be written, or holds a run already.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = _next_folder(Path("runs"), name) if folder is None else folder
        try:
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

    def begin(self, run: Run) -> None:
        pass

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
