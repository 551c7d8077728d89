"""Files from anywhere: whatever was done to them, loaders end with an error of ours, and take no memory for it.

``DISTBP_FUZZ_MINUTES=10 scripts/test tests/test_hostile_files.py --dist load -rP`` goes on for that long with every
loader, two at a time, and says how far it came.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distbp import InputError, Model, Recipe
from distbp.cli.recipe_file import read_recipe
from distbp.data import RowForm, load
from distbp.data.idx import read_idx
from distbp.data.sources import read_npy, read_npz
from distbp.memory import require_room
from distbp.train import tensor_file
from distbp.train.checkpoint import load_checkpoint, to_bytes
from distbp.train.state import Ledger, State

MINUTES = float(os.environ.get("DISTBP_FUZZ_MINUTES", "0"))
MOST_MEMORY_KB = 1 << 18
pytestmark = pytest.mark.timeout(60 + 120 * MINUTES)
RECIPE = Recipe.parse({"model": [{"dense": 3}, "softmax"], "shards": 2})


def npz():
    content = io.BytesIO()
    np.savez_compressed(content, x=np.arange(12.0).reshape(4, 3), y=np.arange(4))
    return content.getvalue()


def npy():
    content = io.BytesIO()
    np.save(content, np.arange(12.0).reshape(4, 3), allow_pickle=False)
    return content.getvalue()


def model(folder):
    weights = np.zeros(32, np.float32)
    Model(RECIPE, RowForm(input_shape=(2,)), weights, None).save(folder / "model")
    return (folder / "model").read_bytes()


IDX = struct.pack(">HBBII", 0, 8, 2, 3, 2) + bytes(6)
YAML = b"data: {source: digits, validation: 0.1}\nmodel: [{dense: 8}, relu, {dense: 10}, softmax]\nepochs: 2\n"
STATE = State(
    3,
    {"weights": np.zeros(32, np.float32), **{f"optimizer.{n}": np.zeros(32, np.float32) for n in "MV"}},
    np.zeros((2, 3)),
    [],
    0.0,
)
ASYNCHRONOUS = Recipe.parse(RECIPE.dump() | {"mode": "asynchronous"})
RECORD = {"epoch": 1, "step": 3, "train": {"loss": 1.0}, "seconds": 0.5, "examples_per_second": 9.0}
PUSHED = dataclasses.replace(STATE, ledger=Ledger(steps_of_workers=[3, 4], unseen=[RECORD]))
LOADERS = {
    "recipe": (lambda path: read_recipe(path, []), lambda _: YAML),
    "model": (Model.load, model),
    "checkpoint": (load_checkpoint, lambda _: to_bytes(STATE, RECIPE)),
    "checkpoint of a mode": (load_checkpoint, lambda _: to_bytes(PUSHED, ASYNCHRONOUS)),
    "idx": (read_idx, lambda _: IDX),
    "idx.gz": (read_idx, lambda _: gzip.compress(IDX)),
    "npz": (read_npz, lambda _: npz()),
    "npy": (read_npy, lambda _: npy()),
}


def examine(claim, minutes=MINUTES / 2):
    """Try ``claim`` on examples, and on ever new ones for some minutes; it may not take much memory."""
    before, until = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + 60 * minutes
    claim()
    n_rounds = 1
    while time.monotonic() < until:
        claim()
        n_rounds += 1
    print(f"{n_rounds} rounds of examples")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KB


CHANGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.binary(min_size=1, max_size=8))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("default")
def test_a_corrupted_file_ends_with_an_error_of_ours(name, tmp_path):
    loader, valid = LOADERS[name]
    whole, path = valid(tmp_path), tmp_path / "file"
    path.write_bytes(whole)
    loader(path)

    @settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck), derandomize=False)
    @given(st.lists(CHANGE, min_size=1, max_size=4), st.integers(0, len(whole)))
    def corrupt(changes, cut):
        content = bytearray(whole)
        for where, kind, new in changes:
            place = int(where * len(content))
            content[place : place + (len(new) if kind == 0 else 0)] = new if kind < 2 else b""
        path.write_bytes(content[:cut] if cut % 5 == 0 else content)
        with contextlib.suppress(InputError):
            loader(path)

    examine(corrupt)


@pytest.mark.parametrize("name", LOADERS)
def test_any_bytes_end_with_an_error_of_ours(name, tmp_path):
    loader, _ = LOADERS[name]

    @settings(deadline=None, max_examples=150, derandomize=False)
    @given(st.binary(max_size=300))
    def read(content):
        (tmp_path / "file").write_bytes(content)
        with contextlib.suppress(InputError):
            loader(tmp_path / "file")

    examine(read)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=9), below, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Return the paths to all that is in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, below in items for place in places(below, (*path, key)))]


@pytest.mark.parametrize("name", ["model", "checkpoint", "checkpoint of a mode"])
@pytest.mark.filterwarnings("default")
def test_a_header_whose_checksum_is_right_ends_with_an_error_of_ours(name, tmp_path):
    loader, valid = LOADERS[name]
    path = tmp_path / "file"
    path.write_bytes(valid(tmp_path))
    kind = "distbp model 2" if name == "model" else "distbp checkpoint 2"
    whole, tensors = tensor_file.read(path, kind, "file", "")

    @settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck), derandomize=False)
    @given(st.data())
    def forge(data):
        header = json.loads(json.dumps(whole))
        *above, last = data.draw(st.sampled_from(places(header)[1:]))
        place = header
        for key in above:
            place = place[key]
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[last]
        else:
            place[last] = data.draw(VALUE)
        path.write_bytes(tensor_file.to_bytes(kind, header, tensors))
        with contextlib.suppress(InputError):
            loader(path)

    examine(forge)


def header(shape, dtype="<f8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def archive(entries):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return content.getvalue()


def objects():
    content = io.BytesIO()
    np.savez(content, x=np.array([{}], dtype=object), y=np.zeros(1))
    return content.getvalue()


HOSTILE = {
    "npy with a huge shape": (read_npy, header((1 << 40, 1 << 20))),
    "npy with a negative shape": (read_npy, header((-1, 3))),
    "npy of objects": (read_npy, header((3,), "|O")),
    "npz with a huge shape": (read_npz, archive({"x.npy": header((1 << 45,)), "y.npy": npy()})),
    "npz of objects": (read_npz, objects()),
    "npz with a file that is no array": (read_npz, archive({"x": b"text", "y.npy": npy()})),
    "idx with a huge shape": (read_idx, struct.pack(">HBBII", 0, 14, 2, 1 << 31, 1 << 31)),
    "idx with many dimensions": (read_idx, struct.pack(">HBB", 0, 8, 255) + b"\xff" * 1020),
    "idx.gz with many dimensions": (
        read_idx,
        gzip.compress(struct.pack(">HBB", 0, 8, 255) + b"\xff" * 1020 + bytes(9)),
    ),
    "idx with more dimensions than NumPy has": (read_idx, struct.pack(">HBB", 0, 8, 255) + bytes(1020)),
    "idx with a huge shape of nothing": (read_idx, struct.pack(">HBB4I", 0, 14, 4, 0, *[(1 << 32) - 1] * 3)),
    "recipe of many lists": (lambda path: read_recipe(path, []), b"model: " + b"[" * 5000),
    "recipe of aliases": (lambda path: read_recipe(path, []), b"a: &a [1,1]\nb: &b [*a,*a]\nmodel: [*b,*b]\n"),
    "recipe with a long number": (lambda path: read_recipe(path, []), b"seed: " + b"9" * 9000),
    "recipe with no date": (lambda path: read_recipe(path, []), b"seed: 2001-99-99"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("loader", "content"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(loader, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError):
        loader(tmp_path / "file")


def test_an_npz_file_larger_than_memory_once_unpacked_is_refused_before_it_is(tmp_path, monkeypatch):
    import psutil

    path = tmp_path / "bomb.npz"
    path.write_bytes(archive({"x.npy": header((1 << 21,)) + bytes(1 << 24), "y.npy": npy()}))
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 22}))
    with pytest.raises(InputError, match="17 MB once unpacked"):
        load(str(path))


def test_a_size_that_no_machine_has_is_refused():
    """As of a recipe that asks for so many units."""
    with pytest.raises(InputError, match="more MB than there are"):
        require_room(10**400, "weights and gradients")
