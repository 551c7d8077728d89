"""Training without steps that all take together: workers push gradients, and pull the newest weights.

Each push is an update of its own: the mean gradient of one worker's rows, computed from weights that others have
changed since they were pulled. A run has as many updates as all workers would make in the steps of a synchronous one,
so a slow worker makes fewer of them rather than the run longer. The order of the updates, and so the weights, depend on
who comes when: no two runs are the same.

The parameter server (Li et al., OSDI 2014) is one program in one thread. It takes one report after another and answers
with an order: compute a step, evaluate the weights of an epoch that is over, or end. Who is further ahead than the mode
allows is answered later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distbp.errors import TrainingError
from distbp.nn import aligned_zeros
from distbp.train.coordinator import Coordinator
from distbp.train.evaluator import TALLY, metrics
from distbp.train.exchange import PushPull, Watcher, watched
from distbp.train.stopping import Stopper

if TYPE_CHECKING:
    from distbp.train.run import Run

_PATIENCE = 10.0  # workers may take that many deadlines to start and to evaluate


def work(run: Run, line: PushPull) -> dict[str, Any]:
    """Compute what the parameter server orders; return its account of the run."""
    worker = run.worker
    gradient, *others = run.exchange.partials
    step = 0
    order = line.push({"kind": "start"}, gradient, run.weights)
    while order["kind"] != "end":
        if order["kind"] == "evaluate":
            report = {"kind": "tally", "tally": worker.evaluate("validation").sum(axis=0).tolist()}
        else:
            bad_shard = worker.compute(step)
            if bad_shard >= 0:
                raise TrainingError(
                    f"expected a finite loss and gradient; that of shard {bad_shard} at step {step} of worker "
                    f"{run.group.worker} is not ({worker.diagnose(bad_shard)}), and it was not pushed; "
                    "lower the learning rate, set clip_norm, or check the data"
                )
            for other in others:
                np.add(gradient, other, out=gradient)
            run.phases.lap("exchange")
            report = {"kind": "gradient", "step": step, "tally": worker.take_tally().sum(axis=0).tolist()}
            step += 1
        order = line.push(report, gradient, run.weights)
        run.phases.lap("waiting")
    return order


@dataclass
class _Epoch:
    """An epoch whose updates are all made, and which not all workers have evaluated yet."""

    record: dict[str, Any]
    weights: np.ndarray
    tallies: dict[int, np.ndarray] = field(default_factory=dict)


class ParameterServer:
    """Applies gradients in the order in which they come."""

    def __init__(self, run: Run, line: PushPull) -> None:
        self.run, self.line, self.recipe = run, line, run.recipe
        size, layout = run.plan.n_elements, run.network.layout
        self.gradient = aligned_zeros(size, layout.dtype)
        self.coordinator = Coordinator(
            run.recipe.optimizer,
            layout,
            run.plan,
            slice(0, size),
            run.weights,
            {(0, run.plan.n_shards): self.gradient},
            run.exchange.norms,
            clip_norm=run.recipe.clip_norm,
            phases=run.phases,
        )
        self.n_workers = run.group.n_workers
        self.epoch_pushes = run.partition.epoch_steps * self.n_workers
        self.n_pushes = run.recipe.epochs * self.epoch_pushes
        self.idle: set[int] = set()  # have reported, and wait for an order
        self.steps = [0] * self.n_workers  # that each has pushed
        self.pulled = [0] * self.n_workers  # the version of the weights that each computes from
        self.evaluated = [0] * self.n_workers  # epochs, by each
        self.version = 0
        self.pushes = 0
        self.staleness = np.zeros(self.n_pushes, np.int64)
        self.lead = 0
        self.tally = np.zeros(len(TALLY))  # since the start of the epoch
        self.rows = 0
        self.epochs: list[_Epoch] = []  # those over, in order
        self.history: list[dict[str, Any]] = []
        self.stopper, self.best = Stopper(run.recipe.early_stopping), run.weights

    @property
    def is_over(self) -> bool:
        """Whether no more gradients are wanted."""
        return self.stopper.is_over or self.pushes == self.n_pushes

    def serve(self, watcher: Watcher | None) -> dict[str, Any]:
        """Serve the workers until the run is over; return the account of it that all are given."""
        with watched(watcher, self.n_pushes, self.recipe.epochs):
            self.started = time.perf_counter()
            self.run.phases.reset()
            while not (self.is_over and len(self.idle) == self.n_workers):
                is_step = self.pushes > 0 and len(self.epochs) == len(self.history)
                worker, report = self.line.receive(self.gradient, 1.0 if is_step else _PATIENCE)
                self.run.phases.lap("waiting")
                self.idle.add(worker)
                if report["kind"] == "gradient":
                    self._update(worker, np.array(report["tally"]), watcher)
                elif report["kind"] == "tally":
                    self._count(worker, np.array(report["tally"]), watcher)
                for other in sorted(self.idle):
                    self._order(other)
        self.run.weights[...] = self.best
        account = {"kind": "end", "history": self.history, "staleness": self._staleness(0) | self._steps()}
        for worker in range(self.n_workers):
            self.line.answer(worker, account, self.run.weights)
        return account

    def _update(self, worker: int, tally: np.ndarray, watcher: Watcher | None) -> None:
        """Apply the gradient that ``worker`` pushed, of the rows of ``tally``."""
        self.steps[worker] += 1
        if self.is_over:
            return
        run, rows = self.run, int(tally[1])
        if rows:  # a shard may have none in the last step of an epoch
            if self.recipe.clip_norm is not None:
                self.coordinator.measure(rows)
            lr = run.learning_rate(self.pushes // self.n_workers)
            self.coordinator.update(self.version, lr, rows)
            self.staleness[self.pushes] = self.version - self.pulled[worker]
            self.version += 1
        self.tally += tally
        self.rows += rows
        self.pushes += 1
        if watcher:
            watcher.step(self.pushes - 1)
        if self.pushes % self.epoch_pushes == 0:
            self._end_epoch(watcher)

    def _end_epoch(self, watcher: Watcher | None) -> None:
        seconds = time.perf_counter() - self.started
        record = {
            "epoch": self.pushes // self.epoch_pushes,
            "step": self.pushes,
            "train": {"loss": float(self.tally[0] / self.tally[1])},
            "learning_rate": self.run.learning_rate(self.pushes // self.n_workers - 1),
            "seconds": seconds,
            "examples_per_second": self.rows / seconds,
            "staleness": self._staleness(self.pushes - self.epoch_pushes),
        }
        self.tally[:] = 0.0
        has_validation = "validation" in self.run.worker.shards
        epoch = _Epoch(record, self.run.weights.copy() if has_validation else self.run.weights)
        self.epochs.append(epoch)
        if not has_validation:
            self.evaluated = [len(self.epochs)] * self.n_workers
            self._close_epoch(epoch, watcher)

    def _count(self, worker: int, tally: np.ndarray, watcher: Watcher | None) -> None:
        """Take what ``worker`` found in evaluating the oldest epoch that it had not evaluated."""
        epoch = self.epochs[self.evaluated[worker]]
        self.evaluated[worker] += 1
        epoch.tallies[worker] = tally
        if len(epoch.tallies) == self.n_workers and not self.stopper.is_over:
            epoch.record["validation"] = metrics(sum(epoch.tallies.values(), np.zeros(len(TALLY))), self.run.loss)
            self._close_epoch(epoch, watcher)

    def _close_epoch(self, epoch: _Epoch, watcher: Watcher | None) -> None:
        self.history.append(epoch.record)
        if watcher:
            watcher.epoch(epoch.record)
        if self.stopper.is_best(epoch.record) and self.stopper.rule:
            self.best = epoch.weights
        epoch.weights = self.run.weights  # let the copy go

    def _order(self, worker: int) -> None:
        """Answer ``worker``, who waits, unless it has to wait longer."""
        is_behind = self.evaluated[worker] < len(self.epochs)
        if is_behind and not self.stopper.is_over:
            order, weights = {"kind": "evaluate"}, self.epochs[self.evaluated[worker]].weights
        elif self.is_over or self.steps[worker] - min(self.steps) > self.recipe.mode.lead:
            return
        else:
            order, weights = {"kind": "step"}, self.run.weights
            self.pulled[worker] = self.version
            self.lead = max(self.lead, self.steps[worker] - min(self.steps))
        self.idle.remove(worker)
        self.line.answer(worker, order, weights)

    def _staleness(self, start: int) -> dict[str, Any]:
        """Return how many updates came between pull and push, over the pushes from ``start``."""
        values = self.staleness[start : self.pushes]
        return {"mean": float(values.mean()), "max": int(values.max())}

    def _steps(self) -> dict[str, Any]:
        return {"largest_lead": self.lead, "steps_of_workers": self.steps}
