"""What driver and actors tell each other: it comes back as it was, and every worker gets the rows of its shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame
from scipy.sparse import csr_matrix

from distbp import InputError, Model, Outcome, Recipe, TrainingError
from distbp.data import Dataset, Partition, RowForm, Rows, Scaling, SparseRows, as_rows, places_of_shards, share
from distbp.engine.actor import Round
from distbp.engine.messages import (
    pack,
    pack_error,
    pack_job,
    pack_result,
    pack_rows,
    unpack,
    unpack_error,
    unpack_job,
    unpack_result,
    unpack_rows,
)
from distbp.train import Training
from distbp.train.arithmetic import Arithmetic
from distbp.train.benchmark import Benchmark
from distbp.train.model import make_shard
from distbp.train.pace import Protection
from distbp.train.training import with_validation

RECIPE = Recipe.parse({"model": [{"dense": 3}, "softmax"], "batch_size": 4, "shards": 5, "data": {"validation": 0.25}})
DTYPES = [np.float32, np.float64, np.int64, np.uint8, np.dtype(">f8")]
FAULTY = Protection(checkpoint_steps=3, faults=("kill:update:17:2", "flip:copy:20:1"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_as_they_were(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    header, arrays = unpack(pack({"a": [1, 2.5, None, "ä\n"]}, {"x": array[:, ::2], "none": array[:0]}))
    assert header == {"a": [1, 2.5, None, "ä\n"]}
    np.testing.assert_array_equal(arrays["x"], array[:, ::2])
    assert arrays["none"].shape == (0, 4)
    assert unpack(pack({})) == ({}, {})


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(8, 60),
    n_test=st.integers(1, 9),
    n_shards=st.integers(1, 7),
    n_workers=st.integers(1, 7),
    seed=st.integers(0, 9),
    is_sparse=st.booleans(),
)
def test_every_worker_is_sent_the_rows_of_its_shards_and_no_others(
    n_rows, n_test, n_shards, n_workers, seed, is_sparse
):
    n_workers = min(n_workers, n_shards)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, 3)) * rng.integers(0, 2, (n_rows, 3))
    whole = as_rows(csr_matrix(x) if is_sparse else DataFrame(x, columns=list("abc")), rng.integers(0, 3, n_rows))
    test = Rows(rng.standard_normal((n_test, 3)), rng.integers(0, 3, n_test), "test")
    recipe = RECIPE.model_copy(update={"shards": n_shards, "seed": seed})
    dataset = with_validation(Dataset(whole, None, test), recipe)
    partition = Partition(len(dataset.train), n_shards, recipe.batch_size, seed)
    network, loss = recipe.network(), recipe.loss_function()
    network.build((3,), np.dtype(np.float32))
    network.fuse(loss)
    n_sent = dict.fromkeys(dataset.parts, 0)
    for worker in range(n_workers + 1):  # the last one is a parameter server
        held = unpack_rows(pack_rows(dataset, recipe, worker, n_workers))
        shards = share(n_shards, n_workers, worker) if worker < n_workers else range(0)
        for part, places in places_of_shards(dataset, partition, shards).items():
            assert len(held.parts[part]) == len(dataset.parts[part])
            n_sent[part] += len(held.parts[part].x)
            assert isinstance(held.parts[part].x, SparseRows) == isinstance(dataset.parts[part].x, SparseRows)
            assert held.parts[part].columns == dataset.parts[part].columns
            for own in places:
                expected = make_shard(dataset.parts[part], own, loss, network)
                found = make_shard(held.parts[part], own, loss, network)
                expected.prepare(None)
                found.prepare(None)
                np.testing.assert_array_equal(found.x, expected.x)
                np.testing.assert_array_equal(found.targets, expected.targets)
    assert n_sent == {part: len(rows) for part, rows in dataset.parts.items()}


def test_rows_that_were_sent_are_called_by_their_own_numbers():
    x = np.zeros((10, 2))
    x[7, 1] = np.nan
    held = unpack_rows(pack_rows(Dataset(Rows(x, np.zeros(10), "table")), RECIPE, 0, 1)).train
    network, loss = RECIPE.network(), RECIPE.loss_function()
    network.build((2,), np.dtype(np.float32))
    with pytest.raises(InputError, match=r"table: expected finite numbers; given nan in row 7, column 1"):
        make_shard(held, np.array([2, 7]), loss, network)


@pytest.mark.parametrize(
    "job",
    [
        Training(RECIPE),
        Training(RECIPE, protection=FAULTY),
        Training(RECIPE, accepts_other_arithmetic=True),
        Benchmark([4, 3], 2, "adam", 7),
    ],
)
def test_jobs_come_back_as_they_were(job):
    back = unpack_job(pack_job(job), b"")
    assert type(back) is type(job)
    assert pack_job(back) == pack_job(job)


@pytest.mark.parametrize("error", [InputError("a", "b", "c", "d"), TrainingError("text")])
def test_errors_come_back_as_they_were(error):
    back = unpack_error(pack_error(error))
    assert (type(back), str(back), back.exit_status) == (type(error), str(error), error.exit_status)


@pytest.mark.parametrize("scaling", [None, Scaling(np.float32([1, 2]), np.float32([3, 4]))])
def test_outcomes_come_back_as_they_were(scaling):
    weights = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    own = Arithmetic(processor="A", kernels="K", versions={}, threads=1, digests={"exp": "1"})
    form = RowForm(input_shape=(2,), columns=("a", "b"), targets=("c", "d"), has_flat_targets=True)
    model = Model(RECIPE, form, weights, scaling, (own, own))
    history = [{"epoch": 1, "train": {"loss": 0.1 + 0.2}}]
    outcome = Outcome(model, "00", "ray", 2, 5, 7, 1, 0.25, 1e3, history, {"train": {"loss": 1 / 3}}, {"forward": 0.5})
    back = unpack_result(pack_result(outcome))
    assert back.summary() == outcome.summary()
    assert (back.history, back.model.recipe.dump(), back.model.form) == (history, RECIPE.dump(), form)
    assert back.model.weights.tobytes() == weights.tobytes()
    assert back.model.arithmetic == (own, own)
    assert (back.model.scaling is None) == (scaling is None)


def test_a_round_brings_several_arrays_to_each_peer_in_order():
    a, b, c = np.arange(3.0), np.arange(4, dtype=np.int64), np.arange(6, dtype=np.float32).reshape(2, 3)
    to_one, to_two = Round([(2, a), (1, b), (2, c)], []).messages([1, 2])
    x, y, z = np.empty(3), np.empty(4, np.int64), np.empty((2, 3), np.float32)
    Round([], [(8, y), (9, x), (9, z)]).fill({8: to_one, 9: to_two})
    for found, sent in ((x, a), (y, b), (z, c)):
        np.testing.assert_array_equal(found, sent)
