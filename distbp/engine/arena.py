"""Memory that all workers of one machine share: the weights, and a place for each worker's partials.

The arena is a file without a name (memfd), opened by the others through /proc while its maker waits: it takes nothing
from /dev/shm, and nothing of it can stay behind. Workers meet by flags in it: each has a counter on a cache line of its
own and waits until the counters of the others have come as far.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import psutil

from distbp.engine.guard import LINE, Pulse
from distbp.engine.waiting import wait_until
from distbp.errors import InputError, LostError, TrainingError
from distbp.memory import require_room
from distbp.nn import Layout
from distbp.nn.vector import ALIGNMENT_BYTES
from distbp.train.evaluator import TALLY
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.state import Copy
from distbp.wording import megabytes

_PAGE_BYTES = 4096
TABLE_COLUMNS = 64
"""Values of each shard that fit into the table of the arena at once."""
_COPIES = 2  # while one is being written, the other is whole
_SPINS = 2000  # looks at a flag before the processor is offered to others


class ArenaMap:
    """Where everything lies in the arena of one machine, in bytes; the same on all its workers."""

    def __init__(self, plan: Plan, machine: int, layout: Layout, copied: Sequence[str] = ()) -> None:
        self.n_bytes = 0
        workers = plan.workers(machine)
        vector_bytes = layout.size * layout.dtype.itemsize
        self.flags = self._place(len(workers) * ALIGNMENT_BYTES)
        self.norms = self._place(plan.n_blocks * 8)
        self.table = self._place(plan.n_shards * TABLE_COLUMNS * 8)
        self.prints = self._place(len(plan.machines) * 8)
        self.weights = self._place(vector_bytes)
        self.partials = {(worker, node): self._place(vector_bytes) for worker in workers for node in plan.nodes(worker)}
        self.copies = [
            (
                self._place(len(workers) * 8),
                self._place(plan.n_shards * len(TALLY) * 8),
                {name: self._place(vector_bytes) for name in copied},
            )
            for _ in range(_COPIES if copied else 0)
        ]

    def _place(self, n_bytes: int) -> int:
        """Return the start of the next ``n_bytes``, on a page of its own."""
        start = self.n_bytes
        self.n_bytes += -(-n_bytes // _PAGE_BYTES) * _PAGE_BYTES
        return start


def reserve(n_bytes: int) -> int:
    """Make a memory of ``n_bytes``, filled with zeros; return its file descriptor.

    Raises
    ------
    InputError
        Where the machine has no room for it. All of it is reserved now, so that no later write can fail.
    """
    require_room(n_bytes, "the arena that the workers of this machine share")
    handle = os.memfd_create("distbp-arena", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(handle, 0, n_bytes)
    except OSError as error:
        os.close(handle)
        raise InputError(
            f"room for the arena that the workers of this machine share: {megabytes(n_bytes)}",
            f"a refusal ({error.strerror})",
            "make the network smaller, or use fewer workers a machine",
        ) from None
    return handle


def attach(pid: int, handle: int) -> int:
    """Return a file descriptor of the memory that process ``pid`` holds as ``handle``."""
    try:
        return os.open(f"/proc/{pid}/fd/{handle}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not psutil.pid_exists(pid):
            raise LostError(f"process {pid} died") from None
        raise InputError(
            "workers of one machine that can share memory",
            f"a refusal to open the memory of process {pid} ({error.strerror}: {error.filename})",
            "start the workers of a machine as one user, in one container, with /proc",
        ) from None


class AbandonedError(BaseException):
    """The run is over elsewhere: nobody will come any more."""


class _Deaths:
    """Notices the deaths of processes at once, by file descriptors that stand for them (Linux)."""

    def __init__(self, pids: Mapping[int, int]) -> None:
        self.poll, self.handles = select.poll(), {}
        for worker, pid in pids.items():
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                raise LostError(f"worker {worker} (process {pid}) died") from None
            self.handles[worker] = handle
            self.poll.register(handle, select.POLLIN)

    def are_there(self) -> bool:
        return bool(self.handles) and bool(self.poll.poll(0))

    def seen(self) -> list[int]:
        """Return the workers that have died."""
        dead = {handle for handle, _ in self.poll.poll(0)} if self.handles else set()
        return [worker for worker, handle in self.handles.items() if handle in dead]

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)
        self.handles = {}


class Arena:
    """One worker's view of the arena.

    Parameters
    ----------
    handle:
        File descriptor of the memory; closed here.
    names:
        What each worker of the machine is called in messages.
    deadline_s:
        How long to wait for another worker that does not get on.
    pids:
        The processes of the workers of the machine, whose deaths are noticed.

    Attributes
    ----------
    pulse:
        The beats of the workers of the machine.
    """

    def __init__(
        self,
        handle: int,
        place: ArenaMap,
        layout: Layout,
        plan: Plan,
        worker: int,
        machine: int,
        names: dict[int, str],
        deadline_s: float,
        phases: Phases,
        pids: Mapping[int, int],
    ) -> None:
        self.memory = mmap.mmap(handle, place.n_bytes)
        os.close(handle)
        self.place, self.layout, self.names, self.phases = place, layout, names, phases
        self.deadline_s = deadline_s
        self.is_abandoned = False  # set by another thread to end all waiting
        workers = plan.workers(machine)
        self.flags = memoryview(self.memory)[place.flags : place.flags + len(workers) * ALIGNMENT_BYTES].cast("q")
        self.own = (worker - workers.start) * LINE
        self.others = {(w - workers.start) * LINE: w for w in workers if w != worker}
        self.notices = [i * LINE + 1 for i in range(len(workers))]
        self.deaths = _Deaths({w: pid for w, pid in pids.items() if w != worker})
        self.pulse = Pulse(self.flags, self.own // LINE)
        phases.beat = self.pulse.beat
        self.watches = True  # deadlines and deaths
        self.count = 0
        self.n_spins = _SPINS if len(workers) <= len(os.sched_getaffinity(0)) else 0
        self.fence = threading.Lock()
        self.weights = self._vector(place.weights)
        self.norms = np.frombuffer(self.memory, np.float64, plan.n_blocks, place.norms)
        self.table = np.frombuffer(self.memory, np.float64, plan.n_shards * TABLE_COLUMNS, place.table)
        self.prints = np.frombuffer(self.memory, np.int64, len(plan.machines), place.prints)
        self.partials = {key: self._vector(start) for key, start in place.partials.items()}
        self.copies = []
        for marks, tally, vectors in place.copies:
            values = np.frombuffer(self.memory, np.float64, plan.n_shards * len(TALLY), tally)
            self.copies.append(
                Copy(
                    {name: self._vector(start) for name, start in vectors.items()},
                    values.reshape(-1, len(TALLY)),
                    np.frombuffer(self.memory, np.int64, len(workers), marks),
                    worker - workers.start,
                )
            )

    def _vector(self, start: int) -> np.ndarray:
        return np.frombuffer(self.memory, self.layout.dtype, self.layout.size, start)

    def meet(self, step: int, phase: str) -> None:
        """Return when all workers of this machine have called this as often.

        Raises
        ------
        LostError
            Where one of them has died.
        TrainingError
            Where one of them does not get on before the deadline.
        """
        self.count += 1
        with self.fence:  # on processors that reorder writes: all before it is seen before the flag
            self.flags[self.own] = self.count
        for place, worker in self.others.items():
            if self.flags[place] < self.count:
                self._wait(place, worker, step, phase)
        with self.fence:  # nothing after it is read before the flags were
            self.phases.lap("waiting")

    def _wait(self, place: int, worker: int, step: int, phase: str) -> None:
        flags, count, other = self.flags, self.count, place // LINE
        for _ in range(self.n_spins):
            if flags[place] >= count:
                return
        while not self.watches and flags[place] < count:
            os.sched_yield()
        met, beats = False, -1
        while not met and beats != self.pulse.beats(other):  # as long as it gets on, it may take its time
            beats = self.pulse.beats(other)
            met = wait_until(lambda: flags[place] >= count or self._is_over(), self.deadline_s, self.pulse.beat)
        if self.is_abandoned:
            raise AbandonedError
        if flags[place] >= count:
            return
        where = f"at the end of phase {phase!r} of step {step}"
        if dead := self.deaths.seen():
            raise LostError(f"{'; '.join(map(self._end_of, dead))}, missed {where}")
        if self._is_broken():
            raise LostError(f"a worker of another machine was lost, {where}", knows_who=False)
        raise TrainingError(
            f"expected worker {self.names[worker]} {where}; it did not come "
            f"within {self.deadline_s:g} s; see whether it is stopped or its machine out of memory, or allow more "
            "with --deadline"
        )

    def _end_of(self, worker: int) -> str:
        """Return how ``worker`` ended, for a message."""
        place = next(place for place, other in self.others.items() if other == worker)
        how = "did not get on, and was killed" if self.pulse.was_ended(place // LINE) else "died"
        return f"worker {self.names[worker]} {how}"

    def _is_over(self) -> bool:
        return self.is_abandoned or self.deaths.are_there() or self._is_broken()

    def _is_broken(self) -> bool:
        return any(self.flags[place + 2] for place in self.others)

    def break_off(self) -> None:
        """Let the others of this machine wait for this worker no more, since it will not come."""
        self.flags[self.own + 2] = 1

    def sign(self, fingerprint: int) -> None:
        """Tell the others the fingerprint of a part of the weights."""
        self.flags[self.own + 3] = fingerprint

    def signed(self) -> int:
        """Return the sum of the fingerprints of all parts, modulo 2 ** 64."""
        total = sum(self.flags[place + 2] for place in self.notices) % (1 << 64)
        return total - (1 << 64) if total >= 1 << 63 else total

    def say(self, notice: int) -> None:
        """Tell the others something; they see it once all have met."""
        self.flags[self.own + 1] = notice

    def heard(self) -> int:
        """Return the highest notice of all."""
        flags = self.flags
        return max(flags[place] for place in self.notices)
