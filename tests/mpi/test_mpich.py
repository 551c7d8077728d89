"""MPICH, in an environment of its own, instead of Open MPI: the same bits, but no recovery."""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import ranks
from tests_support import compare, distbp, finish, metrics, result


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder of the programs of an environment with MPICH, and with all else that this one has."""
    folder = tmp_path_factory.mktemp("mpich")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=100)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "mpich", "mpi4py>=4.1"], capture_output=True, text=True, check=False, timeout=100)
    if done.returncode:
        pytest.skip(f"MPICH cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    code = "from mpi4py import MPI; print(MPI.Get_library_version())"
    version = subprocess.run([folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "MPICH" in version
    return folder / "bin"


def start(environment, *words, launcher=()):
    command = [*launcher, environment / "python", "-m", "distbp", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(word) for word in command], stdout=pipe, stderr=pipe, text=True)


def start_training(environment, folder, *words, launcher=()):
    process = start(environment, "train", *words, "--out", folder, launcher=launcher)
    deadline = time.monotonic() + 150
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("n", [2, 3])
def test_its_mpirun_gives_the_same_bits(environment, recipe, alone, tmp_path, n):
    launcher = [environment / "mpirun", "-n", n]
    done = finish(start(environment, "train", recipe, "--out", tmp_path / "run", launcher=launcher))
    assert done.returncode == 0, done.stderr
    assert f"{n} workers" in done.stdout
    compare(result(tmp_path / "run"), alone)


def test_it_is_started_where_it_stands_beside_python(environment, recipe, alone, tmp_path):
    done = finish(start(environment, "train", recipe, "--workers", 2, "--out", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    compare(result(tmp_path / "run"), alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all(environment, long, tmp_path, victim):
    process = start_training(environment, tmp_path / "run", long, launcher=[environment / "mpirun", "-n", 2])
    workers = ranks(process)
    workers[victim].kill()
    assert finish(process, 150).returncode == 9
    assert not [worker for worker in workers if worker.is_running()]


def test_what_a_killed_rank_leaves_goes_on_elsewhere_with_the_same_bits(environment, long, calm, tmp_path):
    run = tmp_path / "run"
    process = start_training(environment, run, long, "--workers", 2, "--checkpoint-steps", 10)
    while not [*run.glob("checkpoints/step-*")]:
        time.sleep(0.02)
    ranks(process)[-1].kill()
    done = finish(process, 150)
    assert done.returncode != 0
    said = "a worker died, and this MPI ends the others, as all do but Open MPI 5"
    assert done.stderr.splitlines()[-1].startswith(f"distbp: {said}")
    assert f"go on with it: distbp train --resume {run}" in done.stderr
    distbp("train", "--resume", run)
    compare(result(run), result(calm))
    assert metrics(run) == metrics(calm)


def test_what_it_cannot_do_is_said_at_the_start(environment, recipe, tmp_path):
    done = finish(start(environment, "train", recipe, "--epochs", 1, "--workers", 2, "--out", tmp_path / "run"))
    said = "distbp: if a worker dies, the others can go on only with Open MPI 5; install openmpi in place of this MPI\n"
    assert (done.returncode, done.stderr) == (0, said)


def test_ctrl_c_stops_it_with_a_checkpoint(environment, long, tmp_path):
    process = start_training(environment, tmp_path / "run", long, "--workers", 2)
    process.send_signal(signal.SIGINT)
    done = finish(process, 150)
    assert done.returncode == 128 + signal.SIGINT
    assert f"go on with it: distbp train --resume {tmp_path / 'run'}" in done.stderr
    assert [*(tmp_path / "run" / "checkpoints").iterdir()]
