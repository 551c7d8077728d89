"""One run of ``distbp train``: what it begins with, where its files go, how it ends."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distbp.cli.output import Output, next_folder, unfinished
from distbp.engine.mpirun import has_terminal, is_first_rank
from distbp.errors import InputError, StoppedError, TrainingError
from distbp.progress import ProgressDisplay
from distbp.train import Engine, Outcome, Recipe, Training
from distbp.train.audience import Audience
from distbp.train.checkpoint import Checkpoints
from distbp.train.pace import stopped_by_signals, stopping_signals
from distbp.train.state import State
from distbp.wording import counted


def output_of(engine: Engine, folder: Path | None, name: str, keep: int, state: State | None) -> Output:
    """Return the output of the run, whose folder the first process has taken."""
    chosen = Path(engine.first(str(folder or next_folder(Path("runs"), name))))
    output = Output(chosen, keep)
    if engine.worker == 0 and folder is None:
        for other in unfinished(Path("runs"), name):
            print(f"distbp: {other.folder} holds a run that has not ended; {other.way_on}", file=sys.stderr, flush=True)
    with engine.agreement():
        if engine.worker == 0:
            output.take(state)
    return output


def resumed(folder: Path, is_alone: bool) -> tuple[Recipe, State]:
    """Return recipe and state of the run in ``folder``, which has not ended."""
    if not is_alone:
        given = "a recipe, a change of it or --out beside it"
        raise InputError("the recipe of the run itself", given, "leave these out", "--resume")
    if not folder.is_dir():
        raise InputError("the folder of a run", f"none: {folder} does not exist", "check the path", "--resume")
    if (folder / "result.json").exists():
        given = f"{folder}, whose run has ended"
        raise InputError("the folder of a run that has not ended", given, "start another run", "--resume")
    recipe, state, refused = Checkpoints(folder, 1).newest()
    for error in refused:
        if is_first_rank():
            print(f"distbp: left out: {error}", file=sys.stderr, flush=True)
    return recipe, state


def train_to_the_end(training: Training, engine: Engine, output: Output, every: int | None) -> None:
    """Train; write the files of the run and print its outcome, or say how to go on with it.

    Of the epochs, one in ``every`` is shown; none for None.
    """
    console = Console(force_terminal=has_terminal() if engine.name == "mpi" else None)
    audience = Audience(engine.brake, ProgressDisplay(console, every), output)

    def finish() -> None:
        output.finish(outcome)
        _print_outcome(console, outcome, output.folder)

    try:
        try:
            with stopped_by_signals(engine.brake, stopping_signals()):
                outcome = engine.perform(training, audience)
        except StoppedError as error:
            engine.conclude(lambda: audience.settle(output.checkpoints))
            stopped = StoppedError(f"{error}; {output.way_on}", error.signal)
            stopped.agreed = True
            raise stopped from None
        engine.conclude(finish)
    except TrainingError as error:
        if not output.is_unfinished:
            raise
        failed = TrainingError(f"{error}; {output.way_on}")
        failed.agreed = error.agreed
        raise failed from None
    finally:
        if engine.worker == 0:
            output.abandon()


def _print_outcome(console: Console, outcome: Outcome, folder: Path) -> None:
    table = Table("part", *next(iter(outcome.metrics.values())))
    for part, values in outcome.metrics.items():
        table.add_row(part, *(f"{value:.4f}" for value in values.values()))
    console.print(table)
    console.print(
        f"{counted(outcome.steps, 'step')} in {outcome.train_seconds:.1f} s, "
        f"{outcome.examples_per_second:,.0f} examples/s, {counted(outcome.workers, 'worker')}, "
        f"{counted(outcome.shards, 'shard')}, engine {outcome.engine}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.best_epoch is not None:
        stopped = f"stopped at epoch {outcome.epochs}; " if outcome.stopped_early else ""
        console.print(f"{stopped}best epoch {outcome.best_epoch} kept", highlight=False)
    if outcome.staleness is not None:
        mean, most, lead = (outcome.staleness[key] for key in ("mean", "max", "largest_lead"))
        console.print(
            f"staleness {mean:.1f} updates, at most {most}; largest lead of a worker {counted(lead, 'step')}",
            highlight=False,
            soft_wrap=True,
        )
    print(f"weights_sha256 {outcome.weights_sha256}")
    print(f"model in {folder / 'model.safetensors'}", flush=True)
