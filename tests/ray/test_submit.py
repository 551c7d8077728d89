"""Jobs as clusters run them: `ray up`, `ray submit`, `ray down` over ssh, and `ray job submit`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hosts import Hosts
from hosts import missing as hosts_missing
from ray_cluster import RAY, Cluster, free_port
from sshd import Sshd
from sshd import missing as sshd_missing
from tests_support import result

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


def cluster_file(path: Path, hosts: Hosts, key: Path, user: str) -> dict[str, object]:
    """Write the cluster file for ssh machines, changed as its first lines say, to ``path``.

    The environment of these tests stands in for the one that its set-up commands would install on every machine.
    """
    config = yaml.safe_load((ROOT / "cluster" / "ssh.yaml").read_text())
    config["provider"] |= {"head_ip": hosts.addresses[0], "worker_ips": hosts.addresses[1:]}
    config |= {"min_workers": 1, "max_workers": 1}
    config["auth"] = {"ssh_user": user, "ssh_private_key": str(key)}
    *_, path_line = config["setup_commands"]
    config["setup_commands"] = [path_line.replace("~/distbp-env/bin", str(Path(sys.executable).parent))]
    for role in ("head", "worker"):
        config[f"{role}_start_ray_commands"][-1] += " --num-cpus=2 --object-store-memory=200000000"
    path.write_text(yaml.safe_dump(config))
    return config


@pytest.mark.skipif(bool(hosts_missing() or sshd_missing()), reason=hosts_missing() or sshd_missing())
def test_ray_up_submit_and_down_over_ssh_give_the_same_bits(alone, recipe, tmp_path):
    with Hosts(2, tmp_path / "hosts") as hosts:
        one, other = (Sshd(tmp_path / "ssh", a, 22, hosts.command(host)) for host, a in enumerate(hosts.addresses))
        with one, other:
            config = tmp_path / "cluster.yaml"
            cluster_file(config, hosts, one.key, one.user)
            environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"TERM": "dumb"}

            def ray(*words: object) -> str:
                command = hosts.command(0, RAY, *words)
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=150, check=False, env=environment, cwd=ROOT
                )
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
                return done.stdout

            ray("get-auth-token", "--generate")
            ray("up", "--yes", "--no-config-cache", config)
            script = ROOT / "scripts" / "train_on_ray.py"
            # One worker a host: more would take turns on the cores of this machine, slowly, as sessions of their own.
            options = [recipe, "--workers", 2, "--cpus-per-worker", 2, "--deadline", 120, "--out", tmp_path / "run"]
            ray("submit", "--no-config-cache", config, script, "--", *options)
            ray("down", "--yes", config)
            found = result(tmp_path / "run")
    assert found["weights_sha256"] == alone["weights_sha256"]
    assert found["workers"] == 2


def test_ray_job_submit_gives_the_same_bits(alone, recipe, tmp_path):
    port = free_port()
    dashboard = ["--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(port)]
    with Cluster([3], *dashboard) as cluster:
        command = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{port}", "--"]
        job = [sys.executable, "-m", "distbp", "train", recipe, "--workers", 3, "--out", tmp_path / "run"]
        for _ in range(30):
            done = subprocess.run([*command, *map(str, job)], capture_output=True, text=True, timeout=120, check=False)
            if "No available agent" not in done.stderr:
                break
            time.sleep(1)  # the agent starts after the raylet
        assert done.returncode == 0, done.stdout + done.stderr
        assert cluster.used_cpus() == 0
    assert result(tmp_path / "run")["weights_sha256"] == alone["weights_sha256"]
    assert result(tmp_path / "run")["engine"] == "ray"
    assert f"weights_sha256 {alone['weights_sha256']}" in done.stdout
