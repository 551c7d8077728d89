"""Losses and accuracy as sums over rows."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from distbp.data.shard import Features, Shard
from distbp.nn import Loss, RowBlocks, Sequential
from distbp.train.phases import Phases

Block = tuple[np.ndarray, np.ndarray]  # the row in each place of a block, and the places that count

TALLY = ("loss", "rows", "correct")
"""What is summed over rows, in this order; metrics are made of the total."""


def metrics(tally: np.ndarray, loss: Loss) -> dict[str, Any]:
    """Return the mean loss and, for classifiers, the accuracy, given the tally of all rows (3,)."""
    total, rows, correct = tally
    values = {"loss": float(total / rows)}
    if loss.is_classifier:
        values["accuracy"] = float(correct / rows)
    return values


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
    """

    def __init__(
        self, network: Sequential, loss: Loss, row_limit: int | None, *, at_least: int = 0, phases: Phases | None = None
    ) -> None:
        self.network, self.loss, self.phases = network, loss, phases or Phases()
        self.blocks = RowBlocks(network, row_limit)
        self.n_rows = max(self.blocks.n_rows, at_least)
        loss.allocate(self.n_rows, network.output_shape[0], network.layout.dtype)
        self.x = np.empty((self.n_rows, *network.input_shape), network.layout.dtype)
        self.t = loss.t
        self._plans: WeakKeyDictionary[Features, list[Block]] = WeakKeyDictionary()

    def _plan(self, rows: Features) -> list[Block]:
        """Return the blocks for ``rows``; those of a shard are the same in each epoch."""
        if rows not in self._plans:
            self._plans[rows] = list(self.blocks.blocks(rows.columns(self.blocks.columns)))
        return self._plans[rows]

    def tally(self, rows: Shard) -> np.ndarray:
        """Return the sums over ``rows`` under the present weights, (3,) in the order of ``TALLY``."""
        self.network.settle()
        tally = np.zeros(len(TALLY))
        for places, counted in self._plan(rows):
            x, t = self.x[: len(places)], self.t[: len(places)]
            rows.gather(places, x, t)
            z = self.network.logits(x)
            if len(counted) < len(places):
                z, t = z[counted], t[counted]
            tally += (self.loss.forward(z, t), len(z), self.loss.correct(z, t))
            self.phases.lap("forward")
        return tally

    def outputs(self, rows: Features, *, logits: bool = False) -> np.ndarray:
        """Return the outputs for ``rows``, or what the loss takes, under the present weights (n, n_out)."""
        self.network.settle()
        y = np.empty((len(rows), *self.network.output_shape), self.network.layout.dtype)
        for places, counted in self._plan(rows):
            x = self.x[: len(places)]
            rows.read(places, x)
            outputs = self.network.logits(x) if logits else self.network.outputs(x)
            y[places[counted]] = outputs[counted]
        return y
