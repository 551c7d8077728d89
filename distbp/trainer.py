"""The Python interface: a model, a Trainer, fit, evaluate, predict, save, load."""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Iterable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from distbp.data import Dataset, Rows, as_rows
from distbp.engine import connect
from distbp.engine.mpirun import has_terminal
from distbp.errors import FitInterrupt, InputError, StoppedError
from distbp.nn import Layer, Sequential
from distbp.progress import ProgressDisplay
from distbp.train import Engine, Model, Outcome, Recipe, Training, Watcher
from distbp.train.audience import Audience
from distbp.train.exchange import as_watcher
from distbp.train.folder import RunFolder, hold
from distbp.train.pace import Protection, stopped_by_signals, stopping_signals
from distbp.train.state import State

_CHECKPOINT_MINUTES = 10.0
_LINES = 20
Pair = tuple[Any, Any]


class Trainer:
    """Trains a network on arrays.

    The same script trains in one process (``python script.py``) and on four (``mpirun -n 4 python script.py``); the
    weights are the same bits if ``shards`` is given. With ``engine="ray"`` a script or a notebook directs worker actors
    instead, and sends each of them the rows of its shards.

    Parameters
    ----------
    model:
        The layers from input to output, or a Sequential.
    engine, workers, address, cpus_per_worker, trust_network:
        As for ``distbp.engine.connect``: by default all ranks of mpirun, or this process.
    deadline_s:
        How long to wait for another worker before the run ends with an error.
    **recipe:
        Everything else that a recipe has: loss, optimizer, schedule, batch_size, epochs, seed, shards, clip_norm,
        early_stopping, dtype, ..., as objects or as a recipe has them; ``scaling`` stands for ``data.scaling``.

    Attributes
    ----------
    history:
        A record of each epoch of the last ``fit``: its losses, metrics, learning rate and times.

    Raises
    ------
    InputError
        For an unknown or mistyped option, with the valid names.

    Examples
    --------
    >>> from distbp import Trainer, load, nn, optim
    >>> digits = load("digits")
    >>> trainer = Trainer([nn.Dense(64), nn.ReLU(), nn.Dense(10), nn.Softmax()], optimizer=optim.Adam(0.003),
    ...                   scaling="standard", epochs=5)
    >>> outcome = trainer.fit(digits.train.x, digits.train.y)
    >>> trainer.evaluate(digits.test.x, digits.test.y)["accuracy"] > 0.9
    True
    """

    def __init__(
        self,
        model: Sequential | Iterable[Layer],
        *,
        engine: str = "auto",
        workers: int | None = None,
        deadline_s: float | None = None,
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        trust_network: bool = False,
        **recipe: Any,
    ) -> None:
        layers = model if isinstance(model, Sequential) else list(model)
        data = {"source": "arrays", "scaling": recipe.pop("scaling", "none")}
        parsed = Recipe.parse({"data": data, "model": layers} | recipe, "Trainer")
        connected = connect(engine, workers, None, deadline_s, address, cpus_per_worker, trust_network=trust_network)
        self._begin(parsed, connected)

    def _begin(self, recipe: Recipe, engine: Engine, model: Model | None = None) -> None:
        self.recipe, self.engine = recipe, engine
        engine.hold()  # worker processes, from one ``fit`` to the next, for as long as this trainer lives
        weakref.finalize(self, engine.leave)
        self.history: list[dict[str, Any]] = []
        self._model = model
        self._interrupted: tuple[Recipe, State] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "engine": self.engine.name, "model": self._model, "history": self.history}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["recipe"], connect(state["engine"]), state["model"])
        self.history = state["history"]

    def __repr__(self) -> str:
        kinds = ", ".join(layer.name for layer in self.recipe.model)
        state = "not trained yet" if self._model is None else "trained"
        return f"Trainer({kinds}; engine {self.engine.name}, {state})"

    @property
    def worker(self) -> int:
        """The number of this process among the workers: print where it is 0."""
        return self.engine.worker

    @property
    def model(self) -> Model:
        """The trained model; raises InputError before ``fit``."""
        if self._model is None:
            raise InputError("a trained model", "none", "call fit first", "Trainer")
        return self._model

    def fit(
        self,
        x: Any,
        y: Any,
        *,
        validation: Pair | float | None = None,
        test: Pair | None = None,
        watcher: Watcher | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        verbose: bool | None = None,
        accept_other_arithmetic: bool = False,
    ) -> Outcome:
        """Train on the rows ``x`` (n, ...) with the targets ``y`` (n,) or (n, k); all workers call it with all rows.

        Parameters
        ----------
        x, y:
            Arrays, lists, data frames, or a sparse matrix for x, which is made dense batch by batch. The columns of a
            data frame keep their names: elsewhere they may then stand in any order.
        validation:
            Rows and targets of their own, or the fraction of the training rows to take.
        test:
            Rows and targets that are evaluated at the end.
        watcher:
            Is told of steps, epochs and recoveries, on worker 0.
        checkpoint:
            A folder for checkpoints: one every ten minutes, and one when training is interrupted.
        resume:
            Go on with the run that was interrupted or, in another process, from the newest checkpoint; begin where
            there is none. Rows and options must be those of the run.
        verbose:
            Whether to show how training goes; by default in a notebook and on a terminal.
        accept_other_arithmetic:
            With ``resume``: go on although this machine rounds otherwise; the weights are then those of neither.

        Raises
        ------
        InputError
            Where data and model do not fit, before training starts.
        TrainingError
            Where the loss is not finite, or a worker is lost and the others cannot go on without it: they can on Ray,
            and under ``mpirun --with-ft ulfm``.
        KeyboardInterrupt
            After Ctrl-C, or with ``checkpoint`` another signal that asks for an end. The trainer has the weights of the
            last whole epoch then, and ``history``; ``fit(..., resume=True)`` goes on, to the same bits.
        """
        if accept_other_arithmetic and not resume:
            given, remedy = "a run that begins", "leave out accept_other_arithmetic, or give resume=True"
            raise InputError("a run that goes on, to accept another arithmetic for", given, remedy, "fit")
        files = None if checkpoint is None else RunFolder(Path(checkpoint))
        with self.engine.agreement():
            dataset, recipe = self._dataset(x, y, validation, test)
            state = self._state_of_before(recipe, files) if resume else None
        minutes = None if files is None else _CHECKPOINT_MINUTES
        training = Training(
            recipe,
            dataset,
            protection=Protection(checkpoint_minutes=minutes, is_interruptible=True),
            state=state,
            accepts_other_arithmetic=accept_other_arithmetic,
        )
        display = _display(verbose, recipe.epochs, has_terminal() if self.engine.name == "mpi" else None)
        watchers = [display, files, None if watcher is None else as_watcher(watcher)]
        with hold(self.engine, files, is_resumed=resume):
            return self._train(training, [one for one in watchers if one is not None], files)

    def _dataset(self, x: Any, y: Any, validation: Pair | float | None, test: Pair | None) -> tuple[Dataset, Recipe]:
        """Return the rows that were given, and the recipe with the fraction of them that is to be held out."""
        train = as_rows(x, y)
        fraction: float | None = None
        if isinstance(validation, Real) and not isinstance(validation, bool) and 0.0 < validation < 1.0:
            fraction, validation = float(validation), None
        held_out = _pair(validation, "validation", train, ("a fraction in (0, 1), or ", "validation=0.1 or "))
        data = self.recipe.data.model_copy(update={"validation": fraction})
        return Dataset(train, held_out, _pair(test, "test", train)), self.recipe.model_copy(update={"data": data})

    def _train(self, training: Training, watchers: list[Watcher], files: RunFolder | None) -> Outcome:
        """Train, and take what comes of it; raise FitInterrupt if training is interrupted."""
        engine = self.engine
        engine.brake.signal = 0
        audience = Audience(engine.brake, *watchers)
        signals = [n for n in stopping_signals() if files is not None or n == signal.SIGINT]
        settle = partial(audience.settle, None if files is None else files.checkpoints)
        kept = None if training.state is None else self._model
        try:
            with stopped_by_signals(engine.brake, signals):
                outcome = engine.perform(training, audience)
            engine.conclude(settle)
        except StoppedError as stopped:
            engine.conclude(settle)
            self._model = kept
            self._interrupted, self.history = (training.recipe, stopped.state), stopped.state.history
            raise self._interrupt(stopped, training.recipe.epochs) from None
        except InputError:  # training did not begin
            raise
        except BaseException:
            self._model, self.history = kept, []
            raise
        self._interrupted, self._model, self.history = None, outcome.model, outcome.history
        if engine.brake.signal > 0:
            raise FitInterrupt("interrupted when training was over; the trainer has its weights", engine.brake.signal)
        return outcome

    def _interrupt(self, stopped: StoppedError, n_epochs: int) -> FitInterrupt:
        """Return what to raise where training was ``stopped``; take the model that it hands over."""
        self._model = stopped.model or self._model
        epoch = f"epoch {len(self.history)} of {n_epochs}"
        has = f"the trainer has the weights of {epoch}" if self._model else "no epoch was whole"
        return FitInterrupt(f"{stopped}; {has}; go on with fit(..., resume=True)", stopped.signal)

    def _state_of_before(self, recipe: Recipe, files: RunFolder | None) -> State | None:
        """Return the state of the run of ``recipe`` that was interrupted; None where there is nothing but a folder."""
        if self._interrupted is not None:
            found, state = self._interrupted
        elif files is None:
            given = "none in this process, and no folder of checkpoints"
            raise InputError("a run that was interrupted", given, "leave out resume", "fit")
        elif not files.checkpoints.paths():
            return None
        else:
            found, state, _ = files.checkpoints.newest()
        wanted, had = recipe.dump(), found.dump()
        wanted["shards"] = recipe.shards or found.shards or len(state.tally)
        had["shards"] = len(state.tally)
        if differing := sorted(key for key in {*wanted, *had} if wanted.get(key) != had.get(key)):
            given = f"another {', '.join(differing)}"
            raise InputError(
                "the options of the run that goes on", given, "set them as they were, or leave out resume", "fit"
            )
        return state

    def evaluate(self, x: Any, y: Any) -> dict[str, Any]:
        """Return the mean loss and, for classifiers, the accuracy on the rows ``x`` with the targets ``y``."""
        return self.model.evaluate(as_rows(x, y))

    def predict(self, x: Any) -> np.ndarray:
        """Return the outputs of the network for the rows ``x`` (n, ...): (n, n_out).

        One output for targets that were given as (n,) is returned as (n,).
        """
        return self.model.predict(x)

    def predict_classes(self, x: Any) -> np.ndarray:
        """Return the classes of the rows ``x``: those by which ``evaluate`` counts its accuracy."""
        return self.model.predict_classes(x)

    def save(self, path: str | Path) -> None:
        """Write the model to ``path``, a safetensors file with the recipe inside; worker 0 does."""
        if self.worker == 0:
            self.model.save(Path(path).resolve())  # a link stays one

    @classmethod
    def load(cls, path: str | Path, *, engine: str = "auto") -> Trainer:
        """Return a trainer with the model in ``path``: a file, or the folder of a run."""
        model = Model.load(Path(path))
        trainer = cls.__new__(cls)
        trainer._begin(model.recipe, connect(engine), model)
        return trainer


