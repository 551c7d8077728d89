"""``distbp train``, ``evaluate``, ``predict``, ``bench``."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from distbp import __version__
from distbp.cli.audience import Audience
from distbp.cli.output import Output, next_folder, unfinished
from distbp.cli.progress import PlainConsole, ProgressDisplay
from distbp.cli.recipe_file import read_recipe
from distbp.data import Rows, load, name_of, same_source
from distbp.data.sources import read_npy
from distbp.engine import CALLS, ENGINES, choose, connect
from distbp.engine.mpi import import_mpi
from distbp.engine.mpirun import has_terminal, is_first_rank, is_launched, launch
from distbp.errors import DistbpError, InputError, LostError, StoppedError, TrainingError
from distbp.train import Engine, Model, Outcome, Recipe, Training
from distbp.train.benchmark import Benchmark
from distbp.train.checkpoint import Checkpoints
from distbp.train.fault import Fault
from distbp.train.files import write_bytes, writing
from distbp.train.pace import Brake, Protection, stopping_signals
from distbp.train.state import State

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help=f"One of: {', '.join(ENGINES)}. auto: mpi with several workers, ray where a cluster is given."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; outside mpirun, mpirun is started.")]
Machines = Annotated[str | None, typer.Option(help="For tests: treat the workers as on several machines, as in 3+1.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Seconds to wait for a worker that does not get on (10), or for room in a Ray cluster (60)."
    ),
]
Address = Annotated[str | None, typer.Option(help="HOST:PORT of a Ray cluster; by default RAY_ADDRESS.")]
Cpus = Annotated[float, typer.Option(min=0.0, help="CPUs that Ray sets aside for each worker.")]
Calls = Annotated[str, typer.Option(help=f"How Ray calls workers: {', '.join(CALLS)}.")]
TrustNetwork = Annotated[
    bool,
    typer.Option(
        "--trust-network",
        help="Ray: join a cluster on a network without a token; whoever reaches it runs what he likes.",
    ),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run, or a model file.")]
Data = Annotated[str, typer.Argument(help="digits, a folder of IDX or .npy files, an .npz file.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Data-parallel training of feed-forward networks on CPUs: the same bits on any number of workers."""
    if show:
        print(f"distbp {__version__}")
        raise typer.Exit


@app.command()
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

    def begin() -> tuple[Recipe, State | None]:
        if resume is not None:
            return _resumed(resume, recipe_file is None and not changes and shards is None and out is None)
        read = read_recipe(recipe_file, changes or [])
        return (read if shards is None else read.model_copy(update={"shards": shards})), None

    least, most = _worker_range(workers)
    sizes = _machine_sizes(machines, most)
    if least == most:
        _launch_if_needed(engine, most, address, lambda: begin()[0], out or resume)
    faults = tuple(fault or ())
    for text in faults:
        Fault.parse(text)
    protection = Protection(checkpoint_steps, checkpoint_minutes, max_time, faults=faults)
    ray = {"address": address, "cpus_per_worker": cpus_per_worker, "calls": calls, "trust_network": trust_network}
    with _engine(engine, most, sizes, deadline, max_failures=max_failures, least=least, **ray) as connected:
        with connected.agreement():
            recipe, state = begin()
            training = Training(recipe, protection=protection, state=state)
            if send_data:
                training = dataclasses.replace(training, dataset=load(recipe.data.source))
        output = _output(connected, resume or out, name_of(recipe.data.source), keep, state)
        _train(training, connected, output)


def _output(engine: Engine, folder: Path | None, name: str, keep: int, state: State | None) -> Output:
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


def _resumed(folder: Path, is_alone: bool) -> tuple[Recipe, State]:
    """Return recipe and state of the run in ``folder``, which has not ended."""
    if not is_alone:
        given = "a recipe, --set, --shards or --out beside it"
        raise InputError("the recipe of the run itself", given, "leave these out", "--resume")
    if (folder / "result.json").exists():
        given = f"{folder}, whose run has ended"
        raise InputError("the folder of a run that has not ended", given, "start another run", "--resume")
    recipe, state, refused = Checkpoints(folder, 1).newest()
    for error in refused:
        if is_first_rank():
            print(f"distbp: left out: {error}", file=sys.stderr, flush=True)
    return recipe, state


