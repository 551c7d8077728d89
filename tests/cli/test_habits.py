"""What new users type or expect of the command."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tests_support import distbp, metrics, result

from distbp import InputError
from distbp.cli.recipe_file import read_recipe
from distbp.nn import LAYERS
from distbp.optim import SGD, Adam, Momentum, Nesterov

SHORT = ["--epochs", 2, "--shards", 1]


def test_a_recipe_is_trained_by_its_name():
    assert read_recipe("digits", []).dump() == read_recipe(None, []).dump()
    assert read_recipe("fashion-mnist", []).data.source.endswith("fashion-mnist")
    assert read_recipe("fashion-mnist.yaml", []).dump() == read_recipe("fashion-mnist", []).dump()


def test_an_unknown_name_of_a_recipe_is_answered_with_those_that_exist(tmp_path):
    for name, remedy in (("digit", "did you mean digits"), (f"{tmp_path}/my.yaml", "check the path")):
        with pytest.raises(InputError, match="one of: digits, fashion-mnist") as caught:
            read_recipe(name, [])
        assert f"{name} does not exist; {remedy}" in str(caught.value)


def test_a_file_of_ones_own_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text("model: [{dense: 10}]\nepochs: 77\n")
    assert read_recipe("digits.yaml", []).epochs == 77
    (tmp_path / "digits").mkdir()
    assert read_recipe("digits", []).epochs != 77


@pytest.mark.parametrize("path", ["optimizer.adam.learning_rate", "optimizer.learning_rate"])
def test_an_option_is_that_of_the_optimizer_that_is_set(path):
    changed = read_recipe("digits", [f"{path}=0.25", "epochs=3"])
    assert (changed.optimizer.learning_rate, changed.epochs) == (0.25, 3)
    assert changed.optimizer.beta1 == Adam().beta1


def test_an_option_is_that_of_the_default_where_nothing_is_set(tmp_path):
    (tmp_path / "r.yaml").write_text("model: [{dense: 10}]")
    recipe = read_recipe(tmp_path / "r.yaml", ["optimizer.learning_rate=0.25", "schedule.warmup_steps=7"])
    assert isinstance(recipe.optimizer, Adam)
    assert (recipe.optimizer.learning_rate, recipe.schedule.warmup_steps) == (0.25, 7)


def test_an_option_is_that_of_the_layer_or_schedule_that_is_set():
    layers = [layer.name for layer in read_recipe("digits", []).model]
    i, j = layers.index("dense"), layers.index("dropout")
    changed = read_recipe("digits", [f"model.{i}.units=32", f"model.{j}.rate=0.5", "schedule.warmup_steps=3"])
    assert (changed.model[i].units, changed.model[j].rate, changed.schedule.warmup_steps) == (32, 0.5, 3)
    assert [layer.name for layer in changed.model] == layers


def test_another_optimizer_takes_the_place_of_the_one_that_is_set():
    changed = read_recipe("digits", ["optimizer.sgd.learning_rate=0.1"])
    assert isinstance(changed.optimizer, SGD)
    assert read_recipe("digits", ["optimizer=nesterov", "optimizer.momentum=0.5"]).optimizer.momentum == 0.5


def test_what_could_mean_two_things_is_not_guessed():
    with pytest.raises(InputError, match=re.escape("write out what is meant: --set optimizer.momentum.learning_rate")):
        read_recipe("digits", ["optimizer.momentum=0.9"])
    assert isinstance(read_recipe("digits", ["optimizer={momentum: 0.9}"]).optimizer, Momentum)
    assert not isinstance(read_recipe("digits", ["optimizer.momentum.momentum=0.9"]).optimizer, Nesterov)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lr=0.1", "given 'lr'; did you mean learning_rate"),
        ("optimizer.learnin_rate=0.1", "did you mean learning_rate"),
        ("model.0.neurons=3", "an option of flatten|an option of dense"),
        ("model.99.units=3", "a number from 0 to"),
        ("lr=0.1", r"the learning rate belongs to the optimizer: optim.Adam\(0.1\)"),
        ("workers=4", "distbp train --workers 4"),
    ],
)
def test_a_change_that_fits_nothing_names_what_does(change, message):
    with pytest.raises(InputError, match=message):
        read_recipe("digits", [change])


def test_the_usual_options_are_options_of_train(tmp_path):
    options = ["--epochs", 2, "--batch-size", 200, "--learning-rate", 0.02, "--seed", 5, "--shards", 1]
    distbp("train", *options, "--quiet", "--out", tmp_path / "a")
    changes = ("epochs=2", "batch_size=200", "optimizer.adam.learning_rate=0.02", "seed=5", "shards=1")
    distbp("train", "--quiet", *(word for c in changes for word in ("--set", c)), "--out", tmp_path / "b")
    assert result(tmp_path / "a")["weights_sha256"] == result(tmp_path / "b")["weights_sha256"]
    assert len(metrics(tmp_path / "a")) == 2
    assert "a change of it" in distbp("train", "--resume", tmp_path / "a", "--seed", 3, status=2).stderr


def test_help_shows_options_in_groups_and_none_of_those_for_tests():
    for command in ("train", "bench"):
        shown = distbp(command, "--help").stdout
        assert "Workers" in shown
        assert "Ray" in shown
        for hidden in ("--fault", "--machines", "--calls"):
            assert hidden not in shown
    for shown_too in ("Checkpoints", "Run", "--epochs", "--learning-rate", "--resume"):
        assert shown_too in distbp("train", "--help").stdout


@pytest.mark.parametrize(("options", "epochs"), [([], [1, 2, 3, 4, 5]), (["--every", 2], [2, 4, 5]), (["--quiet"], [])])
def test_as_many_lines_as_one_wants(tmp_path, options, epochs):
    done = distbp("train", "--epochs", 5, "--shards", 1, *options, "--out", tmp_path / "run")
    assert [int(n) for n in re.findall(r"^epoch (\d+)/5", done.stdout, re.MULTILINE)] == epochs
    assert "weights_sha256" in done.stdout
    assert len(metrics(tmp_path / "run")) == 5


def test_one_is_not_plural(tmp_path):
    done = distbp("train", *SHORT, "--out", tmp_path / "run")
    assert ", 1 worker, 1 shard, engine local" in done.stdout
    assert ", 1 worker, 3 shards, " in distbp("train", "--epochs", 1, "--shards", 3, "--out", tmp_path / "3").stdout
    np.save(tmp_path / "x.npy", np.zeros((1, 64)))
    done = distbp("predict", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "y.npy")
    assert done.stdout.startswith("1 row written")
    shown = distbp("bench", "--layers", "4,3", "--batch", 1, "--steps", 10).stdout
    assert "1 row a worker" in shown
    assert "1 worker:" in shown


def test_the_end_of_early_stopping_is_said(tmp_path):
    rule = ["--set", "early_stopping={patience: 1}", "--set", "optimizer.learning_rate=0.02"]
    done = distbp("train", "--shards", 1, *rule, "--out", tmp_path / "run")
    found = result(tmp_path / "run")
    assert found["stopped_early"] is True
    assert f"stopped at epoch {found['epochs']}; best epoch {found['best_epoch']} kept" in done.stdout
    losses = [record["validation"]["loss"] for record in metrics(tmp_path / "run")]
    assert found["best_epoch"] == int(np.argmin(losses)) + 1 < found["epochs"] == len(losses) < 60
    assert found["validation"]["loss"] == min(losses)


def test_early_stopping_that_did_not_stop_names_the_best_epoch(tmp_path):
    done = distbp("train", *SHORT, "--set", "early_stopping=true", "--out", tmp_path / "run")
    found = result(tmp_path / "run")
    assert (found["stopped_early"], found["epochs"]) == (False, 2)
    assert f"\nbest epoch {found['best_epoch']} kept" in done.stdout
    distbp("train", *SHORT, "--set", "early_stopping=false", "--out", tmp_path / "off")
    assert "best_epoch" not in result(tmp_path / "off")


def test_times_add_up(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        distbp("train", "--epochs", 8, "--shards", 2, "--quiet", "--workers", workers, "--out", tmp_path / name)
        found = result(tmp_path / name)
        assert found["evaluation_seconds"] > 0
        assert sum(found["phase_seconds"].values()) == pytest.approx(found["train_seconds"], rel=0.02)
        assert (
            found["train_seconds"]
            == json.loads((tmp_path / name / "metrics.jsonl").read_text().split("\n")[7])["seconds"]
        )


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "missing.npy", "--out", "y.npy"],
        ["evaluate", "RUN", "missing.npz"],
        ["evaluate", "RUN", "missing"],
        ["evaluate", "missing", "digits"],
        ["evaluate", "missing.safetensors", "digits"],
        ["train", "missing.yaml"],
        ["train", "--set", "data.source=missing"],
        ["train", "--set", "data.validation=missing"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_what_is_missing_is_said_to_be_missing(command, tmp_path, a_run):
    words = [str(a_run) if word == "RUN" else word for word in command]
    done = distbp(*words, status=2, cwd=tmp_path)
    missing = next(word for word in command if "missing" in word).rpartition("=")[2]
    assert f"{missing} does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Errno" not in done.stderr


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("habits") / "run"
    distbp("train", *SHORT, "--quiet", "--out", folder)
    return folder


def test_every_layer_can_be_changed_by_its_options():
    """The names of options and of layers do not clash: else a change could mean two things."""
    import dataclasses

    options = {field.name for cls in LAYERS.values() for field in dataclasses.fields(cls)}
    assert not options & set(LAYERS)
