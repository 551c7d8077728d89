"""Two hosts in network namespaces, each with its own address, hostname and /dev/shm: Ray and MPI over both."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import actors
from hosts import Hosts
from hosts import missing as hosts_missing
from ray_cluster import RAY, wait_until_up
from sshd import Sshd
from sshd import missing as sshd_missing
from tests_support import COMMAND, RECIPE, compare, distbp, finish, result, wait_for_line

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(hosts_missing()), reason=hosts_missing()),
]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
_PORT = 6379
_TIMEOUT_S = 90


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def raylets(hosts):
    head, other = hosts.addresses
    common = ["--block", "--disable-usage-stats", "--num-cpus", 2, "--object-store-memory", 200_000_000]
    starts = [
        [RAY, "start", "--head", "--port", _PORT, "--include-dashboard", "false", "--node-ip-address", head, *common],
        [RAY, "start", "--address", f"{head}:{_PORT}", "--node-ip-address", other, *common],
    ]
    running = []
    for host, command in enumerate(starts):
        words = hosts.command(host, *command)
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        wait_until_up(running[-1])
    yield f"{head}:{_PORT}"
    for raylet in running:  # those on the hosts end with the hosts
        raylet.kill()
        raylet.wait()
        raylet.stdout.close()


def run(hosts, *words, **environment):
    command = hosts.command(0, *words)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=os.environ | environment
    )


@needs_ray
@pytest.mark.parametrize("coordinators", ["all", 1])
def test_ray_gives_the_same_bits_on_two_hosts(hosts, raylets, recipe, alone, tmp_path, coordinators):
    workers = 4 if coordinators == "all" else 3  # one host has room for two actors
    options = ["--address", raylets, "--workers", workers, "--calls", "graph", "--set", f"coordinators={coordinators}"]
    done = run(hosts, *COMMAND, "train", recipe, *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(tmp_path / "run")["weights_sha256"] == alone["weights_sha256"]
    assert result(tmp_path / "run")["workers"] == workers


def run_ranks(hosts, folder, *words):
    """Run a program on two ranks of each host."""
    with Sshd(folder / "ssh", hosts.addresses[1], 22, hosts.command(1)) as server:
        hostfile = folder / "hostfile"
        hostfile.write_text("".join(f"{address} slots=2\n" for address in hosts.addresses))
        mpirun = Path(sys.executable).parent / "mpirun"
        agent = " ".join(["ssh", *server.options])
        options = ["--hostfile", hostfile, "-n", 4, "--bind-to", "none", "--prtemca", "plm_ssh_agent", agent]
        network = hosts.addresses[0].rpartition(".")[0] + ".0/24"
        variables = {"OMPI_MCA_btl_tcp_if_include": network, "PRTE_MCA_prte_if_include": network}
        return run(hosts, mpirun, *options, *words, **variables)


@pytest.mark.skipif(bool(sshd_missing()), reason=sshd_missing())
def test_mpi_gives_the_same_bits_on_two_hosts(hosts, recipe, alone, tmp_path):
    done = run_ranks(hosts, tmp_path, *COMMAND, "train", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(tmp_path / "run")["weights_sha256"] == alone["weights_sha256"]
    assert result(tmp_path / "run")["workers"] == 4


@pytest.mark.skipif(bool(sshd_missing()), reason=sshd_missing())
@pytest.mark.parametrize("kind", ["number", "content"])
def test_rows_that_differ_between_hosts_are_refused_at_once(hosts, tmp_path, kind):
    x = np.random.default_rng(0).standard_normal((200, 3))
    y = (x[:, 0] > 0).astype(int)
    for host in hosts.names:
        (tmp_path / host).mkdir()
        np.savez(tmp_path / host / "rows.npz", x=x, y=y)
        x, y = (x[1:], y[1:]) if kind == "number" else (np.where(x == x[77, 1], 0.0, x), y)
    (tmp_path / "recipe.yaml").write_text("{data: {source: rows.npz}, model: [{dense: 2}, softmax], shards: 4}")
    script = 'cd "$0/$(hostname)" && exec "$@"'
    started = time.monotonic()
    words = [*COMMAND, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
    done = run_ranks(hosts, tmp_path, "bash", "-c", script, tmp_path, *words)
    assert time.monotonic() - started < _TIMEOUT_S / 2
    assert done.returncode not in (0, None)
    assert done.stderr.count("expected the same rows on all workers; given other rows than on worker 0") == 1


@needs_ray
def test_ray_does_without_a_host_that_is_cut_off(hosts, raylets, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("epochs: 3", "epochs: 60"))
    distbp("train", recipe, "--engine", "local", "--out", tmp_path / "calm")
    options = ["--address", raylets, "--workers", 4, "--deadline", 3, "--out", tmp_path / "run"]
    command = hosts.command(0, *COMMAND, "train", recipe, *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_line(process, "epoch 2/")
    hosts.connect(1, False)
    done = finish(process, _TIMEOUT_S)
    hosts.connect(1, True)
    for orphan in actors():  # of the host that was cut off, which Ray has not given up yet
        orphan.kill()
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(machine node1-.*going on from step \d+ with 2 workers", done.stdout)
    compare(result(tmp_path / "run"), result(tmp_path / "calm"))
