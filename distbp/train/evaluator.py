"""Losses and accuracy as sums over rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from distbp.data.shard import Shard
from distbp.nn import Loss, Sequential
from distbp.train.phases import Phases

TALLY = ("loss", "rows", "correct")
"""What is summed over rows, in this order; metrics are made of the total."""

_ROWS = 256


def evaluation_rows(row_limit: int | None) -> int:
    """Return how many rows are evaluated at once: a constant of the recipe, since it is part of a metric's bits."""
    return min(_ROWS, row_limit or _ROWS)


def metrics(tally: np.ndarray, loss: Loss) -> dict[str, Any]:
    """Return the mean loss and, for classifiers, the accuracy, given the tally of all rows (3,)."""
    total, rows, correct = tally
    values = {"loss": float(total / rows)}
    if loss.is_classifier:
        values["accuracy"] = float(correct / rows)
    return values


class Evaluator:
    """Evaluates a network, fused with ``loss`` and bound, on shards, batch by batch.

    Attributes
    ----------
    x, t:
        Buffers for the features and targets of at least ``evaluation_rows(row_limit)`` and ``at_least`` rows.
    """

    def __init__(
        self, network: Sequential, loss: Loss, row_limit: int | None, *, at_least: int = 0, phases: Phases | None = None
    ) -> None:
        self.network, self.loss, self.phases = network, loss, phases or Phases()
        self.n_rows = evaluation_rows(row_limit)
        n_rows = max(self.n_rows, at_least)
        loss.allocate(n_rows, network.output_shape[0], network.layout.dtype)
        self.x = np.empty((n_rows, *network.input_shape), network.layout.dtype)
        self.t = loss.t

    def tally(self, rows: Shard) -> np.ndarray:
        """Return the sums over ``rows`` under the present weights, (3,) in the order of ``TALLY``."""
        self.network.settle()
        tally = np.zeros(len(TALLY))
        for start in range(0, len(rows), self.n_rows):
            places = np.arange(start, min(start + self.n_rows, len(rows)))
            x, t = self.x[: len(places)], self.t[: len(places)]
            rows.gather(places, x, t)
            z = self.network.logits(x)
            tally += (self.loss.forward(z, t), len(places), self.loss.correct(z, t))
            self.phases.lap("forward")
        return tally
