"""Losses and accuracy as sums over rows."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from distbp.data.shard import Features, Shard
from distbp.nn import Block, Loss, RowBlocks, Sequential, row_keys
from distbp.train.phases import Phases

TALLY = ("loss", "rows", "correct")
"""What is summed over rows, in this order; metrics are made of the total."""


def metrics(tally: np.ndarray, loss: Loss) -> dict[str, Any]:
    """Return the mean loss and, for classifiers, the accuracy, given the tally of all rows (3,)."""
    total, rows, correct = tally
    values = {"loss": float(total / rows)}
    if loss.is_classifier:
        values["accuracy"] = float(correct / rows)
    return values


def total_loss(losses: np.ndarray) -> float:
    """Return the sum of the losses of some rows, in float64."""
    return float(sum(losses.tolist()))  # for few rows faster than NumPy


class Evaluator:
    """Evaluates a network on rows, in blocks in which the outputs for a row depend on that row alone.

    Parameters
    ----------
    network, loss:
        Built and fused. ``bind`` the network to at least ``n_rows`` rows before it is evaluated.
    row_limit:
        The largest block that there may be.
    at_least:
        Rows that the buffers shall have, for other uses.

    Attributes
    ----------
    n_rows:
        The rows that are computed at once, at most.
    x, t:
        Buffers for the features and targets of at least ``n_rows`` and ``at_least`` rows.
    lock:
        For threads that share it: the buffers are there once.
    """

    def __init__(
        self, network: Sequential, loss: Loss, row_limit: int | None, *, at_least: int = 0, phases: Phases | None = None
    ) -> None:
        self.network, self.loss, self.phases = network, loss, phases or Phases()
        self.blocks = RowBlocks(network, row_limit, lambda: self.phases.lap("forward"))
        self.n_rows = max(self.blocks.n_rows, at_least)
        loss.allocate(self.n_rows, network.output_shape[0], network.layout.dtype)
        self.x = np.zeros((self.n_rows, *network.input_shape), network.layout.dtype)
        self.t = loss.t
        self.lock = threading.RLock()
        self._plans: WeakKeyDictionary[Features, list[Block]] = WeakKeyDictionary()

    def _plan(self, rows: Features) -> list[Block]:
        """Return the blocks for ``rows``; those of a shard are the same in each epoch."""
        if rows not in self._plans:
            self._plans[rows] = list(self.blocks.blocks(self._keys(rows)))
        return self._plans[rows]

    def _keys(self, rows: Features) -> np.ndarray:
        """Return the keys of ``rows``, made of a few columns or, where these were given as zero, of all."""
        if len(self.blocks.groups) == 1:
            return np.zeros(len(rows), np.uint64)  # all go to it
        some = rows.columns(self.blocks.columns)
        keys = row_keys(some)
        empty = np.flatnonzero((some == rows.of_zeros(self.blocks.columns)).all(axis=1))
        for start in range(0, len(empty), self.n_rows):
            places = empty[start : start + self.n_rows]
            x = self.x[: len(places)]
            rows.read(places, x)
            keys[places] = row_keys(x.reshape(len(x), -1))
        return keys

    def tally(self, rows: Shard) -> np.ndarray:
        """Return the sums over ``rows`` under the present weights, (3,) in the order of ``TALLY``."""
        self.network.settle()
        tally = np.zeros(len(TALLY))
        for block in self._plan(rows):
            n = block.n_filled
            t = self.t[:n]
            rows.gather(block.rows, self.x[:n], t)
            z = self._compute(block, logits=True)
            t = t[block.counted]
            tally += (total_loss(self.loss.forward(z, t)), len(z), self.loss.correct(z, t))
            self.phases.lap("forward")
        return tally

    def outputs(self, rows: Features, *, logits: bool = False) -> np.ndarray:
        """Return the outputs for ``rows``, or what the loss takes, under the present weights (n, n_out)."""
        self.network.settle()
        y = np.empty((len(rows), *self.network.output_shape), self.network.layout.dtype)
        for block in self._plan(rows):
            rows.read(block.rows, self.x[: block.n_filled])
            y[block.own_rows] = self._compute(block, logits=logits)
        return y

    def _compute(self, block: Block, *, logits: bool) -> np.ndarray:
        """Return the outputs for those rows of ``block``, read into ``x``, that count."""
        layer_rows = self.blocks.layer_rows[block.size]
        return self.network.in_block(self.x[: layer_rows[0]], layer_rows, logits=logits)[block.counted]
