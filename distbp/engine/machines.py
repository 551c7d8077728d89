"""The exchange in two levels: through the arena within a machine, by messages between machines.

Between machines, each slice's partials go to its coordinator and the new slice comes back. On every other machine one
worker, the delegate, adds up what the machine has of the slice, sends that, and puts the new slice into its arena.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distbp.engine.arena import Arena
from distbp.nn import aligned_zeros
from distbp.train.exchange import Exchange
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.tree import SumProgram

_WEIGHTS_TAG = 0  # partials have the tags 1, 2, ...


class Link(ABC):
    """Messages between workers; worker numbers are addresses. Started ones end in ``wait``."""

    @abstractmethod
    def send(self, to: int, tag: int, array: np.ndarray) -> Any:
        """Start to send ``array``."""

    @abstractmethod
    def receive(self, source: int, tag: int, array: np.ndarray) -> Any:
        """Start to receive into ``array``."""

    @abstractmethod
    def wait(self, started: list[Any], what: str) -> None:
        """Return when all that was ``started`` is done; raise TrainingError, naming ``what``, at the deadline."""

    @abstractmethod
    def allgather(self, values: np.ndarray, rows: list[int]) -> np.ndarray:
        """Return the float64 rows of all workers, worker i giving ``rows[i]`` of them."""

    @abstractmethod
    def machine_max(self, value: int) -> int:
        """Return the largest ``value`` over machines; only the first worker of each machine calls it."""

    @abstractmethod
    def machine_rows(self, values: np.ndarray, rows: list[int]) -> None:
        """Fill ``values`` (float64), of which machine i has ``rows[i]``, from all machines; called as machine_max."""


@dataclass
class _Errand:
    """What a delegate does for one coordinator on another machine."""

    coordinator: int
    new_slice: np.ndarray
    sums: list[np.ndarray] = field(default_factory=list)
    additions: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)


class MachineExchange(Exchange):
    """One worker's side of the exchange over any number of machines."""

    def __init__(self, plan: Plan, worker: int, arena: Arena, link: Link, phases: Phases) -> None:
        self.plan, self.worker, self.arena, self.link, self.phases = plan, worker, arena, link, phases
        self.machine = plan.machine(worker)
        self.is_first = worker == plan.leader(self.machine)
        self.others = [m for m in range(len(plan.machines)) if m != self.machine]
        self.weights, self.norms = arena.weights, arena.norms
        self.partials = [arena.partials[worker, node] for node in plan.nodes(worker)]
        self.bounds = plan.slice(worker)
        n_slice = self.bounds.stop - self.bounds.start
        self.inputs = {}
        self.incoming: list[tuple[int, int, np.ndarray]] = []  # (delegate, tag, where to)
        for machine in range(len(plan.machines)):
            if machine == self.machine:
                for (_, node), vector in arena.partials.items():
                    self.inputs[node] = vector[self.bounds]
            elif n_slice:
                for tag, node in enumerate(plan.machine_nodes(machine), 1):
                    self.inputs[node] = aligned_zeros(n_slice, arena.layout.dtype)
                    self.incoming.append((plan.delegate(worker, machine), tag, self.inputs[node]))
        self.errands = [self._errand(c) for c in range(plan.n_coordinators) if self._is_errand(c)]

    def _is_errand(self, coordinator: int) -> bool:
        bounds, home = self.plan.slice(coordinator), self.plan.machine(coordinator)
        is_delegate = home != self.machine and self.plan.delegate(coordinator, self.machine) == self.worker
        return is_delegate and bounds.stop > bounds.start

    def _errand(self, coordinator: int) -> _Errand:
        bounds, dtype = self.plan.slice(coordinator), self.arena.layout.dtype
        errand = _Errand(coordinator, self.weights[bounds])
        for root in self.plan.machine_nodes(self.machine):
            parts = {node: v[bounds] for (_, node), v in self.arena.partials.items() if root[0] <= node[0] < root[1]}
            program = SumProgram(root, list(parts))
            own = [aligned_zeros(bounds.stop - bounds.start, dtype) for _ in range(program.n_scratch)]
            registers = [*parts.values(), *own]
            errand.additions += program.bind(registers)
            errand.sums.append(registers[program.result])
        return errand

    @property
    def leads_machine(self) -> bool:
        return self.is_first

    @property
    def shared_bytes(self) -> int:
        return self.arena.place.n_bytes

    def gather(self, step: int, bad_shard: int) -> int:
        self.arena.say_bad(bad_shard)
        self.arena.meet(step, "backward")
        bad = self.arena.bad_shard()
        if not self.others:
            return bad
        started = [self.link.receive(source, tag, array) for source, tag, array in self.incoming]
        for errand in self.errands:
            for a, b, out in errand.additions:
                np.add(a, b, out=out)
            started += [self.link.send(errand.coordinator, tag, total) for tag, total in enumerate(errand.sums, 1)]
        if self.is_first:
            bad = self.link.machine_max(bad)
        self.link.wait(started, f"the partials of step {step}")
        self.phases.lap("exchange")
        self.arena.meet(step, "exchange")  # all have read the flags
        if self.is_first:
            self.arena.say_bad(bad)
        self.arena.meet(step, "exchange")
        return self.arena.bad_shard()

    def gather_norms(self, step: int) -> None:
        self.arena.meet(step, "norms")
        if not self.others:
            return
        if self.is_first:
            rows = [sum(len(self.plan.blocks(w)) for w in self.plan.workers(m)) for m in range(len(self.plan.machines))]
            self.link.machine_rows(self.norms, rows)
        self.phases.lap("exchange")
        self.arena.meet(step, "norms")

    def spread(self, step: int) -> None:
        if self.others:
            new = self.weights[self.bounds]
            started = [self.link.receive(e.coordinator, _WEIGHTS_TAG, e.new_slice) for e in self.errands]
            if len(new):
                delegates = [self.plan.delegate(self.worker, machine) for machine in self.others]
                started += [self.link.send(delegate, _WEIGHTS_TAG, new) for delegate in delegates]
            self.link.wait(started, f"the new weights of step {step}")
            self.phases.lap("exchange")
        self.arena.meet(step, "update")

    def allgather(self, values: np.ndarray) -> np.ndarray:
        rows = [len(self.plan.shards(worker)) for worker in range(self.plan.n_workers)]
        return self.link.allgather(np.ascontiguousarray(values, np.float64), rows)
