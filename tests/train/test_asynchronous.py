"""The parameter server's program with workers that are played: who is answered when, what is made of the pushes."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp import Recipe, Trainer, nn
from distbp.data import Partition
from distbp.errors import InputError
from distbp.nn import aligned_zeros
from distbp.train.asynchronous import ParameterServer
from distbp.train.exchange import PushPull
from distbp.train.pace import Brake, Pace, Protection
from distbp.train.phases import Phases
from distbp.train.plan import Plan

RATE = 0.5


class Played(PushPull):
    """Workers that push ``gradient(worker)``; who comes next is chosen by ``choose`` among those with an order."""

    def __init__(self, n_workers, choose, gradient, rows=4, validation_losses=None):
        self.orders = dict.fromkeys(range(n_workers), "start")
        self.choose, self.gradient, self.rows = choose, gradient, rows
        self.validation_losses = validation_losses
        self.evaluated = [0] * n_workers
        self.steps = [0] * n_workers
        self.leads, self.pulled, self.ends = [], [], []

    def push(self, report, gradient, weights):
        raise NotImplementedError

    def receive(self, gradient, patience):
        assert self.orders, "all workers wait for ever"
        worker = self.choose(sorted(self.orders))
        kind = self.orders.pop(worker)
        if kind == "start":
            return worker, {"kind": "start"}
        if kind == "evaluate":
            loss = self.validation_losses[self.evaluated[worker]]
            self.evaluated[worker] += 1
            return worker, {"kind": "tally", "tally": [10.0 * loss, 10.0, 5.0]}
        gradient[...] = self.gradient(worker)
        self.steps[worker] += 1
        return worker, {"kind": "gradient", "tally": [1.0, self.rows, 0.0]}

    def answer(self, worker, order, weights):
        if order["kind"] == "end":
            self.ends.append((order, weights.copy()))
            return
        if order["kind"] == "step":
            assert order["step"] == self.steps[worker]
            self.leads.append(self.steps[worker] - min(self.steps))
            self.pulled.append((worker, weights.copy()))
        self.orders[worker] = order["kind"]


def server(
    line, n_workers, mode, *, epochs=1, n_rows=16, validation=False, checkpoint_steps=None, state=None, **changes
):
    recipe = Recipe.parse(
        {"model": [{"dense": {"units": 2, "bias": False}}], "loss": "squared_error", "optimizer": {"sgd": RATE}}
        | {"mode": mode, "batch_size": 8, "epochs": epochs, "shards": n_workers}
        | changes
    )
    protection = Protection(checkpoint_steps)
    network = recipe.network()
    layout = network.build((3,), np.dtype(np.float32))
    plan = Plan(recipe.shards, (n_workers + 1,), layout.size, 0, has_server=True)
    weights = aligned_zeros(layout.size, layout.dtype)
    if state is not None:
        weights[...] = state.vectors["weights"]
    run = SimpleNamespace(
        recipe=recipe,
        network=network,
        plan=plan,
        partition=Partition(n_rows, recipe.shards, 8, 0),
        weights=weights,
        hold_epoch=lambda _: None,
        arithmetic=(),
        rows="",
        exchange=SimpleNamespace(norms=np.zeros(plan.n_blocks)),
        phases=Phases(),
        group=SimpleNamespace(n_workers=n_workers),
        worker=SimpleNamespace(shards={"train": {}, "validation": {}} if validation else {"train": {}}),
        loss=recipe.loss_function(),
        n_steps=2 * epochs,
        learning_rate=lambda _: RATE,
        protection=protection,
        pace=Pace(protection, Brake(), leads=True),
    )
    return run, ParameterServer(run, line, state)


def test_every_gradient_is_an_update_of_the_newest_weights_by_the_mean_of_its_rows():
    """Worker 0 pushes three times while worker 1 computes from the weights of the start: its staleness is 3."""
    script = iter([0, 1, 0, 0, 0, 1, 0])
    line = Played(2, lambda _: next(script), lambda worker: 1.0 + worker)
    run, program = server(line, 2, "asynchronous")  # 2 steps of 2 workers: 4 pushes
    account = program.serve(None)
    np.testing.assert_array_equal(run.weights, -RATE * (3 * 1.0 + 2.0) / 4)
    assert account["staleness"] == {"mean": 0.75, "max": 3, "largest_lead": 3, "steps_of_workers": [4, 1]}
    assert [w.tobytes() for _, w in line.ends] == [run.weights.tobytes()] * 2


def test_a_gradient_that_comes_when_the_run_is_over_is_not_applied():
    script = iter([0, 1, 0, 0, 0, 0, 1])
    line = Played(2, lambda _: next(script), lambda worker: 1.0 + 100.0 * worker)
    run, program = server(line, 2, "asynchronous")
    account = program.serve(None)
    np.testing.assert_array_equal(run.weights, -RATE * 4 / 4)
    assert account["staleness"]["max"] == 0


@settings(deadline=None, max_examples=80)
@given(
    n_workers=st.integers(1, 5),
    mode=st.sampled_from([{"bounded": 0}, {"bounded": 1}, {"bounded": 5}, "asynchronous"]),
    epochs=st.integers(1, 4),
    validation=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_nobody_is_further_ahead_than_the_bound_and_every_run_ends(n_workers, mode, epochs, validation, seed):
    rng = random.Random(seed)
    weights = [rng.random() ** 3 + 0.01 for _ in range(n_workers)]  # some are slow

    def choose(candidates):
        return rng.choices(candidates, [weights[worker] for worker in candidates])[0]

    line = Played(n_workers, choose, lambda _: 0.0, validation_losses=[1.0] * epochs)
    run, program = server(line, n_workers, mode, epochs=epochs, validation=validation)
    account = program.serve(None)
    assert len(line.ends) == n_workers
    assert max(line.leads) <= run.recipe.mode.lead
    assert account["staleness"]["largest_lead"] == max(line.leads)
    assert program.ledger.pushes == 2 * epochs * n_workers
    assert [record["epoch"] for record in account["history"]] == list(range(1, epochs + 1))
    assert line.evaluated == [epochs if validation else 0] * n_workers


class Keeper:
    """A watcher that keeps all checkpoints but the best ones, and how many workers were under way at each."""

    def __init__(self, line):
        self.line, self.states = line, []

    def begin(self, n_steps, n_epochs):
        pass

    def step(self, step):
        pass

    def epoch(self, record):
        pass

    def checkpoint(self, state, recipe, *, is_best):
        if not is_best:
            self.states.append((state, len(self.line.orders)))

    def end(self):
        pass


@settings(deadline=None, max_examples=60)
@given(
    n_workers=st.integers(1, 4),
    n_others=st.integers(1, 4),
    mode=st.sampled_from([{"bounded": 1}, "asynchronous"]),
    validation=st.booleans(),
    every=st.integers(1, 9),
    seed=st.integers(0, 1 << 20),
)
def test_every_checkpoint_is_of_all_pushes_and_any_number_of_workers_goes_on_from_it(
    n_workers, n_others, mode, validation, every, seed
):
    rng = random.Random(seed)
    epochs = 3

    def played(workers):
        return Played(workers, rng.choice, lambda _: 1.0, validation_losses=[1.0] * epochs)

    line = played(n_workers)
    keeper = Keeper(line)
    options = {"epochs": epochs, "validation": validation, "shards": 12, "n_rows": 16}
    _, program = server(line, n_workers, mode, checkpoint_steps=every, **options)
    whole = program.serve(keeper)
    assert bool(keeper.states) == (every < 2 * epochs)
    for state, n_under_way in keeper.states:
        assert n_under_way == 0
        assert sum(state.ledger.steps_of_workers) == state.ledger.pushes
        assert state.step == state.ledger.pushes // n_workers >= every
        for workers in (n_workers, n_others):
            line = played(workers)
            line.evaluated = [len(state.history)] * workers
            line.steps = [state.step] * workers if workers != n_workers else list(state.ledger.steps_of_workers)
            run, program = server(line, workers, mode, state=state, **options)
            account = program.serve(None)
            assert [r["epoch"] for r in account["history"]] == [r["epoch"] for r in whole["history"]]
            assert account["history"][: len(state.history)] == state.history
            n_pushes = state.ledger.pushes + program.n_pushes - state.ledger.pushes * workers // n_workers
            np.testing.assert_array_equal(run.weights, -RATE * n_pushes / 4)
            if workers == n_workers:
                tallies = ("train", "learning_rate", "epoch", "step")
                assert [{k: r[k] for k in tallies} for r in account["history"]] == [
                    {k: r[k] for k in tallies} for r in whole["history"]
                ]


def test_stopping_early_gives_the_best_weights_back():
    line = Played(1, lambda _: 0, lambda _: 1.0, validation_losses=[3.0, 1.0, 2.0, 2.0, 0.0])
    stopping = {"early_stopping": {"patience": 2}}
    run, program = server(line, 1, "asynchronous", epochs=5, validation=True, **stopping)
    account = program.serve(None)
    assert [record["validation"]["loss"] for record in account["history"]] == [3.0, 1.0, 2.0, 2.0]
    np.testing.assert_array_equal(run.weights, -RATE * 4 / 4)  # of epoch 2: four pushes


def test_only_an_engine_with_a_parameter_server_can_do_without_waiting():
    trainer = Trainer([nn.Dense(2), nn.Softmax()], mode="asynchronous", engine="local")
    with pytest.raises(InputError, match=r"the mode asynchronous with the engine local; use --engine ray"):
        trainer.fit(np.zeros((8, 3)), np.zeros(8))
