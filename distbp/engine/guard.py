"""The guard of a machine: a process that ends those workers that do not get on, since nobody else can.

A worker counts its beats in memory that it shares with the guard: at every lap of its work, and whenever it looks
whether others have come. One that is stopped, or stuck in a call, counts no more. After the deadline the guard kills
it; the others see that it has died, and go on without it. The guard imports the standard library alone, so that it
starts at once, and ends with the last worker. Run by a worker: python guard.py HANDLE N_WORKERS DEADLINE_S
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LINE = 8
"""Integers of 64 bits on a cache line of the memory, of which each worker has one."""
_BEATS, _PID, _IS_WATCHED, _WAS_ENDED = range(LINE - 4, LINE)  # the first ones are the arena's own
_DISMISSED = -1
_LOOKS = 20  # in a deadline
_LONGEST_LOOK_S = 0.5
_KEEP_GOING_S = 0.02
LATE = 5
"""A deadline is at least that many times as long as the longest time that went well."""


class Pulse:
    """A worker's view of the lines in which the workers of its machine count their beats.

    Parameters
    ----------
    lines:
        All of them, one after another.
    place:
        Of this worker among the workers of the machine.

    Attributes
    ----------
    beat:
        The cell that this worker counts in.
    """

    def __init__(self, lines: memoryview, place: int) -> None:
        self.lines, self.own = lines, place * LINE
        self.beat = lines[self.own + _BEATS : self.own + _BEATS + 1]
        lines[self.own + _PID] = os.getpid()

    def watch(self, is_on: bool) -> None:
        """Have this worker watched, or not."""
        self.lines[self.own + _IS_WATCHED] = is_on

    def dismiss(self) -> None:
        """Need the guard no more; it ends once it is dismissed by all who live."""
        self.lines[self.own + _IS_WATCHED] = _DISMISSED

    def beats(self, place: int) -> int:
        """Return how often the worker in this place has beaten."""
        return self.lines[place * LINE + _BEATS]

    def was_ended(self, place: int) -> bool:
        """Return whether the guard has ended that worker."""
        return bool(self.lines[place * LINE + _WAS_ENDED])

    @contextmanager
    def kept_going(self, longest_s: float) -> Iterator[None]:
        """Beat in a thread, in a call that waits for others without a deadline; for no longer than ``longest_s``."""
        is_over = threading.Event()

        def keep_going() -> None:
            until = time.monotonic() + longest_s
            while not is_over.wait(_KEEP_GOING_S) and time.monotonic() < until:
                self.beat[0] += 1

        thread = threading.Thread(target=keep_going, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def start_guard(handle: int, n_workers: int, deadline_s: float) -> subprocess.Popen[bytes]:
    """Start the guard of this machine; the lines are at the start of the memory ``handle``, a file descriptor."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *map(str, (handle, n_workers, deadline_s))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[handle],
        start_new_session=True,  # who ends this worker's process group does not end the guard of the others
    )


class _Watched:
    """What the guard knows of one worker."""

    def __init__(self, pid: int) -> None:
        self.handle = os.pidfd_open(pid)
        self.beats, self.since, self.longest_s = -1, time.monotonic(), 0.0

    def is_late(self, beats: int, deadline_s: float) -> bool:
        """Return whether the worker, which has beaten so often by now, is late."""
        now = time.monotonic()
        silent_s = now - self.since
        if beats != self.beats:
            self.beats, self.since, self.longest_s = beats, now, max(self.longest_s, silent_s)
            return False
        return silent_s > max(deadline_s, LATE * self.longest_s)

    def pause(self) -> None:
        """Start to wait anew."""
        self.since = time.monotonic()

    def end(self) -> None:
        """Kill the worker."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)


def watch(handle: int, n_workers: int, deadline_s: float) -> None:
    """Watch until all workers have ended, or need no guard any more."""
    lines = memoryview(mmap.mmap(handle, 8 * LINE * n_workers)).cast("q")
    os.close(handle)
    alive: dict[int, _Watched] = {}
    known: set[int] = set()
    poll = select.poll()
    look_s = min(deadline_s / _LOOKS, _LONGEST_LOOK_S)
    looked = time.monotonic()
    while not known or any(lines[line + _IS_WATCHED] != _DISMISSED for line in alive):
        for line in range(0, len(lines), LINE):
            if lines[line + _PID] and line not in known:
                known.add(line)
                with suppress(ProcessLookupError):
                    alive[line] = _Watched(lines[line + _PID])
                    poll.register(alive[line].handle, select.POLLIN)
        ended = {handle for handle, _ in poll.poll(1e3 * look_s)}
        for line in [line for line, worker in alive.items() if worker.handle in ended]:
            poll.unregister(alive[line].handle)
            os.close(alive.pop(line).handle)
        now = time.monotonic()
        was_away = now - looked > deadline_s / 2  # and so may all have been, on a machine that slept
        looked = now
        for line, worker in alive.items():
            if was_away or lines[line + _IS_WATCHED] != 1:
                worker.pause()
            elif worker.is_late(lines[line + _BEATS], deadline_s):
                lines[line + _WAS_ENDED] = 1
                worker.end()


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
