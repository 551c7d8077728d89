"""The fingerprint of a worker's arithmetic: equal where the kernels are, different where they are not, and cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests_support import forge, needs_avx2, needs_families

from distbp import Model, Recipe, kernels
from distbp.data import RowForm
from distbp.errors import InputError
from distbp.nn import Dense, Sequential
from distbp.train import arithmetic
from distbp.train.arithmetic import Arithmetic, arithmetic_of, require_one, require_same
from distbp.train.checkpoint import load_checkpoint, save_checkpoint
from distbp.train.state import State, vector_names

NETWORKS = [(8, 64, 128, 10), (32, 784, 128, 10), (1, 20, 8, 1), (5, 3000, 2000, 7), (2, 100_000, 3)]
TYPES = ["float32", "float64"]


def measured(rows, *sizes, dtype="float32"):
    arithmetic._measured.cache_clear()
    recipe = Recipe.parse({"model": [{"dense": size} for size in sizes[1:]], "dtype": dtype})
    layout = Sequential(*map(Dense, sizes[1:])).build((sizes[0],), np.dtype(dtype))
    return arithmetic_of(recipe, layout, rows)


def digests_with(**environment):
    """Return the digests of a process of its own, for each type and network."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "import test_arithmetic; test_arithmetic.print_digests()"
    path = os.pathsep.join(path for path in sys.path if path)
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "NPY_"))}
    environment = unset | environment | {"PYTHONPATH": path}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def print_digests():
    print(json.dumps({f"{t} {n}": measured(*n, dtype=t).digests for t in TYPES for n in NETWORKS[:3]}))


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_measured_again_it_is_the_same(network, dtype):
    first = measured(*network, dtype=dtype)
    assert measured(*network, dtype=dtype) == first
    assert not first.differences(first)


@needs_families
def test_every_family_of_kernels_has_its_own():
    families = ["Nehalem", "Prescott", *([] if kernels.lacking() else ["Haswell", "Sandybridge"])]
    found = {family: digests_with(OPENBLAS_CORETYPE=family) for family in families}
    for case in found["Nehalem"]:
        digests = [found[family][case] for family in families]
        assert len({(own["matrix products"], own["vector products"]) for own in digests}) == len(families)
        for operation in ("exp", "tanh", "sqrt", "division", "sums", "draws", "the C library"):  # are NumPy's, or C's
            assert len({own[operation] for own in digests}) == 1
    assert digests_with(OPENBLAS_CORETYPE="Nehalem") == found["Nehalem"]


def differing(one, other, dtype):
    return {name for case in one if dtype in case for name in one[case] if one[case][name] != other[case][name]}


@needs_avx2
def test_the_levels_of_numpys_loops_and_of_the_c_library_are_told_apart():
    above = kernels.portable_environment()["NPY_DISABLE_CPU_FEATURES"]
    avx2 = "X86_V3" if "X86_V4" in above else "AVX2 FMA3"
    portable = digests_with(**kernels.portable_environment())
    without_avx2 = digests_with(**kernels.portable_environment() | {"NPY_DISABLE_CPU_FEATURES": f"{avx2} {above}"})
    assert {"exp", "tanh", "log"} <= differing(without_avx2, portable, "float32")
    assert "tanh" in differing(without_avx2, portable, "float64")
    assert "matrix products" not in differing(without_avx2, portable, "float")
    if "glibc" in kernels.c_library():  # which alone can be told to leave out instructions
        other_c = digests_with(**kernels.portable_environment(), GLIBC_TUNABLES="glibc.cpu.hwcaps=-AVX2,-FMA")
        assert differing(other_c, portable, "float32") == {"the C library"}
        assert {"exp", "the C library"} <= differing(other_c, portable, "float64")


def test_numpys_warnings_say_that_the_names_of_its_features_are_right():
    run = [sys.executable, "-W", "error", "-c", "import numpy"]
    subprocess.run(run, env=os.environ | kernels.portable_environment(), timeout=60, check=True)


