"""Ray in surroundings that users have."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from conftest import our_processes
from ray_cluster import Cluster
from tests_support import COMMAND, finish, result, start, start_program, start_training

SHORT = ["train", "--epochs", 1, "--shards", 2, "--quiet"]
TIMEOUT_S = 110
OWN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}


def train(folder, *options, env):
    done = finish(start(*SHORT, *options, "--out", folder, env=env), TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert result(folder)["engine"] == "ray"


@pytest.mark.parametrize("home", [None, "/proc"], ids=["unset", "read-only"])
def test_a_ray_of_its_own_needs_no_home(home, tmp_path):
    environment = {name: value for name, value in OWN.items() if name != "HOME"} | ({"HOME": home} if home else {})
    train(tmp_path / "run", "--engine", "ray", env=environment)


def test_a_ray_of_its_own_listens_on_loopback_and_leaves_no_token_in_the_home(tmp_path):
    options = ["--epochs", 10_000, "--engine", "ray", "--workers", 2]
    process = start_training(tmp_path / "run", *options, env=OWN | {"HOME": str(tmp_path)})
    ours = {p.pid for p in our_processes()}
    listening = [c for c in psutil.net_connections("inet") if c.pid in ours and c.status == psutil.CONN_LISTEN]
    process.terminate()
    assert finish(process).returncode == 128 + signal.SIGTERM
    assert len(listening) > 5  # the driver, the raylet, two actors, ...
    hosts = {ipaddress.ip_address(c.laddr.ip.removeprefix("::ffff:")) for c in listening}
    assert all(host.is_loopback for host in hosts), listening
    assert not (tmp_path / ".ray").exists()


VISITOR = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)"


def test_who_has_not_its_token_is_not_answered_by_a_ray_of_its_own(tmp_path):
    """As other users of the machine have not, who can reach its ports."""
    home = OWN | {"HOME": str(tmp_path)}
    process = start_training(tmp_path / "run", "--epochs", 10_000, "--engine", "ray", env=home)
    (server,) = (p for p in our_processes() if p.name() == "gcs_server")
    (listening,) = (c for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN)
    token = server.environ()["RAY_AUTH_TOKEN"]
    shown = [p for p in our_processes() if any(token in word for word in p.cmdline())]
    visitors = [
        start_program(sys.executable, "-c", VISITOR, f"127.0.0.1:{listening.laddr.port}", env=home | variables)
        for variables in (
            {},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        )
    ]
    *strangers, friend = [finish(visitor, TIMEOUT_S) for visitor in visitors]
    process.terminate()
    finish(process)
    assert friend.returncode == 0, friend.stderr
    assert all(stranger.returncode and "auth" in stranger.stderr.lower() for stranger in strangers)
    assert not shown


def test_a_folder_for_temporary_files_that_is_missing_is_not_needed(tmp_path):
    environment = OWN | {"TMPDIR": str(tmp_path / "missing")}
    train(tmp_path / "run", "--engine", "ray", env=environment)
    assert not (tmp_path / "missing").exists()


def test_auto_joins_the_cluster_that_runs_here(tmp_path):
    current = Path("/tmp/ray/ray_current_cluster")
    with Cluster([3]) as cluster:
        port = cluster.address.split(":")[1]
        deadline = time.monotonic() + 150
        while not (current.exists() and current.read_text().endswith(f":{port}")):  # written once the cluster is up
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for name, options, environment in (
            ("option", ["--address", "auto"], {}),
            ("variable", [], {"RAY_ADDRESS": "auto"}),
        ):
            train(tmp_path / name, *options, env=dict(os.environ) | environment)
        assert cluster.used_cpus() == 0.0


def test_a_host_that_does_not_know_its_own_name_starts_a_ray(tmp_path):
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a name of its own needs root on Linux")
    words = [*COMMAND, *map(str, SHORT), "--engine", "ray", "--out", str(tmp_path / "run")]
    command = ["unshare", "--uts", "sh", "-c", 'hostname nowhere-to-be-found && exec "$@"', "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
