"""Time a training step of distbp and of its peers on the same shapes, alternating in one run.

Run as: scripts/bench-peers [--rounds 5] [--only 784,128,10] [--peer JAX scikit-learn] [--against CHECKOUT]

Every peer is run as its users run it, on both cores, in its best usual setting; where a peer has two of these, both are
measured and the faster one counts. Each measurement is a process (or two) of its own; every round takes all of them in
turn. Printed is a Markdown table of medians over rounds, with the setting that was faster and the ratio to distbp:
below 1, the peer is faster. distbp and scikit-learn fetch the rows of every step; PyTorch and JAX are given one batch
again and again. With --against, `distbp bench` of another checkout is measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

WORKERS = 2
HERE = Path(__file__).resolve().parents[1]
Figures = dict[str, float]


class Shape(NamedTuple):
    """A network and its training step: units from input to output, rows a worker, steps to time."""

    sizes: list[int]
    rows: int
    n_steps: int

    def __str__(self) -> str:
        return ",".join(map(str, self.sizes))


SHAPES = [
    Shape([64, 32, 10], 32, 400),
    Shape([784, 128, 10], 64, 300),
    Shape([784, 512, 512, 10], 128, 150),
    Shape([784, 1024, 1024, 10], 256, 50),
    Shape([1024, 2048, 2048, 2048, 1000], 256, 15),
]


def median_ms(step: Callable[[], object], n_steps: int) -> float:
    """Return the median milliseconds of ``step()``, after a fifth as many to warm up."""
    times = []
    for i in range(n_steps + n_steps // 5 + 2):
        started = time.perf_counter()
        step()
        if i >= n_steps // 5 + 2:
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def distbp(shape: Shape, engine: str, checkout: str = str(HERE)) -> Figures:
    """Time `distbp bench` of a checkout: a process a worker, one thread each."""
    options = ["--layers", str(shape), "--batch", str(shape.rows), "--steps", str(shape.n_steps)]
    command = [sys.executable, "-m", "distbp", "bench", "--optimizer", "adam", "--workers", str(WORKERS), *options]
    done = subprocess.run(
        [*command, "--engine", engine, "--json"],
        cwd=checkout,  # where `python -m` looks first
        env=os.environ | {"PYTHONPATH": checkout},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    figures = json.loads(done.stdout)
    return {"ms": figures["ms_per_step"], "efficiency": figures["efficiency"]}


def torch_step(model: Any, shape: Shape, n_rows: int, setting: str) -> Callable[[], object]:
    """Return a training step of PyTorch with fused Adam; ``compiled``: model and loss go through torch.compile."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    cross_entropy = torch.nn.CrossEntropyLoss()
    x, y = torch.randn(n_rows, shape.sizes[0]), torch.randint(0, shape.sizes[-1], (n_rows,))

    def loss() -> Any:
        return cross_entropy(model(x), y)

    if setting == "compiled":
        loss = torch.compile(loss)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def torch_model(shape: Shape) -> Any:
    from torch import nn

    return nn.Sequential(*[m for a, b in itertools.pairwise(shape.sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1])


def torch_one_process(shape: Shape, setting: str) -> Figures:
    """PyTorch in one process, with a thread a core and the rows of all workers in one batch."""
    import torch

    torch.set_num_threads(WORKERS)
    return {"ms": median_ms(torch_step(torch_model(shape), shape, shape.rows * WORKERS, setting), shape.n_steps)}


def torch_ddp(shape: Shape, setting: str) -> Figures:
    """PyTorch's DistributedDataParallel with gloo: a process a worker, one thread each."""
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_ddp_worker, (shape, setting, port, results), WORKERS)
    return {"ms": statistics.mean(results.get() for _ in range(WORKERS))}


