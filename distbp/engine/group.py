"""Workers on any number of machines, whatever carries their messages: agreeing, and finding the arena."""

from __future__ import annotations

import json
import os
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from distbp.engine.arena import Arena, ArenaMap, attach, reserve
from distbp.engine.guard import start_guard
from distbp.engine.machines import Link, MachineExchange
from distbp.engine.messages import pack_error, unpack_error
from distbp.errors import DistbpError, InputError
from distbp.memory import private_bytes
from distbp.nn import Layout
from distbp.train.exchange import Exchange, Group, Job, Watcher
from distbp.train.phases import Phases
from distbp.train.plan import Plan

T = TypeVar("T")

GUARDED = 2
"""Where there are guards, others wait so many deadlines: before that, whoever is stuck is ended on his own machine."""


class MachineGroup(Group):
    """A group whose workers share an arena on each machine.

    Attributes
    ----------
    deadline_s:
        How long a worker may take.
    is_guarded:
        Whether a guard ends those of them who take longer.
    """

    deadline_s: float
    is_guarded = False
    arena: Arena | None = None
    guard: subprocess.Popen[bytes] | None = None

    def patience_s(self, deadline_s: float) -> float:
        """Return how long to wait for another worker, which may take ``deadline_s``."""
        return deadline_s * (GUARDED if self.is_guarded else 1)

    @abstractmethod
    def link(self) -> Link:
        """Return what carries messages between machines."""

    def private_bytes(self) -> int:
        return private_bytes()

    def first_error(self, error: DistbpError | None) -> DistbpError | None:
        texts = self.allgather_text("" if error is None else json.dumps(pack_error(error)))
        for worker, text in enumerate(texts):
            if text:
                theirs = unpack_error(json.loads(text))
                if not isinstance(theirs, InputError) or set(texts) == {text}:
                    return theirs
                return theirs.at(_of_one(theirs.where, self.names[worker]))
        return None

    def exchange(self, plan: Plan, layout: Layout, phases: Phases, copied: Sequence[str] = ()) -> Exchange:
        machine = plan.machine(self.worker)
        workers = plan.workers(machine)
        first = workers[0]
        place = ArenaMap(plan, machine, layout, copied)
        handle = -1
        with self.agreement():
            if self.worker == first:
                handle = reserve(place.n_bytes)
        doors = self.allgather_text(f"{os.getpid()} {handle}")
        pids = {worker: int(doors[worker].split()[0]) for worker in workers}
        with self.agreement():  # nobody goes on, and the first worker lets go, before all are in
            if self.worker != first:
                pid, theirs = doors[first].split()
                handle = attach(int(pid), int(theirs))
        own = os.dup(handle)
        self.is_guarded = self.can_recover and plan.n_coordinators > 0
        patience_s = self.patience_s(self.deadline_s)
        self.arena = Arena(handle, place, layout, plan, self.worker, machine, self.names, patience_s, phases, pids)
        self.arena.pulse.watch(self.is_guarded)
        if self.is_guarded and self.worker == first:
            self.guard = start_guard(own, len(workers), self.deadline_s)
        os.close(own)
        return MachineExchange(plan, self.worker, self.arena, self.link(), phases)

    def perform(self, job: Job[T], watcher: Watcher | None = None) -> T:
        try:
            return super().perform(job, watcher)
        finally:
            if self.arena is not None:
                self.arena.pulse.dismiss()


def _of_one(where: str, worker: str) -> str:
    return f"{where} (worker {worker})" if where else f"worker {worker}"


def machine_identity() -> str:
    """Return what processes share that can share memory: the host, its boot, its table of processes."""
    identity = [os.uname().nodename]
    with suppress(OSError):
        identity.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        identity.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(identity)
