"""``distbp predict`` and ``distbp evaluate``: classes, formats, the same checks as in Python."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import numpy as np
import pandas as pd
import pytest
from tests_support import distbp

from distbp import Trainer, nn, optim

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 4)).round(3)
Y = (X[:, 0] > 0).astype(int)
MODELS = {
    "categorical": ("categorical_cross_entropy", [nn.Dense(2), nn.Softmax()], Y),
    "binary": ("binary_cross_entropy", [nn.Dense(1), nn.Sigmoid()], Y),
    "logit": ("binary_cross_entropy", [nn.Dense(1)], Y),
    "several": ("binary_cross_entropy", [nn.Dense(3), nn.Sigmoid()], X[:, 1:] > 0),
    "regression": ("squared_error", [nn.Dense(3)], X[:, :3]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of each kind, and its rows."""
    folder = tmp_path_factory.mktemp("models")
    np.save(folder / "x.npy", X)
    for name, (loss, layers, y) in MODELS.items():
        trainer = Trainer(layers, loss=loss, optimizer=optim.Adam(0.05), epochs=10, shards=2)
        trainer.fit(X, y)
        trainer.save(folder / f"{name}.safetensors")
        np.savez(folder / f"{name}.npz", x=X, y=y)
    return folder


@pytest.mark.parametrize("name", ["categorical", "binary", "logit", "several"])
def test_classes_are_those_that_evaluate_counts(folder, name, tmp_path):
    model, (_, _, y) = folder / f"{name}.safetensors", MODELS[name]
    distbp("predict", model, folder / "x.npy", "--classes", "--out", tmp_path / "c.npy")
    classes = np.load(tmp_path / "c.npy", allow_pickle=False)
    assert classes.shape == y.shape
    right = (classes.reshape(80, -1) == np.reshape(y, (80, -1))).all(axis=1)
    assert json.loads(distbp("evaluate", model, folder / f"{name}.npz").stdout)["accuracy"] == right.mean()
    assert right.mean() > 0.6


