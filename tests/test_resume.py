"""Runs that stop or are killed go on from their checkpoints, on any engine, to the bits of the calm run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import actors
from tests_support import COMMAND, RECIPE, compare, disk_of, distbp, finish, metrics, result, start

from distbp import Model

pytestmark = pytest.mark.timeout(400)
LONG = RECIPE.replace("epochs: 3", "epochs: 150")
RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(LONG + "early_stopping: {metric: accuracy, patience: 140}\n")
    return path


@pytest.fixture(scope="module")
def calm(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("calm") / "run"
    distbp("train", recipe, "--engine", "local", "--out", out)
    return out


def kill_in_the_middle(process, folder, n_checkpoints):
    """Kill a run and all its processes once it has written that many checkpoints more."""
    seen = set()
    deadline = time.monotonic() + 150
    before = set((folder / "checkpoints").glob("step-*"))
    while len(seen - before) < n_checkpoints:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        seen |= set((folder / "checkpoints").glob("step-*"))
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate(timeout=60)


def test_killed_under_mpi_and_killed_on_ray_it_ends_in_one_process_with_the_bits_of_the_calm_run(
    recipe, calm, tmp_path
):
    run = tmp_path / "run"
    often = ["--checkpoint-steps", 7]
    kill_in_the_middle(start("train", recipe, "--workers", 4, *often, "--out", run), run, 8)
    if RAY:
        ray = ["--engine", "ray", "--workers", 3, *often]
        from ray_cluster import Cluster

        with Cluster([3]) as cluster:
            kill_in_the_middle(start("train", "--resume", run, *ray, "--address", cluster.address), run, 8)
            deadline = time.monotonic() + 150
            while actors() and time.monotonic() < deadline:
                time.sleep(0.1)
    distbp("train", "--resume", run, "--engine", "local")
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 3),
        (signal.SIGUSR1, 1),
        (signal.SIGHUP, 1),
        pytest.param(signal.SIGHUP, 3, marks=pytest.mark.thorough),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.thorough),
        pytest.param(signal.SIGINT, 3, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_stops_a_run_with_a_checkpoint_from_which_it_goes_on(recipe, calm, tmp_path, workers, number):
    run = tmp_path / "run"
    process = start("train", recipe, "--workers", workers, "--out", run)
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text()) < 2000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    done = finish(process, 150)
    assert done.returncode == 128 + number, done.stderr
    assert f"go on with it: distbp train --resume {run}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (run / "result.json").exists()
    distbp("train", "--resume", run, "--workers", 2)
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for two checkpoints, and what gives it more."""
    with disk_of("500k", tmp_path / "disk") as disk:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)


@pytest.mark.parametrize(
    "options",
    [
        ["--engine", "local"],
        ["--workers", 3],
        pytest.param(
            ["--engine", "ray", "--workers", 2], marks=pytest.mark.skipif(not RAY, reason="Ray is not installed")
        ),
    ],
    ids=["local", "mpi", "ray"],
)
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(recipe, calm, small_disk, options):
    disk, enlarge = small_disk
    run = disk / "run"
    done = distbp("train", recipe, *options, "--checkpoint-steps", 30, "--out", run, status=3)
    expected = f"expected to be able to write checkpoints into {run / 'checkpoints'}; the system says: No space left"
    assert expected in done.stderr
    assert f"go on with it: distbp train --resume {run}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert 1 <= len(metrics(run)) < 150
    assert not [*run.rglob(".*")]
    enlarge()
    distbp("train", "--resume", run, *options)
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


def test_where_a_disk_is_full_no_half_of_a_line_stays(small_disk, recipe):
    disk, _ = small_disk
    (disk / "other").write_bytes(bytes(488_000))
    done = distbp("train", recipe, "--out", disk / "run", status=3)
    assert f"expected to be able to write {disk / 'run' / 'metrics.jsonl'}; the system says: No space" in done.stderr
    assert metrics(disk / "run")[-1]["epoch"] == len(metrics(disk / "run")) > 1


