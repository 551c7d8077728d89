"""The command: evaluate, predict, bench, help."""

from __future__ import annotations

import json
import os

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
    for part in ("train", "validation", "test"):
        figures = json.loads(distbp("evaluate", run, "digits", "--part", part).stdout)
        assert figures == pytest.approx(result(run)[part], rel=1e-12)  # training rows are added up as they were dealt
        assert part == "train" or figures == result(run)[part]
    said = distbp("evaluate", run, "digits", "--part", "all", status=2).stderr
    assert "of: train, validation, test" in said


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


def test_a_recipe_may_come_from_a_pipe(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"model: [{dense: 10}, softmax]\ndata: {source: digits}\nepochs: 1\nshards: 2\n")
    os.close(writing)
    distbp("train", f"/dev/fd/{reading}", "--engine", "local", "--out", tmp_path / "run", pass_fds=[reading])
    os.close(reading)
    assert result(tmp_path / "run")["shards"] == 2


def test_files_of_others_are_not_taken_for_those_of_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    for text in ('{"loss": 3}\n', "loss 3\n", "[]\n"):
        (tmp_path / "run" / "metrics.jsonl").write_text(text)
        for change in ("epochs=1", "epochs=x"):
            command = ["train", "--engine", "local", "--set", change, "--out", tmp_path / "run"]
            said = distbp(*command, status=2).stderr
            assert change == "epochs=x" or "holds a metrics.jsonl of an earlier run" in said
            assert (tmp_path / "run" / "metrics.jsonl").read_text() == text


def test_rows_to_validate_on_are_given_once(tmp_path):
    x, y = np.zeros((20, 3)), np.arange(20) % 2
    np.savez(tmp_path / "d.npz", x=x, y=y, x_validation=x, y_validation=y)
    changes = [f"data.source={tmp_path / 'd.npz'}", "data.validation=0.2", "model=[{dense: 2}, softmax]"]
    options = [word for change in changes for word in ("--set", change)]
    said = distbp("train", *options, "--engine", "local", "--out", tmp_path / "run", status=2).stderr
    assert "expected one set of rows to validate on" in said


def test_options_that_would_do_nothing_are_refused(run, tmp_path):
    said = distbp("train", "--accept-other-arithmetic", "--out", tmp_path / "new", status=2).stderr
    assert "name the run with --resume" in said
    np.save(tmp_path / "x.npy", np.zeros((3, 64)))
    command = ["predict", run, tmp_path / "x.npy", "--part", "test", "--out", tmp_path / "p.npy"]
    assert "leave out --part" in distbp(*command, status=2).stderr


def test_a_run_that_does_not_exist_is_not_resumed(tmp_path):
    said = distbp("train", "--resume", tmp_path / "nope", status=2).stderr
    assert f"none: {tmp_path / 'nope'} does not exist; check the path" in said


def test_rows_of_the_test_need_no_others(tmp_path):
    x, y = np.random.default_rng(0).standard_normal((30, 3)), np.arange(30) % 2
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x, y_test=y)
    np.savez(tmp_path / "v.npz", x=x, y=y)
    changes = [f"data.source={tmp_path / 'd.npz'}", f"data.validation={tmp_path / 'v.npz'}"]
    changes += ["model=[{dense: 2}, softmax]", "epochs=1", "shards=1"]
    options = [word for change in changes for word in ("--set", change)]
    distbp("train", *options, "--engine", "local", "--out", tmp_path / "run")
    (tmp_path / "v.npz").unlink()
    for part in ([], ["--part", "test"]):
        figures = json.loads(distbp("evaluate", tmp_path / "run", tmp_path / "d.npz", *part).stdout)
        assert figures == result(tmp_path / "run")["test"]
