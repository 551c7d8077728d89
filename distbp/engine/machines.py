"""The exchange in two levels: through the arena within a machine, by messages between machines.

Between machines, each slice's partials go to its coordinator and the new slice comes back. On every other machine one
worker, the delegate, adds up what the machine has of the slice, sends that, and puts the new slice into its arena.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from distbp.data import share
from distbp.engine.arena import TABLE_COLUMNS, Arena
from distbp.errors import DifferenceError
from distbp.nn import aligned_zeros
from distbp.train.exchange import Exchange
from distbp.train.phases import Phases
from distbp.train.plan import BLOCK, Plan
from distbp.train.state import WEIGHTS, Copy
from distbp.train.tree import SumProgram

_PATIENCE = 10.0  # workers of other machines may take that many deadlines to evaluate
_BUSY_S = 600.0  # work that says nothing of itself may last that long

Messages = Sequence[tuple[int, np.ndarray]]
"""Arrays to send to workers, or to receive from them."""


class Link(ABC):
    """Messages between workers of different machines, in rounds in which all workers take part."""

    @abstractmethod
    def round(self, sends: Messages, receives: Messages, what: str, patience: float = 1.0) -> None:
        """Send arrays and fill others; those from one worker to another arrive in the order of both lists.

        Raises
        ------
        TrainingError
            Naming ``what``, where it has not come before the deadline, which is ``patience`` times as long as usual.
        """

    @abstractmethod
    def step_done(self, step: int) -> None:
        """Hear that ``step`` is done; may wait until more steps are asked for."""


def fingerprint(weights: np.ndarray, blocks: range) -> int:
    """Return the sum of ``blocks`` of ``weights`` as words of 64 bits, each block times an odd number of its own.

    Sums over several ranges add up, modulo 2 ** 64. One flipped bit always changes it, and so does a block that is
    missing or in another's place, but for a chance in 2 ** 64. Adding words is as fast as reading them; a checksum of
    zlib takes 30 times as long.
    """
    part = weights[blocks.start * BLOCK : blocks.stop * BLOCK]
    n_whole = len(part) // BLOCK
    last = np.zeros(BLOCK, weights.dtype)
    last[: len(part) - n_whole * BLOCK] = part[n_whole * BLOCK :]
    sums = [
        np.add.reduce(values.view(np.uint64).reshape(-1, BLOCK * weights.itemsize // 8), axis=1)
        for values in (part[: n_whole * BLOCK], last)
    ]
    factors = 2 * np.arange(blocks.start, blocks.start + n_whole + 1, dtype=np.uint64) + np.uint64(1)
    return int(np.dot(np.concatenate(sums), factors).view(np.int64))


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
        self.incoming: list[tuple[int, np.ndarray]] = []
        for machine in range(len(plan.machines)):
            if machine == self.machine:
                for (_, node), vector in arena.partials.items():
                    self.inputs[node] = vector[self.bounds]
            elif n_slice:
                for node in plan.machine_nodes(machine):
                    self.inputs[node] = aligned_zeros(n_slice, arena.layout.dtype)
                    self.incoming.append((plan.delegate(worker, machine), self.inputs[node]))
        self.errands = [self._errand(c) for c in range(plan.n_workers) if self._is_errand(c)]
        self.said = np.zeros(len(plan.machines), np.int64)  # the notice of each machine
        self.step = 0
        self.copies = arena.copies
        own = plan.workers(self.machine)
        part = share(plan.n_elements, len(own), worker - own.start)
        self.own_elements = slice(part.start, part.stop)

    @property
    def peers(self) -> list[int]:
        """The workers that this one exchanges messages with, in ascending order; it is a peer of each of them."""
        peers = {errand.coordinator for errand in self.errands}
        if self.bounds.stop > self.bounds.start:
            peers |= {self.plan.delegate(self.worker, machine) for machine in self.others}
        if self.is_first:
            peers |= {self.plan.leader(machine) for machine in self.others}
        return sorted(peers)

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

    def busy(self) -> AbstractContextManager[None]:
        return self.arena.pulse.kept_going(_BUSY_S)

    def watch(self, is_on: bool) -> None:
        pulse = self.arena.pulse
        self.arena.watches = is_on
        pulse.watch(is_on)
        self.phases.beat = pulse.beat if is_on else memoryview(bytearray(8)).cast("q")

    def gather(self, step: int, notice: int) -> int:
        self.step = step
        self.arena.say(notice)
        self.arena.meet(step, "backward")
        heard = self.arena.heard()
        if not self.others:
            return heard
        sends = []
        for errand in self.errands:
            for a, b, out in errand.additions:
                np.add(a, b, out=out)
            sends += [(errand.coordinator, vector) for vector in errand.sums]
        self.said[self.machine] = heard
        flags_out, flags_in = self._between_leaders(self.said, [range(m, m + 1) for m in range(len(self.said))])
        self.link.round([*sends, *flags_out], [*self.incoming, *flags_in], f"the partials of step {step}")
        self.phases.lap("exchange")
        self.arena.meet(step, "exchange")  # all have read the flags
        if self.is_first:
            self.arena.say(int(self.said.max()))
        self.arena.meet(step, "exchange")
        return self.arena.heard()

    def gather_norms(self, step: int) -> None:
        self.arena.meet(step, "norms")
        if not self.others:
            return
        blocks = [self.plan.machine_blocks(m) for m in range(len(self.plan.machines))]
        self.link.round(*self._between_leaders(self.norms, blocks), f"the norms of step {step}")
        self.phases.lap("exchange")
        self.arena.meet(step, "norms")

    def spread(self, step: int) -> None:
        if self.others:
            new = self.weights[self.bounds]
            receives = [(errand.coordinator, errand.new_slice) for errand in self.errands]
            delegates = [self.plan.delegate(self.worker, machine) for machine in self.others] if len(new) else []
            self.link.round([(delegate, new) for delegate in delegates], receives, f"the new weights of step {step}")
            self.phases.lap("exchange")
        self.arena.meet(step, "update")
        self.link.step_done(step)

    def complete(self, copy: Copy) -> None:
        if self.others:
            vectors = [vector for name, vector in copy.vectors.items() if name != WEIGHTS]  # weights are everywhere
            sends, receives = self._between_leaders(
                copy.tally, [self.plan.machine_shards(m) for m in range(len(self.plan.machines))]
            )
            for errand in self.errands:
                bounds = self.plan.slice(errand.coordinator)
                receives = [*receives, *((errand.coordinator, vector[bounds]) for vector in vectors)]
            if self.bounds.stop > self.bounds.start:
                delegates = [self.plan.delegate(self.worker, machine) for machine in self.others]
                sends = [*sends, *((delegate, vector[self.bounds]) for delegate in delegates for vector in vectors)]
            self.arena.sign(self._fingerprint() if self.compares else 0)
            self.arena.meet(self.step, "copying")  # the tally of all workers of this machine is there
            prints = self.arena.prints
            if self.is_first:
                prints[self.machine] = self.arena.signed()
            prints_out, prints_in = self._between_leaders(prints, [range(m, m + 1) for m in range(len(prints))])
            self.link.round([*sends, *prints_out], [*receives, *prints_in], f"the state after step {self.step}")
            self.phases.lap("exchange")
            self.arena.meet(self.step, "copying")  # the fingerprints of all machines are there
            self._compare(prints.tolist())

    def _fingerprint(self) -> int:
        """Return the fingerprint of those blocks of the weights that fall to this worker."""
        own = self.plan.workers(self.machine)
        return fingerprint(self.weights, share(self.plan.n_blocks, len(own), self.worker - own.start))

    def _compare(self, prints: list[int]) -> None:
        """Raise DifferenceError where the ``prints`` of the machines are not equal."""
        if len(set(prints)) == 1:
            return
        counts = {value: prints.count(value) for value in prints}
        usual = max(counts, key=lambda value: counts[value])
        has_majority = 2 * counts[usual] > len(prints)
        odd = [m for m, value in enumerate(prints) if not (has_majority and value == usual)]
        names = " and of worker ".join(self.arena.names[self.plan.leader(m)] for m in odd)
        raise DifferenceError(f"after step {self.step}, the weights on the machine of worker {names} differ")

    def allgather(self, values: np.ndarray) -> np.ndarray:
        shards, n_columns = self.plan.shards(self.worker), values.shape[1]
        everything = np.empty((self.plan.n_shards, n_columns))
        of_machines = [self.plan.machine_shards(m) for m in range(len(self.plan.machines))]
        for start in range(0, n_columns, TABLE_COLUMNS):
            columns = slice(start, min(start + TABLE_COLUMNS, n_columns))
            width = columns.stop - columns.start
            table = self.arena.table[: self.plan.n_shards * width].reshape(-1, width)
            table[shards.start : shards.stop] = values[:, columns]
            self.arena.meet(self.step, "evaluation")
            if self.others:
                what = f"the sums of the other machines after step {self.step}"
                self.link.round(*self._between_leaders(table, of_machines), what, _PATIENCE)
                self.arena.meet(self.step, "evaluation")
            everything[:, columns] = table
            self.arena.meet(self.step, "evaluation")  # nobody writes before all have read
        return everything

    def _between_leaders(self, rows: np.ndarray, of_machines: list[range]) -> tuple[Messages, Messages]:
        """Return what this worker sends and receives, so that machines give each other their ``rows``."""
        if not self.is_first:
            return [], []
        parts = [(self.plan.leader(m), rows[r.start : r.stop]) for m, r in enumerate(of_machines)]
        own = parts.pop(self.machine)[1]
        sends = [(leader, own) for leader, _ in parts if len(own)]
        return sends, [(leader, part) for leader, part in parts if len(part)]
