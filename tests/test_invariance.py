"""What workers of any engine evaluate has the bits of rows that are predicted and evaluated alone."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from tests_support import finish, start_program, under_mpirun

pytestmark = pytest.mark.timeout(300)

SCRIPT = """
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distbp import Trainer, nn

ENGINE, N_EXAMPLES, FOLDER = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
OPTIONS = {"engine": "ray", "workers": 2} if ENGINE == "ray" else {}
KINDS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "softplus": nn.Softplus}


def mapped(x):
    with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".npy") as file:  # of each rank its own
        np.save(file, x)
        file.flush()
        return np.load(file.name, mmap_mode="r")


FORMS = {"array": lambda x: x, "sparse": scipy.sparse.csr_array, "memory map": mapped}


ALL = list(HealthCheck)


@settings(max_examples=N_EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=ALL)
@given(
    units=st.lists(st.integers(1, 200), min_size=1, max_size=2),
    activation=st.sampled_from(sorted(KINDS)),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(["float32", "float64"]),
    row_limit=st.sampled_from([None, 1, 50]),
    n=st.integers(5, 400),
    n_in=st.integers(1, 100),
    shards=st.integers(3, 5),
)
def check(units, activation, form, dtype, row_limit, n, n_in, shards):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, n_in)) * rng.integers(0, 2, (n, n_in))
    y = np.arange(n) % 3
    layers = [layer for width in units for layer in (nn.Dense(width), KINDS[activation]())]
    options = {"dtype": dtype, "row_limit": row_limit, "shards": shards, "scaling": "minmax"}
    trainer = Trainer([*layers, nn.Dense(3), nn.Softmax()], epochs=1, **options, **OPTIONS)
    outcome = trainer.fit(FORMS[form](x), y, validation=(x[::-1].copy(), y[::-1]))
    if trainer.worker != 0:
        return
    model = trainer.model
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(outcome.metrics["train"]["loss"], rel=1e-9)  # as dealt
    assert trainer.evaluate(x[::-1], y[::-1]) == outcome.metrics["validation"]
    predicted = model.predict(FORMS[form](x))
    for i in {0, n // 2, n - 1}:
        np.testing.assert_array_equal(model.predict(x[i : i + 1]), predicted[i : i + 1])


check()
print("all alike", flush=True)
"""


def write(tmp_path, *arguments):
    """Return the words that run the script."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, tmp_path / "script.py", *arguments, tmp_path]


def succeed(process):
    done = finish(process, 200)
    assert done.returncode == 0, done.stderr
    assert "all alike" in done.stdout


def test_one_process_evaluates_each_row_alone(tmp_path):
    succeed(start_program(*write(tmp_path, "local", 60)))


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed")
def test_ranks_evaluate_each_row_alone(tmp_path):
    succeed(under_mpirun(3, *write(tmp_path, "mpi", 12)))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_actors_evaluate_each_row_alone(tmp_path):
    succeed(start_program(*write(tmp_path, "ray", 4)))
