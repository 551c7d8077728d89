"""Bad input and deaths on Ray: one message, a non-zero status, nothing left behind, nothing hanging."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

import psutil
import pytest
from conftest import actors
from ray_cluster import Cluster, free_port
from tests_support import RECIPE, distbp, finish, result, start, start_training

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
LONG = RECIPE.replace("epochs: 3", "epochs: 100000")


@pytest.fixture(scope="module")
def cluster():
    with Cluster([4]) as cluster:
        yield cluster
        assert cluster.used_cpus() == 0  # no placement group is left of all the tests below


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(LONG)
    return path


def training(cluster, recipe, tmp_path, *options):
    """Start a long run, and return it once it trains."""
    return start_training(tmp_path / "run", recipe, "--address", cluster.address, *options)


@pytest.mark.parametrize(
    ("calls", "machines"), [("graph", []), ("plain", ["--machines", "2+1"])], ids=["one machine", "two machines"]
)
def test_a_killed_worker_ends_a_run_that_may_not_fail_and_is_named(cluster, recipe, tmp_path, calls, machines):
    options = ["--workers", 3, "--calls", calls, "--max-failures", 0]
    process = training(cluster, recipe, tmp_path, *options, *machines)
    victim = actors()[1]
    victim.kill()
    done = finish(process, 40)
    assert done.returncode == 3
    assert f"process {victim.pid}) has died" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("machines", [[], ["--machines", "1+1"]], ids=["one machine", "two machines"])
def test_a_stopped_worker_is_named_at_the_deadline(cluster, recipe, tmp_path, machines):
    options = ["--workers", 2, "--deadline", 4, "--max-failures", 0]
    process = training(cluster, recipe, tmp_path, *options, *machines)
    victim = actors()[1]
    victim.send_signal(signal.SIGSTOP)
    done = finish(process, 40)
    assert done.returncode == 3
    assert f"process {victim.pid})" in done.stderr
    assert "4 s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run(cluster, recipe, tmp_path, number):
    process = training(cluster, recipe, tmp_path, "--workers", 2)
    process.send_signal(number)
    done = finish(process, 40)
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr


def test_the_death_of_the_driver_ends_the_actors(cluster, recipe, tmp_path):
    process = training(cluster, recipe, tmp_path, "--workers", 2, "--calls", "plain")
    process.kill()
    process.communicate(timeout=60)


def test_an_exception_in_a_worker_ends_the_run_with_its_traceback_said_once(recipe, tmp_path):
    fault = tmp_path / "sitecustomize.py"
    fault.write_text(
        "import distbp.train.worker as module\n"
        "compute = module.Worker.compute\n"
        "def faulty(self, step):\n"
        "    if step == 7 and 0 not in self.shards['train']: raise ArithmeticError('on purpose')\n"
        "    return compute(self, step)\n"
        "module.Worker.compute = faulty\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with Cluster([2], env=environment) as own:
        done = distbp("train", recipe, "--address", own.address, "--workers", 2, status=3, cwd=tmp_path)
    assert done.stderr.count("ArithmeticError: on purpose") == 1
    assert done.stderr.count("Traceback") == 1
    assert "expected worker 1 (machine " in done.stderr
    assert "after step 6" in done.stderr


BAD_INPUT = {
    "nothing answers": (["--address", f"127.0.0.1:{free_port()}"], "where nothing answers"),
    "no address": (["--address", "nowhere"], "HOST:PORT of a Ray cluster"),
    "a client's address": (["--address", "ray://127.0.0.1:10001"], "ray job submit"),
    "a cluster on a network": (["--address", "192.0.2.1:6379"], "or say --trust-network, which risks"),
    "more workers at first than in the end": (["--engine", "ray", "--workers", "3:2"], "MIN:MAX such as 2:4"),
    "an unknown way to call": (["--engine", "ray", "--calls", "loudly"], "one of: auto, graph, plain"),
}


@pytest.mark.parametrize(("options", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_options_are_refused_before_anything_starts(recipe, tmp_path, options, message):
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = distbp("train", recipe, *options, "--out", tmp_path / "run", status=2, env=env | {"HOME": str(tmp_path)})
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


BAD_JOBS = {
    "too many workers": (
        ["--workers", 7, "--deadline", 1],
        "room for 7 actors of 1 CPU each, 7 CPUs in all; given 4 free of 4 CPUs on 1 machine, within 1 s",
    ),
    "more workers than shards": (["--workers", 4, "--shards", 3], "at least one shard for each worker"),
    "no such data": (["--set", "data.source=/nowhere/at/all"], "none: /nowhere/at/all does not exist"),
    "no such data to send": (["--set", "data.source=/nowhere", "--send-data"], "none: /nowhere does not exist"),
    "a loss that is not finite": (["--set", "optimizer={sgd: 1.0e+30}"], "expected a finite loss and gradient"),
    "no finite loss, asynchronously": (
        ["--workers", 2, "--set", "mode=asynchronous", "--set", "optimizer={sgd: 1.0e+30}", "--set", "clip_norm=null"],
        "was not pushed",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_JOBS.values(), ids=BAD_JOBS)
def test_a_run_that_cannot_be_says_so_once(cluster, recipe, tmp_path, options, message):
    done = finish(start("train", recipe, "--address", cluster.address, *options, "--out", tmp_path / "run"))
    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_versions_that_differ_are_named(cluster, recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import distbp.version as module\nmodule.__version__ = '0.0.1'\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = distbp("train", recipe, "--address", cluster.address, status=2, env=environment, cwd=tmp_path)
    assert "expected distbp 0.0.1, as here; given 0.1.0 on worker 0 (machine " in done.stderr


def test_without_ray_the_install_line_is_given(recipe, tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('no Ray here')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = distbp("train", recipe, "--engine", "ray", status=2, env=environment, cwd=tmp_path)
    assert "pip install 'distbp[ray]'" in done.stderr


def test_where_graphs_are_not_to_be_had_plain_calls_do_the_same(cluster, recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import ray.dag\n"
        "def no_graph(*_, **__): raise NotImplementedError('no graphs here')\n"
        "ray.dag.DAGNode.experimental_compile = no_graph\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    options = ["--address", cluster.address, "--workers", 2, "--set", "epochs=2"]
    distbp("train", recipe, *options, "--out", tmp_path / "plain", env=environment)
    distbp("train", recipe, *options, "--out", tmp_path / "graph")
    assert result(tmp_path / "plain")["weights_sha256"] == result(tmp_path / "graph")["weights_sha256"]
    done = distbp("train", recipe, *options, "--calls", "graph", status=2, env=environment, cwd=tmp_path)
    assert "no graphs here" in done.stderr


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_the_death_of_its_own_ray_ends_a_run_with_the_way_on(recipe, tmp_path, part):
    process = start_training(tmp_path / "run", recipe, "--engine", "ray", "--workers", 2, "--checkpoint-steps", 5)
    (victim,) = [p for p in psutil.Process(process.pid).children() if p.name() == part]
    victim.kill()
    done = finish(process, 60)
    assert done.returncode == 3
    assert done.stderr.startswith("distbp: expected the Ray of this run to live; it has died")
    assert f"go on with it: distbp train --resume {tmp_path / 'run'}" in done.stderr
    assert done.stderr.count("\n") == 1
