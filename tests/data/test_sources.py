"""Sources: what is read, and what is refused with a message."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from distbp.data import Rows, load
from distbp.errors import InputError


def idx(array: np.ndarray) -> bytes:
    code = {"u1": 8, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def idx_folder(folder, zipped: bool):
    rng = np.random.default_rng(0)
    parts = {}
    for prefix, n in (("train", 20), ("t10k", 5)):
        x, y = rng.integers(0, 256, (n, 4, 3)).astype(np.uint8), rng.integers(0, 10, n).astype(np.uint8)
        parts[prefix] = x, y
        for name, array in ((f"{prefix}-images-idx3-ubyte", x), (f"{prefix}-labels-idx1-ubyte", y)):
            content = idx(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return parts


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    parts = idx_folder(tmp_path, zipped)
    dataset = load(str(tmp_path))
    np.testing.assert_array_equal(dataset.train.x, parts["train"][0])
    np.testing.assert_array_equal(dataset.test.y, parts["t10k"][1])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "magic", "header"])
def test_damaged_idx_is_refused(tmp_path, damage, zipped):
    idx_folder(tmp_path, zipped=False)
    file = tmp_path / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    broken = {
        "cut": whole[:-1],
        "longer": whole + b"x",
        "empty": b"",
        "magic": b"\1" + whole[1:],
        "header": whole[:7],
    }[damage]
    if zipped:
        file.unlink()
        packed = gzip.compress(broken)
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed[:-9] if damage == "cut" else packed)
    else:
        file.write_bytes(broken)
    with pytest.raises(InputError, match="expected a whole IDX file"):
        load(str(tmp_path))


def test_a_header_of_a_huge_shape_takes_no_memory(tmp_path):
    idx_folder(tmp_path, zipped=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31) + bytes(10))
    with pytest.raises(InputError, match="expected a whole IDX file"):
        load(str(tmp_path))


def test_npz_with_validation_and_test(tmp_path):
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    np.savez(tmp_path / "d.npz", x=x, y=y, x_test=x[:2], y_test=y[:2], x_validation=x[2:3], y_validation=y[2:3])
    dataset = load(str(tmp_path / "d.npz"))
    assert {name: len(rows) for name, rows in dataset.parts.items()} == {"train": 6, "validation": 1, "test": 2}


def test_npy_files_are_memory_mapped(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", np.zeros(4, int))
    assert isinstance(load(str(tmp_path)).train.x, np.memmap)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not a zip", None])
def test_broken_npz_is_refused(tmp_path, content):
    path = tmp_path / "d.npz"
    if content is None:
        np.savez(path, x=np.zeros((400, 20)), y=np.zeros(400))
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected a whole .npz file"):
        load(str(path))


def test_objects_are_refused_rather_than_unpickled(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([[{}]], object), y=np.zeros(1))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        load(str(tmp_path / "d.npz"))


def test_truncated_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40, 2)))
    np.save(tmp_path / "y.npy", np.zeros(40))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:200])
    with pytest.raises(InputError, match="expected a whole .npy file"):
        load(str(tmp_path))


def test_a_source_that_does_not_exist_says_what_would_do():
    with pytest.raises(InputError, match="digits.*npz.*does not exist"):
        load("no/such/place")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), "as many rows of features as of targets; given 3 and 4"),
        (np.zeros((0, 2)), np.zeros(0), "at least one row"),
        (np.zeros(3), np.zeros(3), "reshape x"),
        (np.array([["a"]]), np.zeros(1), "numbers in x"),
    ],
)
def test_arrays_that_do_not_fit(x, y, message):
    with pytest.raises(InputError, match=message):
        Rows(x, y)


def test_digits_are_there():
    dataset = load("digits")
    assert dataset.train.x.shape == (1438, 64)
    assert dataset.test.x.shape == (359, 64)
    assert set(dataset.test.y.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x_test": 2}, "x_test and y_test; given x_test alone"),
        ({"y_validation": 2}, "x_validation and y_validation; given y_validation alone"),
        ({"x_val": 2, "y_val": 2}, "x_validation and y_validation, .*; given x_val; rename it"),
        ({"y_train": 2}, "given y_train; rename it"),
    ],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_part_that_would_be_left_out_is_named(tmp_path, more, message, is_folder):
    arrays = {"x": np.zeros((6, 2)), "y": np.zeros(6)} | {name: np.zeros((n, 2)) for name, n in more.items()}
    for name, array in arrays.items() if is_folder else ():
        np.save(tmp_path / f"{name}.npy", array)
    if not is_folder:
        np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path if is_folder else tmp_path / "d.npz"))


def test_what_else_lies_in_a_folder_does_no_harm(tmp_path):
    for name in ("x", "y", "y_pred", "x_mean"):
        np.save(tmp_path / f"{name}.npy", np.zeros((6, 2)))
    assert len(load(str(tmp_path)).train) == 6


def test_arrays_of_a_file_are_looked_at_like_those_of_a_program(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((6, 2), complex), y=np.zeros(6))
    with pytest.raises(InputError, match=r"d.npz, train: expected numbers in x; .*real and imaginary"):
        load(str(tmp_path / "d.npz"))