def _ddp_worker(rank: int, shape: Shape, setting: str, port: int, results: Any) -> None:
    import torch
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORKERS)
    step = torch_step(DistributedDataParallel(torch_model(shape)), shape, shape.rows, setting)
    results.put(median_ms(step, shape.n_steps))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def ray_train(shape: Shape, setting: str) -> Figures:
    """TorchTrainer on two workers of a Ray of its own: DDP with gloo, one thread a worker."""
    import logging
    import tempfile

    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    make_model, make_step, time_step = torch_model, torch_step, median_ms  # by value: this file is no module there

    def loop() -> None:
        import torch
        from ray.train.torch import prepare_model

        torch.set_num_threads(1)
        ms = time_step(make_step(prepare_model(make_model(shape)), shape, shape.rows, setting), shape.n_steps)
        Path(folder, str(ray.train.get_context().get_world_rank())).write_text(str(ms))

    ray.init(
        address="local", num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            loop,
            scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
            run_config=ray.train.RunConfig(storage_path=folder),
        )
        trainer.fit()
        ms = [float(Path(folder, str(rank)).read_text()) for rank in range(WORKERS)]
    ray.shutdown()
    return {"ms": statistics.mean(ms)}


def jax_jitted(shape: Shape, _: str) -> Figures:
    """JAX in one process: the whole step compiled, threads as XLA takes them, the rows of all workers in one batch."""
    import jax
    import jax.numpy as jnp
    import optax

    key = jax.random.PRNGKey(0)
    he = jax.nn.initializers.he_normal()
    weights = [(he(key, (a, b)), jnp.zeros(b)) for a, b in itertools.pairwise(shape.sizes)]
    x = jax.random.normal(key, (shape.rows * WORKERS, shape.sizes[0]))
    y = jax.random.randint(key, (shape.rows * WORKERS,), 0, shape.sizes[-1])
    optimizer = optax.adam(1e-3)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        h = x
        for W, b in weights[:-1]:
            h = jax.nn.relu(h @ W + b)
        z = h @ weights[-1][0] + weights[-1][1]
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    def update(weights: Any, state: Any, x: Any, y: Any) -> Any:
        changes, state = optimizer.update(jax.grad(loss)(weights, x, y), state)
        return optax.apply_updates(weights, changes), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    held = [weights, optimizer.init(weights)]

    def step() -> None:
        held[:] = compiled(*held, x, y)
        jax.block_until_ready(held)

    return {"ms": median_ms(step, shape.n_steps)}


