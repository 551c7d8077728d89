"""Runs in one process: the laws that need no other process."""

from __future__ import annotations

import numpy as np
import pytest

from distbp import InputError, Model, Trainer, TrainingError, load, nn, optim
from distbp.data import Dataset, Rows
from distbp.engine import connect
from distbp.train import Recipe, Run


def trainer(**options):
    settings = {"batch_size": 50, "epochs": 3, "shards": 3, "optimizer": optim.Adam(0.01)} | options
    return Trainer([nn.Dense(16), nn.ReLU(), nn.Dropout(0.1), nn.Dense(10), nn.Softmax()], **settings)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def fit(digits, **options):
    return trainer(**options).fit(digits.train.x / 16.0, digits.train.y, test=(digits.test.x / 16.0, digits.test.y))


def test_equal_recipes_give_equal_bits_and_another_seed_others(digits):
    first, second, other = fit(digits), fit(digits), fit(digits, seed=1)
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert first.metrics == second.metrics


def test_every_row_is_counted_once_in_every_metric(digits):
    run = Run(trainer().recipe, digits, connect())
    for part, rows in digits.parts.items():
        assert run.worker.evaluate(part)[:, 1].sum() == len(rows)
    for step in range(run.partition.epoch_steps):
        run.step(step)
    assert run.worker.take_tally()[:, 1].sum() == len(digits.train)


