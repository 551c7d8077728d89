"""The outputs for a row depend on that row alone: not on those that come with it, nor on how they are kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from distbp import Model, Recipe, Trainer, nn
from distbp.data import RowForm, Rows, Scaling
from distbp.data.shard import Features
from distbp.nn import LAYERS, LOSSES, RowBlocks, aligned_zeros, row_keys
from distbp.nn.row_blocks import SIZES
from distbp.train.evaluator import Evaluator

ELEMENTWISE = sorted(name for name, layer in LAYERS.items() if layer.is_activation and name != "softmax")


def model(widths, activation="relu", loss="squared_error", dtype="float32", seed=0, **recipe):
    """A network of dense layers of these widths with random weights, from input to output."""
    layers = [layer for width in widths[1:-1] for layer in ({"dense": width}, activation)]
    layers += [{"dense": widths[-1]}, *({"categorical_cross_entropy": ["softmax"]}.get(loss, []))]
    parsed = Recipe.parse({"model": layers, "loss": loss, "dtype": dtype, "shards": 1} | recipe)
    rng = np.random.default_rng(seed)
    network = parsed.network()
    layout = network.build((widths[0],), np.dtype(dtype))
    weights = aligned_zeros(layout.size, layout.dtype)
    weights[...] = rng.standard_normal(layout.size) / np.sqrt(np.mean(widths))
    scaling = Scaling(rng.standard_normal(widths[0]), rng.uniform(0.5, 2.0, widths[0]))
    return Model(parsed, RowForm(input_shape=(widths[0],)), weights, scaling)


def rows(n, n_in, seed=0):
    return np.random.default_rng(seed).standard_normal((n, n_in))


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 140), min_size=2, max_size=4),
    activation=st.sampled_from(ELEMENTWISE),
    loss=st.sampled_from(["squared_error", "categorical_cross_entropy"]),
    dtype=st.sampled_from(["float32", "float64"]),
    row_limit=st.sampled_from([None, 1, 30, 100]),
    n=st.integers(1, 700),
    data=st.data(),
)
def test_a_prediction_depends_on_its_row_alone(widths, activation, loss, dtype, row_limit, n, data):
    if loss == "categorical_cross_entropy":
        widths[-1] = max(widths[-1], 2)
    trained = model(widths, activation, loss, dtype, row_limit=row_limit)
    x = rows(n, widths[0], seed=n)
    y = trained.predict(x)
    for i in {0, n - 1, data.draw(st.integers(0, n - 1))}:
        np.testing.assert_array_equal(trained.predict(x[i : i + 1]), y[i : i + 1])
    start, stop = sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    np.testing.assert_array_equal(trained.predict(x[start : stop + 1]), y[start : stop + 1])
    order = np.random.default_rng(n).permutation(n)
    np.testing.assert_array_equal(trained.predict(x[order]), y[order])


@pytest.mark.parametrize("widths", [(784, 512, 512, 10), (64, 128, 128, 10), (100, 1), (1024, 2048, 1000)])
def test_networks_of_the_usual_sizes_predict_each_row_alone(widths):
    trained, x = model(widths), rows(500, widths[0])
    y = trained.predict(x)
    for i in range(0, 500, 23):
        np.testing.assert_array_equal(trained.predict(x[i : i + 1]), y[i : i + 1])
    for n in (2, 7, 12, 45, 239, 241):
        np.testing.assert_array_equal(trained.predict(x[-n:]), y[-n:])


def test_equal_rows_get_equal_bits():
    x = np.repeat(rows(1, 64), 500, axis=0)
    y = model((64, 128, 10)).predict(x)
    assert (y == y[0]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_a_memory_map_and_of_a_sparse_matrix_get_the_bits_of_those_in_memory(tmp_path, dtype):
    trained = model((90, 64, 5), dtype=dtype)
    x = np.where(rows(300, 90, 1) > 0.5, rows(300, 90), 0.0)
    np.save(tmp_path / "x.npy", x, allow_pickle=False)
    y = trained.predict(x)
    np.testing.assert_array_equal(trained.predict(np.load(tmp_path / "x.npy", mmap_mode="r")), y)
    np.testing.assert_array_equal(trained.predict(scipy.sparse.csr_array(x)), y)
    np.testing.assert_array_equal(trained.predict(np.asfortranarray(x)), y)
    np.testing.assert_array_equal(trained.predict(x.tolist()), y)


def test_the_threads_that_the_process_has_do_not_matter():
    trained, x = model((300, 400, 10)), rows(400, 300)
    y = trained.predict(x)
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            np.testing.assert_array_equal(trained.predict(x), y)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_an_evaluation_is_the_mean_of_those_of_its_rows(loss):
    trained = model((20, 64, 3), loss=loss, dtype="float64")
    x, y = rows(130, 20), LOSSES[loss].example(np.random.default_rng(0), 130, 3)
    alone = [trained.evaluate(Rows(x[i : i + 1], y[i : i + 1]))["loss"] for i in range(130)]
    assert trained.evaluate(Rows(x, y))["loss"] == pytest.approx(np.mean(alone), rel=1e-14)


def test_the_accuracy_is_that_of_the_classes_to_the_last_row():
    trained = model((20, 64, 2), loss="categorical_cross_entropy")
    x, y = rows(1500, 20), np.random.default_rng(1).integers(0, 2, 1500)
    classes = trained.predict_classes(x)
    assert trained.evaluate(Rows(x, y))["accuracy"] == np.mean(classes == y)
    np.testing.assert_array_equal(classes, np.argmax(trained.predict(x), axis=1))


def test_training_reports_the_bits_of_a_later_evaluation_however_the_rows_are_kept():
    x, y = rows(333, 12), np.random.default_rng(1).integers(0, 3, 333)
    layers = [nn.Dense(40), nn.Tanh(), nn.Dense(3), nn.Softmax()]
    trainer = Trainer(layers, scaling="standard", shards=3, epochs=2)
    outcome = trainer.fit(x, y)
    assert trainer.evaluate(x, y) == outcome.metrics["train"]
    assert trainer.evaluate(scipy.sparse.csr_matrix(x), y) == outcome.metrics["train"]


class Placed(nn.Layer):
    """y = x, but for the last bit of some places of a batch, as kernels of matrix products have it."""

    def differs(self, n):
        raise NotImplementedError

    def forward(self, x):
        np.copyto(self.y, x)
        odd = self.differs(len(x))
        self.y[odd] = np.nextafter(x[odd], np.float32(9))
        return self.y

    def backward(self, dy):
        return dy


del LAYERS[Placed.name]  # only those derived from it are layers


@pytest.fixture(params=["none", "half", "end", "small", "every"])
def places(request):
    """A layer that has such places, how many groups are to be found, and the rows it computes for a single one."""
    differs, n_groups, least_rows = {
        "none": (lambda n: np.arange(n) < 0, 1, 12),
        "half": (lambda n: np.arange(n) % 12 < 6, 2, 12),
        "end": (lambda n: np.arange(n) >= n - n % 7, 1, 12),
        "small": (lambda n: np.arange(n) >= (n > 100) * n, 1, 120),  # another kernel for few rows
        "every": (lambda n: np.arange(n) % 24 < 4, 2, 12),
    }[request.param]
    kind = type("Place" + request.param.title(), (Placed,), {"differs": staticmethod(differs)})
    yield kind(), n_groups, least_rows
    del LAYERS[kind.name]


def test_groups_of_places_are_found_and_rows_stay_in_theirs(places):
    layer, n_groups, least_rows = places
    network, loss = nn.Sequential(nn.Tanh(), layer, nn.Tanh()), LOSSES["squared_error"]()
    network.build((3,), np.dtype(np.float32))
    network.fuse(loss)
    evaluator = Evaluator(network, loss, None)
    blocks = evaluator.blocks
    assert len(blocks.groups) == n_groups
    network.bind(aligned_zeros(0, np.dtype(np.float32)), blocks.n_rows, backward=False)

    def compute(x):
        features = Features(Rows(x, np.zeros(len(x))), np.arange(len(x)), np.dtype(np.float32))
        features.prepare(None)
        return evaluator.outputs(features)

    x = rows(1000, 3).astype(np.float32)
    y = compute(x)
    for n, start in itertools.product((1, 5, 50, 250), (0, 100, 700)):
        np.testing.assert_array_equal(compute(x[start : start + n]), y[start : start + n])
    (block,) = blocks.blocks(row_keys(x[:1]))
    assert blocks.layer_rows[block.size] == [block.size, least_rows, block.size]


def test_every_row_is_in_one_block_once_and_few_places_stay_empty():
    network = nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(10))
    network.build((64,), np.dtype(np.float32))
    blocks = RowBlocks(network)
    for n in (1, 11, 12, 13, 100, 3000):
        plan = list(blocks.blocks(row_keys(rows(n, 64).astype(np.float32))))
        counted = np.concatenate([np.arange(n)[block.own_rows] for block in plan])
        np.testing.assert_array_equal(np.sort(counted), np.arange(n))
        assert {block.size for block in plan} <= set(SIZES)
    assert sum(block.size for block in plan) < 1.06 * 3000


def test_a_network_that_is_not_small_computes_few_rows_more_than_it_is_given():
    blocks = model((300, 1000, 1))._evaluator.blocks
    for n in (1, 3, 30, 100, 200, 1000):
        plan = list(blocks.blocks(row_keys(rows(n, 300).astype(np.float32))))
        assert sum(block.size for block in plan) <= 1.2 * n + 24
        assert len(plan) <= 2 + n // 120


def test_rows_of_few_numbers_other_than_zero_fill_the_places_of_all_groups():
    trained = model((5000, 64, 3))
    x = scipy.sparse.random_array((2000, 5000), density=0.002, format="csr", rng=0)
    evaluator = trained._evaluator
    features = trained._features(x)
    assert sum(block.size for block in evaluator._plan(features)) < 1.15 * 2000
    y = trained.predict(x)
    np.testing.assert_array_equal(trained.predict(x[3:4]), y[3:4])
    np.testing.assert_array_equal(trained.predict(x.toarray() * -1.0 * -1.0 - 0.0), y)


def test_negative_zeros_are_zeros():
    trained = model((40, 64, 3))
    x = np.where(rows(200, 40, 1) > 1.0, rows(200, 40), -0.0)
    np.testing.assert_array_equal(trained.predict(x), trained.predict(scipy.sparse.csr_array(x)))


def test_a_layer_that_takes_no_random_numbers_is_evaluated_all_the_same():
    class Lookup(nn.Layer):
        """y = table[x] for codes 0 and 1: takes no other numbers."""

        def forward(self, x):
            np.copyto(self.y, np.array([0.5, 2.0], x.dtype)[x.astype(np.intp)])
            return self.y

        def backward(self, dy):
            return dy

    x = np.random.default_rng(0).integers(0, 2, (300, 6))
    trainer = Trainer([Lookup(), nn.Dense(32), nn.ReLU(), nn.Dense(2), nn.Softmax()], epochs=1, shards=2)
    try:
        trainer.fit(x, x[:, 0])
        np.testing.assert_array_equal(trainer.predict(x[:1]), trainer.predict(x)[:1])
    finally:
        del LAYERS[Lookup.name]