def scikit_learn(shape: Shape, _: str) -> Figures:
    """A whole fit of scikit-learn in one process, threads as its BLAS takes them: its time over its steps."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore", ConvergenceWarning)  # it shall make all its epochs
    batch_size, n_batches = shape.rows * WORKERS, 16
    n_epochs = max(5, 2 * shape.n_steps // n_batches)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_batches * batch_size, shape.sizes[0]), dtype=np.float32)
    y = rng.integers(0, shape.sizes[-1], len(x))
    options = {"hidden_layer_sizes": shape.sizes[1:-1], "batch_size": batch_size, "n_iter_no_change": n_epochs}
    MLPClassifier(max_iter=1, **options).fit(x, y)
    model = MLPClassifier(max_iter=n_epochs, **options)
    started = time.perf_counter()
    model.fit(x, y)
    assert model.n_iter_ == n_epochs
    return {"ms": 1e3 * (time.perf_counter() - started) / (n_epochs * n_batches)}


class Peer(NamedTuple):
    """Who is measured: the function, the packages that it needs, its settings, of which the fastest counts."""

    measure: Callable[[Shape, str], Figures]
    packages: list[str]
    settings: list[str]


TORCH = ["eager", "compiled"] if shutil.which("c++") else ["eager"]  # torch.compile needs a compiler
PEERS = {
    "distbp": Peer(distbp, ["mpi4py"], ["mpi"]),
    "distbp on Ray": Peer(distbp, ["ray"], ["ray"]),
    "PyTorch DDP": Peer(torch_ddp, ["torch"], TORCH),
    "PyTorch, one process": Peer(torch_one_process, ["torch"], TORCH),
    "Ray Train": Peer(ray_train, ["ray", "pyarrow", "torch"], ["eager"]),
    "JAX": Peer(jax_jitted, ["jax", "optax"], ["jitted"]),
    "scikit-learn": Peer(scikit_learn, ["sklearn"], ["fit"]),
}


def with_checkout(peers: dict[str, Peer], checkout: str | None) -> dict[str, Peer]:
    """Return ``peers``, and beside each way of running distbp the same with another checkout."""
    found = {}
    for name, peer in peers.items():
        found[name] = peer
        if checkout and peer.measure is distbp:
            found[f"{name}, other checkout"] = peer._replace(measure=partial(distbp, checkout=checkout))
    return found


def installed(names: list[str]) -> dict[str, Peer]:
    """Return those peers of ``PEERS`` that can run here, and say why the others cannot."""
    found = {}
    for name in names:
        missing = [package for package in PEERS[name].packages if not importlib.util.find_spec(package)]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} not installed", file=sys.stderr)
        else:
            found[name] = PEERS[name]
    return found


def measure(name: str, setting: str, shape: Shape, checkout: str | None) -> Figures:
    """Measure in a process of its own, with no number of threads in its environment: each peer chooses for itself."""
    command = [sys.executable, __file__, "--one", json.dumps([name, setting, *shape])]
    command += ["--against", checkout] if checkout else []
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ({setting}) failed on {shape}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rounds: list[dict[tuple[str, str], Figures]], key: str) -> dict[tuple[str, str], float]:
    """Return the median over rounds of the figure ``key`` for each peer and setting."""
    return {each: statistics.median(r[each][key] for r in rounds) for each in rounds[0] if key in rounds[0][each]}


def row(shape: Shape, peers: dict[str, Peer], rounds: list[dict[tuple[str, str], Figures]]) -> str:
    """Return the row of the table for ``shape``."""
    ms = medians(rounds, "ms")
    ours = ms["distbp", "mpi"]
    cells = [str(shape).replace(",", "-"), str(shape.rows)]
    for name, peer in peers.items():
        best = min(peer.settings, key=lambda setting, name=name: ms[name, setting])
        cell = f"{ms[name, best]:.3g} ms"
        if name != "distbp":
            cell += f" ({ms[name, best] / ours:.2g} x{f', {best}' if len(peer.settings) > 1 else ''})"
        cells.append(cell)
        if name == "distbp":
            cells.append(f"{medians(rounds, 'efficiency')['distbp', 'mpi']:.0%}".replace("%", " %"))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", metavar="SHAPE", help="one of the shapes, as in 784,128,10")
    parser.add_argument(
        "--peer", nargs="+", choices=PEERS, default=list(PEERS), help="these beside distbp, instead of all"
    )
    parser.add_argument("--steps", type=int, help="to time, instead of as many as suit the shape: for a quick look")
    parser.add_argument("--against", metavar="CHECKOUT", help="a folder with another distbp, to be measured as well")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkout = options.against and str(Path(options.against).resolve(strict=True))
    if options.one:
        name, setting, *shape = options.one
        print(json.dumps(with_checkout(PEERS, checkout)[name].measure(Shape(*shape), setting)))
        return
    names = [name for name in PEERS if name in options.peer or name == "distbp"]  # the others are compared with distbp
    peers = with_checkout(installed(names), checkout)
    heads = ["layers", "rows", *peers]
    heads.insert(3, "of it matrix products")
    print(f"Medians of {options.rounds} rounds; rows: of each of {WORKERS} workers; x: times the step of distbp\n")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for shape in SHAPES:
        if options.only and str(shape) not in options.only:
            continue
        timed = shape._replace(n_steps=options.steps or shape.n_steps)
        each = [(name, setting) for name, peer in peers.items() for setting in peer.settings]
        rounds = [{one: measure(*one, timed, checkout) for one in each} for _ in range(options.rounds)]
        print(row(shape, peers, rounds), flush=True)


if __name__ == "__main__":
    main()
