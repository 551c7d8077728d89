"""A trained network with all that prediction needs: weights, scaling, recipe. One safetensors file."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbp.data import Matrix, RowForm, Rows, Scaling, as_features, check_numbers, in_order, share
from distbp.data.shard import Features, Shard
from distbp.errors import InputError
from distbp.nn import Loss, Sequential, aligned_zeros
from distbp.train import tensor_file
from distbp.train.arithmetic import Arithmetic
from distbp.train.evaluator import Evaluator, metrics
from distbp.train.files import write_bytes, writing
from distbp.train.recipe import Recipe
from distbp.train.threads import blas_threads
from distbp.train.tree import total
from distbp.wording import counted

FORMAT = "distbp model 2"
_SCALING = ("scaling.shift", "scaling.factor")
_REMEDY = "save the model again"


@dataclass(frozen=True)
class Model:
    """A network with its weights.

    Attributes
    ----------
    recipe:
        As it was trained, with the number of shards.
    form:
        Of the rows that it was trained on.
    weights:
        The parameter vector.
    scaling:
        Applied to features, where the recipe asks for one.
    arithmetic:
        What it was trained with: one, or more where the user accepted another as the run went on.
    """

    recipe: Recipe
    form: RowForm
    weights: np.ndarray
    scaling: Scaling | None
    arithmetic: tuple[Arithmetic, ...] = ()

    def __repr__(self) -> str:
        network = self.recipe.network()
        kinds = ", ".join(layer.name for layer in network.layers)
        shape = self.form.input_shape
        n = network.build(shape, self.weights.dtype).n_parameters
        return f"Model({kinds}; {counted(n, 'parameter')} of {self.weights.dtype}, rows of shape {shape})"

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        """Evaluates the network, which is built and bound once."""
        network, loss = self.recipe.network(), self.recipe.loss_function()
        network.build(self.form.input_shape, self.weights.dtype)
        network.fuse(loss)
        evaluator = Evaluator(network, loss, self.recipe.row_limit)
        network.bind(self.weights, evaluator.n_rows, backward=False)
        return evaluator

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def sha256(self) -> str:
        """SHA-256 over all parameters in order, unpadded, as little-endian float32."""
        network = self.recipe.network()
        return network.build(self.form.input_shape, self.weights.dtype).sha256(self.weights)

    def predict(self, x: Any) -> np.ndarray:
        """Return the outputs of the network (n, n_out) for the rows ``x`` (n, ...).

        One output is returned as (n,) if the model was trained on targets of that shape. A data frame may have its
        columns in any order.

        Raises
        ------
        InputError
            Where ``x`` is none that ``Trainer.fit`` takes, or has other columns, or an output is not finite.
        """
        y = self._compute(x)
        return y[:, 0] if self.form.has_flat_targets and y.shape[1] == 1 else y

    def predict_classes(self, x: Any) -> np.ndarray:
        """Return the class of each row of ``x`` (n,), as ``evaluate`` counts it.

        That is the number of the largest output or, with a binary cross-entropy, 1 where the output is above 1/2, else
        0; with several outputs for each of them (n, n_out).

        Raises
        ------
        InputError
            As for ``predict``, and where the model is no classifier.
        """
        loss = self.recipe.loss_function()
        loss.classes(np.zeros((1, 2)))  # ends here if it has none
        return loss.classes(self._compute(x, logits=True))

    def _compute(self, x: Any, *, logits: bool = False) -> np.ndarray:
        """Return the outputs for the rows ``x``, or what the loss takes (n, n_out)."""
        features = self._features(x)
        evaluator = self._evaluator
        with blas_threads(self.recipe.blas_threads), evaluator.lock, np.errstate(all="ignore"):  # y is looked at
            y = evaluator.outputs(features, logits=logits)
        finite = np.isfinite(y)
        if not finite.all():
            row = np.argwhere(~finite)[0][0]
            given = f"{y[row].tolist()} for row {row}"
            raise InputError("features for which the outputs are finite", given, "compare that row with others", "x")
        return y

    def _features(self, x: Any) -> Features:
        """Return ``x``, as users pass it, with the columns of the training, as the network takes it."""
        matrix, columns = as_features(x, "x")
        matrix = in_order(matrix, columns, self.form.columns, "x")
        self._check_shape(matrix, "x")
        rows = Rows(matrix, np.zeros(len(matrix)), "x", columns=self.form.columns or columns)
        features = Features(rows, np.arange(len(matrix)), self.weights.dtype, is_scaled=self.scaling is not None)
        features.prepare(self.scaling, at_once=False)
        return features

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """Return the mean loss and, for classifiers, the accuracy over ``rows``.

        For validation and test rows these are the bits that training reports; training rows it adds up as they were
        dealt.

        Raises
        ------
        InputError
            Where the rows do not fit the model, or the loss is not finite.
        """
        rows = rows.in_order(self.form.columns, self.form.targets)
        self._check_shape(rows.x, rows.where)
        evaluator, loss = self._evaluator, self._evaluator.loss
        n_shards = self.recipe.shards or 1
        shards = (self._shard(rows, loss, evaluator.network, share(len(rows), n_shards, i)) for i in range(n_shards))
        with blas_threads(self.recipe.blas_threads), evaluator.lock, np.errstate(all="ignore"):  # the loss is looked at
            values = metrics(total(np.array([evaluator.tally(shard) for shard in shards])), loss)
        if not math.isfinite(values["loss"]):
            given = f"a loss of {values['loss']}"
            raise InputError("rows for which the loss is finite", given, "look at their largest numbers", rows.where)
        return values

    def _shard(self, rows: Rows, loss: Loss, network: Sequential, places: range) -> Shard:
        is_scaled = self.scaling is not None
        shard = make_shard(rows, np.arange(places.start, places.stop), loss, network, is_scaled=is_scaled)
        shard.prepare(self.scaling)
        return shard

    def _check_shape(self, x: Matrix, where: str) -> None:
        if x.shape[1:] != self.form.input_shape:
            given = f"rows of shape {x.shape[1:]}"
            raise InputError(f"rows of shape {self.form.input_shape}", given, "reshape the features", where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path``: its tensors by name, and the recipe as JSON in the metadata.

        Raises
        ------
        TrainingError
            Where the file cannot be written.
        """
        network = self.recipe.network()
        layout = network.build(self.form.input_shape, self.weights.dtype)
        tensors = dict(layout.views(self.weights))
        if self.scaling is not None:
            tensors |= dict(zip(_SCALING, (self.scaling.shift, self.scaling.factor), strict=True))
        header = self.recipe.header() | {
            "form": self.form.model_dump(),
            "arithmetic": [own.model_dump() for own in self.arithmetic],
        }
        with writing(path):
            write_bytes(Path(path), tensor_file.to_bytes(FORMAT, header, tensors))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Model:
        """Return the model in ``path``: a file, or the folder of a run.

        Raises
        ------
        InputError
            Where there is none, or it is damaged or of another format.
        """
        file = Path(path)
        if not file.exists():
            given = f"none: {path} does not exist"
            raise InputError("a model, or the folder of a run", given, "train one first, or check the path")
        if file.is_dir():
            file /= "model.safetensors"
            if not file.exists():
                given = f"{path}, which holds no model.safetensors"
                raise InputError("a model, or the folder of a run that has ended", given, "train one first")
        header, tensors = tensor_file.read(file, FORMAT, "model", _REMEDY)
        with tensor_file.understood(file, "model", _REMEDY):
            recipe = Recipe.of_header(header, str(file))
            form = RowForm.model_validate(header["form"])
            arithmetic = tuple(map(Arithmetic.model_validate, header["arithmetic"]))
        layout = recipe.network().build(form.input_shape, np.dtype(recipe.dtype))
        if layout.size > 2 * file.stat().st_size:  # before memory is taken for it
            given = f"a recipe for {layout.size} parameters"
            raise InputError("a file as large as its weights", given, _REMEDY, str(file))
        weights = aligned_zeros(layout.size, layout.dtype)
        views = layout.views(weights)
        wanted = {name: (layout.dtype, view.shape) for name, view in views.items()}
        if recipe.data.scaling != "none":
            wanted |= dict.fromkeys(_SCALING, (np.dtype(np.float64), form.input_shape))
        _check_tensors(tensors, wanted, file)
        for name, view in views.items():
            view[...] = tensors[name]
        scaling = Scaling(*(tensors[name] for name in _SCALING)) if recipe.data.scaling != "none" else None
        return Model(recipe, form, weights, scaling, arithmetic)


