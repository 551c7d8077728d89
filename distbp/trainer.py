"""The Python interface: a model, a Trainer, fit, evaluate, predict, save, load."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from distbp.data import Dataset, Rows, as_rows
from distbp.engine import connect
from distbp.errors import InputError
from distbp.nn import Layer, Sequential
from distbp.train import Model, Outcome, Recipe, Training, Watcher
from distbp.train.pace import Protection

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
        self.recipe = Recipe.parse({"data": data, "model": layers} | recipe, "Trainer")
        self.engine = connect(engine, workers, None, deadline_s, address, cpus_per_worker, trust_network=trust_network)
        self._model: Model | None = None

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

        Raises
        ------
        InputError
            Where data and model do not fit, before training starts.
        TrainingError
            Where the loss is not finite, or a worker is lost and the others cannot go on without it: they can on Ray,
            and under ``mpirun --with-ft ulfm``.
        """
        train = as_rows(x, y)
        fraction, held_out = None, _pair(test, "test", train)
        if isinstance(validation, Real) and not isinstance(validation, bool) and 0.0 < validation < 1.0:
            fraction, validation = float(validation), None
        dataset = Dataset(
            train, _pair(validation, "validation", train, ("a fraction in (0, 1), or ", "validation=0.1 or ")), held_out
        )
        data = self.recipe.data.model_copy(update={"validation": fraction})
        training = Training(self.recipe.model_copy(update={"data": data}), dataset, protection=Protection())
        outcome = self.engine.perform(training, watcher)
        self._model = outcome.model
        return outcome

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
            self.model.save(Path(path))

    @classmethod
    def load(cls, path: str | Path, *, engine: str = "auto") -> Trainer:
        """Return a trainer with the model in ``path``: a file, or the folder of a run."""
        model = Model.load(Path(path))
        trainer = cls.__new__(cls)
        trainer.recipe, trainer.engine, trainer._model = model.recipe, connect(engine), model
        return trainer


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
