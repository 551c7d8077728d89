"""``distbp train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distbp.cli.kernels import choose_kernels
from distbp.cli.options import Address, Calls, Cpus, Deadline, EngineName, Machines, TrustNetwork

if TYPE_CHECKING:
    from distbp.train import Recipe
    from distbp.train.state import State


def train(
    recipe_file: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="By default: digits.")] = None,
    engine: EngineName = "auto",
    workers: Annotated[
        str | None,
        typer.Option(
            help="Worker processes; outside mpirun, mpirun is started. On Ray also MIN:MAX: as many as there is room "
            "for; more are taken in later, at a checkpoint."
        ),
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Logical workers; by default those of the recipe.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a key of the recipe: key=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for model and metrics; by default runs/NAME-NUMBER.")] = None,
    send_data: Annotated[
        bool,
        typer.Option(help="Ray: read the rows here, and send each worker its own."),
    ] = False,
    machines: Machines = None,
    deadline: Deadline = None,
    address: Address = None,
    cpus_per_worker: Cpus = 1.0,
    calls: Calls = "auto",
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    accept_other_arithmetic: Annotated[
        bool,
        typer.Option(
            "--accept-other-arithmetic",
            help="With --resume: go on although this machine rounds otherwise; the weights are then those of neither.",
        ),
    ] = False,
    checkpoint_steps: Annotated[int | None, typer.Option(min=1, help="Write a checkpoint every so many steps.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(min=0.0, help="And every so many minutes.")] = 10.0,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints stay.")] = 3,
    max_time: Annotated[
        float | None, typer.Option(min=0.0, help="Write a checkpoint and stop after so many minutes of training.")
    ] = None,
    max_failures: Annotated[
        int, typer.Option(min=0, help="Ray: how often to go on with new actors after some were lost.")
    ] = 3,
    trust_network: TrustNetwork = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="For tests: lose a worker on purpose, as in kill:update:17:2; the next one after that."),
    ] = None,
) -> None:
    """Train a network as a recipe says; without one, train `digits`.

    On SIGTERM, SIGINT, SIGUSR1 or SIGHUP a run writes a checkpoint and stops.
    """
    choose_kernels(recipe_file, changes or [], resume)  # before anything loads NumPy

    import dataclasses

    from distbp.cli.recipe_file import read_recipe
    from distbp.cli.run import output_of, resumed, train_to_the_end
    from distbp.cli.workers import joined, launch_if_needed, machine_sizes, worker_range
    from distbp.data import load, name_of
    from distbp.train import Training
    from distbp.train.fault import Fault
    from distbp.train.pace import Protection

    def begin() -> tuple[Recipe, State | None]:
        if resume is not None:
            return resumed(resume, recipe_file is None and not changes and shards is None and out is None)
        read = read_recipe(recipe_file, changes or [])
        return (read if shards is None else read.model_copy(update={"shards": shards})), None

    least, most = worker_range(workers)
    sizes = machine_sizes(machines, most)
    if least == most:
        launch_if_needed(engine, most, address, lambda: begin()[0], out or resume)
    faults = tuple(fault or ())
    for text in faults:
        Fault.parse(text)
    protection = Protection(checkpoint_steps, checkpoint_minutes, max_time, faults=faults)
    ray = {"address": address, "cpus_per_worker": cpus_per_worker, "calls": calls, "trust_network": trust_network}
    with joined(engine, most, sizes, deadline, max_failures=max_failures, least=least, **ray) as connected:
        with connected.agreement():
            recipe, state = begin()
            training = Training(
                recipe,
                protection=protection,
                state=state,
                accepts_other_arithmetic=accept_other_arithmetic,
            )
            if send_data:
                training = dataclasses.replace(training, dataset=load(recipe.data.source))
        output = output_of(connected, resume or out, name_of(recipe.data.source), keep, state)
        train_to_the_end(training, connected, output)
