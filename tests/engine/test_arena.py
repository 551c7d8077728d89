"""The arena: shared by name of nothing, reserved at once, met in by flags."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.engine import arena as module
from distbp.engine.arena import Arena, ArenaMap, attach, reserve
from distbp.engine.machines import fingerprint
from distbp.errors import InputError, LostError, TrainingError
from distbp.nn import Layout, Parameter
from distbp.train.phases import Phases
from distbp.train.plan import BLOCK, Plan

LAYOUT = Layout([("W", Parameter((30, 300), "zeros"))], np.dtype(np.float32))
PLAN = Plan(5, (2,), LAYOUT.size, 2)


def arena(handle, worker, deadline_s=5.0):
    names = {0: "0 (machine here)", 1: "1 (machine here, process 7)"}
    pids = {0: os.getpid(), 1: os.getpid()}
    return Arena(handle, ArenaMap(PLAN, 0, LAYOUT), LAYOUT, PLAN, worker, 0, names, deadline_s, Phases(), pids)


def test_views_do_not_overlap_and_start_on_cache_lines():
    place = ArenaMap(PLAN, 0, LAYOUT)
    one = arena(reserve(place.n_bytes), 0)
    vectors = [one.norms, one.weights, *one.partials.values()]
    flags = bytes(one.flags)
    assert len(one.partials) == len(PLAN.nodes(0)) + len(PLAN.nodes(1))
    for i, vector in enumerate(vectors):
        vector.fill(i + 1)
    for i, vector in enumerate(vectors):
        assert (vector == i + 1).all()
        assert vector.ctypes.data % 64 == 0
    assert bytes(one.flags) == flags


def test_another_process_sees_what_is_written_and_no_name_exists():
    handle = reserve(4096)
    other = attach(os.getpid(), handle)
    code = f"import os; h = os.open('/proc/{os.getpid()}/fd/{handle}', os.O_RDWR); os.pwrite(h, b'seen', 100)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert os.pread(other, 4, 100) == b"seen"
    os.close(handle)
    os.close(other)


def test_memory_that_the_machine_does_not_have_is_refused():
    with pytest.raises(InputError, match="room for the arena"):
        reserve(1 << 50)


def test_a_refusal_of_the_kernel_is_an_input_error(monkeypatch):
    monkeypatch.setattr(module, "require_room", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(InputError, match="a refusal"):
            reserve(2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_memory_of_a_process_that_is_gone_cannot_be_had():
    with pytest.raises(LostError, match="process 4194303 died"):
        attach(2**22 - 1, 3)


def test_a_worker_that_does_not_come_is_named():
    handle = reserve(ArenaMap(PLAN, 0, LAYOUT).n_bytes)
    one = arena(handle, 0, deadline_s=0.2)
    with pytest.raises(TrainingError, match=r"worker 1 \(machine here, process 7\).*phase 'update' of step 12.*0.2 s"):
        one.meet(12, "update")


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(1, 4 * BLOCK), cut=st.integers(0, 5), place=st.floats(0, 1, exclude_max=True), wide=st.booleans()
)
def test_a_fingerprint_is_of_every_bit_however_it_is_cut(size, cut, place, wide):
    weights = np.random.default_rng(size).standard_normal(size).astype(np.float64 if wide else np.float32)
    n_blocks = -(-size // BLOCK)
    cut = min(cut, n_blocks)
    whole = fingerprint(weights, range(n_blocks))
    parts = fingerprint(weights, range(cut)) + fingerprint(weights, range(cut, n_blocks))
    assert (whole - parts) % (1 << 64) == 0
    bit = int(place * 8 * weights.nbytes)
    weights.view(np.uint8)[bit // 8] ^= 1 << bit % 8
    assert fingerprint(weights, range(n_blocks)) != whole


def test_a_fingerprint_knows_which_block_is_which():
    weights = np.random.default_rng(0).standard_normal(3 * BLOCK)
    moved = weights.reshape(3, BLOCK)[[1, 0, 2]].ravel()
    assert fingerprint(weights, range(3)) != fingerprint(moved, range(3))
