"""Recipes: what is read, written, and refused with the path and the valid names."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbp import InputError, Recipe
from distbp.cli.recipe_file import read_recipe
from distbp.nn import LAYERS, LOSSES, Dense, SquaredError
from distbp.optim import OPTIMIZERS, SCHEDULES, Adam
from distbp.train.foreign_keys import _NAMES
from distbp.train.mode import MODES

MINIMAL = {"model": [{"dense": 10}, "softmax"]}


@given(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULES)),
    st.sampled_from(sorted(MODES)),
)
def test_a_recipe_survives_writing_and_reading(layers, loss, optimizer, schedule, mode):
    model = [LAYERS[name].examples()[0] for name in layers]
    named = {"loss": loss, "optimizer": optimizer, "schedule": schedule, "mode": mode}
    recipe = Recipe.parse({"model": model} | named)
    assert Recipe.parse(recipe.dump()).dump() == recipe.dump()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "recipe: model: expected"),
        (MINIMAL | {"batchsize": 3}, "batchsize: expected a key of: batch_size, .*did you mean batch_size"),
        (MINIMAL | {"data": {"sorce": "x"}}, "data.sorce: expected a key of: scaling, source, validation"),
        (MINIMAL | {"early_stopping": {"patients": 1}}, "early_stopping.patients: .*did you mean patience"),
        ({"model": ["rely"]}, "model.0: expected a layer of: dense, .*did you mean relu"),
        ({"model": [{"dense": {"unit": 3}}]}, "model.0: expected an option of dense.*did you mean units"),
        ({"model": [{"dense": "many"}]}, "model.0.*given 'many'"),
        ({"model": [{"dense": 0}]}, "units of at least 1; given 0"),
        ({"model": [{"dropout": 1.0}]}, r"a rate in \[0, 1\); given 1.0"),
        (MINIMAL | {"optimizer": {"adam": {"learning_rate": -1}}}, "optimizer.*learning_rate > 0; given -1"),
        (MINIMAL | {"epochs": 0}, "epochs: .*given 0"),
        (MINIMAL | {"dtype": "float16"}, "dtype: expected 'float32' or 'float64'; given 'float16'"),
        (MINIMAL | {"mode": "late"}, "mode: expected a mode of: asynchronous, bounded, synchronous; given 'late'"),
        (MINIMAL | {"mode": {"bounded": -1}}, "mode.*staleness ≥ 0; given -1"),
        (MINIMAL | {"coordinators": 2}, "coordinators: expected 'all' or 1; given 2"),
    ],
)
def test_mistakes_are_named_with_their_path(values, message):
    with pytest.raises(InputError, match=message):
        Recipe.parse(values)


def test_changes_from_the_command_line():
    recipe = read_recipe(None, ["optimizer.adam.learning_rate=0.5", "model.0.dense=7", "epochs=2", "schedule=constant"])
    assert recipe.optimizer.learning_rate == 0.5
    assert recipe.model[0].units == 7
    assert (recipe.epochs, recipe.schedule.name) == (2, "constant")
    assert read_recipe(None, ["early_stopping.patience=3"]).early_stopping.patience == 3


@pytest.mark.parametrize("change", ["epochs", "=3", "model.9.dense=3", "epochs=[", "model.x=3"])
def test_changes_that_cannot_be_made(change):
    with pytest.raises(InputError):
        read_recipe(None, [change])


def test_a_recipe_that_is_no_yaml(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: [")
    with pytest.raises(InputError, match="expected YAML"):
        read_recipe(path, [])
    with pytest.raises(InputError, match="a recipe file, or one of: digits, fashion-mnist; given none"):
        read_recipe(tmp_path / "none.yaml", [])


TABLES = [LAYERS, LOSSES, OPTIMIZERS, SCHEDULES, MODES]
NUMBERS = [
    (cls, field.name, hint)
    for table in TABLES
    for cls in table.values()
    for field in dataclasses.fields(cls)
    if (hint := typing.get_type_hints(cls)[field.name]) in (int, float)
]


def with_option(cls, name, value):
    """Return an instance as its examples are, or as by default, but for one option."""
    example = cls.examples()[0] if cls in LAYERS.values() else cls()
    return dataclasses.replace(example, **{name: value})


@pytest.mark.parametrize(("cls", "name", "kind"), NUMBERS)
def test_every_option_that_is_a_number_takes_those_of_numpy_and_nothing_else(cls, name, kind):
    example = cls.examples()[0] if cls in LAYERS.values() else cls()
    value = getattr(example, name)
    for same in (np.float64(value), np.float32(value), np.int64(value) if value == int(value) else value):
        taken = getattr(with_option(cls, name, same), name)
        assert type(taken) is kind
        assert taken == pytest.approx(value)
    for wrong in (True, np.True_, None, "x", [1], float("nan"), 1j, *([2.5] if kind is int else [])):
        with pytest.raises(InputError, match=cls.name):
            with_option(cls, name, wrong)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": True},
        {"seed": False},
        {"coordinators": True},
        {"data": {"validation": True}},
        {"early_stopping": {"patience": True}},
        {"optimizer": {"adam": True}},
        {"model": [{"dense": {"units": True}}, "softmax"]},
    ],
)
def test_true_and_false_are_no_numbers(values):
    with pytest.raises(InputError, match="expected a number; given (True|False)"):
        Recipe.parse(MINIMAL | values)


@pytest.mark.parametrize("text", ["epochs: 1\nepochs: 2", "optimizer: {adam: {beta1: 0.5, beta1: 0.9}}"])
def test_a_key_that_comes_twice_is_refused(text, tmp_path):
    (tmp_path / "r.yaml").write_text(f"model: [{{dense: 2}}, softmax]\n{text}\n")
    with pytest.raises(InputError, match="the key '(epochs' more .* line 3|beta1' more .* line 2)"):
        read_recipe(tmp_path / "r.yaml", [])
    with pytest.raises(InputError, match="the key 'a' more than once"):
        read_recipe(None, ["data={a: 1, a: 2}"])


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"loss": "MSELoss"}, "squared_error"),
        ({"loss": "mean_squared_error"}, "squared_error"),
        ({"loss": "sparse_categorical_crossentropy"}, "categorical_cross_entropy"),
        ({"loss": "CrossEntropyLoss"}, "categorical_cross_entropy"),
        ({"loss": "bce"}, "binary_cross_entropy"),
        ({"loss": "binary:logistic"}, "binary_cross_entropy"),
        ({"model": [{"linear": 3}]}, "dense"),
        ({"model": [{"dense": 3}, "swish"]}, "silu"),
        ({"optimizer": {"nag": 0.1}}, "nesterov"),
        ({"schedule": "CosineAnnealingLR"}, "cosine"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(values, meant):
    with pytest.raises(InputError, match=f"did you mean {meant}\\?"):
        Recipe.parse(MINIMAL | values)


def test_the_names_of_other_libraries_are_for_what_there_is():
    assert set(_NAMES) <= {*LAYERS, *LOSSES, *OPTIMIZERS, *SCHEDULES}


@pytest.mark.parametrize("values", [{"model": [Dense]}, {"optimizer": Adam}, {"loss": SquaredError}])
def test_a_class_is_answered_with_what_to_write(values):
    with pytest.raises(InputError, match=r"given the class (\w+); write \1\(\.\.\.\)"):
        Recipe.parse(MINIMAL | values)
