"""The workers that a command asks for: how many, on which machines, started or joined."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distbp.cli.output import Output, unfinished
from distbp.cli.streams import Relay, say
from distbp.data import name_of
from distbp.engine import choose, connect
from distbp.engine.mpi import import_mpi
from distbp.engine.mpirun import is_launched, launch
from distbp.errors import DistbpError, InputError, LostError, TrainingError
from distbp.train import Engine, Recipe
from distbp.wording import counted


def worker_range(text: str | None) -> tuple[int | None, int | None]:
    """Return the least and the largest number of workers in ``text``, as in 4 or 2:4."""
    if text is None:
        return None, None
    words = text.split(":")
    numbers = [int(word) for word in words if word.isdigit()]
    if len(numbers) != len(words) or len(words) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise InputError("a number such as 4, or MIN:MAX such as 2:4", repr(text), "change it", "--workers")
    return numbers[0], numbers[-1]


def machine_sizes(machines: str | None, workers: int | None) -> tuple[int, ...] | None:
    """Return the sizes in ``machines``, as in 3+1."""
    if machines is None:
        return None
    words = machines.split("+")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise InputError("sizes such as 3+1", repr(machines), "give the workers of each machine", "--machines")
    sizes = tuple(map(int, words))
    if sum(sizes) != (workers or sum(sizes)):
        raise InputError(
            f"machines of {counted(workers or 0, 'worker')} in all", machines, "let them add up", "--machines"
        )
    return sizes


def launch_if_needed(
    engine: str,
    workers: int | None,
    address: str | None,
    recipe: Callable[[], Recipe] | None = None,
    folder: Path | None = None,
) -> None:
    """Start mpirun, and exit with its status, where several workers or MPI are asked for outside of it."""
    meant = choose(engine, address)
    wanted = meant == "mpi" or (engine == "auto" and meant == "local" and (workers or 1) > 1)
    if wanted and not is_launched():
        read = recipe() if recipe else None  # mistakes in the recipe end here
        import_mpi(initialize=False)
        command = [sys.executable, "-m", "distbp", *sys.argv[1:]]

        def when_lost(can_recover: bool) -> None:
            runs = unfinished(Path("runs"), name_of(read.data.source)) if read else []
            if folder:
                runs = [Output(folder, 1)]
            remedy = runs[-1].way_on if runs and runs[-1].is_unfinished else "start it again"
            lost = "all workers died"
            if not can_recover:
                lost = "a worker died, and this MPI ends the others, as all do but Open MPI 5"
            print(f"distbp: {lost}; see the error above, or they were killed from outside; {remedy}", file=sys.stderr)

        with Relay() as relay:
            threads = read.blas_threads if read else 1
            status = launch(command, workers or 1, threads, when_lost, relay.variables)
        if relay.error is not None and status == 0:
            raise relay.error
        raise SystemExit(status)


@contextmanager
def joined(name: str, *options: Any, **more: Any) -> Iterator[Engine]:
    """Give the engine of this run; where all workers raise the same error, worker 0 says it and all exit."""
    try:
        engine = connect(name, *options, **more)
    except DistbpError as error:
        error.agreed = True
        raise
    except LostError as lost:
        raise TrainingError(f"expected all workers to start; {lost}; start the run again") from None
    try:
        yield engine
    except DistbpError as error:
        if engine.n_workers > 1 and not error.agreed:
            raise
        if engine.worker == 0:
            say(error)
        raise SystemExit(engine.finish(error)) from None
    except LostError as lost:
        raise TrainingError(f"expected all workers to go on; {lost}; start the run again") from None
    else:
        engine.finish(None)
    finally:
        engine.close()
