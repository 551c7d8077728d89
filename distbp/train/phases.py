"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("forward", "backward", "exchange", "update", "waiting")


class Phases:
    """A stop watch: ``lap(phase)`` books the time since the last lap on ``phase``.

    Attributes
    ----------
    evaluation_s:
        The time that evaluation took.
    beat:
        A cell that counts laps, in which others can see that this worker is not stuck.
    """

    def __init__(self) -> None:
        self.beat: memoryview = memoryview(bytearray(8)).cast("q")
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.evaluation_s = 0.0
        self.last = time.perf_counter()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Book what is done inside on ``evaluation_s``, not on phases."""
        kept, began = dict(self.seconds), time.perf_counter()
        try:
            yield
        finally:
            self.seconds, self.last = kept, time.perf_counter()
            self.evaluation_s += self.last - began

    def lap(self, phase: str) -> None:
        """Book the time since the last lap on ``phase``."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last = now
        self.beat[0] += 1
