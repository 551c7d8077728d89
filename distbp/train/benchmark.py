"""The time of a training step, and of its matrix products alone, on the same workers in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distbp.data import Dataset, Rows
from distbp.nn import Dense, Sequential
from distbp.train.exchange import Group, Watcher
from distbp.train.pace import Protection
from distbp.train.phases import PHASES
from distbp.train.recipe import Recipe
from distbp.train.run import Run
from distbp.train.threads import blas_threads

_EPOCH_STEPS = 16
_ROUNDS = 10
PROTECTIONS = {  # copies and comparisons of the state, deadlines
    "none": (False, False, False),
    "copies": (True, False, False),
    "copies and hashing": (True, True, False),
    "deadlines": (False, False, True),
    "all": (True, True, True),
}
"""What is switched on in the parts of a round that are compared."""


def synthetic(n_rows: int, n_in: int, n_classes: int) -> Dataset:
    """Return random rows with random labels."""
    rng = np.random.default_rng(0)
    return Dataset(Rows(rng.standard_normal((n_rows, n_in), dtype=np.float32), rng.integers(0, n_classes, n_rows)))


def recipe(sizes: list[int], rows: int, optimizer: str, n_workers: int) -> Recipe:
    """Return the recipe of a classifier with ReLU between layers of ``sizes``, for ``rows`` rows a worker and step."""
    layers: list[Any] = [layer for size in sizes[1:-1] for layer in ({"dense": size}, "relu")]
    layers += [{"dense": sizes[-1]}, "softmax"]
    return Recipe.parse({"model": layers, "optimizer": optimizer, "batch_size": rows * n_workers, "epochs": 1})


def matrix_products(network: Sequential) -> list[Callable[[], object]]:
    """Return the matrix products of one step: y = x Wᵀ, dW = dyᵀ x and, but for the lowest layer, dx = dy W."""
    products: list[Callable[[], object]] = []
    for layer in network.layers:
        if isinstance(layer, Dense):
            W, dW, x, y, dx = layer.weight.W, layer.gradient.W, layer.x, layer.y, layer.dx
            products.append(partial(np.dot, x, W.T, out=y))
            products.append(partial(np.dot, y.T, x, out=dW))
            if dx is not None:
                products.append(partial(np.dot, y, W, out=dx))
    return products


@dataclass(frozen=True)
class Benchmark:
    """Time training steps and as many times their matrix products, in alternating rounds.

    Parameters
    ----------
    sizes:
        Of the layers, from input to output.
    rows:
        Per worker and step.
    optimizer:
        As in a recipe.
    n_steps:
        How many steps to time.
    with_protection:
        Whether to time as many steps with each of ``PROTECTIONS``, too.
    """

    sizes: list[int]
    rows: int
    optimizer: str
    n_steps: int
    with_protection: bool = False

    def perform(self, group: Group, watcher: Watcher | None = None) -> dict[str, Any]:
        """Return the figures.

        Medians over steps, then means over workers: ``ms_per_step``, ``matmul_ms_per_step``, their ratio
        ``efficiency``, ``examples_per_second``, ``phases_ms``; ``memory_bytes``: what a worker has for itself, what the
        workers of a machine share, and how much of that is weights. ``protection`` has, for each of ``PROTECTIONS``,
        the time of as many steps as lie between two copies, as a ratio to that with none: the median over rounds.
        """
        return _benchmark(self, group)


def _benchmark(job: Benchmark, group: Group) -> dict[str, Any]:
    sizes, rows, optimizer, n_steps = job.sizes, job.rows, job.optimizer, job.n_steps
    n_workers = group.n_workers
    dataset = synthetic(rows * n_workers * _EPOCH_STEPS, sizes[0], sizes[-1])
    run = Run(recipe(sizes, rows, optimizer, n_workers), dataset, group, Protection() if job.with_protection else None)
    del dataset
    n_own = len(run.plan.shards(group.worker))
    steps, products_s, phases = [], [], []
    blocks_s: dict[str, list[float]] = {name: [] for name in PROTECTIONS}
    step = 0

    def timed_step() -> float:
        nonlocal step
        run.phases.reset()
        started = time.perf_counter()
        run.step(step)
        step += 1
        return time.perf_counter() - started

    def timed_block(copies: bool, compares: bool, watches: bool) -> float:
        run.exchange.compares = compares
        run.exchange.watch(watches)
        run.exchange.barrier()
        started = time.perf_counter()
        for _ in range(run.protection.copy_steps):
            timed_step()
        if copies:
            run.copy(2 * step)
        seconds = time.perf_counter() - started
        run.exchange.watch(True)
        return seconds

    with blas_threads(run.recipe.blas_threads):
        for _ in range(5):
            timed_step()
        products = matrix_products(run.network)
        per_round = -(-n_steps // _ROUNDS)
        for _ in range(_ROUNDS):
            run.exchange.barrier()  # start together
            timed_step()
            for _ in range(per_round):
                steps.append(timed_step())
                phases.append([run.phases.seconds[phase] for phase in PHASES])
            run.exchange.barrier()
            for i in range(per_round + 1):
                started = time.perf_counter()
                for product in products:
                    product()
                if i:
                    products_s.append(time.perf_counter() - started)
                run.phases.lap("forward")  # whoever watches sees that this worker is not stuck
        if job.with_protection:
            for i in range(1 + max(1, n_steps // run.protection.copy_steps)):
                names = list(PROTECTIONS)
                for name in names[i % len(names) :] + names[: i % len(names)]:  # nobody is always the first
                    seconds = timed_block(*PROTECTIONS[name])
                    if i:
                        blocks_s[name].append(seconds)
    ratios = {name: float(np.median(np.array(own) / blocks_s["none"])) for name, own in blocks_s.items() if own}
    medians = [np.median(steps), np.median(products_s)]
    own = [*medians, *np.median(np.array(phases), axis=0), group.private_bytes()]
    over_workers = run.exchange.allgather(np.tile(np.array(own), (n_own, 1)))
    mean = over_workers.mean(axis=0)
    return {
        "layers": sizes,
        "rows_per_worker": rows,
        "optimizer": optimizer,
        "engine": group.name,
        "workers": n_workers,
        "steps": len(steps),
        "ms_per_step": 1e3 * mean[0],
        "matmul_ms_per_step": 1e3 * mean[1],
        "efficiency": mean[1] / mean[0],
        "examples_per_second": rows * n_workers / mean[0],
        "phases_ms": {phase: 1e3 * mean[2 + i] for i, phase in enumerate(PHASES)},
        "protection": ratios,
        "memory_bytes": {
            "per_worker": int(over_workers[:, -1].max()),
            "shared_per_machine": run.exchange.shared_bytes,
            "weights": run.exchange.weights.nbytes,
        },
    }
