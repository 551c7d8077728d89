"""The command: evaluate, predict, bench, help."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests_support import RECIPE, distbp, result

from distbp import __version__


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    distbp("train", folder / "recipe.yaml", "--out", folder / "out")
    return folder / "out"


def test_evaluate_gives_the_metrics_of_training(run):
    for part in ("train", "test"):
        figures = json.loads(distbp("evaluate", run, "digits", "--part", part).stdout)
        if part == "test":
            assert figures == result(run)["test"]
    assert "of: train, test" in distbp("evaluate", run, "digits", "--part", "validation", status=2).stderr


def test_predict_writes_an_npy_file(run, tmp_path):
    distbp("predict", run, "digits", "--out", tmp_path / "p.npy")
    distbp("predict", run, "digits", "--classes", "--out", tmp_path / "c.npy")
    p, c = np.load(tmp_path / "p.npy", allow_pickle=False), np.load(tmp_path / "c.npy", allow_pickle=False)
    assert p.shape == (359, 10)
    np.testing.assert_array_equal(p.argmax(1), c)
    np.save(tmp_path / "x.npy", np.zeros((3, 64)))
    distbp("predict", run, tmp_path / "x.npy", "--out", tmp_path / "q.npy")
    assert np.load(tmp_path / "q.npy", allow_pickle=False).shape == (3, 10)
    assert "can be written" in distbp("predict", run, "digits", "--out", tmp_path / "no" / "p.npy", status=2).stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_bench_prints_the_promised_keys(workers):
    options = ["--layers", "20,16,10", "--batch", 8, "--steps", 20, "--workers", workers, "--protection", "--json"]
    figures = json.loads(distbp("bench", *options).stdout)
    keys = {"ms_per_step", "matmul_ms_per_step", "efficiency", "examples_per_second", "phases_ms", "memory_bytes"}
    assert keys <= set(figures)
    assert figures["workers"] == workers
    assert figures["efficiency"] == pytest.approx(figures["matmul_ms_per_step"] / figures["ms_per_step"])
    assert set(figures["protection"]) == {"none", "copies", "copies and hashing", "deadlines", "all"}
    assert set(figures["phases_ms"]) == {"forward", "backward", "exchange", "update", "waiting"}
    assert figures["memory_bytes"]["weights"] >= 4 * (20 * 16 + 16 + 16 * 10 + 10)
    assert (figures["memory_bytes"]["shared_per_machine"] > 0) == (workers == 2)


def test_bad_options_are_refused():
    assert "sizes such as" in distbp("bench", "--layers", "3", status=2).stderr
    assert "an optimizer of" in distbp("bench", "--optimizer", "adm", status=2).stderr
    assert "did you mean batch_size" in distbp("train", "--set", "batchsize=3", status=2).stderr
    assert "a model, or the folder of a run" in distbp("evaluate", "nowhere", "digits", status=2).stderr


def test_version():
    assert distbp("--version").stdout == f"distbp {__version__}\n"
