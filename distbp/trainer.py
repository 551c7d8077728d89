"""The Python interface: a model, a Trainer, fit, evaluate, predict, save, load."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from distbp.data import Dataset, Rows
from distbp.engine import connect
from distbp.errors import InputError
from distbp.nn import Layer, Sequential
from distbp.train import Model, Outcome, Recipe, Training, Watcher
from distbp.train.exchange import as_watcher
from distbp.train.pace import Protection

Arrays = tuple[np.ndarray, np.ndarray]


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
        x: np.ndarray,
        y: np.ndarray,
        *,
        validation: Arrays | float | None = None,
        test: Arrays | None = None,
        watcher: Watcher | None = None,
    ) -> Outcome:
        """Train on the rows ``x`` (n, ...) with the targets ``y`` (n,) or (n, k); all workers call it with all rows.

        Parameters
        ----------
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
        is_fraction = isinstance(validation, float)
        data = self.recipe.data.model_copy(update={"validation": validation if is_fraction else None})
        rows = None if validation is None or isinstance(validation, float) else Rows(*_arrays(validation), "validation")
        held_out = None if test is None else Rows(*_arrays(test), "test")
        dataset = Dataset(Rows(*_arrays((x, y)), "arrays"), rows, held_out)
        training = Training(self.recipe.model_copy(update={"data": data}), dataset, protection=Protection())
        outcome = self.engine.perform(training, None if watcher is None else as_watcher(watcher))
        self._model = outcome.model
        return outcome

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        """Return the mean loss and, for classifiers, the accuracy on the rows ``x`` with the targets ``y``."""
        return self.model.evaluate(Rows(*_arrays((x, y)), "arrays"))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of the network (n, n_out) for the rows ``x`` (n, ...)."""
        return self.model.predict(x)

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


def _arrays(pair: Arrays) -> tuple[np.ndarray, np.ndarray]:
    return np.asanyarray(pair[0]), np.asanyarray(pair[1])