def test_where_the_disk_is_full_in_the_end_the_model_goes_elsewhere(small_disk, recipe, tmp_path):
    disk, enlarge = small_disk
    (disk / "other").write_bytes(bytes(488_000))
    (tmp_path / "temporary").mkdir()
    command = ["train", recipe, "--epochs", 2, "--out", disk / "run"]
    done = distbp(*command, status=3, env=dict(os.environ) | {"TMPDIR": str(tmp_path / "temporary")})
    expected = f"expected to be able to write {disk / 'run' / 'model.safetensors'}; the system says: No space"
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    place = done.stderr.strip().rpartition("the model is in ")[2]
    assert Path(place).is_relative_to(tmp_path / "temporary")
    enlarge()
    distbp(*command)  # what is left of the first try is no run that could be lost
    assert Model.load(place).sha256 == result(disk / "run")["weights_sha256"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_where_nobody_can_be_told_a_run_stops_with_a_checkpoint(recipe, calm, tmp_path):
    run = tmp_path / "run"
    full = os.open("/dev/full", os.O_WRONLY)
    reading, closed = os.pipe()
    os.close(reading)
    for command, output in ((["train", recipe, "--out", run], full), (["train", "--resume", run], closed)):
        words = [*COMMAND, *map(str, command)]
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
        os.close(output)
        assert done.returncode == 3, done.stderr
        assert "expected to be able to write standard output" in done.stderr
    distbp("train", "--resume", run)
    compare(result(run), result(calm))


def test_a_time_limit_stops_a_run_and_the_same_command_says_that_it_can_go_on(recipe, calm, tmp_path):
    run = tmp_path / "run"
    command = ["train", recipe, "--workers", 2, "--out", run]
    done = distbp(*command, "--max-time", 0.005, status=75)
    assert f"distbp train --resume {run}" in done.stderr
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = distbp(*command, status=2)
    assert f"a run that has not ended; go on with it: distbp train --resume {run}" in again.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    distbp("train", "--resume", run)
    compare(result(run), result(calm))


def test_a_run_that_goes_on_is_not_resumed_beside_itself(recipe, calm, tmp_path):
    run = tmp_path / "run"
    process = start("train", recipe, "--workers", 3, "--checkpoint-steps", 10, "--out", run)
    deadline = time.monotonic() + 150
    while not [*run.glob("checkpoints/step-*")]:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    done = distbp("train", "--resume", run, status=2)
    assert f"expected a folder that no run writes to; given {run}, where another process is training" in done.stderr
    assert finish(process).returncode == 0
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


BAD = {
    "nothing there": ([], "expected a whole checkpoint; given none in"),
    "a recipe beside it": (["--set", "epochs=3"], "expected the recipe of the run itself"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_resumed_is_said(tmp_path, options, message):
    done = distbp("train", "--resume", tmp_path, *options, status=2)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    distbp("train", "--max-time", 0, "--out", run, status=75)
    (run / "checkpoints").rename(outside)
    (run / "checkpoints").symlink_to(outside)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    done = distbp("train", "--resume", run, "--checkpoint-steps", 5, status=2)
    assert f"a link to {outside}; remove the link" in done.stderr
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    distbp("train", "--max-time", 0, "--out", tmp_path / "new", status=75)
    assert not (tmp_path / "elsewhere").exists()
    assert {path: path.read_bytes() for path in outside.iterdir()} == before
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    distbp("train", "--epochs", 1, "--engine", "local", "--out", tmp_path / "third")
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "third" / "model.safetensors").is_symlink()


def test_a_run_that_has_ended_is_not_resumed(calm):
    assert "whose run has ended" in distbp("train", "--resume", calm, status=2).stderr


def test_a_damaged_checkpoint_is_left_out_and_the_one_before_it_taken(recipe, calm, tmp_path):
    run = tmp_path / "run"
    distbp("train", recipe, "--checkpoint-steps", 30, "--max-time", 0.01, "--out", run, status=75)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = distbp("train", "--resume", run)
    assert f"left out: {newest}: expected" in done.stderr
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


def test_other_data_than_those_of_the_run_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((100, 4)), y=np.arange(100) % 3)
    small = tmp_path / "small.yaml"
    small.write_text(f"data: {{source: {tmp_path / 'data.npz'}}}\nmodel: [{{dense: 3}}, softmax]\nepochs: 100000\n")
    distbp("train", small, "--max-time", 0.005, "--out", tmp_path / "run", status=75)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((100, 40)), y=np.arange(100) % 3)
    done = distbp("train", "--resume", tmp_path / "run", status=2)
    assert "resume with the data and the recipe of the run" in done.stderr
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((100, 4)), y=np.arange(100) % 3)
    assert "given other rows than the first" in distbp("train", "--resume", tmp_path / "run", status=2).stderr
