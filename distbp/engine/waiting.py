"""Waiting for others without taking the processor from them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_SLEEP_AFTER_S, _SLEEP_S = 0.01, 0.0002


def wait_until(is_done: Callable[[], bool], deadline_s: float, beat: memoryview) -> bool:
    """Return True once ``is_done()``, or False after ``deadline_s``; at first the processor is offered to others.

    In ``beat`` this counts how often it has looked: who waits is not stuck.
    """
    started = time.monotonic()
    while not is_done():
        beat[0] += 1
        waited = time.monotonic() - started
        if waited > deadline_s:
            return False
        if waited > _SLEEP_AFTER_S:
            time.sleep(_SLEEP_S)
        else:
            os.sched_yield()
    return True
