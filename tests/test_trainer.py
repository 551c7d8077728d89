"""The Python interface: whatever is passed to fit, evaluate and predict means the same in all of them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tests_support import forge

from distbp import InputError, Model, Trainer, TrainingError, nn, optim
from distbp.data import Scaling, as_rows
from distbp.train import tensor_file

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 6)).round(3)
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
FRAME = pd.DataFrame(X, columns=list("abcdef"))
REVERSED = FRAME[list("fedcba")]


def classifier(**options):
    settings = {"epochs": 3, "shards": 3, "batch_size": 16, "optimizer": optim.Adam(0.02)} | options
    return Trainer([nn.Dense(12), nn.ReLU(), nn.Dense(2), nn.Softmax()], **settings)


def regressor(n_out=1, **options):
    settings = {"epochs": 3, "shards": 2, "loss": "squared_error"} | options
    return Trainer([nn.Dense(12), nn.Tanh(), nn.Dense(n_out)], **settings)


def binary(n_out=1, last=(nn.Sigmoid,), **options):
    settings = {"epochs": 5, "shards": 2, "loss": "binary_cross_entropy", "optimizer": optim.Adam(0.02)} | options
    return Trainer([nn.Dense(12), nn.ReLU(), nn.Dense(n_out), *(layer() for layer in last)], **settings)


def fitted(trainer, x=X, y=Y, **options):
    trainer.fit(x, y, **options)
    return trainer


# --- the same numbers, whatever holds them


@pytest.mark.parametrize("scaling", ["none", "standard", "minmax"])
@pytest.mark.parametrize(
    "make",
    [
        FRAME.assign,
        X.tolist,
        lambda: X.view(np.matrix),
        lambda: FRAME.astype("Float64"),
        lambda: sp.csr_matrix(X),
        lambda: sp.coo_array(X),
        lambda: FRAME.astype(pd.SparseDtype(float, 0.0)),
        lambda: np.ma.array(X),
    ],
    ids=["frame", "list", "matrix", "Float64", "csr", "coo", "sparse frame", "masked"],
)
def test_all_that_holds_the_same_numbers_gives_the_same_bits(make, scaling):
    plain, other, x = classifier(scaling=scaling), classifier(scaling=scaling), make()
    expected = plain.fit(X, Y, validation=0.2, test=(X, Y))
    found = other.fit(x, Y, validation=0.2, test=(x, Y))
    assert found.weights_sha256 == expected.weights_sha256
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(other.predict(x), plain.predict(X))
    assert other.evaluate(x, Y) == plain.evaluate(X, Y)


@pytest.mark.parametrize("scaling", ["none", "standard"])
def test_mapped_numbers_of_float64_give_the_bits_of_those_in_memory(scaling, tmp_path):
    np.save(tmp_path / "x.npy", X / 3)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    outcomes = [classifier(scaling=scaling).fit(x, Y) for x in (X / 3, mapped)]
    assert outcomes[0].weights_sha256 == outcomes[1].weights_sha256


def test_a_sparse_matrix_is_never_made_dense_as_a_whole():
    import tracemalloc

    n_rows, n_columns = 400, 40_000  # 64 MB in float32
    x = sp.random_array((n_rows, n_columns), density=1e-4, rng=RNG, format="csr", dtype=np.float32)
    trainer = Trainer([nn.Dense(2), nn.Softmax()], epochs=1, batch_size=16, row_limit=16, shards=2)
    tracemalloc.start()
    trainer.fit(x, np.arange(n_rows) % 2)
    trainer.predict(x)
    trainer.evaluate(x, np.arange(n_rows) % 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


# --- columns by name


def test_columns_in_another_order_are_put_in_order(tmp_path):
    trainer = fitted(classifier(), FRAME, Y)
    np.testing.assert_array_equal(trainer.predict(REVERSED), trainer.predict(FRAME))
    np.testing.assert_array_equal(trainer.predict_classes(REVERSED), trainer.predict_classes(FRAME))
    assert trainer.evaluate(REVERSED, Y) == trainer.evaluate(FRAME, Y)
    trainer.save(tmp_path / "m.safetensors")
    loaded = Trainer.load(tmp_path / "m.safetensors")
    assert loaded.model.form.columns == tuple("abcdef")
    np.testing.assert_array_equal(loaded.predict(REVERSED), trainer.predict(FRAME))


def test_columns_of_validation_and_test_are_put_in_order():
    found = classifier().fit(FRAME, Y, validation=(REVERSED, Y), test=(REVERSED.astype("Float64"), Y))
    expected = classifier().fit(FRAME, Y, validation=(FRAME, Y), test=(FRAME, Y))
    assert found.metrics == expected.metrics


def test_targets_in_another_order_are_put_in_order(tmp_path):
    y = FRAME[["a", "b", "c"]]
    trainer = regressor(3)
    metrics = trainer.fit(FRAME, y, validation=(FRAME, y[["c", "a", "b"]])).metrics
    assert metrics == regressor(3).fit(FRAME, y, validation=(FRAME, y)).metrics
    trainer.save(tmp_path / "m.safetensors")
    assert Trainer.load(tmp_path / "m.safetensors").evaluate(FRAME, y[["c", "b", "a"]]) == trainer.evaluate(FRAME, y)
    with pytest.raises(InputError, match="arrays, targets: .*given a table without 'c' and with 'd'"):
        trainer.evaluate(FRAME, FRAME[["a", "b", "d"]])
    fitted(regressor(), FRAME, FRAME[["a"]]).evaluate(FRAME, FRAME[["b"]])  # a single one needs no name


@pytest.mark.parametrize("other", [FRAME.drop(columns="c"), FRAME.rename(columns={"c": "k"}), FRAME.assign(k=0.0)])
def test_other_columns_than_those_of_the_training_are_named(other):
    trainer = fitted(classifier(), FRAME, Y)
    for call in (
        lambda: trainer.predict(other),
        lambda: trainer.evaluate(other, Y),
        lambda: classifier().fit(FRAME, Y, validation=(other, Y)),
        lambda: classifier().fit(FRAME, Y, test=(other, Y)),
    ):
        with pytest.raises(InputError, match="the 6 columns of the training; given a table with.* '(c|k)'"):
            call()


def test_an_array_for_a_model_with_named_columns_is_taken_by_position_with_a_warning():
    trainer = fitted(classifier(), FRAME, Y)
    with pytest.warns(UserWarning, match="trained on 'a', 'b', 'c', 'd', 'e' and 1 more; they are taken by position"):
        found = trainer.predict(X)
    np.testing.assert_array_equal(found, trainer.predict(FRAME))
    with pytest.warns(UserWarning, match="by position"):
        assert trainer.evaluate(X, Y) == trainer.evaluate(FRAME, Y)


def test_a_frame_for_a_model_without_names_is_taken_by_position():
    trainer = fitted(classifier())
    np.testing.assert_array_equal(trainer.predict(FRAME), trainer.predict(X))
    np.testing.assert_array_equal(trainer.predict(FRAME.set_axis(range(6), axis=1)), trainer.predict(X))


# --- shapes of targets


@pytest.mark.parametrize("make", [regressor, binary])
def test_predictions_have_the_shape_of_the_targets(make, tmp_path):
    flat, column = fitted(make(), X, Y), fitted(make(), X, Y[:, None])
    assert flat.predict(X).shape == (120,)
    assert column.predict(X).shape == (120, 1)
    np.testing.assert_array_equal(flat.predict(X), column.predict(X)[:, 0])
    flat.save(tmp_path / "m.safetensors")
    assert Model.load(tmp_path / "m.safetensors").predict(X[:1]).shape == (1,)
    assert flat.evaluate(X, Y[:, None]) == column.evaluate(X, Y)


def test_several_outputs_have_one_column_each():
    assert fitted(regressor(3), X, X[:, :3]).predict(X).shape == (120, 3)
    assert fitted(classifier()).predict(X).shape == (120, 2)
    assert fitted(regressor(), pd.DataFrame(X), pd.Series(Y)).predict(X).shape == (120,)


def test_validation_targets_may_have_the_other_shape():
    expected = regressor().fit(X, Y, validation=(X, Y), test=(X, Y)).metrics
    assert regressor().fit(X, Y, validation=(X, Y[:, None]), test=(X, Y[:, None])).metrics == expected
    onehot = classifier().fit(X, Y, test=(X, np.eye(2)[Y])).metrics
    assert onehot == classifier().fit(X, Y, test=(X, Y)).metrics


# --- classes


@pytest.mark.parametrize(
    ("trainer", "y", "shape"),
    [
        (classifier(), Y, (120,)),
        (Trainer([nn.Dense(2)], epochs=2, shards=2), Y, (120,)),
        (binary(), Y, (120,)),
        (binary(last=()), Y, (120,)),
        (binary(), Y[:, None], (120,)),
        (binary(3), X[:, :3] > 0, (120, 3)),
        (binary(3, last=()), X[:, :3] > 0, (120, 3)),
    ],
    ids=["softmax", "its logits", "sigmoid", "its logit", "a column", "several", "their logits"],
)
def test_classes_are_those_that_accuracy_counts(trainer, y, shape):
    trainer.fit(X, y)
    classes = trainer.predict_classes(X)
    assert classes.shape == shape
    assert classes.dtype.kind == "i"
    right = (classes.reshape(120, -1) == np.reshape(y, (120, -1))).all(axis=1)
    assert trainer.evaluate(X, y)["accuracy"] == right.mean()
    assert right.mean() > 0.3
    assert len(np.unique(classes)) == 2


def test_a_class_is_told_from_the_logit_and_not_from_its_rounded_probability():
    """σ(1e-9) is 1/2 in float32."""
    trainer = fitted(binary())
    weights = trainer.model.weights
    weights[...] = 0.0
    layout = trainer.recipe.network().build(trainer.model.form.input_shape, weights.dtype)
    layout.views(weights)["2_dense.b"][...] = 1e-9
    assert trainer.predict(X)[0] == 0.5
    assert trainer.predict_classes(X).all()
    assert trainer.evaluate(X, np.ones(120))["accuracy"] == 1.0


@pytest.mark.parametrize("n_out", [1, 3])
def test_a_regression_has_no_classes(n_out):
    trainer = fitted(regressor(n_out), X, X[:, :n_out])
    with pytest.raises(
        InputError, match="classes of a classifier; given a network that was trained with squared_error"
    ):
        trainer.predict_classes(X)


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ([nn.Dense(1)], {}),
        ([nn.Dense(1), nn.Softmax()], {}),
        ([nn.Dense(8), nn.ReLU(), nn.Dense(1), nn.Softmax()], {"loss": "squared_error"}),
        ([nn.Dense(1), nn.Softmax(), nn.Dense(2)], {}),
        ([nn.Dense(3), nn.Tanh(), nn.Dense(1), nn.Identity()], {}),
    ],
)
@pytest.mark.parametrize("y", [np.zeros(120), np.zeros((120, 1)), Y])
def test_a_softmax_of_one_output_is_refused(layers, options, y):
    with pytest.raises(InputError, match=r"at least 2 (outputs|numbers).*; given 1.*(binary_cross_entropy|sigmoid)"):
        Trainer(layers, shards=2, **options).fit(X, y)


@pytest.mark.parametrize(
    ("trainer", "y", "message"),
    [
        (binary(), Y + 1, "labels in.*0 and 1"),
        (binary(), 2 * Y - 1, r"labels in \[0, 1\]; given \[-1.0\] in row \d+; code the classes as 0 and 1"),
        (binary(2), Y, "targets of 2 numbers a row"),
        (classifier(), Y + 1, "integer labels from 0 to 1.*given 2 in row"),
        (classifier(), Y - 1, "given -1 in row"),
        (classifier(), Y + 0.5, "given [01].5 in row"),
        (classifier(), Y * 2.0**70, "integer labels from 0 to 1"),
        (classifier(), np.eye(3)[Y], "one-hot rows of 2 numbers"),
        (classifier(), np.eye(2)[Y] / 2, "a single 1, else 0"),
        (classifier(), np.where(Y, "yes", "no"), "numbers in y; .*np.unique"),
        (regressor(), Y * 1e39, r"arrays.*, targets: expected numbers in the range of float32; given 1e\+39 in row"),
        (regressor(), np.where(Y, np.nan, 0), "finite numbers; given nan in row"),
        (regressor(2), Y, "targets of 2 numbers a row"),
    ],
)
def test_targets_that_the_loss_cannot_take_are_refused_everywhere(trainer, y, message):
    with pytest.raises(InputError, match=message):
        trainer.fit(X, y)
    valid = X[:, : trainer.recipe.model[-2 if trainer.recipe.model[-1].is_activation else -1].units] > 0
    valid = Y if trainer.recipe.loss.name == "categorical_cross_entropy" else valid
    with pytest.raises(InputError, match=message.replace("arrays", "test")):
        trainer.fit(X, valid, test=(X, y))
    trainer.fit(X, valid)
    with pytest.raises(InputError, match=message):
        trainer.evaluate(X, y)


# --- validation, test


@pytest.mark.parametrize(
    "given",
    [0, 1, 1.5, -0.1, True, False, float("nan"), "0.1", "digits", (X,), (X, Y, Y), X, FRAME, {"x": X}, np.array(0.1)],
    ids=str,
)
def test_what_is_no_validation_is_told_what_it_may_be(given):
    with pytest.raises(InputError, match=r"validation: expected a fraction in \(0, 1\), or a pair \(x, y\); given "):
        classifier().fit(X, Y, validation=given)
    with pytest.raises(InputError, match=r"test: expected a pair \(x, y\); given .*; write test=\(x, y\)"):
        classifier().fit(X, Y, test=given)


@pytest.mark.parametrize("fraction", [0.25, np.float32(0.25), np.float64(0.25)])
def test_a_fraction_may_be_of_any_type_of_real_number(fraction):
    metrics = classifier().fit(X, Y, validation=fraction).metrics
    assert metrics == classifier().fit(X, Y, validation=0.25).metrics


@pytest.mark.parametrize("name", ["validation", "test"])
def test_rows_of_another_width_are_refused(name):
    with pytest.raises(InputError, match=rf"{name}: expected {name} features shaped like .* \(6,\); given \(5,\)"):
        classifier().fit(X, Y, **{name: (X[:, 1:], Y)})
    with pytest.raises(InputError, match=f"{name}: expected as many rows of features as of targets"):
        classifier().fit(X, Y, **{name: (X, Y[1:])})


# --- numbers that float32 cannot hold


def test_integers_that_float32_rounds_are_refused_unless_they_are_scaled_first():
    ids = np.column_stack([1_700_000_001 + np.arange(120), Y])
    for x in (ids, pd.DataFrame(ids, columns=["id", "b"]), sp.csr_matrix(ids), ids.tolist()):
        with pytest.raises(InputError, match=r"integers that float32 can hold; given 1700000\d+ in row \d+, column 0"):
            classifier().fit(x, Y)
    classifier(dtype="float64").fit(ids, Y)
    trainer = fitted(classifier(scaling="standard"), ids, Y)
    assert len(np.unique(trainer.predict(ids), axis=0)) > 100
    with pytest.raises(InputError, match="given 1700000"):
        fitted(classifier()).predict(np.tile(ids[:, :1], (1, 6)))


def test_integers_in_a_column_beside_measurements_are_looked_at_too():
    frame = pd.DataFrame({"size": X[:, 0], "id": 1_700_000_001 + np.arange(120) * 7_001})
    with pytest.raises(InputError, match=r"differ also in float32; given column 1 \('id'\) of numbers from 1700000001"):
        classifier().fit(frame, Y)
    classifier().fit(frame.assign(id=frame["id"].astype("float32")), Y)  # rounded by the user


def test_targets_that_float32_makes_equal_are_refused():
    y = 1.7e9 + X[:, 0]
    for targets in (y, np.column_stack([X[:, 1], y]), pd.Series(y)):
        with pytest.raises(InputError, match="targets that differ also in float32; .*subtract their mean"):
            regressor(np.ndim(targets)).fit(X, targets)
    regressor(dtype="float64").fit(X, y)
    regressor().fit(X, np.full(120, 1 / 3))  # a constant has nothing to lose
    regressor().fit(X, y.astype(np.float32))


@pytest.mark.parametrize("scaling", ["standard", "minmax"])
def test_a_small_spread_on_a_large_offset_keeps_its_content_when_it_is_scaled(scaling):
    offset = 1.7e9 + X / 100  # float32 has steps of 128 there
    with pytest.raises(InputError, match="set scaling: standard, which is computed in float64, or dtype: float64"):
        classifier().fit(offset, Y)
    trainer = classifier(scaling=scaling, epochs=30)
    assert trainer.fit(offset, Y).metrics["train"]["accuracy"] > 0.9
    assert np.mean(trainer.predict_classes(offset) == Y) > 0.9


def test_a_constant_feature_becomes_zero_though_its_mean_is_rounded():
    x = np.column_stack([np.full(120, 0.1), X])
    trainer = fitted(classifier(scaling="standard"), x, Y)
    assert trainer.model.scaling.factor[0] == 0.0
    other = x.copy()
    other[:, 0] = 0.7
    np.testing.assert_array_equal(trainer.predict(x), trainer.predict(other))


def test_numbers_beyond_float32_are_named_by_row_and_column():
    x = X.copy()
    x[7, 2] = -1e39
    with pytest.raises(InputError, match=r"range of float32; given -1e\+39 in row 7, column 2"):
        classifier().fit(x, Y)
    for call in (lambda t: t.predict(x), lambda t: t.evaluate(x, Y), lambda t: t.predict(sp.csr_matrix(x))):
        with pytest.raises(InputError, match="in row 7, column 2"):
            call(fitted(classifier()))
    classifier(dtype="float64", scaling="standard").fit(x, Y)


# --- layers


@pytest.mark.parametrize("make", [nn.Dense, nn.ReLU])
def test_one_layer_object_at_two_places_is_refused(make):
    layer = make(6) if make is nn.Dense else make()
    layers = [nn.Dense(6), layer, nn.Dense(6), layer, nn.Dense(2)]
    message = f"a layer object of its own for every place; given the same {layer.name} as layer 1; write a second layer"
    with pytest.raises(InputError, match=message):
        Trainer(layers)
    with pytest.raises(InputError, match=message):
        nn.Sequential(*layers)


def test_trainers_of_the_same_layer_objects_share_no_state():
    layers = [nn.Dense(12), nn.ReLU(), nn.Dense(2), nn.Softmax()]
    options = {"epochs": 2, "shards": 2}
    first, second, alone = Trainer(layers, **options), Trainer(layers, seed=1, **options), Trainer(layers, **options)
    expected = alone.fit(X, Y).weights_sha256
    assert first.fit(X, Y).weights_sha256 == expected
    outputs = first.predict(X)
    assert second.fit(X, Y).weights_sha256 != expected
    np.testing.assert_array_equal(first.predict(X), outputs)
    assert first.model.sha256 == expected


# --- what is not finite: one error, and no warning beside it (pytest makes errors of warnings)


@pytest.mark.parametrize("rate", [1e9, 1e30])
@pytest.mark.parametrize("loss", ["squared_error", "categorical_cross_entropy", "binary_cross_entropy"])
def test_a_run_that_overflows_ends_with_one_error(loss, rate):
    trainer = Trainer([nn.Dense(16), nn.Dense(16), nn.Dense(2)], loss=loss, optimizer=optim.SGD(rate), shards=2)
    y = Y if loss == "categorical_cross_entropy" else np.eye(2)[Y]
    with pytest.raises(TrainingError, match="a finite loss and gradient"):
        trainer.fit(X * 1e6, y)


def test_weights_that_the_last_step_makes_infinite_are_no_result():
    trainer = regressor(optimizer=optim.SGD(1e38), epochs=1, batch_size=120)
    with pytest.raises(TrainingError, match="expected finite weights; those after the last step, 0, are not"):
        trainer.fit(X, 100 * X[:, 0])


def test_early_stopping_by_a_loss_that_is_never_finite_ends_with_an_error():
    x = np.vstack([X[:-1], np.full((1, 6), 1e38)])
    trainer = Trainer([nn.Dense(8), nn.Dense(1)], loss="squared_error", early_stopping={"patience": 2}, shards=2)
    with pytest.raises(TrainingError, match="a finite validation loss, to stop early by; that of epoch 1 is (inf|nan)"):
        trainer.fit(X, Y, validation=(x, Y))


def test_outputs_that_are_not_finite_are_no_prediction():
    trainer = fitted(Trainer([nn.Dense(4), nn.Dense(1)], loss="squared_error", epochs=1, shards=2), X, X[:, 0])
    trainer.model.weights[...] *= 1e10
    x = X.copy()
    x[5] = 1e30
    for call in (trainer.predict, lambda x: trainer.evaluate(x, Y)):
        with pytest.raises(InputError, match=r"finite; given (.*(inf|nan).* for row \d+|a loss of (inf|nan))"):
            call(x)


# --- files


@pytest.mark.parametrize(
    "tensors",
    [
        {"scaling__shift": None},
        {"scaling__factor": None},
        {"scaling__factor": np.ones(())},
        {"scaling__shift": np.zeros(5)},
        {"scaling__shift": np.zeros(6, np.float32)},
        {"scaling__factor": np.full(6, np.nan)},
        {"another": np.zeros(6)},
    ],
)
def test_a_model_with_other_tensors_than_its_recipe_asks_for_is_refused(tensors, tmp_path):
    path = tmp_path / "m.safetensors"
    fitted(classifier(scaling="standard"), FRAME, Y).save(path)
    forge(path, **tensors)
    with pytest.raises(InputError, match=r"m\.safetensors.*(scaling\.|another)"):
        Model.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, None, "another shape", "another type"])
def test_a_model_whose_weights_are_not_those_of_its_recipe_is_refused(value, tmp_path):
    path = tmp_path / "m.safetensors"
    fitted(classifier(), FRAME, Y).save(path)
    _, tensors = tensor_file.read(path, "distbp model 2", "model", "")
    name, tensor = next(iter(tensors.items()))
    changes = {None: None, "another shape": tensor[1:], "another type": tensor.astype(np.float64)}
    forge(path, **{name.replace(".", "__"): changes[value] if value in changes else np.full_like(tensor, value)})
    with pytest.raises(InputError, match=name):
        Model.load(path)


@pytest.mark.parametrize(
    "form",
    [
        {"columns": ["a"]},
        {"columns": ["a", "a", "c", "d", "e", "f"]},
        {"columns": 3},
        {"columns": [1, 2, 3, 4, 5, 6]},
        {"input_shape": [-6]},
        {"input_shape": [float("inf")]},
        {"input_shape": [10**12]},
        {"input_shape": [True]},
        {"has_flat_targets": 1},
    ],
)
def test_a_model_for_rows_that_cannot_be_is_refused(form, tmp_path):
    path = tmp_path / "m.safetensors"
    fitted(classifier(), X, Y).save(path)
    forge(path, {"form": {"input_shape": [6]} | form})
    with pytest.raises(InputError, match="m.safetensors"):
        Model.load(path)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_bit_of_a_model_that_flips_is_noticed(place, tmp_path):
    path = tmp_path / "m.safetensors"
    fitted(classifier(scaling="standard"), FRAME, Y).save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="m.safetensors"):
        Model.load(path)


@pytest.mark.parametrize("place", ["nowhere/m.safetensors", "."])
def test_a_model_that_cannot_be_written_is_told(place, tmp_path):
    trainer = fitted(classifier(), X, Y)
    with pytest.raises(TrainingError, match=r"expected to be able to write .*; the system says: (No such|Is a dir)"):
        trainer.save(tmp_path / place)
    assert not [*tmp_path.iterdir()]


def test_a_scaling_is_computed_in_float64_and_rounded_once():
    x, scaling = np.array([[1.7e9 + 0.25]]), Scaling(np.array([1.7e9]), np.array([4.0]))
    assert scaling.apply(x, np.empty((1, 1), np.float32))[0, 0] == 1.0


def test_model_evaluate_puts_columns_in_order():
    trainer = fitted(classifier(), FRAME, Y)
    assert trainer.model.evaluate(as_rows(REVERSED, Y)) == trainer.evaluate(FRAME, Y)


# --- what was there before


def test_what_is_refused_before_training_leaves_the_model_of_before():
    trainer = fitted(classifier(), X, Y)
    before = trainer.predict(X)
    with pytest.raises(InputError):
        trainer.fit(X, Y - 7)
    np.testing.assert_array_equal(trainer.predict(X), before)


def test_copies_and_pickles_of_a_trainer_predict_alike():
    trainer = fitted(classifier(), X, Y)
    for other in (copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))):
        np.testing.assert_array_equal(other.predict(X), trainer.predict(X))
        assert other.history == trainer.history
        assert other.fit(X, Y).weights_sha256 == trainer.model.sha256


def test_another_arithmetic_is_accepted_for_what_goes_on_alone():
    with pytest.raises(InputError, match="give resume=True"):
        classifier().fit(X, Y, accept_other_arithmetic=True)


@pytest.mark.parametrize("x", [[[[1], [2, 3]]] * 4, [[[1, 2], [3]], [[1, 2], [3]]]])
def test_ragged_rows_are_told(x):
    with pytest.raises(InputError, match="as many numbers in every row"):
        classifier().fit(x, np.zeros(len(x), int))


def test_targets_without_columns_are_refused():
    with pytest.raises(InputError, match="at least one target a row"):
        classifier().fit(X, np.zeros((len(X), 0)))


def test_numbered_columns_are_not_taken_by_position_where_the_model_knows_other_numbers():
    frame = pd.DataFrame(np.hstack([X, X[:, :1]]))
    trainer = fitted(classifier(), frame.iloc[:, :6], Y)
    with pytest.raises(InputError, match="without '0' and with '6'"):
        trainer.predict(frame.iloc[:, 1:7])


def test_a_layer_may_ask_another_model():
    model = fitted(classifier(), X, Y).model

    def asked():
        return model.predict(np.ones((1, 6)))[0, 0]

    class Asking(nn.Layer):
        def forward(self, x):
            return np.multiply(x, asked(), out=self.y)

        def backward(self, dy):
            return None if self.dx is None else np.multiply(dy, asked(), out=self.dx)

    trainer = Trainer([Asking(), nn.Dense(3), nn.Softmax()], epochs=1, shards=2)
    trainer.fit(X, Y)
    assert trainer.predict(X).shape == (len(X), 3)
    del nn.LAYERS["asking"]