def _check_tensors(
    tensors: dict[str, np.ndarray], wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], file: Path
) -> None:
    """Raise InputError where ``tensors`` are not those that are ``wanted``, by type and shape, or not finite."""
    if strangers := sorted(tensors.keys() - wanted):
        raise InputError("no tensors but those of its recipe", ", ".join(strangers), _REMEDY, str(file))
    for name, (dtype, shape) in wanted.items():
        tensor = tensors.get(name)
        given = "none" if tensor is None else f"{tensor.dtype}{tensor.shape}"
        if tensor is not None and (tensor.dtype, tensor.shape) == (dtype, shape):
            if np.all(np.isfinite(tensor)):
                continue
            given = "some that are not"
        raise InputError(f"a tensor {name} of {dtype}{shape}, of finite numbers", given, _REMEDY, str(file))


def make_shard(
    rows: Rows,
    places: np.ndarray,
    loss: Loss,
    network: Sequential,
    *,
    is_scaled: bool = False,
    has_digest: bool = False,
) -> Shard:
    """Return the shard of ``rows`` at these places, its targets checked against ``loss`` and ``network``."""
    index, numbers = rows.index(places), rows.numbers(places)
    y = np.asarray(rows.y[index])
    n_out, dtype = network.output_shape[0], network.layout.dtype
    check_numbers(rows.y, index, dtype, f"{rows.where}, targets", numbers=numbers)
    try:
        targets = loss.targets(y, n_out, dtype, numbers)
    except InputError as error:
        raise error.at(rows.where) from None
    return Shard(rows, places, targets, dtype, is_scaled=is_scaled, has_digest=has_digest)
