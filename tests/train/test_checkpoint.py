"""Checkpoints: the state comes back bit for bit, or the file is refused; whatever dies while one is written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from distbp import InputError, Recipe, TrainingError
from distbp.train.checkpoint import Checkpoints, load_checkpoint, save_checkpoint, to_bytes
from distbp.train.state import Ledger, State, vector_names

RECIPE = Recipe.parse({"model": [{"dense": 3}, "softmax"], "shards": 2, "early_stopping": {"patience": 2}})


def state(step, size=32):
    rng = np.random.default_rng(step)
    vectors = {name: rng.standard_normal(size).astype(np.float32) for name in vector_names(RECIPE)}
    tally = np.column_stack([rng.standard_normal(2), [40.0, 41.0], [3.0, 41.0]])
    return State(step, vectors, tally, [record(1, step)], 1.5)


def record(epoch, step):
    figures = {"train": {"loss": 0.1 + 0.2}, "validation": {"loss": 0.5}, "seconds": 1.5, "examples_per_second": 3.0}
    return {"epoch": epoch, "step": step} | figures


def same(found, expected):
    return (
        (found.step, found.history, found.seconds) == (expected.step, expected.history, expected.seconds)
        and {name: v.tobytes() for name, v in found.vectors.items()}
        == {name: v.tobytes() for name, v in expected.vectors.items()}
        and found.tally.tobytes() == expected.tally.tobytes()
    )


def test_a_checkpoint_of_a_mode_that_does_not_wait_has_a_ledger(tmp_path):
    recipe = Recipe.parse(RECIPE.dump() | {"mode": "asynchronous"})
    ledger = Ledger(
        pushes=15,
        steps_of_workers=[7, 8],
        updates=14,
        rows=70,
        largest_lead=1,
        stale_sum=5,
        stale_max=2,
        unseen=[record(2, 14)],
    )
    save_checkpoint(tmp_path / "c", dataclasses.replace(state(7), step=15, ledger=ledger), recipe)
    assert load_checkpoint(tmp_path / "c")[1].ledger == ledger
    save_checkpoint(tmp_path / "c", state(7), recipe)
    with pytest.raises(InputError, match="expected the state of its recipe"):
        load_checkpoint(tmp_path / "c")


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path / "c", state(7), RECIPE)
    recipe, found = load_checkpoint(tmp_path / "c")
    assert same(found, state(7))
    assert recipe.dump() == RECIPE.dump()


@pytest.mark.parametrize("change", [{"step": -1}, {"history": "abc"}, {"history": [3]}, {"seconds": "1"}])
def test_a_checkpoint_of_another_program_with_checksums_that_are_right_is_refused(tmp_path, change):
    save_checkpoint(tmp_path / "c", dataclasses.replace(state(7), **change), RECIPE)
    with pytest.raises(InputError, match="expected a whole checkpoint"):
        load_checkpoint(tmp_path / "c")


def without_validation():
    return [{key: value for key, value in record(1, 7).items() if key != "validation"}]


CONTRADICTIONS = {
    "the last epoch has not ended": {"step": 6},
    "another epoch is over": {"step": 15},
    "no first epoch": {"history": [record(2, 7)]},
    "an epoch twice": {"history": [record(1, 7), record(1, 7)]},
    "more epochs than the recipe has": {"history": [record(n, n) for n in range(1, 12)], "step": 11},
    "epochs of different length": {"history": [record(1, 7), record(2, 13)], "step": 14},
    "a step beyond the last": {"history": [record(n, n) for n in range(1, 11)], "step": 11},
    "nothing to stop early by": {"history": without_validation()},
    "more right than rows": {"tally": np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])},
    "less than no rows": {"tally": np.array([[1.0, -1.0, -2.0], [0.0, 0.0, 0.0]])},
    "a loss that is not finite": {"tally": np.array([[np.inf, 1.0, 1.0], [0.0, 0.0, 0.0]])},
    "weights that are not finite": {"vectors": state(7).vectors | {"weights": np.full(32, np.nan, np.float32)}},
    "optimizer state that is not finite": {"vectors": state(7).vectors | {"best": np.full(32, np.inf, np.float32)}},
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_state_that_cannot_be_is_refused(tmp_path, change):
    save_checkpoint(tmp_path / "c", dataclasses.replace(state(7), **change), RECIPE)
    with pytest.raises(InputError, match="a state that fits its recipe and itself"):
        load_checkpoint(tmp_path / "c")


@settings(deadline=None, max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_noticed(tmp_path_factory, place, bit):
    content = bytearray(to_bytes(state(7), RECIPE))
    content[int(place * len(content))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(content)
    try:
        recipe, found = load_checkpoint(path)
    except InputError:
        return
    assert same(found, state(7))  # a blank in the header became another one
    assert recipe.dump() == RECIPE.dump()


@settings(deadline=None, max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(tmp_path_factory, place):
    content = to_bytes(state(7), RECIPE)
    path = tmp_path_factory.getbasetemp() / "truncated"
    path.write_bytes(content[: int(place * len(content))])
    with pytest.raises(InputError):
        load_checkpoint(path)


FOREIGN = {
    "another program": (save({"x": np.zeros(3)}), "a file of another program"),
    "no safetensors": (b"hello", "expected a whole checkpoint"),
    "nothing": (b"", "expected a whole checkpoint"),
    "a huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "expected a whole checkpoint"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(tmp_path, content, message):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "c")


def test_the_newest_whole_checkpoint_is_taken_and_the_last_ones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(InputError, match="none in"):
        checkpoints.newest()
    for step in (3, 5, 9, 12):
        if step == 5:
            checkpoints.remember(state(4), RECIPE)
        checkpoints.write(state(step), RECIPE)
        checkpoints.wait()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "best.safetensors",
        "step-000000000009.safetensors",
        "step-000000000012.safetensors",
    ]
    assert load_checkpoint(checkpoints.folder / "best.safetensors")[1].step == 4
    newest = checkpoints.paths()[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    _, found, refused = checkpoints.newest()
    assert found.step == 9
    assert len(refused) == 1
    assert "step-000000000012" in str(refused[0])


def test_a_folder_that_cannot_be_written_is_an_error_of_the_next_call(tmp_path):
    checkpoints = Checkpoints(tmp_path / "nowhere" / "at all", keep=2)
    checkpoints.write(state(1), RECIPE)
    with pytest.raises(TrainingError, match="expected to be able to write checkpoints into .*nowhere"):
        checkpoints.wait()


KILLED = """
import os, resource, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_checkpoint import RECIPE, same, state
from distbp.train.checkpoint import Checkpoints, load_checkpoint

