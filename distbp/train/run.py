"""One worker's share of a run: setting up, the training loop, evaluation."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distbp.data import Dataset, Partition, Rows, Scaling, places_of_shards
from distbp.data.shard import Shard
from distbp.errors import InputError, StoppedError, TrainingError
from distbp.kernels import require
from distbp.nn import aligned_zeros
from distbp.train.arithmetic import Arithmetic, arithmetic_of, require_one
from distbp.train.asynchronous import ParameterServer, work
from distbp.train.coordinator import Coordinator
from distbp.train.evaluator import metrics
from distbp.train.exchange import Group, Watcher, watched
from distbp.train.fault import Fault
from distbp.train.model import Model, make_shard
from distbp.train.pace import BAD, NOTHING, STOP, Pace, Protection
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.recipe import Recipe
from distbp.train.row_statistics import RowStatistics
from distbp.train.state import WEIGHTS, Copy, State, vector_names
from distbp.train.stopping import Stopper, best_epoch
from distbp.train.threads import blas_threads
from distbp.train.tree import total
from distbp.train.worker import Worker, is_finite
from distbp.wording import counted


@dataclass
class Outcome:
    """What a run gives: the model, the metrics of each epoch and of each part at the end, and the time it took.

    ``staleness`` is None for the mode synchronous. Else it has, of the updates that came between a pull and the next
    push of a worker, ``mean`` and ``max``; the ``largest_lead`` of a worker, in steps; and the ``steps_of_workers``.

    ``phase_seconds`` say where ``train_seconds`` went, and add up to them; ``other`` is what is none of the phases, as
    are progress, checkpoints, what came before a resume. Evaluation comes on top: ``evaluation_seconds``.

    ``best_epoch`` is the one whose weights early stopping kept.
    """

    model: Model
    weights_sha256: str
    engine: str
    workers: int
    shards: int
    steps: int
    epochs: int
    train_seconds: float
    examples_per_second: float
    history: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]]
    phase_seconds: dict[str, float] = field(default_factory=dict)
    staleness: dict[str, Any] | None = None
    evaluation_seconds: float = 0.0
    best_epoch: int | None = None
    stopped_early: bool = False

    def __repr__(self) -> str:
        parts = [f"{part}: {_in_words(values)}" for part, values in self.metrics.items()]
        took = f"{counted(self.epochs, 'epoch')}, {counted(self.steps, 'step')} in {self.train_seconds:.1f} s"
        return f"Outcome({'; '.join([*parts, took])}; weights_sha256 {self.weights_sha256[:12]}...)"

    def summary(self) -> dict[str, Any]:
        """Return the content of result.json."""
        keys = (
            "weights_sha256",
            "engine",
            "workers",
            "shards",
            "steps",
            "epochs",
            "train_seconds",
            "evaluation_seconds",
        )
        figures = {key: getattr(self, key) for key in (*keys, "examples_per_second", "phase_seconds")}
        if self.best_epoch is not None:
            figures |= {"best_epoch": self.best_epoch, "stopped_early": self.stopped_early}
        staleness = {} if self.staleness is None else {"staleness": self.staleness}
        arithmetic = [own.model_dump() for own in self.model.arithmetic]
        return figures | staleness | self.metrics | {"arithmetic": arithmetic}


def _in_words(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


class Run:
    """One worker's share of a run.

    Parameters
    ----------
    recipe:
        What is trained; without ``shards``, the number of workers is taken.
    dataset:
        The rows, with a validation part if there is to be one; every worker keeps those of its shards.
    group:
        The workers; every worker makes its own ``Run`` with the same recipe and dataset.
    protection:
        How the run is protected against its end; None for not at all.
    state:
        Where to go on from; None to begin.
    rows:
        What tells the rows of the run from others, if that is known already.

    Raises
    ------
    InputError
        On all workers, where recipe, data and network do not fit together, or there is no room.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        group: Group,
        protection: Protection | None = None,
        state: State | None = None,
        rows: str = "",
    ) -> None:
        with group.agreement():
            require(recipe.bits)
            self.recipe = recipe.model_copy(update={"shards": recipe.shards or group.n_workers})
            n_shards = self.recipe.shards
            assert n_shards is not None
            if recipe.early_stopping and "validation" not in dataset.parts:
                remedy = "set data.validation, or give fit a validation: validation=0.1"
                raise InputError("validation data, for early stopping", "none", remedy, "recipe: early_stopping")
            self.network, self.loss = self.recipe.network(), self.recipe.loss_function()
            if recipe.early_stopping and recipe.early_stopping.metric == "accuracy" and not self.loss.is_classifier:
                given = f"accuracy, with the loss {self.loss.name}"
                raise InputError(
                    "a metric that the loss has", given, "stop early on the loss", "recipe: early_stopping"
                )
            layout = self.network.build(dataset.train.x.shape[1:], np.dtype(recipe.dtype))
            self.network.fuse(self.loss)
            if layout.size == 0:
                raise InputError("a layer with parameters", "none", "add a dense layer", "recipe: model")
            if len(dataset.train) < n_shards:
                given = f"{counted(len(dataset.train), 'row')} and {counted(n_shards, 'shard')}"
                raise InputError(
                    "at least one training row for each shard", given, "lower `shards`", dataset.train.where
                )
            if not (recipe.is_synchronous or group.has_server):
                given = f"the mode {recipe.mode.name} with the engine {group.name}"
                raise InputError(
                    "an engine with a parameter server, for modes other than synchronous",
                    given,
                    "use --engine ray",
                    "recipe: mode",
                )
            n_coordinators = 0 if not recipe.is_synchronous else 1 if recipe.coordinators == 1 else group.n_workers
            self.plan = Plan(n_shards, group.machines, layout.size, n_coordinators, group.has_server)
            self.partition = Partition(len(dataset.train), n_shards, recipe.batch_size, recipe.seed)
            shards = self._own_shards(dataset, group.worker, has_digests=not rows)
            if state is not None:
                _require_fit(state, self.plan, dataset.train.where)
        self.rows = rows or _digest(group, shards)
        with group.agreement():
            if state is not None and state.rows not in ("", self.rows):
                given = f"other rows than the first {counted(state.step, 'step')} had"
                remedy = "resume with the data of the run"
                raise InputError("the rows of the run that goes on", given, remedy, dataset.train.where)
        self.group, self.phases = group, Phases()
        is_copied = protection is not None and (protection.keeps or protection.is_interruptible or group.can_recover)
        copied = vector_names(recipe) if is_copied and recipe.is_synchronous else []
        with group.agreement():
            self.exchange = group.exchange(self.plan, layout, self.phases, copied)
        self.protection = protection or Protection()
        leader = 0 if recipe.is_synchronous else group.n_workers
        self.pace = Pace(self.protection, group.brake, leads=group.worker == leader)
        self.fault = Fault.parse(self.protection.faults[0]) if self.protection.faults else None
        self.form = dataset.train.form
        with blas_threads(recipe.blas_threads), np.errstate(all="ignore"), self.exchange.busy():
            self.arithmetic = self._common_arithmetic(() if state is None else state.arithmetic)
            self.scaling = self._scaling(dataset.train, shards["train"])
            for part in shards.values():
                for shard in part.values():
                    shard.prepare(self.scaling)
            if self.exchange.leads_machine:
                if state is None:
                    self.network.initialise(self.exchange.weights, recipe.seed)
                else:
                    self.exchange.weights[...] = state.vectors[WEIGHTS]
            self.exchange.barrier()  # nobody reads the weights before
        self.weights = self.exchange.weights
        worker = group.worker
        if not recipe.is_synchronous and worker < group.n_workers:
            self.weights = aligned_zeros(layout.size, layout.dtype)  # as they were pulled
        self.worker = Worker(
            self.network,
            self.loss,
            self.partition,
            shards,
            self.plan.nodes(worker),
            self.weights,
            self.exchange.partials,
            row_limit=recipe.row_limit,
            phases=self.phases,
        )
        self.coordinator = Coordinator(
            recipe.optimizer,
            layout,
            self.plan,
            self.plan.slice(worker),
            self.weights,
            self.exchange.inputs,
            self.exchange.norms,
            clip_norm=recipe.clip_norm,
            phases=self.phases,
        )
        self.n_copies = 0
        self.booked: dict[str, float] = {}  # on phases, at the end of the last epoch
        self.start, self.seconds, self.began = 0, 0.0, time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.whole: Model | None = None  # after the last whole epoch
        self.server: ParameterServer | None = None
        if not recipe.is_synchronous:
            self.state = state
        elif state is not None:
            self._go_on_from(state)

    def _common_arithmetic(self, earlier: tuple[Arithmetic, ...]) -> tuple[Arithmetic, ...]:
        """Return what has computed this run so far, and now computes it on all workers; raise where they differ."""
        n_rows = min(self.partition.microbatch_rows(), self.recipe.row_limit or self.partition.microbatch_rows())
        own = arithmetic_of(self.recipe, self.network.layout, n_rows)
        texts = self.group.allgather_text(own.model_dump_json())
        with self.group.agreement():
            workers = [Arithmetic.model_validate_json(text) for text in texts]
            require_one(workers, list(self.group.names.values()), self.recipe.bits)
        return (*earlier, workers[0]) if not earlier or earlier[-1].differences(workers[0]) else earlier

    def _scaling(self, rows: Rows, shards: dict[int, Shard]) -> Scaling | None:
        """Return the scaling of the features; raise where there is none, and the features would need it."""
        kind = self.recipe.data.scaling
        of_rows = RowStatistics(rows, shards, self.network.input_shape, self.group, self.exchange, self.phases)
        if kind != "none":
            return of_rows.scaling(kind)
        of_rows.check_rounding(self.network.layout.dtype)
        return None

    def _go_on_from(self, state: State) -> None:
        self.start, self.history, self.seconds = state.step, list(state.history), state.seconds
        for name, vector in self.coordinator.vectors().items():
            if name in state.vectors:
                vector[...] = state.vectors[name][self.coordinator.bounds]
        for shard, tally in self.worker.tally.items():
            tally[...] = state.tally[shard]

    @property
    def n_steps(self) -> int:
        """Steps of the whole run, if it does not stop early."""
        return self.recipe.epochs * self.partition.epoch_steps

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at ``step`` (from 0)."""
        factor = self.recipe.schedule.factor(step, self.n_steps, self.partition.epoch_steps)
        return self.recipe.optimizer.learning_rate * factor

    def step(self, step: int) -> int:
        """Do one step: rows -> worker -> partials -> tree -> coordinator -> weights; return the notice."""
        self._pass("forward", step)
        bad_shard = self.worker.compute(step)
        self._pass("exchange", step)
        notice = self.exchange.gather(step, BAD + bad_shard if bad_shard >= 0 else self.pace.due(step))
        if notice >= BAD:
            self._refuse(step, notice - BAD)
        self._pass("update", step)
        count = self.partition.count(step % self.partition.epoch_steps)
        if self.recipe.clip_norm is not None:
            self.coordinator.measure(count)
            self.exchange.gather_norms(step)
        self.coordinator.update(step, self.learning_rate(step), count)
        self._pass("commit", step)
        self.exchange.spread(step)
        return notice

    def _refuse(self, step: int, shard: int) -> None:
        """Raise the error of the worker that computes ``shard``, whose loss or gradient is not finite, on all."""
        with self.group.agreement():
            if shard in self.worker.shards["train"]:
                raise TrainingError(
                    f"expected a finite loss and gradient; that of shard {shard} at step {step} is not "
                    f"({self.worker.diagnose(shard)}), and the step was not committed; "
                    "lower the learning rate, set clip_norm, or check the data"
                )

    def _pass(self, phase: str, step: int) -> None:
        if self.fault is not None:
            self.fault.strike(phase, step, self.group.worker, self.exchange.weights)

    def train(self, watcher: Watcher | None = None) -> Outcome:
        """Train to the end; return the outcome, the same on every worker."""
        with blas_threads(self.recipe.blas_threads), np.errstate(all="ignore"):  # looked at step by step
            if self.recipe.is_synchronous:
                watcher = watcher if self.group.worker == 0 else None
                is_manned = bool(self.exchange.copies)
                with watched(watcher, self.n_steps, self.recipe.epochs), self.group.brake.manned(is_manned):
                    return self._outcome(self._epochs(watcher))
            line = self.group.push_pull(self.exchange)
            if self.group.worker == self.group.n_workers:
                self.server = ParameterServer(self, line, self.state)
            account = self.server.serve(watcher) if self.server else work(self, line)
            return self._outcome(account["history"], account["staleness"])

    def _epochs(self, watcher: Watcher | None) -> list[dict[str, Any]]:
        stopper = Stopper(self.recipe.early_stopping)
        for record in self.history:
            stopper.is_best(record)
        self.began = time.perf_counter() - self.seconds
        self.phases.reset()
        while len(self.history) < self.recipe.epochs and not stopper.is_over:
            epoch = len(self.history)
            first = epoch * self.partition.epoch_steps
            for step in range(max(self.start, first), first + self.partition.epoch_steps):
                notice = self.step(step)
                if watcher:
                    watcher.step(step)
                if notice != NOTHING:
                    self._keep(2 * step + 2, watcher, is_best=False)
                    if notice == STOP:
                        self.stop(step + 1)
                elif (step + 1) % self.protection.copy_steps == 0 and self.group.can_recover:
                    self.copy(2 * step + 2)
            seconds, self.booked = self._train_seconds(), dict(self.phases.seconds)
            self.history.append(self._record(epoch, seconds))
            self.hold_epoch(self.weights)
            if watcher:
                with self.exchange.busy():
                    watcher.epoch(self.history[-1])
            if stopper.is_best(self.history[-1]):
                self.coordinator.keep()
                self._keep(2 * (first + self.partition.epoch_steps) + 1, watcher, is_best=True)
            self.phases.last = time.perf_counter()
        if self.recipe.early_stopping:
            self.coordinator.go_back()
            self.exchange.spread(self.n_steps)
        return self.history

    def copy(self, moment: int) -> Copy | None:
        """Copy this worker's part of the state at this ``moment``; the copy is whole once all have done so.

        Raises
        ------
        DifferenceError
            Where the machines see different weights.
        """
        exchange = self.exchange
        if not exchange.copies:
            return None
        copy = exchange.copies[self.n_copies % len(exchange.copies)]
        self.n_copies += 1
        copy.begin()
        own, shards = exchange.own_elements, self.plan.shards(self.group.worker)
        copy.vectors[WEIGHTS][own] = exchange.weights[own]
        self._pass("copy", moment // 2)
        for name, vector in self.coordinator.vectors().items():
            if name in copy.vectors:
                copy.vectors[name][self.coordinator.bounds] = vector
        copy.tally[shards.start : shards.stop] = self.worker.tallies()
        exchange.complete(copy)
        copy.end(moment)
        return copy

    def _keep(self, moment: int, watcher: Watcher | None, *, is_best: bool) -> None:
        """Let the watcher have a checkpoint of the state at this ``moment``."""
        copy = self.copy(moment)
        if copy is None:
            return
        self.exchange.barrier()
        self._pass("checkpoint", moment // 2)
        if watcher and (self.protection.keeps or not is_best):
            with self.exchange.busy():
                watcher.checkpoint(self._state(copy).detached(), self.recipe, is_best=is_best)

    def _state(self, copy: Copy) -> State:
        return replace(copy.state(self.history, self._train_seconds()), arithmetic=self.arithmetic, rows=self.rows)

    def _train_seconds(self) -> float:
        return time.perf_counter() - self.began - self.phases.evaluation_s

    def states(self) -> dict[int, State]:
        """Return the states that there are whole copies of, by their moments."""
        return {copy.moment: self._state(copy) for copy in self.exchange.copies if copy.moment}

    def rescued(self) -> State | None:
        """Return the newest state that there is a whole copy of, in memory of its own; for another thread."""
        if self.server is not None:
            return self.server.rescued()
        states = self.states()
        for moment in sorted(states, reverse=True):
            state = states[moment].detached()
            if moment in self.states():  # nobody wrote there meanwhile
                return state
        return None

    def hold_epoch(self, weights: np.ndarray) -> None:
        """Remember the model with these ``weights``, those after a whole epoch, if the run is interruptible."""
        if self.protection.is_interruptible:
            self.whole = self.model(weights)

    def model(self, weights: np.ndarray) -> Model:
        """Return the model with a copy of ``weights``."""
        return Model(self.recipe, self.form, weights.copy(), self.scaling, self.arithmetic)

    def stop(self, step: int) -> None:
        """Raise StoppedError after ``step``: on all workers, or on the parameter server."""
        signal = self.group.brake.signal
        others = ", or a signal to another worker" if self.group.n_workers > 1 else ""
        cause = f"signal {signal}" if signal else f"the time limit{others}"
        error = StoppedError(f"stopped after step {step} of {self.n_steps}, by {cause}", signal)
        error.agreed = True
        if self.protection.is_interruptible:
            error.state, error.model = self.rescued(), self.whole
        raise error

    def _record(self, epoch: int, seconds: float) -> dict[str, Any]:
        """Return the line of metrics.jsonl for ``epoch``."""
        n_steps = (epoch + 1) * self.partition.epoch_steps
        tally = total(self.exchange.allgather(self.worker.take_tally()))
        record: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": n_steps,
            "train": {"loss": float(tally[0] / tally[1])},  # under the weights of each step, with dropout
            "learning_rate": self.learning_rate(n_steps - 1),
            "seconds": seconds,
            "examples_per_second": (epoch + 1) * self.partition.n_rows / seconds,
        }
        if "validation" in self.worker.shards:
            record["validation"] = self.evaluate("validation")
        return record

    def evaluate(self, part: str) -> dict[str, Any]:
        """Return the metrics of a part of the data; each row is counted once. All workers must call it."""
        with self.phases.evaluation():
            return metrics(total(self.exchange.allgather(self.worker.evaluate(part))), self.loss)

    def _outcome(self, history: list[dict[str, Any]], staleness: dict[str, Any] | None = None) -> Outcome:
        self._pass("end", history[-1]["step"])
        if not is_finite(self.weights):  # after the last step: the one after it would have told
            error = TrainingError(
                f"expected finite weights; those after the last step, {history[-1]['step'] - 1}, are not; "
                "lower the learning rate, set clip_norm, or check the data"
            )
            error.agreed = True
            raise error
        seconds = self.booked or dict(self.phases.seconds)
        model = self.model(self.weights)
        return Outcome(
            model=model,
            weights_sha256=model.sha256,
            engine=self.group.name,
            workers=self.group.n_workers,
            shards=self.plan.n_shards,
            steps=history[-1]["step"],
            epochs=len(history),
            train_seconds=history[-1]["seconds"],
            examples_per_second=history[-1]["examples_per_second"],
            history=history,
            metrics={part: self.evaluate(part) for part in self.worker.shards},
            phase_seconds=seconds | {"other": max(0.0, history[-1]["seconds"] - sum(seconds.values()))},
            staleness=staleness,
            evaluation_seconds=self.phases.evaluation_s,
            best_epoch=best_epoch(self.recipe.early_stopping, history),
            stopped_early=len(history) < self.recipe.epochs,
        )

    def _own_shards(self, dataset: Dataset, worker: int, *, has_digests: bool) -> dict[str, dict[int, Shard]]:
        """Return the rows of this worker's shards, by part and shard."""
        own, is_scaled = self.plan.shards(worker), self.recipe.data.scaling != "none"
        how = {"is_scaled": is_scaled, "has_digest": has_digests}
        return {
            part: {
                shard: make_shard(dataset.parts[part], places, self.loss, self.network, **how)
                for shard, places in zip(own, shard_places, strict=True)
            }
            for part, shard_places in places_of_shards(dataset, self.partition, own).items()
        }


def _digest(group: Group, shards: dict[str, dict[int, Shard]]) -> str:
    """Return what tells the rows of all shards from others; all workers must call it with theirs."""
    own = {f"{part} {n:09d}": shard.digest for part in shards for n, shard in shards[part].items()}
    digests: dict[str, str] = {}
    for text in group.allgather_text(json.dumps(own)):
        digests |= json.loads(text)
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _require_fit(state: State, plan: Plan, where: str) -> None:
    """Raise InputError where ``state`` cannot be of a run with this plan."""
    n_elements, n_shards = len(state.vectors[WEIGHTS]), len(state.tally)
    if (n_elements, n_shards) != (plan.n_elements, plan.n_shards):
        expected = f"a checkpoint of {counted(plan.n_elements, 'parameter')} in {counted(plan.n_shards, 'shard')}"
        given = f"one of {counted(n_elements, 'parameter')} in {counted(n_shards, 'shard')}"
        raise InputError(expected, given, "resume with the data and the recipe of the run", where)
