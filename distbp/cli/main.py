"""The command ``distbp``: imports what a command needs only when it runs, so that help comes at once."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from distbp import __version__
from distbp.cli.bench import bench
from distbp.cli.evaluate import evaluate
from distbp.cli.predict import predict
from distbp.cli.streams import prepare_streams, say
from distbp.cli.train import train
from distbp.errors import DistbpError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Commands(TyperGroup):
    """The commands; their list is printed without Rich, whose import takes longer than all else."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"rich_markup_mode": None})


@app.callback(cls=Commands, invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Data-parallel training of feed-forward networks on CPUs: the same bits on any number of workers."""
    if show:
        print(f"distbp {__version__}")
        raise typer.Exit


for command in (train, evaluate, predict, bench):
    app.command()(command)


def main() -> None:
    """Run the command; errors that the user can mend end it with one message and a non-zero status."""
    prepare_streams()
    warnings.formatwarning = lambda message, *_, **__: f"distbp: {message}\n"
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except DistbpError as error:
        from distbp.engine.mpirun import has_joined, is_first_rank

        if has_joined() and not error.agreed:
            raise  # of this rank alone: the engine ends the others
        if is_first_rank() or not error.agreed:
            say(error)
        raise SystemExit(error.exit_status) from None
