"""The modes in which nobody waits for all: real actors, one of them slowed down on purpose."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_cluster import Cluster, named_actors
from tests_support import compare, distbp, finish, metrics, result, start_training

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_modes.py"


@pytest.fixture(scope="module")
def cluster():
    with Cluster([4]) as cluster:
        yield cluster


@pytest.mark.parametrize("mode", ["asynchronous", "bounded"])
def test_one_worker_alone_is_never_stale_and_gives_the_bits_of_a_synchronous_run(
    recipe, alone, cluster, tmp_path, mode
):
    options = ["--workers", 1, "--set", f"mode={mode}"]
    distbp("train", recipe, "--address", cluster.address, *options, "--out", tmp_path / "run")
    found = result(tmp_path / "run")
    compare(found, alone)
    assert found["staleness"] == {"mean": 0.0, "max": 0, "largest_lead": 0, "steps_of_workers": [39]}


@pytest.mark.parametrize("machines", [[], ["--machines", "1+2"]], ids=["one machine", "two machines"])
def test_several_workers_learn_and_report_how_stale_they_were(recipe, alone, cluster, tmp_path, machines):
    options = ["--workers", 3, "--set", "mode.bounded.staleness=2", "--send-data", *machines]
    done = distbp("train", recipe, "--address", cluster.address, *options, "--out", tmp_path / "run")
    found = result(tmp_path / "run")
    assert found["steps"] == alone["steps"]
    assert found["test"]["accuracy"] > alone["test"]["accuracy"] - 0.01
    stale = found["staleness"]
    assert 0 < stale["mean"] <= stale["max"]
    assert stale["largest_lead"] <= 2
    assert sum(stale["steps_of_workers"]) >= 3 * found["steps"]
    assert f"staleness {stale['mean']:.1f} updates, at most {stale['max']}" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [13, 26, 39]
    assert all("validation" in line and "staleness" in line for line in lines)


def test_one_worker_that_is_stopped_goes_on_from_a_checkpoint_with_the_bits_of_a_synchronous_run(
    long, calm, cluster, tmp_path
):
    run = tmp_path / "run"
    options = ["--workers", 1, "--set", "mode=asynchronous"]
    process = start_training(run, long, "--address", cluster.address, *options)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert f"go on with it: distbp train --resume {run}" in done.stderr
    distbp("train", "--resume", run, "--address", cluster.address, "--workers", 1)
    compare(result(run), result(calm))
    assert [line["validation"] for line in metrics(run)] == [line["validation"] for line in metrics(calm)]


OFTEN = ["--checkpoint-steps", 20]
LOSSES = {  # of two workers and the parameter server
    "a worker of another machine": ("worker 1", signal.SIGKILL, [], ["--machines", "1+1"], 1),
    "a worker that is stopped": ("worker 1", signal.SIGSTOP, ["--set", "mode.bounded.staleness=3"], [], 1),
    "the parameter server": ("parameter server", signal.SIGKILL, [], OFTEN, 2),
}


@pytest.mark.parametrize(("name", "number", "mode", "options", "left"), LOSSES.values(), ids=LOSSES)
def test_lost_actors_are_replaced_and_training_goes_on(long, cluster, tmp_path, name, number, mode, options, left):
    run = tmp_path / "run"
    common = ["--address", cluster.address, "--workers", 2, "--deadline", 3, "--set", "mode=asynchronous"]
    process = start_training(run, long, *common, *mode, *options)
    while options == OFTEN and not [*run.glob("checkpoints/step-*")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    victim = named_actors(cluster.address)[f"distbp {name}"]
    os.kill(victim, number)
    done = finish(process, 150)
    assert done.returncode == 0, done.stderr
    assert f"process {victim})" in done.stdout
    went_on = re.search(rf"lost after step \d+.*going on from step (\d+) with {left} worker", done.stdout)
    assert went_on is not None, done.stdout
    assert int(went_on[1]) > 0
    lines = metrics(run)
    assert [line["epoch"] for line in lines] == list(range(1, 151))
    found = result(run)
    assert found["steps"] == 150 * 13
    assert sum(found["staleness"]["steps_of_workers"]) >= 150 * 13
    assert found["test"]["accuracy"] > 0.95


@pytest.mark.thorough
def test_with_a_slow_worker_the_accuracy_is_that_of_a_synchronous_run():
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--slowed", "one", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    runs = {run["mode"]: run for run in map(json.loads, done.stdout.splitlines())}
    synchronous = runs.pop("synchronous")
    for mode, run in runs.items():
        assert abs(run["test_accuracy"] - synchronous["test_accuracy"]) <= 0.01, mode
    assert runs["bounded: 8"]["largest_lead"] <= 8
    slow, *others = runs["asynchronous"]["steps_of_workers"]
    assert slow < min(others)
