"""``distbp bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from distbp.cli.options import Address, Calls, Cpus, Deadline, EngineName, Machines, TrustNetwork, Workers
from distbp.errors import InputError
from distbp.wording import counted, json_text


def bench(
    layers: Annotated[str, typer.Option(help="Sizes from input to output.")] = "784,512,512,10",
    batch: Annotated[int, typer.Option(min=1, help="Rows per worker and step.")] = 128,
    optimizer: Annotated[str, typer.Option(help="As in a recipe.")] = "adam",
    engine: EngineName = "auto",
    workers: Workers = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 200,
    protection: Annotated[
        bool, typer.Option("--protection", help="Time also what copies, hashing and deadlines cost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    machines: Machines = None,
    deadline: Deadline = None,
    address: Address = None,
    cpus_per_worker: Cpus = 1.0,
    calls: Calls = "auto",
    trust_network: TrustNetwork = False,
) -> None:
    """Time a training step on random data, and its matrix products alone, on the same workers in the same run."""
    from distbp.cli.workers import joined, launch_if_needed, machine_sizes
    from distbp.train.benchmark import Benchmark

    try:
        sizes = [int(size) for size in layers.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError("sizes such as 784,512,10", repr(layers), "give at least input and output", "--layers")
    sizes_of_machines = machine_sizes(machines, workers)
    launch_if_needed(engine, workers, address)
    ray = {"address": address, "cpus_per_worker": cpus_per_worker, "calls": calls, "trust_network": trust_network}
    with joined(engine, workers, sizes_of_machines, deadline, **ray) as connected:
        figures = connected.perform(Benchmark(sizes, batch, optimizer, steps, protection))
        connected.conclude(lambda: print(json_text(figures) if as_json else _bench_text(figures)))


def _bench_text(figures: dict[str, Any]) -> str:
    mega = {name: n_bytes / 1e6 for name, n_bytes in figures["memory_bytes"].items()}
    return "\n".join(
        [
            f"{'-'.join(map(str, figures['layers']))}, {counted(figures['rows_per_worker'], 'row')} a worker, "
            f"{figures['optimizer']}, engine {figures['engine']}, {counted(figures['workers'], 'worker')}: "
            f"medians of {counted(figures['steps'], 'step')}",
            f"step                  {figures['ms_per_step']:9.3f} ms",
            f"its matrix products   {figures['matmul_ms_per_step']:9.3f} ms",
            f"efficiency            {figures['efficiency']:9.3f}",
            f"examples per second   {figures['examples_per_second']:9,.0f}",
            *(f"  {name:<19} {value:9.3f} ms" for name, value in figures["phases_ms"].items()),
            f"memory of a worker    {mega['per_worker']:9.1f} MB, of its own",
            f"shared by a machine   {mega['shared_per_machine']:9.1f} MB, of which weights {mega['weights']:.1f} MB",
            *(f"protection: {name:<20} {ratio - 1:+7.1%}" for name, ratio in figures["protection"].items()),
        ]
    )