def _display(verbose: bool | None, n_epochs: int, has_terminal: bool | None) -> ProgressDisplay | None:
    """Return what shows how training goes, as a bar or as some twenty lines; None where nothing is to be shown."""
    in_notebook = "ipykernel" in sys.modules
    # Lines are text in notebooks, too, and notebooks are no terminals, though ipykernel asks for colours.
    console = Console(force_jupyter=False, force_terminal=False if in_notebook else has_terminal)
    if not (console.is_terminal or in_notebook if verbose is None else verbose):
        return None
    return ProgressDisplay(console, max(1, n_epochs // _LINES))


def _pair(given: Any, name: str, train: Rows, also: tuple[str, str] = ("", "")) -> Rows | None:
    """Return the rows in the pair (x, y), with their columns in the order of the training; None for None.

    ``also`` is what else may be given, in the words of a message and of its remedy.
    """
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        is_short = isinstance(given, (str, Real))
        size = f" of {len(given)}" if isinstance(given, (tuple, list)) else ""
        shown = repr(given) if is_short else f"a {type(given).__name__}{size}"
        raise InputError(f"{also[0]}a pair (x, y)", shown, f"write {also[1]}{name}=(x, y)", name)
    x, y = given
    return as_rows(x, y, name).in_order(train.columns, train.targets)
