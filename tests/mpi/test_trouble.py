"""Bad input and deaths under mpirun: one message, a non-zero status, nothing left behind, nothing hanging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import our_processes, ranks
from hosts import Hosts
from hosts import missing as hosts_missing
from tests_support import COMMAND, RECIPE, distbp, finish, start, start_training, under_mpirun, wait_for_line

pytestmark = pytest.mark.timeout(400)
LONG = RECIPE.replace("epochs: 3", "epochs: 100000")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(LONG)
    return path


def training(recipe, tmp_path, workers=3, *options):
    """Start a long run, and return it once it trains."""
    return start_training(tmp_path / "run", recipe, "--workers", workers, *options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run(recipe, tmp_path, number):
    process = training(recipe, tmp_path)
    process.send_signal(number)
    assert finish(process, 20).returncode != 0
    assert not our_processes()


def test_the_death_of_the_launcher_ends_the_run(recipe, tmp_path):
    process = training(recipe, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 150
    while our_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not our_processes()


def test_an_mpirun_that_is_killed_leaves_nothing_that_would_be_in_the_way_of_another(recipe, tmp_path):
    process = training(recipe, tmp_path)
    (mpirun,) = psutil.Process(process.pid).children()
    mpirun.kill()
    assert finish(process, 60).returncode not in (0, None)
    assert not (Path(tempfile.gettempdir()) / f"ompi.{mpirun.pid}").exists()
    deadline = time.monotonic() + 60
    while our_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not our_processes()


def test_an_exception_on_one_rank_ends_all_with_its_traceback(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from distbp import Trainer, nn\n"
        "class Watcher:\n"
        "    def begin(self, n_steps, n_epochs): pass\n"
        "    def step(self, step):\n"
        "        if step == 3: raise RuntimeError('on purpose')\n"
        "    def epoch(self, record): pass\n"
        "    def end(self): pass\n"
        "trainer = Trainer([nn.Dense(3), nn.Softmax()], epochs=10**6, shards=3)\n"
        "trainer.fit(np.ones((300, 4)), np.zeros(300), watcher=Watcher())\n"
    )
    done = finish(under_mpirun(3, sys.executable, script), 40)
    assert done.returncode != 0
    assert "RuntimeError: on purpose" in done.stderr
    assert done.stderr.count("Traceback") == 1


OTHER_ROWS = "expected the same rows on all workers; given other rows than on worker 0"


def test_a_watcher_that_takes_its_time_loses_nobody(tmp_path):
    (tmp_path / "script.py").write_text(
        "import time, distbp\n"
        "class Slow(distbp.Watcher):\n"
        "    def epoch(self, record):\n"
        "        time.sleep(5)\n"
        "    def recovered(self, lost, *_):\n"
        "        print(lost)\n"
        "digits, nn = distbp.load('digits'), distbp.nn\n"
        "trainer = distbp.Trainer([nn.Dense(10), nn.Softmax()], epochs=2, shards=2, deadline_s=1)\n"
        "outcome = trainer.fit(digits.train.x, digits.train.y, watcher=Slow())\n"
        "print(outcome.workers, 'workers')\n"
    )
    done = finish(under_mpirun(2, sys.executable, tmp_path / "script.py", options=["--with-ft", "ulfm"]), 60)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "workers"] * 2), done.stderr


def test_a_users_own_mpirun_needs_no_option(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    done = finish(under_mpirun(3, *COMMAND, "train", recipe, "--out", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "3 workers" in done.stdout


def test_a_killed_rank_ends_a_run_under_an_mpirun_without_fault_tolerance(recipe, tmp_path):
    process = under_mpirun(3, *COMMAND, "train", recipe, "--out", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 0):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    ranks(process)[1].kill()
    done = finish(process, 150)
    assert done.returncode != 0


def test_a_number_of_workers_that_mpirun_did_not_start_is_refused_once(tmp_path):
    done = finish(under_mpirun(2, *COMMAND, "train", "--workers", 3, "--out", tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("expected 3 workers; given 2") == 1


@pytest.mark.parametrize("command", [["train", "missing.yaml"], ["evaluate", "missing", "digits"]], ids=lambda c: c[0])
def test_a_mistake_found_before_the_ranks_meet_is_said_without_a_traceback(command):
    done = finish(under_mpirun(2, *COMMAND, *command))
    assert done.returncode == 2
    assert "missing does not exist" in done.stderr.replace(".yaml", "")
    assert "Traceback" not in done.stderr


@pytest.fixture
def data(tmp_path):
    """Return a function that writes rows, with one change, and returns their path."""

    def write(change):
        x, y = np.random.default_rng(0).standard_normal((40, 4)), np.arange(40) % 3
        if change is not None:
            change(x, y)
        np.savez(tmp_path / "data.npz", x=x, y=y)
        return tmp_path / "data.npz"

    return write


SMALL = "model: [{dense: 3}, softmax]\nshards: 4\nepochs: 1\n"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x, _: x.__setitem__((17, 2), np.nan), [], "finite numbers; given nan in row 17, column 2"),
        (lambda _, y: y.__setitem__(30, 3), [], "integer labels from 0 to 2.*given 3 in row 30"),
        (None, ["--shards", "50"], "at least one training row for each shard"),
        (None, ["--set", "shards=1"], "at least one shard for each worker; given 1 shard and 2 workers"),
        (None, ["--set", "model.0.dense=[3]"], "model.0"),
        (None, ["--machines", "3+1"], "machines of 2 workers in all; given 3\\+1"),
        (
            None,
            ["--set", "model=[{dense: 1000000}, {dense: 1000000}, {dense: 3}, softmax]"],
            "room for the arena that the workers of this machine share",
        ),
        (
            lambda x, _: x.__imul__(1e30),
            ["--set", "loss=squared_error", "--set", "model=[{dense: 1}]"],
            "finite loss and gradient; that of shard",
        ),
    ],
)
def test_bad_input_is_one_message(data, tmp_path, change, options, message):
    import re

    recipe = tmp_path / "small.yaml"
    recipe.write_text(f"data: {{source: {data(change)}}}\n{SMALL}")
    done = finish(start("train", recipe, "--workers", 2, "--out", tmp_path / "run", *options))
    lines = [line for line in done.stderr.splitlines() if "RuntimeWarning" not in line and "np." not in line]
    assert done.returncode in (2, 3)
    assert re.search(message, done.stderr), done.stderr
    assert len(lines) == 1, done.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for workers in (1, 2):
        done = distbp("train", "--workers", workers, "--out", tmp_path / "file" / "run", status=2)
        assert "expected a folder that can be written" in done.stderr


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    done = distbp("train", "--out", tmp_path, status=2)
    assert "holds result.json of an earlier run" in done.stderr
    assert (tmp_path / "result.json").read_text() == "{}"


def test_missing_mpi_is_said_with_the_line_that_installs_it(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise ImportError('No module named mpi4py')")
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    done = distbp("train", "--workers", 2, status=2, env=environment)
    assert "pip install 'distbp[mpi]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_that_hold_other_rows_are_refused(tmp_path):
    """Each draws its own, without a seed."""
    (tmp_path / "script.py").write_text(
        "import numpy as np\n"
        "from distbp import Trainer, nn\n"
        "x = np.random.default_rng().standard_normal((60, 3))\n"
        "Trainer([nn.Dense(2)], epochs=1, shards=2).fit(x, (x[:, 0] > 0).astype(int))\n"
    )
    done = finish(under_mpirun(2, sys.executable, tmp_path / "script.py"), 40)
    assert done.returncode != 0
    assert "expected the same rows on all workers; given other rows than on worker 0" in done.stderr


FILES = {
    "one value, in a copy": ("x[77, 1] += 1e-9", OTHER_ROWS),
    "one label, in a copy": ("y[77] = 1 - y[77]", OTHER_ROWS),
    "one row less": ("x, y = x[1:], y[1:]", OTHER_ROWS),
    "nothing, in a copy": ("", ""),
    "a type": ("x = x.astype(np.float32)", OTHER_ROWS),
}


@pytest.mark.parametrize(
    ("change", "said", "machines"),
    [
        *((*case, []) for case in FILES.values()),
        *((*FILES[name], ["--machines", "1+1"]) for name in ("one value, in a copy", "one row less")),
    ],
)
def test_workers_that_read_other_files_are_refused(tmp_path, change, said, machines):
    """A relative path leads each of them to a file of its own, as on machines that share no disk."""
    x = np.random.default_rng(0).standard_normal((200, 3))
    y = (x[:, 0] > 0).astype(int)
    for worker in (0, 1):
        if worker:
            names = {"x": x, "y": y, "np": np}
            exec(change, names)
            x, y = names["x"], names["y"]
        (tmp_path / str(worker)).mkdir()
        np.savez(tmp_path / str(worker) / "rows.npz", x=x, y=y)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{data: {source: rows.npz}, model: [{dense: 2}, softmax], epochs: 1, shards: 2}")
    script = 'cd "$0/$OMPI_COMM_WORLD_RANK" && exec "$@"'
    words = ["bash", "-c", script, tmp_path, *COMMAND, "train", recipe, *machines, "--out", tmp_path / "run"]
    started = time.monotonic()
    done = finish(under_mpirun(2, *words), 60)
    assert time.monotonic() - started < 30
    if not said:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode != 0
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(bool(hosts_missing()), reason=hosts_missing())
def test_a_run_on_one_machine_cannot_be_reached_from_another(recipe, tmp_path):
    listing = "import psutil; print([c.laddr.port for c in psutil.net_connections('inet') if c.status == 'LISTEN'])"
    with Hosts(2, tmp_path / "hosts") as hosts:
        command = hosts.command(0, *COMMAND, "train", recipe, "--workers", 3, "--out", tmp_path / "run")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_line(process, "epoch 2/")
        found = subprocess.run(
            hosts.command(0, sys.executable, "-c", listing), capture_output=True, text=True, check=True
        )
        ports = json.loads(found.stdout)
        assert ports  # of the launcher
        for port in ports:
            reach = f"import socket; socket.create_connection(({hosts.addresses[0]!r}, {port}), timeout=5)"
            done = subprocess.run(
                hosts.command(1, sys.executable, "-c", reach), capture_output=True, text=True, check=False
            )
            assert "ConnectionRefusedError" in done.stderr
        process.terminate()
        finish(process)


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_another_user_of_the_machine_opens_nothing_of_a_run(recipe, tmp_path):
    process = training(recipe, tmp_path)
    attempt = (
        "import os, sys\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "for pid in sys.argv[1:]:\n"
        "    for place in [f'/proc/{pid}/mem', *(f'/proc/{pid}/fd/{n}' for n in range(100))]:\n"
        "        try: os.close(os.open(place, os.O_RDONLY))\n"
        "        except PermissionError: continue\n"
        "        print(place)\n"
    )
    pids = [str(p.pid) for p in our_processes()]
    assert len(pids) >= 5  # the command, mpirun, three ranks
    shared = [path for path in Path("/dev/shm").iterdir() if path.stat().st_mode & 0o077]
    done = subprocess.run(
        [sys.executable, "-c", attempt, *pids], capture_output=True, text=True, check=False, timeout=60
    )
    process.terminate()
    finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not shared
