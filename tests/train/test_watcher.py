"""Those who are told how training goes, and what errors and files say to Python programs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from tests_support import forge

from distbp import InputError, Model, Trainer, TrainingError, Watcher, load, nn, optim
from distbp.train.foreign_keys import HINTS, hint
from distbp.train.recipe import Recipe

X, Y = np.random.default_rng(0).standard_normal((40, 4)), np.arange(40) % 3


def trainer(**options):
    return Trainer([nn.Dense(3), nn.Softmax()], epochs=2, batch_size=20, shards=2, **options)


class OneHook(Watcher):
    def __init__(self):
        self.epochs = []

    def epoch(self, record):
        self.epochs.append(record["epoch"])


class NoWatcher:
    """Has a hook, but does not derive from Watcher."""

    def __init__(self):
        self.epochs = []

    def epoch(self, record):
        self.epochs.append(record["epoch"])


@pytest.mark.parametrize("kind", [OneHook, NoWatcher])
def test_a_watcher_needs_one_hook_alone(kind):
    watcher = kind()
    trainer().fit(X, Y, watcher=watcher)
    assert watcher.epochs == [1, 2]


@pytest.mark.parametrize("given", [print, object(), [OneHook()]])
def test_what_has_no_hook_is_refused_before_training(given):
    with pytest.raises(InputError, match=r"one or more of: begin, step, epoch, .*derive its class from distbp.Watcher"):
        trainer().fit(X, Y, watcher=given)


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="expected at least one layer") as caught:
        nn.Sequential()
    assert isinstance(caught.value, InputError)
    assert not issubclass(TrainingError, ValueError)


def test_input_errors_keep_their_words_wherever_value_errors_are_caught(tmp_path):
    """Libraries and readers turn a ValueError into a message of theirs."""
    for values, message in (
        ({"optimizer": {"sgd": {"learning_rate": -1}}}, "learning_rate"),
        ({"mode": {"bounded": -1}}, "staleness ≥ 0; given -1"),
        ({"model": [{"dropout": 2.0}]}, "model.0"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            Recipe.parse({"model": [{"dense": 3}]} | values)
        assert "Error" not in str(caught.value)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(InputError, match=r"a whole \.npz file"):
        load(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.01}, r"the learning rate belongs to the optimizer: optim.Adam\(0.01\)"),
        ({"learning_rate": 0.5}, r"optim.Adam\(0.5\)"),
        ({"momentum": 0.9}, r"optim.Momentum\(0.01, 0.9\)"),
        ({"weight_decay": 0.1}, "optim.AdamW"),
        ({"class_weight": {0: 1.0}}, "not available yet"),
        ({"sample_weight": X}, "not available yet"),
        ({"max_iter": 200}, "write epochs=200"),
        ({"random_state": 0}, "write seed=0"),
        ({"hidden_layer_sizes": (3,)}, r"nn.Dense\(128\)"),
        ({"validation_split": 0.1}, r"fit\(..., validation=0.1\)"),
        ({"n_jobs": 2}, "mpirun -n 4"),
        ({"verbose": 1}, "watcher"),
        ({"early_stopping": "yes"}, "early_stopping"),
        ({"epoch": 3}, "did you mean epochs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_word_of_another_library_is_answered_with_where_it_belongs(options, message):
    with pytest.raises(InputError, match=message):
        Trainer([nn.Dense(3), nn.Softmax()], **options)


def test_what_a_hint_names_is_accepted():
    """The calls in the hints are right, and no key of a recipe is taken for one of another library."""
    for rule in (optim.Adam(0.01), optim.Momentum(0.01, 0.9), optim.AdamW(0.01, weight_decay=0.1)):
        assert rule.learning_rate == 0.01
    assert optim.Momentum(0.01, 0.9).momentum == 0.9
    names = " ".join(HINTS.values()).split()
    assert len(names) == len(set(names))
    assert not set(names) & set(Recipe.model_fields)
    assert all(hint(name, 3) for name in names)


def test_early_stopping_may_be_true():
    outcome = trainer(early_stopping=True).fit(X, Y, validation=0.2)
    assert outcome.model.recipe.early_stopping.patience == 5
    assert outcome.best_epoch in (1, 2)
    assert trainer(early_stopping=False).fit(X, Y).best_epoch is None
    with pytest.raises(InputError, match="expected validation data.*give fit a validation"):
        trainer(early_stopping=True).fit(X, Y)


def test_a_path_may_be_a_string(tmp_path):
    first = trainer()
    first.fit(X, Y)
    for path in (tmp_path / "a.safetensors", str(tmp_path / "b.safetensors")):
        first.save(path)
        first.model.save(path)
        np.testing.assert_array_equal(Model.load(path).predict(X), first.predict(X))
        np.testing.assert_array_equal(Trainer.load(path).predict(X), first.predict(X))
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    assert len(load(tmp_path / "data.npz").train) == len(load(str(tmp_path / "data.npz")).train) == 40
    with pytest.raises(InputError, match="nowhere does not exist"):
        Model.load("nowhere")


OWN = """
from dataclasses import dataclass
import numpy as np
from distbp import nn

@dataclass(eq=False)
class HalvedError(nn.SquaredError):
    pass

@dataclass(eq=False)
class Doubled(nn.Identity):
    pass
"""
TRAIN = """
import numpy as np
{import_}
from distbp import Trainer, nn
options = {{}} if {loss!r} is None else {{"loss": eval({loss!r})}}
trainer = Trainer([nn.Dense(2), *{layers}], epochs=1, **({{"loss": "squared_error"}} | options))
trainer.fit(np.ones((8, 3)), np.ones((8, 2)))
trainer.save("model.safetensors")
"""
LOAD = "from distbp import Model\nprint(Model.load('model.safetensors').recipe.loss)"


@pytest.mark.parametrize(
    ("import_", "loss", "layers", "named"),
    [
        (
            "import mine_of_a_test",
            "mine_of_a_test.HalvedError()",
            "[]",
            "halved_error, which the module 'mine_of_a_test'",
        ),
        ("import mine_of_a_test", None, "[mine_of_a_test.Doubled()]", "doubled, which the module 'mine_of_a_test'"),
        (OWN, "HalvedError()", "[]", "halved_error, which a script or a notebook"),
    ],
    ids=["loss", "layer", "script"],
)
def test_a_class_of_ones_own_is_named_with_its_module_where_it_is_missing(tmp_path, import_, loss, layers, named):
    (tmp_path / "mine_of_a_test.py").write_text(OWN)
    run(TRAIN.format(import_=import_, loss=loss, layers=layers), tmp_path)
    done = run(LOAD, tmp_path, status=1)
    assert f"InputError: model.safetensors: expected {named} defines, to be defined" in done.stderr
    run(f"import mine_of_a_test\n{LOAD}", tmp_path)


def run(code, folder, status=0):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.parametrize("strangers", [[1, 2], {"a": 3}, {"a": ["b"]}, "nonsense", {"\u001b[31m": "x\ny"}])
def test_hostile_names_of_modules_end_with_an_error_of_ours(tmp_path, strangers):
    first = trainer()
    first.fit(X, Y)
    first.save(tmp_path / "h.safetensors")
    forge(tmp_path / "h.safetensors", {"strangers": strangers})
    with pytest.raises(InputError) as caught:
        Model.load(tmp_path / "h.safetensors")
    assert "\n" not in str(caught.value)
