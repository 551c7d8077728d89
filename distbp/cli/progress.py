"""What a person sees of training: a bar on a terminal, else a line an epoch."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distbp.train import Watcher
from distbp.wording import counted

_REFRESH_S = 0.1


class ProgressDisplay(Watcher):
    """Shows epoch, loss, validation metric, examples per second and the time left.

    Parameters
    ----------
    every:
        Of how many epochs the last one is shown; None for no epoch and no bar.
    """

    def __init__(self, console: Console, every: int | None = 1) -> None:
        self.console, self.every = console, every
        self.bar: Progress | None = None
        self.shown = 0.0

    def begin(self, n_steps: int, n_epochs: int) -> None:
        self.n_steps, self.n_epochs = n_steps, n_epochs
        if self.console.is_terminal and self.every is not None:
            columns = (
                "steps",
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
            self.task = self.bar.add_task("", total=self.n_steps)
            self.bar.start()

    def step(self, step: int) -> None:
        if self.bar is None:
            return
        now = time.monotonic()
        if now - self.shown > _REFRESH_S:
            self.shown = now
            self.bar.update(self.task, completed=step + 1, refresh=True)

    def epoch(self, record: dict[str, Any]) -> None:
        if self.every is not None and (record["epoch"] % self.every == 0 or record["epoch"] == self.n_epochs):
            self._print(record)
        if self.bar is not None:
            self.bar.update(self.task, completed=record["step"], refresh=True)

    def _print(self, record: dict[str, Any]) -> None:
        parts = [f"epoch {record['epoch']}/{self.n_epochs}", f"loss {record['train']['loss']:.4f}"]
        parts += [f"validation {name} {value:.4f}" for name, value in record.get("validation", {}).items()]
        speed = f"{record['examples_per_second']:,.0f} examples/s"
        left = record["seconds"] / record["step"] * (self.n_steps - record["step"])
        self.console.print("  ".join([*parts, speed, f"{left:.0f} s left"]), highlight=False, soft_wrap=True)
        if self.bar is not None:
            self.bar.update(self.task, description=speed)

    def recovered(self, lost: str, step: int, history: list[dict[str, Any]], n_workers: int) -> None:
        self.console.print(
            f"{lost}; going on from step {step} with {counted(n_workers, 'worker')}", highlight=False, soft_wrap=True
        )

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