def _train(training: Training, engine: Engine, output: Output) -> None:
    console = PlainConsole(force_terminal=has_terminal() if engine.name == "mpi" else None)
    audience = Audience(engine.brake, ProgressDisplay(console), output)

    def settle() -> None:
        audience.attempt(output.checkpoints.wait)
        if audience.error is not None:
            raise audience.error

    def finish() -> None:
        output.finish(outcome)
        with writing("the outcome to standard output"):
            _print_outcome(console, outcome, output.folder)

    try:
        try:
            with _brake(engine.brake):
                outcome = engine.perform(training, audience)
        except StoppedError as error:
            engine.conclude(settle)
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


@contextmanager
def _brake(brake: Brake) -> Iterator[None]:
    """Let signals pull ``brake`` while there is a run that heeds it; a second one, and all others, do as before."""

    def pull(number: int, frame: FrameType | None) -> None:
        if brake.is_manned and not brake.signal:
            brake.pull(number)
        elif callable(before[number]):
            before[number](number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before: dict[int, Any] = {}
    for number in stopping_signals():
        before[number] = signal.getsignal(number)
        signal.signal(number, pull)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def evaluate(
    folder: Folder,
    data: Data,
    part: Annotated[
        str | None, typer.Option(help="train, validation or test; by default test if there is one.")
    ] = None,
) -> None:
    """Print loss and accuracy of a trained model as JSON."""
    model = Model.load(folder)
    print(json.dumps(model.evaluate(_part(model, data, part))))


@app.command()
def predict(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="As for evaluate, or an .npy file of features alone.")],
    out: Annotated[Path, typer.Option(help="The file to write: .npy, or .csv with a line for each row.")],
    part: Annotated[
        str | None, typer.Option(help="train, validation or test; by default test if there is one.")
    ] = None,
    classes: Annotated[
        bool, typer.Option(help="Write the number of each row's class, or 0 and 1 for each output, not the outputs.")
    ] = False,
) -> None:
    """Write the outputs of a trained model for each row, (rows, outputs)."""
    _require_writable(out)
    model = Model.load(folder)
    x = read_npy(Path(data)) if Path(data).suffix == ".npy" else _part(model, data, part).x
    y = model.predict_classes(x) if classes else model.predict(x)
    content = io.BytesIO()
    if out.suffix == ".npy":
        np.save(content, y, allow_pickle=False)
    else:
        digits = {np.dtype(np.float32): "%.9g", np.dtype(np.float64): "%.17g"}  # from which the same bits can be read
        np.savetxt(content, y, digits.get(y.dtype, "%d"), delimiter=",")
    try:
        write_bytes(out, content.getvalue())
    except OSError as error:
        raise _unwritable(f"{out} ({error.strerror})") from None
    print(f"{len(y)} rows written to {out}")


def _require_writable(out: Path) -> None:
    """Raise InputError where ``out`` is no file that can be written, before anything is computed for it."""
    if out.suffix not in (".npy", ".csv"):
        raise InputError("a name that ends in .npy or .csv", str(out), "choose another with --out", "output")
    if out.is_dir():
        raise _unwritable(f"{out}, a folder")
    if not out.parent.is_dir():
        raise _unwritable(f"{out}, in a folder that does not exist")
    if not os.access(out.parent, os.W_OK):
        raise _unwritable(f"{out}, in a folder that cannot be written to")


def _unwritable(given: str) -> InputError:
    return InputError("a file that can be written", given, "choose another with --out", "output")


def _part(model: Model, data: str, part: str | None) -> Rows:
    """Return the rows of a part of ``data``; say so where these are rows that the model has seen."""
    dataset, source = load(data), model.recipe.data.source
    if part is None and "test" not in dataset.parts and source != "arrays" and same_source(data, source):
        warnings.warn(f"{data} has no test part: these are the rows that the model was trained on", stacklevel=2)
    name = part or ("test" if "test" in dataset.parts else "train")
    if name not in dataset.parts:
        given = f"{part!r}"
        raise InputError(f"a part of the data, of: {', '.join(dataset.parts)}", given, "choose one of these", "--part")
    return dataset.parts[name]


