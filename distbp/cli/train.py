"""``distbp train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distbp.cli.options import (
    CHECKPOINTS,
    RAY,
    RUN,
    WORKERS,
    Address,
    Calls,
    Cpus,
    Deadline,
    EngineName,
    Machines,
    TrustNetwork,
)
from distbp.errors import InputError

if TYPE_CHECKING:
    from distbp.train import Recipe
    from distbp.train.state import State


def train(
    recipe_name: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A YAML file, or digits (the default) or fashion-mnist."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", rich_help_panel=RUN)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step, of all shards together.", rich_help_panel=RUN)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimizer.", rich_help_panel=RUN)] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn at random.", rich_help_panel=RUN)] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Logical workers; by default those of the recipe.", rich_help_panel=RUN),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the recipe: key=value.", rich_help_panel=RUN),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for model and metrics; by default runs/NAME-NUMBER.", rich_help_panel=RUN),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Print a line every so many epochs.", rich_help_panel=RUN)] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the outcome alone.", rich_help_panel=RUN)] = False,
    engine: EngineName = "auto",
    workers: Annotated[
        str | None,
        typer.Option(
            help="Worker processes; outside mpirun, mpirun is started. On Ray also MIN:MAX: as many as there is room "
            "for; more are taken in later, at a checkpoint.",
            rich_help_panel=WORKERS,
        ),
    ] = None,
    machines: Machines = None,
    deadline: Deadline = None,
    address: Address = None,
    cpus_per_worker: Cpus = 1.0,
    send_data: Annotated[
        bool,
        typer.Option("--send-data", help="Read the rows here, and send each worker its own.", rich_help_panel=RAY),
    ] = False,
    max_failures: Annotated[
        int,
        typer.Option(min=0, help="How often to go on with new actors after some were lost.", rich_help_panel=RAY),
    ] = 3,
    trust_network: TrustNetwork = False,
    calls: Calls = "auto",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder.", rich_help_panel=CHECKPOINTS)
    ] = None,
    accept_other_arithmetic: Annotated[
        bool,
        typer.Option(
            "--accept-other-arithmetic",
            help="With --resume: go on although this machine rounds otherwise; the weights are then those of neither.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = False,
    checkpoint_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Write a checkpoint every so many steps.", rich_help_panel=CHECKPOINTS),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="And every so many minutes.", rich_help_panel=CHECKPOINTS)
    ] = 10.0,
    keep: Annotated[
        int, typer.Option(min=1, help="How many of the newest checkpoints stay.", rich_help_panel=CHECKPOINTS)
    ] = 3,
    max_time: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Write a checkpoint and stop after so many minutes of training.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            hidden=True,
            help="For tests: lose a worker on purpose, as in kill:update:17:2; the next one after that.",
        ),
    ] = None,
) -> None:
    """Train a network as a recipe says.

    On SIGTERM, SIGINT, SIGUSR1 or SIGHUP a run writes a checkpoint and stops.
    """
    from distbp.cli.kernels import choose_kernels

    short = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "seed": seed,
        "shards": shards,
    }
    all_changes = [*(changes or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    if accept_other_arithmetic and resume is None:
        given, remedy = "one that begins", "leave out --accept-other-arithmetic, or name the run with --resume"
        raise InputError("a run that goes on, to accept another arithmetic for", given, remedy, "train")
    choose_kernels(recipe_name, all_changes, resume)  # before anything loads NumPy

    import dataclasses

    from distbp.cli.recipe_file import read_recipe
    from distbp.cli.run import output_of, resumed, train_to_the_end
    from distbp.cli.workers import joined, launch_if_needed, machine_sizes, worker_range
    from distbp.data import load, name_of
    from distbp.train import Training
    from distbp.train.exchange import Group
    from distbp.train.fault import Fault
    from distbp.train.pace import Protection

    def begin() -> tuple[Recipe, State | None]:
        if resume is not None:
            return resumed(resume, recipe_name is None and not all_changes and out is None)
        return read_recipe(recipe_name, all_changes), None

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
                recipe, protection=protection, state=state, accepts_other_arithmetic=accept_other_arithmetic
            )
            if send_data:
                training = dataclasses.replace(training, dataset=load(recipe.data.source))
        if isinstance(connected, Group) and connected.never_recovers and connected.n_workers > 1 and not quiet:
            connected.conclude(lambda: print(f"distbp: if a worker dies, {connected.no_recovery}", file=sys.stderr))
        output = output_of(connected, resume or out, name_of(recipe.data.source), keep, state)
        train_to_the_end(training, connected, output, every=None if quiet else every)
