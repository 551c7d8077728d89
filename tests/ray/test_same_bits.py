"""The same bits on Ray: actors on one machine, on two raylets, with a parameter server, with plain calls."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from ray_cluster import Cluster
from tests_support import compare, distbp, result

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster():
    with Cluster([5]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def two_raylets():
    with Cluster([2, 2]) as cluster:
        yield cluster


ONE_MACHINE = {
    "1 worker": ["--workers", 1],
    "2 workers, half a CPU each": ["--workers", 2, "--cpus-per-worker", 0.5],
    "3 workers": ["--workers", 3],
    "parameter server": ["--workers", 3, "--set", "coordinators=1"],
    "plain calls": ["--workers", 3, "--calls", "plain"],
    "rows sent": ["--workers", 3, "--send-data"],
}


@pytest.mark.parametrize("options", ONE_MACHINE.values(), ids=ONE_MACHINE)
def test_weights_are_the_same_bits_on_ray(recipe, alone, cluster, tmp_path, options):
    calls = [] if "--calls" in options else ["--calls", "graph"]
    distbp("train", recipe, "--address", cluster.address, *options, *calls, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)
    assert result(tmp_path / "run")["engine"] == "ray"
    assert result(tmp_path / "run")["workers"] == options[1]


SEVERAL_MACHINES = {
    "graph": ["--calls", "graph"],
    "plain calls": ["--calls", "plain"],
}


@pytest.mark.thorough  # tests/ray/test_two_hosts.py says the same of hosts
@pytest.mark.parametrize("options", SEVERAL_MACHINES.values(), ids=SEVERAL_MACHINES)
def test_weights_are_the_same_bits_on_a_cluster_of_two_raylets(recipe, alone, two_raylets, tmp_path, options):
    workers = ["--workers", 4]  # more than one raylet has room for
    distbp("train", recipe, "--address", two_raylets.address, *workers, *options, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)


@pytest.mark.parametrize("machines", ["2+1", "1+2+1"])
def test_weights_are_the_same_bits_on_several_machines(recipe, alone, cluster, tmp_path, machines):
    workers = sum(map(int, machines.split("+")))
    options = ["--workers", workers, "--machines", machines, "--set", "coordinators=1"]
    distbp("train", recipe, "--address", cluster.address, *options, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)


CHANGES = {
    "standard": ["data.scaling=standard", "optimizer=momentum", "clip_norm=null"],
    "early stopping": ["early_stopping.patience=1", "epochs=12"],
    "row limit": ["row_limit=5", "batch_size=200", "optimizer={adamw: {weight_decay: 0.1}}", "dtype=float64"],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_every_part_of_a_recipe_keeps_the_bits(recipe, cluster, tmp_path, changes):
    options = [word for change in changes for word in ("--set", change)]
    distbp("train", recipe, "--engine", "local", *options, "--out", tmp_path / "local")
    ray = ["--address", cluster.address, "--workers", 3, "--machines", "2+1", "--send-data"]
    distbp("train", recipe, *ray, *options, "--out", tmp_path / "ray")
    compare(result(tmp_path / "ray"), result(tmp_path / "local"))


def test_a_ray_that_runs_already_is_joined_and_goes_on(recipe, alone, cluster, tmp_path):
    distbp("train", recipe, "--engine", "ray", "--workers", 2, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)
    assert cluster.used_cpus() == 0


def test_without_a_cluster_ray_is_started_and_ended(alone, recipe, tmp_path):
    distbp("train", recipe, "--engine", "ray", "--workers", 2, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)


def test_the_run_looks_as_with_mpi(recipe, cluster, tmp_path):
    done = distbp("train", recipe, "--address", cluster.address, "--workers", 2, "--out", tmp_path / "run")
    assert done.stderr == ""
    assert done.stdout.count("epoch ") == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    keys = "weights_sha256 engine workers shards steps epochs train_seconds examples_per_second train validation test"
    assert set(keys.split()) <= set(result(tmp_path / "run"))


def test_bench_reports_the_same_figures_as_with_mpi(cluster):
    options = ["--workers", 2, "--layers", "20,16,4", "--batch", 8, "--steps", 20, "--json"]
    ray = json.loads(distbp("bench", "--address", cluster.address, *options).stdout)
    mpi = json.loads(distbp("bench", "--engine", "mpi", *options).stdout)
    assert ray.keys() == mpi.keys()
    assert (ray["engine"], ray["workers"], ray["ms_per_step"] > 0) == ("ray", 2, True)


def outputs(folder, text, workers, cluster):
    """Return what the script ``text`` prints with the engine local, and with this many workers of ``cluster``.

    What Ray says there of processes that end late is left out.
    """
    script = folder / "script.py"
    script.write_text(text)

    def run(*words, timeout):
        command = [sys.executable, script, *words]
        said = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout
        return "".join(line for line in said.splitlines(True) if "(raylet)" not in line)

    return run("local", "1", timeout=60), run("ray", str(workers), cluster.address, timeout=90)


def test_a_script_directs_actors_and_trains_alone_with_the_same_bits(cluster, tmp_path):
    alone, ray = outputs(tmp_path, SCRIPT, 3, cluster)
    assert ray.splitlines()[1:] == alone.splitlines()[1:]
    assert (alone.splitlines()[0], ray.splitlines()[0]) == ("1", "3")


SCRIPT = """
import sys
from distbp import Trainer, load, nn, optim
engine, workers, address = (*sys.argv[1:], None)[:3]
digits = load("digits")
class Watcher:
    def begin(self, n_steps, n_epochs): self.n_steps, self.steps = n_steps, []
    def step(self, step): self.steps.append(step)
    def epoch(self, record): pass
    def end(self): assert self.steps == list(range(self.n_steps))
