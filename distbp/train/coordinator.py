"""A coordinator: sums the partials of its slice along the tree, applies the optimizer, writes the new weights.

A coordinator knows no data and no layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from distbp.nn import Layout, aligned_zeros
from distbp.optim import Optimizer
from distbp.train.phases import Phases
from distbp.train.plan import BLOCK, Plan
from distbp.train.state import BEST
from distbp.train.tree import Node, SumProgram, total

UPDATE_BLOCK = 8 * BLOCK
"""Elements summed and updated at a time: gradient, weights and optimizer state of that many stay in the L2 cache."""


class _Block:
    """The arrays of one block of the slice, each (n,): made once, so that a step only computes."""

    def __init__(self, registers: list[np.ndarray], program: SumProgram, g: np.ndarray, w: np.ndarray) -> None:
        self.additions = program.bind(registers)
        self.sum = registers[program.result]
        self.g, self.w = g, w
        self.state: list[np.ndarray] = []
        self.decayed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []


class Coordinator:
    """The owner of one slice of the weights and of its optimizer state.

    Parameters
    ----------
    bounds:
        The slice of the parameter vector; may be empty.
    weights:
        The whole parameter vector; only the slice is written.
    inputs:
        The nodes that the slice is summed from, each (n_slice,); only read.
    norms:
        The squared norms of the mean gradient, block by block, of the whole vector; the slice's own are written.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layout: Layout,
        plan: Plan,
        bounds: slice,
        weights: np.ndarray,
        inputs: Mapping[Node, np.ndarray],
        norms: np.ndarray,
        *,
        clip_norm: float | None,
        phases: Phases,
    ) -> None:
        self.optimizer, self.phases, self.clip_norm, self.norms = optimizer, phases, clip_norm, norms
        self.bounds, self.weights = bounds, weights
        n, dtype = bounds.stop - bounds.start, layout.dtype
        self.state = {name: aligned_zeros(n, dtype) for name in optimizer.state}
        self.kept = np.zeros(n, dtype)
        program = SumProgram((0, plan.n_shards), list(inputs)) if n else None
        n_block = min(n, UPDATE_BLOCK)
        registers = [aligned_zeros(n_block, dtype) for _ in range(program.n_scratch if program else 0)]
        self.scratch = aligned_zeros(n_block, dtype)
        # With clipping, the whole slice is summed before the first block of it may be updated.
        g = aligned_zeros(n_block if clip_norm is None else n, dtype)
        self.blocks: list[_Block] = []
        for start in range(0, n, UPDATE_BLOCK):
            stop = min(start + UPDATE_BLOCK, n)
            arrays = [array[start:stop] for array in inputs.values()] + [array[: stop - start] for array in registers]
            own_g = g[: stop - start] if clip_norm is None else g[start:stop]
            assert program is not None
            block = _Block(arrays, program, own_g, weights[bounds.start + start : bounds.start + stop])
            block.state = [vector[start:stop] for vector in self.state.values()]
            if optimizer.weight_decay > 0.0:
                for lo, hi in layout.decayed():
                    a, b = max(lo - bounds.start, start) - start, min(hi - bounds.start, stop) - start
                    if a < b:
                        block.decayed.append((block.w[a:b], block.g[a:b], self.scratch[a:b]))
            self.blocks.append(block)
        first = bounds.start // BLOCK
        self.norm_blocks = [(first + i, g[i * BLOCK : (i + 1) * BLOCK]) for i in range(-(-n // BLOCK))]

    def measure(self, count: int) -> None:
        """Sum the slice, divide by ``count``, the rows of the step, and write the norms of its blocks, to clip by."""
        for block in self.blocks:
            self._mean(block, count)
        for i, g in self.norm_blocks:
            self.norms[i] = np.dot(g, g)

    def update(self, step: int, lr: float, count: int) -> None:
        """Apply ``step`` (from 0) with learning rate ``lr`` to the slice; ``count`` are the rows of the step."""
        scale = 1.0
        if self.clip_norm is not None:
            scale = min(1.0, self.clip_norm / (math.sqrt(float(total(self.norms))) + 1e-6))
        for block in self.blocks:
            if self.clip_norm is None:
                self._mean(block, count)
            elif scale < 1.0:
                np.multiply(block.g, scale, out=block.g)
            for w, g, scratch in block.decayed:
                self.optimizer.decay(lr, w, g, scratch)
            self.optimizer.update(step + 1, lr, block.w, block.g, self.scratch[: len(block.w)], *block.state)
            self.phases.lap("update")

    def _mean(self, block: _Block, count: int) -> None:
        for a, b, out in block.additions:
            np.add(a, b, out=out)
        np.multiply(block.sum, 1.0 / count, out=block.g)
        self.phases.lap("exchange")

    def keep(self) -> None:
        """Remember the weights of the slice."""
        self.kept[...] = self.weights[self.bounds]

    def go_back(self) -> None:
        """Go back to the weights that were kept."""
        self.weights[self.bounds] = self.kept

    def vectors(self) -> dict[str, np.ndarray]:
        """Return the slice of each vector of the run's state but the weights, by its name there."""
        return {f"optimizer.{name}": vector for name, vector in self.state.items()} | {BEST: self.kept}
