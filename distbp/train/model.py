"""A trained network with all that prediction needs: weights, scaling, recipe. One safetensors file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distbp.data import Rows, Scaling, check_finite, share
from distbp.data.shard import Shard
from distbp.errors import InputError
from distbp.nn import Loss, Sequential, aligned_zeros
from distbp.train.arithmetic import Arithmetic
from distbp.train.evaluator import Evaluator, evaluation_rows, metrics
from distbp.train.files import write_bytes
from distbp.train.recipe import Recipe
from distbp.train.tree import total

FORMAT = "distbp model 1"


@dataclass(frozen=True)
class Model:
    """A network with its weights.

    Attributes
    ----------
    recipe:
        As it was trained, with the number of shards.
    input_shape:
        Of one row of features.
    weights:
        The parameter vector.
    scaling:
        Applied to features, where the recipe asks for one.
    arithmetic:
        What it was trained with: one, or more where the user accepted another as the run went on.
    """

    recipe: Recipe
    input_shape: tuple[int, ...]
    weights: np.ndarray
    scaling: Scaling | None
    arithmetic: tuple[Arithmetic, ...] = ()

    def network(self) -> tuple[Sequential, Loss]:
        """Return the network, built and bound to the weights for evaluation, and its loss."""
        network, loss = self.recipe.network(), self.recipe.loss_function()
        network.build(self.input_shape, self.weights.dtype)
        network.fuse(loss)
        network.bind(self.weights, evaluation_rows(self.recipe.row_limit), backward=False)
        network.settle()
        return network, loss

    @property
    def sha256(self) -> str:
        """SHA-256 over all parameters in order, unpadded, as little-endian float32."""
        network = self.recipe.network()
        return network.build(self.input_shape, self.weights.dtype).sha256(self.weights)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs of the network (n, n_out) for the rows ``x`` (n, ...).

        Raises
        ------
        InputError
            Where the rows have another shape than those of the training, or hold NaN or infinities.
        """
        x = np.asanyarray(x)
        self._check_shape(x, "x")
        check_finite(x, np.arange(len(x)), "x")
        network, _ = self.network()
        n = evaluation_rows(self.recipe.row_limit)
        y = np.empty((len(x), *network.output_shape), self.weights.dtype)
        for start in range(0, len(x), n):
            batch = np.array(x[start : start + n], self.weights.dtype)
            if self.scaling is not None:
                self.scaling.apply(batch)
            y[start : start + n] = network.outputs(batch)
        return y

    def evaluate(self, rows: Rows) -> dict[str, Any]:
        """Return the mean loss and, for classifiers, the accuracy over ``rows``: the bits that training reports."""
        self._check_shape(rows.x, rows.where)
        network, loss = self.network()
        evaluator = Evaluator(network, loss, self.recipe.row_limit)
        n_shards = self.recipe.shards or 1
        tallies = np.array(
            [evaluator.tally(self._shard(rows, loss, network, share(len(rows), n_shards, i))) for i in range(n_shards)]
        )
        return metrics(total(tallies), loss)

    def _shard(self, rows: Rows, loss: Loss, network: Sequential, places: range) -> Shard:
        shard = make_shard(rows, np.arange(places.start, places.stop), loss, network)
        if self.scaling is not None:
            shard.scale(self.scaling)
        return shard

    def _check_shape(self, x: np.ndarray, where: str) -> None:
        if x.shape[1:] != self.input_shape:
            given = f"rows of shape {x.shape[1:]}"
            raise InputError(f"rows of shape {self.input_shape}", given, "reshape the features", where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path``: its tensors by name, and the recipe as JSON in the metadata."""
        network = self.recipe.network()
        layout = network.build(self.input_shape, self.weights.dtype)
        tensors = dict(layout.views(self.weights))
        if self.scaling is not None:
            tensors |= {"scaling.shift": self.scaling.shift, "scaling.factor": self.scaling.factor}
        metadata = {
            "format": FORMAT,
            "recipe": json.dumps(self.recipe.dump()),
            "strangers": json.dumps(self.recipe.strangers()),
            "input_shape": json.dumps(self.input_shape),
            "arithmetic": json.dumps([own.model_dump() for own in self.arithmetic]),
        }
        write_bytes(Path(path), save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, metadata))

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
        try:
            with safe_open(file, framework="np") as content:
                metadata = content.metadata() or {}
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError("a safetensors file", str(error), "save the model again", str(file)) from None
        if metadata.get("format") != FORMAT:
            given = metadata.get("format", "a file of another program")
            raise InputError(
                f"a file of the format {FORMAT!r}", repr(given), "load a file that distbp wrote", str(file)
            )
        try:
            recipe = Recipe.parse(
                json.loads(metadata["recipe"]), str(file), json.loads(metadata.get("strangers", "{}"))
            )
            input_shape = tuple(int(n) for n in json.loads(metadata["input_shape"]))
            arithmetic = tuple(map(Arithmetic.model_validate, json.loads(metadata.get("arithmetic", "[]"))))
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(
                "a recipe and an input shape in the metadata", repr(error), "save it again", str(file)
            ) from None
        layout = recipe.network().build(input_shape, np.dtype(recipe.dtype))
        if layout.size > 2 * file.stat().st_size:  # before memory is taken for it
            given = f"a recipe for {layout.size} parameters"
            raise InputError("a file as large as its weights", given, "save the model again", str(file))
        weights = aligned_zeros(layout.size, layout.dtype)
        for name, view in layout.views(weights).items():
            if name not in tensors or tensors[name].shape != view.shape or tensors[name].dtype != layout.dtype:
                given = f"{tensors[name].dtype}{tensors[name].shape}" if name in tensors else "none"
                raise InputError(f"a tensor {name} of {layout.dtype}{view.shape}", given, "save it again", str(file))
            view[...] = tensors[name]
        scaling = Scaling(tensors["scaling.shift"], tensors["scaling.factor"]) if "scaling.shift" in tensors else None
        return Model(recipe, input_shape, weights, scaling, arithmetic)


def make_shard(rows: Rows, places: np.ndarray, loss: Loss, network: Sequential) -> Shard:
    """Return the shard of ``rows`` at these places, its targets checked against ``loss`` and ``network``."""
    index, numbers = rows.index(places), rows.numbers(places)
    y = np.asarray(rows.y[index])
    check_finite(rows.y, index, f"{rows.where}, targets", numbers)
    n_out, dtype = network.output_shape[0], network.layout.dtype
    try:
        targets = loss.targets(y, n_out, dtype, numbers)
    except InputError as error:
        raise error.at(rows.where) from None
    return Shard(rows, places, targets, dtype)