@pytest.mark.parametrize("sizes", [(1024, 2048, 2048, 2048, 1000), (10**6, 10**6), tuple(range(3000, 3100))], ids=len)
def test_no_network_makes_it_long(sizes):
    recipe = [arithmetic._products(4096, n_out, n_in) for n_in, n_out in pairwise(sizes)]
    products = [product for own in recipe[: arithmetic._MOST_SHAPES] for product in own]
    assert sum(m * n * k for m, n, k, _ in products) < 1e8  # some 3 ms of a core


def test_numbers_use_all_bits_of_the_mantissa():
    for dtype in map(np.dtype, TYPES):
        numbers = arithmetic._numbers(1000, dtype)
        assert np.all(np.abs(numbers) <= 1)
        units = numbers.astype(object) * 2 ** np.finfo(dtype).nmant
        assert all(int(unit) == unit for unit in units)
        assert 0.4 < np.mean([int(unit) % 2 for unit in units]) < 0.6


VERSIONS = {"distbp": "1", "numpy": "2"}
HERE = Arithmetic(processor="A", kernels="openblas Haswell", versions=VERSIONS, threads=1, digests={})
THERE = HERE.model_copy(update={"processor": "B", "digests": {"exp": "1", "tanh": "2"}})


def test_who_differs_in_what_is_said():
    with pytest.raises(InputError) as raised:
        require_one([HERE, THERE, HERE, *[THERE] * 4], list("0123456"), "fastest")
    said = str(raised.value)
    assert "exp and tanh that differ between worker 0, 2: A, openblas Haswell" in said
    assert "worker 1, 3, 4 and 2 more: B" in said
    assert "take `bits: portable`" in said
    with pytest.raises(InputError, match="leave out the machines that differ") as raised:
        require_one([HERE, THERE], ["0", "1"], "portable")
    assert "take `bits" not in str(raised.value)


@pytest.mark.parametrize("package", ["distbp", "numpy"])
def test_versions_that_differ_are_named(package):
    other = HERE.model_copy(update={"versions": VERSIONS | {package: "0"}})
    with pytest.raises(InputError, match=f"expected {package} ., as on worker 0; given 0 on worker 1; install the"):
        require_one([HERE, other], ["0", "1"], "fastest")
    require_one([HERE, HERE], ["0", "1"], "fastest")


def test_what_is_not_known_of_earlier_steps_is_not_compared():
    require_same((), HERE)
    require_same((THERE, HERE), HERE)
    with pytest.raises(InputError, match="--accept-other-arithmetic"):
        require_same((HERE, THERE), HERE)


RECIPE = Recipe.parse({"model": [{"dense": 2}, "softmax"], "shards": 1})


def save_model(path, *arithmetic):
    weights = np.zeros(RECIPE.network().build((3,), np.dtype("float32")).size, np.float32)
    Model(RECIPE, RowForm(input_shape=(3,)), weights, None, arithmetic).save(path)


def test_models_and_checkpoints_keep_what_computed_them(tmp_path):
    save_model(tmp_path / "model", HERE, THERE)
    assert Model.load(tmp_path / "model").arithmetic == (HERE, THERE)
    vectors = {name: np.zeros(32, np.float32) for name in vector_names(RECIPE)}
    state = State(3, vectors, np.zeros((1, 3)), [], 1.5, arithmetic=(HERE, THERE))
    save_checkpoint(tmp_path / "checkpoint", state, RECIPE)
    assert load_checkpoint(tmp_path / "checkpoint")[1].arithmetic == (HERE, THERE)
    assert state.detached().arithmetic == (HERE, THERE)


@pytest.mark.parametrize("value", [[1], "{}[", {"a": 1}, [{"processor": 1}], 7, None])
def test_what_is_none_is_refused(tmp_path, value):
    save_model(tmp_path / "model")
    forge(tmp_path / "model", {"arithmetic": value})
    with pytest.raises(InputError):
        Model.load(tmp_path / "model")
