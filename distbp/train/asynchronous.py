"""Training without steps that all take together: workers push gradients, and pull the newest weights.

Each push is an update of its own: the mean gradient of one worker's rows, computed from weights that others have
changed since they were pulled. A step is as many pushes as there are workers, of whichever of them. So a run has as
many updates as all workers would make, and a slow one makes fewer of them rather than the run longer. The order of the
updates, and so the weights, depend on who comes when: no two runs are the same.

The parameter server (Li et al., OSDI 2014) is one program in one thread. It takes one report after another and answers
with an order: compute a step, evaluate the weights of an epoch that is over, or end. Who is further ahead than the mode
allows is answered later. For a checkpoint nobody is given a step until all have come: then no push is under way.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distbp.errors import TrainingError
from distbp.nn import aligned_zeros
from distbp.train.coordinator import Coordinator
from distbp.train.evaluator import TALLY, metrics
from distbp.train.exchange import PushPull, Watcher, watched
from distbp.train.pace import NOTHING, STOP
from distbp.train.state import WEIGHTS, Ledger, State, vector_names
from distbp.train.stopping import Stopper

if TYPE_CHECKING:
    from distbp.train.run import Run

_PATIENCE = 10.0  # workers may take that many deadlines to start and to evaluate


def work(run: Run, line: PushPull) -> dict[str, Any]:
    """Compute what the parameter server orders; return its account of the run."""
    worker = run.worker
    gradient, *others = run.exchange.partials
    order = line.push({"kind": "start"}, gradient, run.weights)
    while order["kind"] != "end":
        if order["kind"] == "evaluate":
            with run.phases.evaluation():
                report = {"kind": "tally", "tally": worker.evaluate("validation").sum(axis=0).tolist()}
        else:
            step = order["step"]
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
            report = {"kind": "gradient", "tally": worker.take_tally().sum(axis=0).tolist()}
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
    """Applies gradients in the order in which they come.

    Parameters
    ----------
    run:
        The run, as the server's process sees it.
    line:
        The way to the workers.
    state:
        Where to go on from, with any number of workers; None to begin.
    """

    def __init__(self, run: Run, line: PushPull, state: State | None = None) -> None:
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
        self.n_pushes = run.n_steps * self.n_workers
        self.ledger = Ledger(steps_of_workers=[0] * self.n_workers)
        self.tally = np.zeros((run.plan.n_shards, len(TALLY)))  # since the start of the epoch; in the first of a worker
        self.history: list[dict[str, Any]] = []
        self.stopper = Stopper(run.recipe.early_stopping)
        self.began = time.perf_counter()
        self.unseen: list[_Epoch] = []  # in order
        if state is not None:
            self._go_on_from(state)
        self.idle: set[int] = set()  # have reported, and wait for an order
        self.pulled = [0] * self.n_workers  # the version of the weights that each computes from
        self.due = NOTHING
        self.lock = threading.Lock()  # held while the state changes

    def _go_on_from(self, state: State) -> None:
        assert state.ledger is not None
        self.ledger, self.history = state.ledger.model_copy(deep=True), list(state.history)
        n_before = len(self.ledger.steps_of_workers)
        if n_before != self.n_workers:  # other workers have other rows
            self.ledger.pushes = self.ledger.pushes * self.n_workers // n_before
            self.ledger.steps_of_workers = [state.step] * self.n_workers
        self.began = time.perf_counter() - state.seconds
        self.tally[...] = state.tally
        for name, vector in self.coordinator.vectors().items():
            if name in state.vectors:
                vector[...] = state.vectors[name]
        for record in self.history:
            self.stopper.is_best(record)
        self.unseen = [_Epoch(record, self.run.weights.copy()) for record in self.ledger.unseen]

    @property
    def is_over(self) -> bool:
        """Whether no more gradients are wanted."""
        return self.stopper.is_over or self.ledger.pushes == self.n_pushes

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.ledger.pushes // self.n_workers

    def serve(self, watcher: Watcher | None) -> dict[str, Any]:
        """Serve the workers until the run is over; return the account of it that all are given.

        Raises
        ------
        StoppedError
            Where the run is to stop before, once the watcher has its state.
        """
        with watched(watcher, self.run.n_steps, self.recipe.epochs):
            self.run.phases.reset()
            first = self.ledger.pushes
            while not (self.is_over and len(self.idle) == self.n_workers):
                is_step = self.ledger.pushes > first and not self.unseen
                worker, report = self.line.receive(self.gradient, 1.0 if is_step else _PATIENCE)
                self.run.phases.lap("waiting")
                self.idle.add(worker)
                with self.lock:
                    if report["kind"] == "gradient":
                        self._update(worker, np.array(report["tally"]), watcher)
                    elif report["kind"] == "tally":
                        self._count(worker, np.array(report["tally"]), watcher)
                self._order_all()
                if self.due and not self.is_over and len(self.idle) == self.n_workers:
                    self._keep(watcher)
                    self._order_all()
        if self.stopper.rule:
            self.coordinator.go_back()
        account = {"kind": "end", "history": self.history, "staleness": self._staleness()}
        for worker in range(self.n_workers):
            self.line.answer(worker, account, self.run.weights)
        return account

    def _update(self, worker: int, tally: np.ndarray, watcher: Watcher | None) -> None:
        """Apply the gradient that ``worker`` pushed, of the rows of ``tally``."""
        ledger = self.ledger
        ledger.steps_of_workers[worker] += 1
        if self.is_over:
            return
        run, rows = self.run, int(tally[1])
        if rows:  # a shard may have none in the last step of an epoch
            if self.recipe.clip_norm is not None:
                self.coordinator.measure(rows)
            self.coordinator.update(ledger.updates, run.learning_rate(self.step), rows)
            stale = ledger.updates - self.pulled[worker]
            ledger.stale_sum_of_epoch += stale
            ledger.stale_max_of_epoch = max(ledger.stale_max_of_epoch, stale)
            ledger.updates += 1
            ledger.rows += rows
        self.tally[run.plan.shards(worker).start] += tally
        ledger.pushes += 1
        if ledger.pushes % self.n_workers == 0:
            if watcher:
                watcher.step(self.step - 1)
            self.due = max(self.due, run.pace.due(self.step - 1))
        if ledger.pushes % self.epoch_pushes == 0:
            self._end_epoch(watcher)

    def _end_epoch(self, watcher: Watcher | None) -> None:
        ledger, seconds = self.ledger, time.perf_counter() - self.began
        tally = self.tally.sum(axis=0)
        stale = {"mean": ledger.stale_sum_of_epoch / self.epoch_pushes, "max": ledger.stale_max_of_epoch}
        record = {
            "epoch": len(self.history) + len(self.unseen) + 1,
            "step": self.step,
            "train": {"loss": float(tally[0] / tally[1])},
            "learning_rate": self.run.learning_rate(self.step - 1),
            "seconds": seconds,
            "examples_per_second": ledger.rows / seconds,
            "staleness": stale,
        }
        self.tally[...] = 0.0
        ledger.stale_sum, ledger.stale_max = ledger.stale_sum + ledger.stale_sum_of_epoch, self._stale_max()
        ledger.stale_sum_of_epoch = ledger.stale_max_of_epoch = 0
        has_validation = "validation" in self.run.worker.shards
        self.unseen.append(_Epoch(record, self.run.weights.copy() if has_validation else self.run.weights))
        if not has_validation:
            self._close_epoch(watcher)

    def _unseen_by(self, worker: int) -> _Epoch | None:
        """Return the oldest epoch that ``worker`` has not evaluated."""
        return next((epoch for epoch in self.unseen if worker not in epoch.tallies), None)

    def _count(self, worker: int, tally: np.ndarray, watcher: Watcher | None) -> None:
        """Take what ``worker`` found in evaluating the oldest epoch that it had not evaluated."""
        epoch = self._unseen_by(worker)
        assert epoch is not None
        epoch.tallies[worker] = tally
        if len(epoch.tallies) == self.n_workers and not self.stopper.is_over:
            epoch.record["validation"] = metrics(sum(epoch.tallies.values(), np.zeros(len(TALLY))), self.run.loss)
            self._close_epoch(watcher)

    def _close_epoch(self, watcher: Watcher | None) -> None:
        epoch = self.unseen.pop(0)
        self.history.append(epoch.record)
        self.run.hold_epoch(epoch.weights)
        if watcher:
            watcher.epoch(epoch.record)
        if self.stopper.is_best(epoch.record):
            self.coordinator.kept[...] = epoch.weights
            if watcher and self.run.protection.keeps:
                watcher.checkpoint(self._state(epoch.weights).detached(), self.recipe, is_best=True)

    def _order_all(self) -> None:
        """Answer those who wait, unless they have to wait longer."""
        for worker in sorted(self.idle):
            epoch = self._unseen_by(worker)
            step = self.ledger.steps_of_workers[worker]
            lead = step - min(self.ledger.steps_of_workers)
            order: dict[str, Any] = {"kind": "evaluate"}
            if epoch is not None and not self.stopper.is_over:
                weights = epoch.weights
            elif self.is_over or self.due or lead > self.recipe.mode.lead:
                continue
            else:
                order, weights = {"kind": "step", "step": step}, self.run.weights
                self.pulled[worker] = self.ledger.updates
                self.ledger.largest_lead = max(self.ledger.largest_lead, lead)
            self.idle.remove(worker)
            self.line.answer(worker, order, weights)

    def _keep(self, watcher: Watcher | None) -> None:
        """Let the watcher have a checkpoint, and stop where that is wanted."""
        due, self.due = self.due, NOTHING
        if watcher:
            watcher.checkpoint(self._state(self.run.weights).detached(), self.recipe, is_best=False)
        if due == STOP:
            self.run.stop(self.step)

    def _state(self, weights: np.ndarray) -> State:
        """Return the state with these ``weights``."""
        unseen = [epoch.record for epoch in self.unseen]
        vectors = {WEIGHTS: weights} | self.coordinator.vectors()
        return State(
            self.step,
            {name: vectors[name] for name in vector_names(self.recipe)},
            self.tally,
            self.history,
            time.perf_counter() - self.began,
            self.ledger.model_copy(update={"unseen": unseen}),
            self.run.arithmetic,
            self.run.rows,
        )

    def rescued(self) -> State:
        """Return the state as it is now, in memory of its own; for another thread."""
        with self.lock:
            return self._state(self.run.weights).detached()

    def _stale_max(self) -> int:
        return max(self.ledger.stale_max, self.ledger.stale_max_of_epoch)

    def _staleness(self) -> dict[str, Any]:
        """Return how many updates came between pull and push, and how far ahead of others workers were."""
        ledger = self.ledger
        return {
            "mean": (ledger.stale_sum + ledger.stale_sum_of_epoch) / ledger.pushes,
            "max": self._stale_max(),
            "largest_lead": ledger.largest_lead,
            "steps_of_workers": ledger.steps_of_workers,
        }
