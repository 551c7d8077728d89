"""Actors and machines that are lost while training goes on: new actors end with the bits of the calm run."""

from __future__ import annotations

import importlib.util
import os
import re
import signal

import psutil
import pytest
from conftest import actors
from ray_cluster import Cluster, driver_log, named_actors
from tests_support import compare, distbp, finish, metrics, result, start_training

from distbp.train.fault import PHASES

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster():
    with Cluster([4]) as cluster:
        yield cluster
        assert cluster.used_cpus() == 0


LOSSES = {
    "two of three": (["worker 0", "worker 2"], signal.SIGKILL, []),
    "the parameter server": (["parameter server"], signal.SIGKILL, ["--set", "coordinators=1"]),
    "one that is stopped": (["worker 1"], signal.SIGSTOP, ["--deadline", 3]),
}


@pytest.mark.parametrize(("victims", "number", "options"), LOSSES.values(), ids=LOSSES)
def test_lost_actors_are_replaced(cluster, long, calm, tmp_path, victims, number, options):
    process = start_training(tmp_path / "run", long, "--address", cluster.address, "--workers", 3, *options)
    running = named_actors(cluster.address)
    for victim in victims:
        os.kill(running[f"distbp {victim}"], number)
    done = finish(process, 150)
    assert done.returncode == 0, done.stderr
    assert f"process {running[f'distbp {victims[0]}']})" in done.stdout
    assert "going on from step" in done.stdout
    compare(result(tmp_path / "run"), result(calm))
    assert metrics(tmp_path / "run") == metrics(calm)


def test_the_others_go_on_at_once_and_new_actors_join_them(cluster, long, tmp_path):
    changes = ["--set", "epochs=250"]
    distbp("train", long, "--engine", "local", *changes, "--out", tmp_path / "calm")
    process = start_training(tmp_path / "run", long, "--address", cluster.address, "--workers", 3, *changes)
    victim, *others = actors()
    victim.kill()
    done = finish(process, 150)
    assert done.returncode == 0, done.stderr
    assert re.search(r"lost after step \d+.*; going on from step \d+ with 2 workers", done.stdout)
    assert re.search(r"there is room for more workers; going on from step \d+ with 3 workers", done.stdout)
    assert not any(f"process {other.pid}" in done.stdout for other in others)
    compare(result(tmp_path / "run"), result(tmp_path / "calm"))


@pytest.mark.parametrize("worker", [0, *(pytest.param(worker, marks=pytest.mark.thorough) for worker in (1, 2))])
def test_an_actor_may_die_at_every_phase_of_a_step(recipe, alone, cluster, tmp_path, worker):
    """Worker 0 again and again: in the end there is nobody left, and all are new. Others are lost once in a run."""
    faults = [["--fault", f"kill:{phase}:{4 + 4 * i}:{worker}"] for i, phase in enumerate(PHASES)]
    options = ["--workers", 3, "--checkpoint-steps", 5, "--max-failures", len(PHASES)]
    for i, some in enumerate([[word for fault in faults for word in fault]] if worker == 0 else faults):
        out = tmp_path / f"run{i}"
        done = distbp("train", recipe, "--address", cluster.address, *options, *some, "--out", out)
        assert len(re.findall(r"lost (after|before) .*; going on from step", done.stdout)) == len(some) // 2
        compare(result(out), alone)


def test_where_machines_see_different_weights_the_steps_since_the_last_copy_are_done_again(
    recipe, alone, cluster, tmp_path
):
    options = ["--workers", 2, "--machines", "1+1", "--fault", "flip:copy:20:1"]
    done = distbp("train", recipe, "--address", cluster.address, *options, "--out", tmp_path / "run")
    assert "differ; going on from step 16 with 2 workers" in done.stdout
    compare(result(tmp_path / "run"), alone)


def test_a_run_grows_when_a_machine_joins_the_cluster(long, tmp_path):
    changes = ["--set", "epochs=60", "--set", "batch_size=400"]
    distbp("train", long, "--engine", "local", *changes, "--out", tmp_path / "calm")
    with Cluster([1]) as cluster:
        options = ["--address", cluster.address, "--workers", "1:3", *changes]
        process = start_training(tmp_path / "run", long, *options)
        process.send_signal(signal.SIGSTOP)  # so that the run is not over before the machine is there
        cluster.join(2)
        cluster.wait_for_cpus(3)
        process.send_signal(signal.SIGCONT)
        done = finish(process, 100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"room for more workers; going on from step \d+ with 3 workers", done.stdout)
    compare(result(tmp_path / "run"), result(tmp_path / "calm"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "calm")


# The cluster knows within seconds that a machine is lost, not within half a minute.
LIMITS = {"period_ms": 1000, "initial_delay_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
QUICK = {f"RAY_health_check_{name}": str(value) for name, value in LIMITS.items()}


def kill_machine(raylet):
    for member in [*psutil.Process(raylet.pid).children(recursive=True), psutil.Process(raylet.pid)]:
        member.kill()


def test_where_a_machine_of_the_cluster_is_lost_the_others_do_its_work(long, calm, tmp_path):
    with Cluster([2, 2], env=os.environ | QUICK) as cluster:
        options = ["--address", cluster.address, "--workers", 4, "--calls", "plain"]
        process = start_training(tmp_path / "run", long, *options)
        kill_machine(cluster.raylets[1])
        done = finish(process, 150)
        assert done.returncode == 0, "\n".join([done.stdout[-2000:], done.stderr, driver_log()])
    assert "with 2 workers" in done.stdout
    compare(result(tmp_path / "run"), result(calm))
