"""Who computes which shards, who coordinates which slice, and which workers share a machine.

Workers are numbered so that those of one machine are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from distbp.data import share
from distbp.errors import InputError
from distbp.train.tree import Node, cover
from distbp.wording import counted

BLOCK = 4096
"""Elements of the parameter vector in one block: slices are cut at block boundaries, norms summed block by block."""


@dataclass(frozen=True)
class Plan:
    """The assignment of work; a pure function of its fields, the same on every worker.

    Parameters
    ----------
    n_shards:
        Shards of the recipe.
    machines:
        The number of workers on each machine.
    n_elements:
        Length of the parameter vector.
    n_coordinators:
        How many of the workers coordinate a slice; 0 where a parameter server applies each gradient by itself.
    has_server:
        Whether the last worker is a parameter server: it computes no shard and coordinates the whole vector.
    """

    n_shards: int
    machines: tuple[int, ...]
    n_elements: int
    n_coordinators: int
    has_server: bool = False

    def __post_init__(self) -> None:
        if self.n_computing > self.n_shards:
            raise InputError(
                "at least one shard for each worker",
                f"{counted(self.n_shards, 'shard')} and {counted(self.n_computing, 'worker')}",
                "start fewer workers, or set `shards` in the recipe",
            )

    @property
    def n_workers(self) -> int:
        return sum(self.machines)

    @property
    def n_computing(self) -> int:
        """Return the number of workers that compute shards."""
        return self.n_workers - self.has_server

    @property
    def n_blocks(self) -> int:
        return -(-self.n_elements // BLOCK)

    def shards(self, worker: int) -> range:
        """Return the neighbouring shards that ``worker`` computes."""
        if worker == self.n_computing:  # the server
            return range(self.n_shards, self.n_shards)
        return share(self.n_shards, self.n_computing, worker)

    def nodes(self, worker: int) -> list[Node]:
        """Return the partials that ``worker`` hands over: the largest complete subtrees of its shards."""
        shards = self.shards(worker)
        return cover(shards.start, shards.stop, self.n_shards)

    def blocks(self, worker: int) -> range:
        """Return the blocks that ``worker`` coordinates."""
        if self.has_server:
            return range(self.n_blocks if worker == self.n_computing and self.n_coordinators else 0)
        return share(self.n_blocks, self.n_coordinators, worker) if worker < self.n_coordinators else range(0)

    def slice(self, worker: int) -> slice:
        """Return the slice of the parameter vector that ``worker`` coordinates; it may be empty."""
        blocks = self.blocks(worker)
        return slice(min(blocks.start * BLOCK, self.n_elements), min(blocks.stop * BLOCK, self.n_elements))

    def workers(self, machine: int) -> range:
        """Return the workers of ``machine``."""
        start = sum(self.machines[:machine])
        return range(start, start + self.machines[machine])

    def leader(self, machine: int) -> int:
        """Return the first worker of ``machine``, who acts for it."""
        return self.workers(machine)[0]

    def machine(self, worker: int) -> int:
        """Return the machine of ``worker``."""
        return next(m for m in range(len(self.machines)) if worker in self.workers(m))

    def machine_nodes(self, machine: int) -> list[Node]:
        """Return the partials that ``machine`` hands over as a whole."""
        shards = self.machine_shards(machine)
        return cover(shards.start, shards.stop, self.n_shards)

    def machine_shards(self, machine: int) -> range:
        """Return the shards of all workers of ``machine``."""
        workers = self.workers(machine)
        return range(self.shards(workers[0]).start, self.shards(workers[-1]).stop)

    def machine_blocks(self, machine: int) -> range:
        """Return the blocks that the workers of ``machine`` coordinate."""
        own = [blocks for worker in self.workers(machine) if (blocks := self.blocks(worker))]
        return range(own[0].start, own[-1].stop) if own else range(0)

    def delegate(self, coordinator: int, machine: int) -> int:
        """Return the worker of ``machine`` that sends to ``coordinator``, on another one, and gets its new slice."""
        workers = self.workers(machine)
        return workers[coordinator % len(workers)]
