"""The folder that a run leaves behind: model.safetensors, metrics.jsonl, result.json."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbp.errors import InputError, TrainingError
from distbp.train import Outcome
from distbp.train.files import append_line, write_bytes, writing
from distbp.train.folder import HeldFolder
from distbp.train.state import State
from distbp.wording import json_text

_ENDED = ("model.safetensors", "result.json")
"""What a run leaves when it ends; one that left less, and no checkpoint, is begun again."""


class Output(HeldFolder):
    """Writes the files of one run; a watcher of it, told by one process at a time."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, keep)
        self.metrics = folder / "metrics.jsonl"
        self.has_begun = True

    @property
    def is_unfinished(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return bool(self.checkpoints.paths()) and not (self.folder / "result.json").exists()

    @property
    def way_on(self) -> str:
        """How to go on with this run, for a message."""
        return f"go on with it: distbp train --resume {self.folder}"

    def take(self, resumed: State | None) -> None:
        """Take the folder; ``abandon`` gives it back.

        Parameters
        ----------
        resumed:
            The state that the run goes on from; the folder is that of the run then.

        Raises
        ------
        InputError
            Where the folder cannot be written, or holds a run already, or another process is at work on it.
        """
        if resumed is not None:
            self.claim("output")
            self._write(resumed.history)
            return
        self.has_begun = False
        if self.checkpoints.paths():
            given = f"{self.folder}, which holds a run that has not ended"
            remedy = f"{self.way_on}; or choose another folder with --out"
            raise InputError("an empty folder", given, remedy, "output")
        try:
            self.is_new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.claim("output")
            found = next((file for file in _ENDED if (self.folder / file).exists()), None)
            if found is None and not self._are_ours():
                found = f"a {self.metrics.name}"
            if found is None and not self.metrics.exists():
                write_bytes(self.metrics, b"")
        except OSError as error:
            given = f"{self.folder} ({error.strerror})"
            raise InputError("a folder that can be written", given, "choose another with --out", "output") from None
        if found is not None:
            given = f"{self.folder}, which holds {found} of an earlier run"
            raise InputError("an empty folder", given, "choose another with --out, or move that run away", "output")

    def _are_ours(self) -> bool:
        """Return whether the metrics, if there are any, are of a run that left nothing else."""
        try:
            records = self._recorded()
        except FileNotFoundError:
            return True
        except ValueError:
            return False
        return all(isinstance(record, dict) and {"epoch", "step", "train"} <= record.keys() for record in records)

    def _recorded(self) -> list[Any]:
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def abandon(self) -> None:
        """Let go of the folder, and leave nothing of a run that did not begin."""
        self.hold.let_go()
        if not self.has_begun:
            if self.metrics.exists() and self.metrics.stat().st_size == 0:
                self.metrics.unlink()
            if self.is_new:
                self.folder.rmdir()

    def begin(self, n_steps: int, n_epochs: int) -> None:
        if not self.has_begun:
            self.has_begun = True
            self._write([])
        else:
            self.records = self._recorded()

    def epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] <= len(self.records):  # some are computed again
            self._write(self.records[: record["epoch"] - 1])
        self.records.append(record)
        with writing(self.metrics):
            append_line(self.metrics, json_text(record))

    def _write(self, records: list[dict[str, Any]]) -> None:
        self.records = list(records)
        with writing(self.metrics):
            write_bytes(self.metrics, "".join(json_text(record) + "\n" for record in records).encode())

    def recovered(self, lost: str, step: int, history: list[dict[str, Any]], n_workers: int) -> None:
        self.hold.take(self.folder)  # from a process that was lost
        self._write(history)

    def finish(self, outcome: Outcome) -> None:
        """Write the model and the result.

        Raises
        ------
        TrainingError
            Where that cannot be done; it says where the model is instead.
        """
        try:
            outcome.model.save(self.folder / "model.safetensors")
            self.checkpoints.wait()
            self._write(outcome.history)  # some may not have found room
            with writing(self.folder / "result.json"):
                write_bytes(self.folder / "result.json", (json_text(outcome.summary(), indent=2) + "\n").encode())
        except TrainingError as error:
            raise TrainingError(f"{error}; {self._elsewhere(outcome)}") from None

    def _elsewhere(self, outcome: Outcome) -> str:
        """Write the model where there is room, if it is nowhere yet; say where it is."""
        path = self.folder / "model.safetensors"
        if not path.exists():
            try:
                path = Path(tempfile.mkdtemp(prefix="distbp-model-")) / path.name
                outcome.model.save(path)
            except (OSError, TrainingError):
                with suppress(OSError):
                    path.parent.rmdir()
                return "nor was there room for the model in the folder for temporary files"
        return f"the model is in {path}"


def unfinished(parent: Path, name: str) -> list[Output]:
    """Return the runs parent/name-1, parent/name-2, ... that can be resumed, the newest last."""
    runs = [Output(folder, 1) for folder in parent.glob(f"{name}-*")]
    return sorted((run for run in runs if run.is_unfinished), key=lambda run: run.folder.stat().st_mtime)


def next_folder(parent: Path, name: str) -> Path:
    """Return the first of parent/name-1, parent/name-2, ... that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