trainer = Trainer([nn.Dense(32), nn.ReLU(), nn.Dense(10), nn.Softmax()], optimizer=optim.Adam(0.01), shards=4,
                  scaling="minmax", epochs=2, engine=engine, workers=int(workers), address=address)
for validation in (0.1, (digits.test.x, digits.test.y)):
    outcome = trainer.fit(digits.train.x, digits.train.y, validation=validation, watcher=Watcher())
    if validation == 0.1:
        print(outcome.workers)
    print(outcome.weights_sha256, outcome.metrics)
"""


def test_data_frames_and_sparse_matrices_give_the_same_model_on_ray(cluster, tmp_path):
    """Names of columns, the shape of the targets and what is stored of a sparse matrix travel with the rows."""
    alone, ray = outputs(tmp_path, FRAMES, 2, cluster)
    assert ray == alone
    assert alone.splitlines()[0].startswith("('a', 'b', 'c') (60,)")


FRAMES = """
import sys
import numpy as np, pandas as pd, scipy.sparse as sp
from distbp import InputError, Trainer, nn
engine, workers, address = (*sys.argv[1:], None)[:3]
x = np.random.default_rng(0).standard_normal((60, 3)) * (np.arange(180).reshape(60, 3) % 4 > 0)
frame, y = pd.DataFrame(x, columns=list("abc")), x[:, 0] ** 2
for rows, others in ((frame, frame[list("cba")]), (sp.csr_matrix(x), sp.coo_array(x))):
    trainer = Trainer([nn.Dense(8), nn.Tanh(), nn.Dense(1)], loss="squared_error", shards=3, scaling="standard",
                      epochs=2, engine=engine, workers=int(workers), address=address)
    outcome = trainer.fit(rows, y, validation=(others, y), test=(others, y[:, None]))
    print(trainer.model.form.columns, trainer.predict(others).shape, outcome.weights_sha256, outcome.metrics)
bad = sp.csr_matrix(np.where(np.arange(180).reshape(60, 3) == 100, np.inf, x))
try:
    trainer.fit(bad, y)
except InputError as error:
    print(error.given)
"""
