"""The engine of one process: nothing travels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distbp.errors import DistbpError
from distbp.memory import private_bytes, require_room
from distbp.nn import Layout, aligned_zeros
from distbp.train import Exchange, Group
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.state import Copy, new_copy


class LocalGroup(Group):
    """The only process is the only worker."""

    name = "local"
    worker = 0
    machines = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.names = {0: "0"}

    def allgather_text(self, text: str) -> list[str]:
        return [text]

    def private_bytes(self) -> int:
        return private_bytes()

    def finish(self, error: DistbpError | None) -> int:
        return 0 if error is None else error.exit_status

    def first_error(self, error: DistbpError | None) -> DistbpError | None:
        return error

    def exchange(self, plan: Plan, layout: Layout, phases: Phases, copied: Sequence[str] = ()) -> Exchange:
        return LocalExchange(plan, layout, phases, copied)


class LocalExchange(Exchange):
    """One worker with all shards, one coordinator with the whole vector."""

    leads_machine = True
    shared_bytes = 0

    def __init__(self, plan: Plan, layout: Layout, phases: Phases, copied: Sequence[str]) -> None:
        require_room(2 * layout.size * layout.dtype.itemsize, "weights and gradients")
        self.plan, self.worker, self.phases = plan, 0, phases
        self.weights = aligned_zeros(layout.size, layout.dtype)
        (root,) = plan.nodes(0)
        self.partials = [aligned_zeros(layout.size, layout.dtype)]
        self.inputs = {root: self.partials[0]}
        self.norms = np.zeros(plan.n_blocks)
        self.copies = [new_copy(copied, layout.size, plan.n_shards, layout.dtype)] if copied else []
        self.own_elements = slice(0, layout.size)

    def watch(self, is_on: bool) -> None:
        pass

    def gather(self, step: int, notice: int) -> int:
        return notice

    def complete(self, copy: Copy) -> None:
        pass

    def gather_norms(self, step: int) -> None:
        pass

    def spread(self, step: int) -> None:
        pass

    def allgather(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64)