folder = Path(sys.argv[2])

def write(step, at=None, limit=None):
    '''Write a checkpoint in a process that dies before or after system call number ``at``, or after ``limit`` bytes.'''
    pid = os.fork()
    if pid == 0:
        seen = 0
        def trace(frame, event, called):
            nonlocal seen
            if event not in ('c_call', 'c_return'):
                return
            owner = type(getattr(called, '__self__', None)).__module__
            if owner == '_io' or called.__module__ in ('_io', 'posix'):
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        checkpoints = Checkpoints(folder, keep=1)
        if at is not None:
            sys.setprofile(trace)
        checkpoints._write('newest', state(step, 2048), RECIPE)
        sys.setprofile(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert write(1) == 0
size = Checkpoints(folder, 1).paths()[0].stat().st_size
last = n_killed = 1

def check(step, status):
    global last, n_killed
    found = Checkpoints(folder, 1).newest()[1]
    assert found.step == step if status == 0 else found.step in (last, step), (step, status, found.step)
    assert same(found, state(found.step, 2048))
    last, n_killed = found.step, n_killed + (status < 0)
    return status < 0

at = 0
while check(at + 2, write(at + 2, at=at)):
    at += 1
for limit in range(0, size, 997):
    assert check(at + 3 + limit, write(at + 3 + limit, limit=limit))
print(n_killed)
"""


def test_whatever_write_a_process_is_killed_at_the_old_or_the_new_checkpoint_loads(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, script, Path(__file__).parent, tmp_path / "run"]
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 2  # the last one, and one half-written
