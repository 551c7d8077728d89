"""The same bits, however it runs: real processes under mpirun against one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import COMMAND, compare, distbp, finish, result

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize(("workers", "coordinators"), [*((n, "all") for n in (1, 2, 3, 4, 5, 8)), (2, "1"), (5, "1")])
def test_weights_are_the_same_bits_on_any_number_of_workers(recipe, alone, tmp_path, workers, coordinators):
    options = ["--engine", "mpi", "--workers", workers, "--set", f"coordinators={coordinators}"]
    distbp("train", recipe, *options, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)
    assert result(tmp_path / "run")["workers"] == workers


@pytest.mark.parametrize(("machines", "coordinators"), [("2+2", "all"), ("3+1", "all"), ("1+1+1", "all"), ("3+1", "1")])
def test_weights_are_the_same_bits_on_several_machines(recipe, alone, tmp_path, machines, coordinators):
    workers = sum(map(int, machines.split("+")))
    options = ["--workers", workers, "--machines", machines, "--set", f"coordinators={coordinators}"]
    distbp("train", recipe, *options, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)


@pytest.mark.parametrize(
    "changes",
    [
        ["data.scaling=standard", "optimizer=momentum", "clip_norm=null"],
        ["early_stopping.patience=1", "epochs=12", "data.scaling=minmax"],
        ["row_limit=5", "batch_size=200", "optimizer={adamw: {weight_decay: 0.1}}"],
        ["batch_size=5", "epochs=1", "dtype=float64"],
    ],
)
def test_every_part_of_a_recipe_keeps_the_bits(recipe, tmp_path, changes):
    options = [word for change in changes for word in ("--set", change)]
    distbp("train", recipe, "--engine", "local", *options, "--out", tmp_path / "local")
    distbp("train", recipe, "--workers", 3, "--machines", "2+1", *options, "--out", tmp_path / "mpi")
    compare(result(tmp_path / "mpi"), result(tmp_path / "local"))


def test_result_has_the_promised_keys(alone):
    keys = "weights_sha256 engine workers shards steps epochs train_seconds examples_per_second train validation test"
    assert set(keys.split()) <= set(alone)
    assert set(alone["test"]) == {"loss", "accuracy"}


def test_the_run_leaves_model_metrics_and_result(recipe, tmp_path):
    run = tmp_path / "run"
    distbp("train", recipe, "--workers", 2, "--out", run)
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "model.safetensors", "result.json"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    evaluated = json.loads(distbp("evaluate", run, "digits").stdout)
    assert evaluated == result(run)["test"]


def test_the_same_script_trains_alone_and_under_mpirun(tmp_path):
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun if mpirun.exists() else shutil.which("mpirun"), "-n", "4", "--oversubscribe", "--bind-to", "none"]
    together = subprocess.run(
        [*command, sys.executable, script], capture_output=True, text=True, timeout=60, check=True
    )
    assert alone.stdout.split()[1:] == together.stdout.split()[1:]
    assert alone.stdout.split()[0] == "1"
    assert together.stdout.split()[0] == "4"


SCRIPT = """
from distbp import Trainer, load, nn, optim
digits = load("digits")
trainer = Trainer([nn.Dense(32), nn.ReLU(), nn.Dense(10), nn.Softmax()], optimizer=optim.Adam(0.01),
                  scaling="minmax", epochs=2, shards=4)
outcome = trainer.fit(digits.train.x, digits.train.y, test=(digits.test.x, digits.test.y))
if trainer.worker == 0:
    print(outcome.workers, outcome.weights_sha256, outcome.metrics["test"]["accuracy"])
"""


def test_more_ranks_than_cores_need_no_binding_to_get_on(recipe, alone, tmp_path):
    """As Open MPI does it by itself: ranks that are not bound, or bound to all cores."""
    n = 2 * (os.cpu_count() or 1)
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = [str(beside) if beside.exists() else shutil.which("mpirun"), "-n", str(n), "--oversubscribe"]
    pipe = subprocess.PIPE
    words = [*mpirun, *COMMAND, "train", str(recipe), "--out", str(tmp_path / "run")]
    done = finish(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True))
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run")["workers"] == n
    assert result(tmp_path / "run")["weights_sha256"] == alone["weights_sha256"]