def test_a_regression_has_no_classes(folder, tmp_path):
    command = ["predict", folder / "regression.safetensors", folder / "x.npy", "--classes", "--out", tmp_path / "c.npy"]
    assert "expected classes of a classifier" in distbp(*command, status=2).stderr
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize("name", ["binary", "regression"])
@pytest.mark.parametrize("classes", [[], ["--classes"]])
def test_a_csv_file_holds_the_numbers_of_the_npy_file(folder, name, classes, tmp_path):
    if name == "regression" and classes:
        return
    for out in ("p.npy", "p.csv"):
        command = ["predict", folder / f"{name}.safetensors", folder / "x.npy", *classes, "--out", tmp_path / out]
        distbp(*command)
    expected = np.load(tmp_path / "p.npy", allow_pickle=False)
    found = np.loadtxt(tmp_path / "p.csv", expected.dtype, delimiter=",")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("p.parquet", "expected a name that ends in .npy or .csv"),
        ("p", "expected a name that ends in .npy or .csv"),
        ("no/p.npy", "in a folder that does not exist"),
        ("folder.npy", "folder.npy, a folder"),
    ],
)
def test_a_file_that_cannot_be_written_ends_the_command_before_it_computes(folder, out, message, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    said = distbp("predict", "no/model", folder / "x.npy", "--out", tmp_path / out, status=2).stderr
    assert message in said
    assert "Traceback" not in said


def test_what_is_no_regular_file_stays_what_it_is(folder, tmp_path):
    command = ["predict", folder / "binary.safetensors", folder / "x.npy", "--out"]
    distbp(*command, tmp_path / "p.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "far").mkdir()
    (tmp_path / "link.npy").symlink_to("far/q.npy")
    reader = subprocess.Popen(["cat", tmp_path / "pipe.npy"], stdout=subprocess.PIPE)
    distbp(*command, tmp_path / "pipe.npy")
    assert reader.communicate(timeout=30)[0] == (tmp_path / "p.npy").read_bytes()
    assert stat.S_ISFIFO((tmp_path / "pipe.npy").stat().st_mode)
    distbp(*command, tmp_path / "link.npy")
    assert (tmp_path / "link.npy").is_symlink()
    assert (tmp_path / "far" / "q.npy").read_bytes() == (tmp_path / "p.npy").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="devices are made by root")
def test_a_device_stays_one(folder, tmp_path):
    command = ["predict", folder / "binary.safetensors", folder / "x.npy", "--out"]
    for name, minor, status in (("null.npy", 3, 0), ("full.npy", 7, 3)):
        os.mknod(tmp_path / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        said = distbp(*command, tmp_path / name, status=status).stderr
        assert stat.S_ISCHR((tmp_path / name).stat().st_mode)
        assert said.count("\n") == bool(status)


def test_rows_that_do_not_fit_are_refused_with_one_message(folder, tmp_path):
    rows = {
        "wide": np.zeros((3, 5)),
        "flat": np.zeros(4),
        "complex": np.zeros((3, 4), complex),
        "ids": [[2**24 + 1] * 4],
    }
    messages = ["rows of shape (4,)", "x[None, :] one row", "real and imaginary", "integers that float32 can hold"]
    for (name, array), message in zip(rows.items(), messages, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        command = ["predict", folder / "binary.safetensors", tmp_path / f"{name}.npy", "--out", tmp_path / "p.npy"]
        said = distbp(*command, status=2).stderr
        assert message in said
        assert said.count("\n") == 1


def test_labels_out_of_range_are_refused_by_evaluate(folder, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y + 1)
    for name, message in (("categorical", "integer labels from 0 to 1"), ("binary", "code the classes as 0 and 1")):
        assert message in distbp("evaluate", folder / f"{name}.safetensors", tmp_path / "d.npz", status=2).stderr


def test_an_array_for_a_model_with_named_columns_brings_one_line(folder, tmp_path):
    trainer = Trainer([nn.Dense(2), nn.Softmax()], epochs=1, shards=2)
    trainer.fit(pd.DataFrame(X, columns=list("abcd")), Y)
    trainer.save(tmp_path / "m.safetensors")
    done = distbp("predict", tmp_path / "m.safetensors", folder / "x.npy", "--out", tmp_path / "p.npy")
    assert done.stderr == (
        "distbp: x: the columns have no names, but the model was trained on 'a', 'b', 'c', 'd'; "
        "they are taken by position\n"
    )


def test_evaluating_the_rows_of_the_training_by_default_is_said(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    (tmp_path / "r.yaml").write_text(f"data: {{source: {tmp_path}/d.npz}}\nmodel: [{{dense: 2}}]\nepochs: 1\n")
    distbp("train", tmp_path / "r.yaml", "--engine", "local", "--out", tmp_path / "run")
    assert "the rows that the model was trained on" in distbp("evaluate", tmp_path / "run", tmp_path / "d.npz").stderr
    assert not distbp("evaluate", tmp_path / "run", tmp_path / "d.npz", "--part", "train").stderr


def test_validation_on_the_source_of_the_training_is_refused(tmp_path):
    changes = ["--set", "data.validation=digits", "--engine", "local", "--out", tmp_path / "run"]
    said = distbp("train", *changes, status=2).stderr
    assert "expected rows of their own for validation; given digits, the source of the training rows" in said


def test_a_run_that_overflows_says_so_in_one_message(tmp_path):
    np.savez(tmp_path / "d.npz", x=X * 1e6, y=Y)
    recipe = f"data: {{source: {tmp_path}/d.npz}}\nmodel: [{{dense: 8}}, {{dense: 2}}]\noptimizer: {{sgd: 1.0e+30}}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    done = distbp("train", tmp_path / "r.yaml", "--engine", "local", "--out", tmp_path / "run", status=3)
    assert "expected a finite loss and gradient" in done.stderr
    assert "Warning" not in done.stderr + done.stdout