def test_one_step_of_sgd_is_the_mean_gradient_of_the_batch_however_it_is_sharded():
    """Least squares, where the gradient is known: dW = Σ (W x - t) xᵀ / n, with 7 rows in 3 shards."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((7, 4)), rng.standard_normal((7, 2))
    for shards, row_limit in ((1, None), (3, None), (7, None), (1, 2), (2, 1)):
        recipe = Recipe.parse(
            {"model": [{"dense": {"units": 2, "bias": False}}], "loss": "squared_error", "optimizer": {"sgd": 0.5}}
            | {"batch_size": 7, "epochs": 1, "shards": shards, "row_limit": row_limit, "dtype": "float64"}
        )
        run = Run(recipe, Dataset(Rows(x, t)), connect())
        W = run.network.layers[0].weight.W
        expected = W - 0.5 * (x @ W.T - t).T @ x / 7
        run.step(0)
        np.testing.assert_allclose(W, expected, rtol=0, atol=1e-13)


def test_a_row_limit_changes_rounding_only(digits):
    whole, cut = fit(digits, epochs=1, dtype="float64"), fit(digits, epochs=1, dtype="float64", row_limit=7)
    np.testing.assert_allclose(whole.model.weights, cut.model.weights, rtol=0, atol=1e-10)
    assert whole.metrics["test"]["loss"] == pytest.approx(cut.metrics["test"]["loss"], abs=1e-10)


def test_shards_change_rounding_and_randomness_only(digits):
    accuracies = [fit(digits, shards=shards, epochs=10).metrics["test"]["accuracy"] for shards in (1, 2, 16)]
    assert min(accuracies) > 0.9


def test_batches_smaller_than_the_shards_leave_some_microbatches_empty(digits):
    outcome = fit(digits, shards=16, batch_size=5, epochs=1)
    assert outcome.steps == 288
    assert outcome.metrics["test"]["accuracy"] > 0.8


def test_clipping_bounds_the_step():
    x, t = np.full((4, 1), 100.0), np.full(4, 1e4)
    recipe = {"model": [{"dense": 1}], "loss": "squared_error", "optimizer": {"sgd": 1.0}, "batch_size": 4, "epochs": 1}
    run = Run(Recipe.parse(recipe | {"clip_norm": 0.5, "dtype": "float64"}), Dataset(Rows(x, t)), connect())
    before = run.exchange.weights.copy()
    run.step(0)
    assert np.linalg.norm(run.exchange.weights - before) == pytest.approx(0.5, rel=1e-6)


def test_weight_decay_leaves_biases_out():
    x, t = np.zeros((4, 3)), np.zeros(4)
    recipe = {"model": [{"dense": 1}], "loss": "squared_error", "batch_size": 4, "epochs": 1, "dtype": "float64"}
    decayed = recipe | {"optimizer": {"adamw": {"learning_rate": 0.1, "weight_decay": 0.5}}}
    run = Run(Recipe.parse(decayed), Dataset(Rows(x, t)), connect())
    dense = run.network.layers[0]
    dense.weight.b[:] = 0.0
    before = dense.weight.W.copy()
    run.step(0)
    np.testing.assert_allclose(dense.weight.W, 0.95 * before, atol=1e-15)
    assert dense.weight.b == 0.0


def test_a_step_allocates_nothing_that_grows_with_the_network():
    import tracemalloc

    rng = np.random.default_rng(0)
    dataset = Dataset(Rows(rng.standard_normal((64, 100), dtype=np.float32), rng.integers(0, 10, 64)))
    recipe = {"model": [{"dense": 2000}, "relu", {"dense": 10}, "softmax"], "batch_size": 32, "shards": 4}
    run = Run(Recipe.parse(recipe | {"optimizer": "adam", "clip_norm": 1.0}), dataset, connect())
    run.step(0)
    tracemalloc.start()
    run.step(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert run.exchange.weights.nbytes > 800_000
    assert peak < 60_000


def test_early_stopping_keeps_the_best_weights(digits):
    outcome = trainer(epochs=60, early_stopping={"metric": "loss", "patience": 2}, optimizer=optim.Adam(0.02)).fit(
        digits.train.x, digits.train.y, validation=0.2
    )
    losses = [record["validation"]["loss"] for record in outcome.history]
    assert len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    assert outcome.metrics["validation"]["loss"] == min(losses)


def test_a_loss_that_is_not_finite_stops_before_the_step_is_committed():
    x, t = np.array([[1.0], [1.0], [1e308], [1.0]]), np.array([0.0, 0.0, 1e308, 0.0])
    recipe = {"model": [{"dense": 1}], "loss": "squared_error", "optimizer": {"sgd": 0.1}, "batch_size": 4, "shards": 4}
    run = Run(Recipe.parse(recipe | {"dtype": "float64"}), Dataset(Rows(x, t)), connect())
    before = run.exchange.weights.copy()
    with (
        np.errstate(over="ignore"),
        pytest.raises(
            TrainingError,
            match=r"that of shard \d at step 0 is not \(first in (layer 0 \(dense\)|the loss); rows 2 of ",
        ),
    ):
        run.step(0)
    np.testing.assert_array_equal(run.exchange.weights, before)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(("value", "is_refused"), [(1e38, True), (1e25, False)])
def test_a_gradient_that_is_not_finite_stops_before_the_step_and_a_long_one_does_not(value, is_refused, clip_norm):
    """At W = 0 the loss (W x - t)² / 2 does not depend on x, and the gradient (W x - t) xᵀ is as long as x is."""
    x, t = np.full((4, 1), value, np.float32), np.full(4, 1e3, np.float32)
    recipe = {"model": [{"dense": {"units": 1, "bias": False}}], "loss": "squared_error", "optimizer": {"sgd": 0.1}}
    run = Run(
        Recipe.parse(recipe | {"batch_size": 4, "shards": 2, "clip_norm": clip_norm}), Dataset(Rows(x, t)), connect()
    )
    run.exchange.weights[...] = 0.0
    before = run.exchange.weights.copy()
    if is_refused:
        said = r"shard 0 at step 0 is not \(first in the gradient of 0_dense.W; rows \d, \d of "
        with np.errstate(over="ignore", invalid="ignore"), pytest.raises(TrainingError, match=said):
            run.step(0)
        np.testing.assert_array_equal(run.exchange.weights, before)
    else:
        with np.errstate(over="ignore"):
            run.step(0)
        assert np.all(np.isfinite(run.exchange.weights))


@pytest.mark.parametrize("scaling", ["standard", "minmax"])
@pytest.mark.parametrize("mapped", [False, True])
def test_scaling_is_fitted_on_training_rows_and_kept_with_the_model(digits, scaling, mapped, tmp_path):
    x = digits.train.x.astype(float)
    if mapped:
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    t = trainer(scaling=scaling, dtype="float64")
    outcome = t.fit(x, digits.train.y, test=(digits.test.x, digits.test.y))
    x = digits.train.x.astype(float)
    shift, factor = outcome.model.scaling.shift, outcome.model.scaling.factor
    expected = (x.mean(0), x.std(0)) if scaling == "standard" else (x.min(0), np.ptp(x, axis=0))
    np.testing.assert_allclose(shift, expected[0], atol=1e-12)
    np.testing.assert_allclose(factor[expected[1] > 0], 1 / expected[1][expected[1] > 0], rtol=1e-12)
    assert not factor[expected[1] == 0].any()
    assert t.evaluate(digits.test.x, digits.test.y) == outcome.metrics["test"]


def test_rows_are_named_by_their_number_in_the_file_also_after_a_split(digits):
    x = digits.train.x.astype(float)
    x[1001, 5] = np.inf
    with pytest.raises(InputError, match="inf in row 1001, column 5"):
        trainer().fit(x, digits.train.y, validation=0.3)


def test_memory_mapped_rows_give_the_bits_of_rows_in_memory(digits, tmp_path):
    np.save(tmp_path / "x.npy", digits.train.x)
    np.save(tmp_path / "y.npy", digits.train.y)
    mapped = load(str(tmp_path)).train
    assert isinstance(mapped.x, np.memmap)
    shas = {trainer(scaling="standard").fit(rows.x, rows.y).weights_sha256 for rows in (mapped, digits.train)}
    assert len(shas) == 1


def test_saved_model_predicts_and_evaluates_as_before(digits, tmp_path):
    t = trainer(scaling="standard")
    outcome = t.fit(digits.train.x, digits.train.y, test=(digits.test.x, digits.test.y))
    t.save(tmp_path / "m.safetensors")
    loaded = Trainer.load(tmp_path / "m.safetensors")
    y = loaded.predict(digits.test.x)
    np.testing.assert_array_equal(y, t.predict(digits.test.x))
    np.testing.assert_allclose(y.sum(axis=1), 1.0, rtol=1e-5)
    assert np.mean(np.argmax(y, 1) == digits.test.y) == outcome.metrics["test"]["accuracy"]
    assert loaded.evaluate(digits.test.x, digits.test.y) == outcome.metrics["test"]
    assert Model.load(tmp_path / "m.safetensors").sha256 == outcome.weights_sha256
    assert loaded.recipe.shards == 3


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_model_is_refused(digits, tmp_path, damage):
    from safetensors.numpy import save

    t = trainer(epochs=1)
    t.fit(digits.train.x, digits.train.y)
    path = tmp_path / "m.safetensors"
    t.save(path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-10], "foreign": save({"a": np.zeros(3)}), "empty": b""}[damage])
    with pytest.raises(InputError, match="m.safetensors: expected"):
        Model.load(path)


def test_classes_and_regression_learn(digits):
    assert fit(digits, epochs=15).metrics["test"]["accuracy"] > 0.93
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 2))
    y = np.sin(3 * x[:, 0]) * x[:, 1]
    t = Trainer(
        [nn.Dense(32), nn.Tanh(), nn.Dense(1)], loss="squared_error", optimizer=optim.Adam(0.01), epochs=100, shards=2
    )
    assert t.fit(x, y).metrics["train"]["loss"] < 0.002
    assert t.predict(x).shape == (400,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "nan"}, "expected finite numbers; given nan in row 7, column 3"),
        ({"y": "large"}, "integer labels from 0 to 9.*given 10 in row 5"),
        ({"y": "negative"}, "given -1 in row 5"),
        ({"shards": 2000}, "at least one training row for each shard; given 1438 rows and 2000 shards"),
        ({"early_stopping": {}}, "expected validation data"),
        ({"model": [nn.Dense(4), nn.Softmax()]}, "integer labels from 0 to 3"),
        ({"model": [nn.Identity()]}, "a layer with parameters"),
        ({"model": [nn.Dense(10_000_000), nn.Dense(10_000_000), nn.Dense(10)]}, "room for weights"),
        ({"workers": 3}, "expected 3 workers; given 1"),
        ({"engine": "bus"}, "an engine of: auto, local, mpi"),
        ({"batch": 3}, "did you mean batch_size"),
    ],
)
def test_bad_input_ends_before_training(digits, change, message):
    x, y = digits.train.x.astype(float), digits.train.y.astype(int)
    options = {k: v for k, v in change.items() if k not in ("x", "y", "model")}
    if "x" in change:
        x[7, 3] = np.nan
    if "y" in change:
        y[5] = {"large": 10, "negative": -1}[change["y"]]
    model = change.get("model", [nn.Dense(10), nn.Softmax()])
    with pytest.raises(InputError, match=message):
        Trainer(model, **options).fit(x, y)


def test_predict_refuses_rows_of_another_shape(digits):
    t = trainer(epochs=1)
    with pytest.raises(InputError, match="call fit first"):
        t.predict(digits.test.x)
    t.fit(digits.train.x, digits.train.y)
    with pytest.raises(InputError, match=r"expected rows of shape \(64,\); given rows of shape \(63,\)"):
        t.predict(digits.test.x[:, 1:])
