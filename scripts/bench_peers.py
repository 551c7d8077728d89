"""Time a training step of distbp and of its peers on the same shapes, alternating in one run.

Run by scripts/bench-peers. Each measurement is a process (or two) of its own, one BLAS thread a worker; every round
takes all of them in turn. Printed are the medians over rounds of the median milliseconds per step, and their ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = [
    ("64,32,10", 32, 400),
    ("784,128,10", 64, 300),
    ("784,512,512,10", 128, 150),
    ("784,1024,1024,10", 256, 50),
    ("1024,2048,2048,2048,1000", 256, 15),
]
WORKERS = 2


def median_ms(step, n_steps: int) -> float:
    """Return the median milliseconds of ``step()``, after a fifth as many to warm up."""
    times = []
    for i in range(n_steps + n_steps // 5 + 2):
        started = time.perf_counter()
        step()
        if i >= n_steps // 5 + 2:
            times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def distbp(layers: str, rows: int, n_steps: int, engine: str = "mpi") -> dict[str, float]:
    options = ["--layers", layers, "--batch", str(rows), "--steps", str(n_steps), "--workers", str(WORKERS), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "distbp", "bench", "--optimizer", "adam", "--engine", engine, *options],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    figures = json.loads(done.stdout)
    return {"ms": figures["ms_per_step"], "efficiency": figures["efficiency"]}


def distbp_on_ray(layers: str, rows: int, n_steps: int) -> dict[str, float]:
    return distbp(layers, rows, n_steps, "ray")


def ray_train(layers: str, rows: int, n_steps: int) -> dict[str, float]:
    """TorchTrainer on two workers of a Ray of its own: DDP with gloo, fused Adam, one thread a worker."""
    import logging
    import tempfile

    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    sizes = [int(n) for n in layers.split(",")]
    median_of_steps = median_ms

    def loop() -> None:
        import torch
        from ray.train.torch import prepare_model
        from torch import nn

        torch.set_num_threads(1)
        modules = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
        model = prepare_model(nn.Sequential(*modules))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        loss = nn.CrossEntropyLoss()
        x, y = torch.randn(rows, sizes[0]), torch.randint(0, sizes[-1], (rows,))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            optimizer.step()

        ms = median_of_steps(step, n_steps)
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


def _ddp_worker(rank: int, sizes: list[int], rows: int, n_steps: int, port: int, results) -> None:
    import torch
    import torch.distributed
    from torch import nn

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORKERS)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss = nn.CrossEntropyLoss()
    x, y = torch.randn(rows, sizes[0]), torch.randint(0, sizes[-1], (rows,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y).backward()
        optimizer.step()

    results.put(median_ms(step, n_steps))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def torch_ddp(layers: str, rows: int, n_steps: int) -> dict[str, float]:
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    sizes = [int(n) for n in layers.split(",")]
    mp.spawn(_ddp_worker, (sizes, rows, n_steps, port, results), WORKERS)
    return {"ms": statistics.mean(results.get() for _ in range(WORKERS))}


def jax_both_cores(layers: str, rows: int, n_steps: int) -> dict[str, float]:
    """One process on all cores, with the rows of all workers in one batch."""
    import jax
    import jax.numpy as jnp
    import optax

    sizes = [int(n) for n in layers.split(",")]
    key = jax.random.PRNGKey(0)
    he = jax.nn.initializers.he_normal()
    weights = [(he(key, (a, b)), jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]
    x = jax.random.normal(key, (rows * WORKERS, sizes[0]))
    y = jax.random.randint(key, (rows * WORKERS,), 0, sizes[-1])
    optimizer = optax.adam(1e-3)

    def loss(weights):
        h = x
        for W, b in weights[:-1]:
            h = jax.nn.relu(h @ W + b)
        z = h @ weights[-1][0] + weights[-1][1]
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    @jax.jit
    def update(weights, state):
        changes, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, changes), state

    held = [weights, optimizer.init(weights)]

    def step() -> None:
        held[:] = update(*held)
        jax.block_until_ready(held[0])

    return {"ms": median_ms(step, n_steps)}


def scikit_learn(layers: str, rows: int, n_steps: int) -> dict[str, float]:
    """One process with one thread, with the rows of all workers in one batch."""
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    sizes = [int(n) for n in layers.split(",")]
    n = rows * WORKERS
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], n)
    model = MLPClassifier(sizes[1:-1], batch_size=n)
    classes = np.arange(sizes[-1])
    return {"ms": median_ms(lambda: model.partial_fit(x, y, classes=classes), max(5, n_steps // 5))}


PEERS = {
    "distbp": (distbp, "distbp"),
    "distbp on Ray": (distbp_on_ray, "ray"),
    "torch DDP": (torch_ddp, "torch"),
    "Ray Train": (ray_train, "ray"),
    "JAX": (jax_both_cores, "optax"),
    "scikit-learn": (scikit_learn, "sklearn"),
}


def measure(name: str, layers: str, rows: int, n_steps: int) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    one_thread = {} if name == "JAX" else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, layers, str(rows), str(n_steps)]
    environment = dict(os.environ) | one_thread
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed on {layers}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="one of the shapes, as in 784,128,10")
    parser.add_argument("--one", nargs=4, metavar=("NAME", "LAYERS", "ROWS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, layers, rows, n_steps = options.one
        print(json.dumps(PEERS[name][0](layers, int(rows), int(n_steps))))
        return
    names = [name for name, (_, module) in PEERS.items() if importlib.util.find_spec(module)]
    for name in PEERS.keys() - set(names):
        print(f"{name}: not installed, left out")
    print(f"medians of {options.rounds} rounds, {WORKERS} workers; ratio: times the step of distbp (under mpirun)")
    print(f"{'layers':<26}{'rows':>5}{'efficiency':>12}" + "".join(f"{n + ' ms':>20}{'ratio':>7}" for n in names))
    for layers, rows, n_steps in SHAPES:
        if options.only and layers not in options.only:
            continue
        rounds = [{name: measure(name, layers, rows, n_steps) for name in names} for _ in range(options.rounds)]
        ms = {name: statistics.median(r[name]["ms"] for r in rounds) for name in names}
        efficiency = statistics.median(r["distbp"]["efficiency"] for r in rounds)
        cells = "".join(f"{ms[name]:>20.3f}{ms[name] / ms['distbp']:>7.2f}" for name in names)
        print(f"{layers:<26}{rows:>5}{efficiency:>12.3f}{cells}", flush=True)


if __name__ == "__main__":
    main()
