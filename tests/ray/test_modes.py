"""The modes in which nobody waits for all: real actors, one of them slowed down on purpose."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cluster import Cluster
from tests_support import compare, distbp, result

pytestmark = [
    pytest.mark.timeout(180),
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
    assert found["steps"] == 3 * alone["steps"]
    assert found["test"]["accuracy"] > alone["test"]["accuracy"] - 0.01
    stale = found["staleness"]
    assert 0 < stale["mean"] <= stale["max"]
    assert stale["largest_lead"] <= 2
    assert sum(stale["steps_of_workers"]) >= found["steps"]
    assert f"staleness {stale['mean']:.1f} updates, at most {stale['max']}" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [found["steps"] * epoch // 3 for epoch in (1, 2, 3)]
    assert all("validation" in line and "staleness" in line for line in lines)


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
