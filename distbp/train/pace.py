"""When a run copies its state, writes checkpoints, and stops before its end."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

NOTHING, CHECKPOINT, STOP, BAD = range(4)
"""What a worker tells the others at a step; the highest counts. BAD + shard: the loss of that shard is not finite."""

GROW = -1
"""Stands in for the signal where a run stops to go on with more workers."""

UNHEARD = -2
"""Stands in for the signal where a run stops since a watcher has failed."""


def stopping_signals() -> list[int]:
    """Return the signals that ask a run to stop, but for those that this process ignores, as SIGHUP under nohup."""
    signals: list[int] = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


@dataclass(frozen=True)
class Protection:
    """How a run is protected against its end.

    Parameters
    ----------
    checkpoint_steps, checkpoint_minutes:
        How often a checkpoint is written; None for never.
    max_minutes:
        How long a run may train before it writes a checkpoint and stops.
    copy_steps:
        How often the workers copy the state in memory, to go on from where one of them is lost.
    is_interruptible:
        Whether a run that is stopped hands over its state, and the model after the last whole epoch.
    faults:
        Faults on purpose, as ``Fault.parse`` has them: one after another, the next one after a recovery. For tests.
    """

    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = None
    max_minutes: float | None = None
    copy_steps: int = 16
    is_interruptible: bool = False
    faults: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are written."""
        return any(every is not None for every in (self.checkpoint_steps, self.checkpoint_minutes, self.max_minutes))

    def after_loss(self) -> Protection:
        """Return the protection of the run that goes on after a loss."""
        return dataclasses.replace(self, faults=self.faults[1:])

    def left_after(self, seconds: float) -> Protection:
        """Return the protection of the run that goes on after so many ``seconds``: the time limit is that of both."""
        if self.max_minutes is None:
            return self
        return dataclasses.replace(self, max_minutes=max(0.0, self.max_minutes - seconds / 60.0))


class Brake:
    """Asks a run to write a checkpoint and stop after the present step; pulled by signals.

    Attributes
    ----------
    is_manned:
        Whether there is a run that heeds it.
    signal:
        The signal that pulled it; 0 for none.
    """

    def __init__(self) -> None:
        self.is_manned = False
        self.signal = 0

    @contextmanager
    def manned(self, is_manned: bool = True) -> Iterator[None]:
        """Let there be a run inside that heeds it."""
        self.is_manned = is_manned
        try:
            yield
        finally:
            self.is_manned = False

    def pull(self, signal: int) -> None:
        """Let the run stop because of ``signal``."""
        self.signal = signal


@contextmanager
def stopped_by_signals(brake: Brake, numbers: Iterable[int]) -> Iterator[None]:
    """Let these signals pull ``brake`` while there is a run that heeds it; a second one, and all others, do as before.

    Only the main thread can have it so; in others, nothing changes.
    """

    def pull(number: int, frame: FrameType | None) -> None:
        if brake.is_manned and not brake.signal:
            brake.pull(number)
        elif callable(before[number]):
            before[number](number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            before[number] = signal.getsignal(number)
            signal.signal(number, pull)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pace:
    """Tells what is due at each step; one worker ``leads`` where the clock decides."""

    def __init__(self, protection: Protection, brake: Brake, *, leads: bool) -> None:
        self.protection, self.brake, self.leads = protection, brake, leads
        self.started = self.written = time.monotonic()

    def due(self, step: int) -> int:
        """Return what this worker asks for at ``step``: NOTHING, CHECKPOINT or STOP."""
        if self.brake.signal:
            return STOP
        plan = self.protection
        if self.leads and (plan.max_minutes or plan.checkpoint_minutes):
            now = time.monotonic()
            if plan.max_minutes is not None and now - self.started >= 60.0 * plan.max_minutes:
                return STOP
            if plan.checkpoint_minutes is not None and now - self.written >= 60.0 * plan.checkpoint_minutes:
                self.written = now
                return CHECKPOINT
        if plan.checkpoint_steps and (step + 1) % plan.checkpoint_steps == 0:
            return CHECKPOINT
        return NOTHING
