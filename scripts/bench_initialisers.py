"""Compare initialisers by the test errors of the networks that they begin, over tasks, activations and depths.

Run as: python scripts/bench_initialisers.py [--jobs 2] [--training cosine] [--results FILE.jsonl], with distbp[peers]:
scikit-learn makes one of the tables. It takes a quarter of an hour on one core; with --results it goes on where it was
interrupted.

Every network is trained by Adam in one of two usual ways. Printed are, as Markdown, the mean test errors over seeds as
ratios to the median of all rules: geometric means over the networks of each task and over all, the worst network, and
the mean rank; less is better.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distbp import Trainer, load, nn, optim

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rows and targets to train on, rows and targets to test."""


class Rule(NamedTuple):
    """What draws the weights of the first, the other hidden and the last layer, and biases; None: distbp's default.

    Hidden layers "by activation": he_normal before ReLU and its like, glorot_uniform else.
    """

    first: str | None
    hidden: str | None
    output: str | None
    bias: str | None


def everywhere(init: str, bias: str = "zeros") -> Rule:
    return Rule(init, init, init, bias)


INITS = ["glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "torch_uniform"]
RULES = {
    **{init: everywhere(init) for init in INITS},
    **{f"{init}, random biases": everywhere(init, "torch_uniform") for init in INITS},
    "torch_uniform, larger random biases": everywhere("torch_uniform", "lecun_uniform"),
    "glorot_uniform, last torch_uniform, larger random biases": Rule(
        "glorot_uniform", "glorot_uniform", "torch_uniform", "lecun_uniform"
    ),
    "by activation": Rule("by activation", "by activation", "glorot_uniform", "zeros"),
    "default": Rule(None, None, None, None),
}
"""PyTorch's default is torch_uniform with random biases (U(-1/√n_in, 1/√n_in)), Keras' is glorot_uniform; the larger
random biases are lecun_uniform. "by activation" was the default of distbp: he_normal before ReLU and its like."""


class Fit(NamedTuple):
    """How a task is trained: rows a step, epochs, units of the hidden layers."""

    batch_size: int
    epochs: int
    units: int


TRAINING = {"constant": (optim.Adam(0.001), "constant"), "cosine": (optim.Adam(0.003), "cosine")}
"""The optimizer and the schedule of its learning rate."""


def regression(n_rows: int, n_in: int, f: Callable[[np.ndarray], np.ndarray], noise: float = 0.0) -> Split:
    """Return uniform rows in (-1, 1) with the targets ``f(rows)``, which get mean 0, variance 1 and then noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (n_rows + 5000, n_in))
    y = f(x).reshape(len(x), -1)
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    y[:n_rows] += noise * rng.standard_normal((n_rows, y.shape[1]))
    return x[:n_rows], y[:n_rows], x[n_rows:], y[n_rows:]


def surrogate() -> Split:
    """Three smooth functions of eight inputs, targets as they are."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (25_000, 8))
    y = np.stack([np.sin(3 * x[:, 0]) * x[:, 1], x[:, 2] ** 2 - x[:, 3], np.exp(-(x[:, 4] ** 2)) * x[:, 5]], axis=1)
    return x[:20_000], y[:20_000], x[20_000:], y[20_000:]


def wave() -> Split:
    """Two waves of one input, with noise."""
    return regression(2000, 1, lambda x: np.sin(6 * x) + 0.5 * np.cos(15 * x), noise=0.1)


def friedman() -> Split:
    """Friedman's first function (Annals of Statistics, 1991): five of ten inputs matter; with noise."""

    def f(x: np.ndarray) -> np.ndarray:
        u = (x + 1) / 2
        return 10 * np.sin(np.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]

    return regression(4000, 10, f, noise=0.2)


def borehole() -> Split:
    """Flow through a borehole (Harper and Gupta, 1983): eight inputs, the first matters most."""
    low = np.array([0.05, 100, 63070, 990, 63.1, 700, 1120, 9855])
    high = np.array([0.15, 50000, 115600, 1110, 116, 820, 1680, 12045])

    def f(x: np.ndarray) -> np.ndarray:
        rw, r, tu, hu, tl, hl, length, kw = (low + (high - low) * (x + 1) / 2).T
        log = np.log(r / rw)
        return 2 * np.pi * tu * (hu - hl) / (log * (1 + 2 * length * tu / (log * rw**2 * kw) + tu / tl))

    return regression(8000, 8, f)


def arm() -> Split:
    """Where a robot's arm of eight links ends, from its eight angles (after the data set kin8nm)."""

    def f(x: np.ndarray) -> np.ndarray:
        angles = np.cumsum(x, axis=1)
        return np.stack([np.cos(angles).sum(axis=1), np.sin(angles).sum(axis=1)], axis=1)

    return regression(8000, 8, f)


def spirals() -> Split:
    """Three spirals in the plane, one and a half turns each."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 9000)
    radius = np.sqrt(rng.uniform(0.01, 1, 9000))
    angle = 3 * np.pi * radius + 2 * np.pi * label / 3 + rng.normal(0, 0.45, 9000)
    x = 1.7 * np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return x[:4000], label[:4000], x[4000:], label[4000:]


def clusters() -> Split:
    """Ten classes of three clusters each in twenty features, of which twelve inform (after Guyon's Madelon)."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        10_000, 20, n_informative=12, n_redundant=4, n_classes=10, n_clusters_per_class=3, class_sep=1.5, random_state=0
    )
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x[:5000], y[:5000], x[5000:], y[5000:]


def digits() -> Split:
    data = load("digits")
    assert data.test is not None
    return data.train.x[:], data.train.y[:], data.test.x[:], data.test.y[:]


TASKS: dict[str, tuple[Callable[[], Split], str, Fit]] = {
    "surrogate": (surrogate, "none", Fit(64, 8, 64)),
    "wave": (wave, "none", Fit(32, 40, 64)),
    "friedman": (friedman, "standard", Fit(32, 16, 64)),
    "borehole": (borehole, "none", Fit(64, 20, 64)),
    "arm": (arm, "none", Fit(64, 20, 64)),
    "spirals": (spirals, "standard", Fit(32, 20, 64)),
    "clusters": (clusters, "none", Fit(64, 15, 64)),
    "digits": (digits, "standard", Fit(32, 15, 64)),
}
"""The table, the scaling of its features, the training."""

ACTIVATIONS: dict[str, type[nn.Layer]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
CELLS = [
    ("surrogate", "relu", 2),
    ("surrogate", "gelu", 4),
    ("wave", "relu", 2),
    ("wave", "tanh", 4),
    ("friedman", "relu", 4),
    ("friedman", "tanh", 2),
    ("borehole", "relu", 4),
    ("borehole", "gelu", 2),
    ("arm", "relu", 2),
    ("arm", "tanh", 4),
    ("spirals", "relu", 4),
    ("spirals", "gelu", 2),
    ("clusters", "relu", 2),
    ("clusters", "tanh", 4),
    ("digits", "relu", 4),
    ("digits", "gelu", 2),
]
"""Task, activation, number of hidden layers."""

Cell = tuple[str, str, int]


@cache
def table(task: str) -> Split:
    return TASKS[task][0]()


def dense(units: int, init: str | None, bias_init: str | None, activation: str) -> nn.Dense:
    """Return a layer whose initialisers are those of a rule."""
    if init == "by activation":
        init = "glorot_uniform" if activation == "tanh" else "he_normal"
    return nn.Dense(units, init) if bias_init is None else nn.Dense(units, init, bias_init=bias_init)


def network(rule: Rule, activation: str, n_hidden: int, units: int, n_out: int) -> list[nn.Layer]:
    """Return the hidden layers and the output, initialised by ``rule``."""
    layers: list[nn.Layer] = []
    for init in [rule.first, *[rule.hidden] * (n_hidden - 1)]:
        layers += [dense(units, init, rule.bias, activation), ACTIVATIONS[activation]()]
    return [*layers, dense(n_out, rule.output, rule.bias, activation)]


def error(rule: Rule, cell: Cell, training: str, seed: int) -> float:
    """Return the test error: of a regression the root of the mean square, of a classifier the share of wrong rows."""
    task, activation, n_hidden = cell
    _, scaling, fit = TASKS[task]
    x, y, test_x, test_y = table(task)
    is_class = y.ndim == 1
    optimizer, schedule = TRAINING[training]
    trainer = Trainer(
        network(rule, activation, n_hidden, fit.units, int(y.max()) + 1 if is_class else y.shape[1]),
        engine="local",
        loss="categorical_cross_entropy" if is_class else "squared_error",
        optimizer=optimizer,
        schedule=schedule,
        scaling=scaling,
        batch_size=fit.batch_size,
        epochs=fit.epochs,
        seed=seed,
        shards=1,
    )
    trainer.fit(x, y)
    output = trainer.predict(test_x)
    if is_class:
        return float(np.mean(output.argmax(axis=1) != test_y))
    return float(np.sqrt(np.mean(((output - test_y) / test_y.std(axis=0)) ** 2)))


Job = tuple[str, Cell, str, int]
"""Name of the rule, cell, training, seed."""


def run(job: Job) -> tuple[Job, float]:
    name, cell, training, seed = job
    return job, error(RULES[name], cell, training, seed)


def run_all(jobs: list[Job], n_processes: int, file: Path | None) -> dict[Job, float]:
    """Return the errors of all jobs; those that ``file`` has are not computed again, the others are added to it."""
    found: dict[Job, float] = {}
    if file and file.exists():
        for line in file.read_text().splitlines():
            (name, cell, training, seed), value = json.loads(line)
            found[name, tuple(cell), training, seed] = value
    with multiprocessing.Pool(n_processes) as pool:
        for job, value in pool.imap_unordered(run, [job for job in jobs if job not in found]):
            found[job] = value
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps([job, value]) + "\n")
    return found


def judge(errors: dict[Job, float], training: str, seeds: range) -> dict[str, dict[Cell, float]]:
    """Return for each rule and cell the mean error, as a ratio to the median of all rules."""
    means = {
        name: {cell: statistics.mean(errors[name, cell, training, seed] for seed in seeds) for cell in CELLS}
        for name in RULES
    }
    medians = {cell: statistics.median(own[cell] for own in means.values()) for cell in CELLS}
    return {name: {cell: own[cell] / medians[cell] for cell in CELLS} for name, own in means.items()}


def geometric_mean(ratios: Iterable[float]) -> float:
    return math.exp(statistics.mean(map(math.log, ratios)))


def rank(judged: dict[str, dict[Cell, float]], name: str) -> float:
    """Return the mean place of a rule among all, over the cells; 1 is the best."""
    return statistics.mean(1 + sum(own[cell] < judged[name][cell] for own in judged.values()) for cell in CELLS)


def print_table(judged: dict[str, dict[Cell, float]]) -> None:
    print(f"| weights and biases | all | worst | rank | {' | '.join(TASKS)} |\n|{' --- |' * (4 + len(TASKS))}")
    for name in sorted(judged, key=lambda name: geometric_mean(judged[name].values())):
        own = judged[name]
        tasks = [geometric_mean(own[cell] for cell in CELLS if cell[0] == task) for task in TASKS]
        cells = [geometric_mean(own.values()), max(own.values())]
        print(
            f"| {name} | {cells[0]:.2f} | {cells[1]:.2f} | {rank(judged, name):.1f} | "
            f"{' | '.join(f'{ratio:.2f}' for ratio in tasks)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes that train at the same time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--training", choices=TRAINING, default="constant", help="of the learning rate")
    parser.add_argument("--results", type=Path, help="a file to which errors are added, and from which they are taken")
    options = parser.parse_args()
    seeds = range(options.seeds)
    jobs = list(itertools.product(RULES, CELLS, [options.training], seeds))
    errors = run_all(jobs, options.jobs, options.results)
    print_table(judge(errors, options.training, seeds))


if __name__ == "__main__":
    main()