@app.command()
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
    try:
        sizes = [int(size) for size in layers.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError("sizes such as 784,512,10", repr(layers), "give at least input and output", "--layers")
    machine_sizes = _machine_sizes(machines, workers)
    _launch_if_needed(engine, workers, address)
    ray = {"address": address, "cpus_per_worker": cpus_per_worker, "calls": calls, "trust_network": trust_network}
    with _engine(engine, workers, machine_sizes, deadline, **ray) as connected:
        figures = connected.perform(Benchmark(sizes, batch, optimizer, steps, protection))
        if connected.worker == 0:
            print(json.dumps(figures) if as_json else _bench_text(figures))


def _bench_text(figures: dict[str, Any]) -> str:
    mega = {name: n_bytes / 1e6 for name, n_bytes in figures["memory_bytes"].items()}
    return "\n".join(
        [
            f"{'-'.join(map(str, figures['layers']))}, {figures['rows_per_worker']} rows a worker, "
            f"{figures['optimizer']}, engine {figures['engine']}, {figures['workers']} workers: "
            f"medians of {figures['steps']} steps",
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


def _worker_range(text: str | None) -> tuple[int | None, int | None]:
    """Return the least and the largest number of workers in ``text``, as in 4 or 2:4."""
    if text is None:
        return None, None
    words = text.split(":")
    numbers = [int(word) for word in words if word.isdigit()]
    if len(numbers) != len(words) or len(words) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise InputError("a number such as 4, or MIN:MAX such as 2:4", repr(text), "change it", "--workers")
    return numbers[0], numbers[-1]


def _machine_sizes(machines: str | None, workers: int | None) -> tuple[int, ...] | None:
    """Return the sizes in ``machines``, as in 3+1."""
    if machines is None:
        return None
    words = machines.split("+")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise InputError("sizes such as 3+1", repr(machines), "give the workers of each machine", "--machines")
    sizes = tuple(map(int, words))
    if sum(sizes) != (workers or sum(sizes)):
        raise InputError(f"machines of {workers} workers in all", machines, "let them add up", "--machines")
    return sizes


def _launch_if_needed(
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

        def when_lost() -> None:
            runs = unfinished(Path("runs"), name_of(read.data.source)) if read else []
            if folder:
                runs = [Output(folder, 1)]
            remedy = runs[-1].way_on if runs and runs[-1].is_unfinished else "start it again"
            print(
                "distbp: expected a worker that brings the run to its end; all were lost, for what stands above or, "
                f"where nothing does, by a signal from outside; {remedy}",
                file=sys.stderr,
            )

        raise SystemExit(launch(command, workers or 1, read.blas_threads if read else 1, when_lost))


@contextmanager
def _engine(name: str, *options: Any, **more: Any) -> Iterator[Engine]:
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
            _say(error)
        raise SystemExit(engine.finish(error)) from None
    except LostError as lost:
        raise TrainingError(f"expected all workers to go on; {lost}; start the run again") from None
    else:
        engine.finish(None)
    finally:
        engine.close()


def _say(error: DistbpError) -> None:
    with suppress(OSError):  # as on a terminal that is gone
        print(f"distbp: {error}", file=sys.stderr, flush=True)


def _print_outcome(console: Console, outcome: Outcome, folder: Path) -> None:
    table = Table("part", *next(iter(outcome.metrics.values())))
    for part, values in outcome.metrics.items():
        table.add_row(part, *(f"{value:.4f}" for value in values.values()))
    console.print(table)
    console.print(
        f"{outcome.steps} steps in {outcome.train_seconds:.1f} s, {outcome.examples_per_second:,.0f} examples/s, "
        f"{outcome.workers} workers, {outcome.shards} shards, engine {outcome.engine}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.staleness is not None:
        mean, most, lead = (outcome.staleness[key] for key in ("mean", "max", "largest_lead"))
        console.print(
            f"staleness {mean:.1f} updates, at most {most}; largest lead of a worker {lead} steps",
            highlight=False,
            soft_wrap=True,
        )
    print(f"weights_sha256 {outcome.weights_sha256}")
    print(f"model in {folder / 'model.safetensors'}", flush=True)


def main() -> None:
    """Run the command; errors that the user can mend end it with one message and a non-zero status."""
    warnings.formatwarning = lambda message, *_, **__: f"distbp: {message}\n"
    try:
        app()
    except DistbpError as error:
        if is_launched() and not error.agreed:
            raise  # of this rank alone: the engine ends the others
        if is_first_rank():
            _say(error)
        raise SystemExit(error.exit_status) from None
