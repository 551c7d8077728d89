"""Ray clusters for tests: raylets on loopback, started in the foreground so that their end is the cluster's."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from tests_support import wait_for_line

LOGS = Path("/tmp/ray/session_latest/logs")
RAY = str(Path(sys.executable).parent / "ray")
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}  # of all Rays that tests start


def free_port() -> int:
    """Return a TCP port that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_up(raylet: subprocess.Popen[str]) -> None:
    """Return when ``ray start --block`` says that it runs; fail where it ends instead."""
    wait_for_line(raylet, "Ray runtime started")


def driver_log() -> str:
    """Return the end of what Ray wrote about the newest driver, for the message of a test that fails."""
    logs = sorted(LOGS.glob("python-core-driver-*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(logs[-1].read_text().splitlines()[-60:]) if logs else ""


NAMED = """
import json, sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
named = ray.util.list_named_actors(all_namespaces=True)
hellos = {a["name"]: ray.get_actor(**a).hello.options(concurrency_group="ping").remote() for a in named}
print(json.dumps({name: json.loads(ray.get(hello))["pid"] for name, hello in hellos.items()}))
"""


def named_actors(address: str) -> dict[str, int]:
    """Return the process of each of our actors, by its name: "distbp worker 0", ..., "distbp parameter server"."""
    words = [sys.executable, "-c", NAMED, address]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


class Cluster:
    """A head and, on the same machine, more raylets; ``with`` ends all of them."""

    def __init__(self, cpus: list[int], *options: str, env: dict[str, str] | None = None) -> None:
        self.cpus, self.options, self.env = cpus, options or ("--include-dashboard", "false"), env
        self.address = f"127.0.0.1:{free_port()}"
        self.raylets: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Cluster:
        for cpus in self.cpus:
            self.join(cpus)
        return self

    def join(self, cpus: int) -> None:
        """Start another raylet, the first one as the head."""
        head = ["--head", "--port", self.address.split(":")[1], *self.options]
        own_address = f"127.0.0.{1 + len(self.raylets)}"  # so that a driver connects to the raylet of the head
        common = ["--node-ip-address", own_address, "--block", "--disable-usage-stats"]
        common += ["--object-store-memory", "200000000", "--num-cpus", str(cpus)]
        # Ray gives all agents one port, so that of two clusters beside each other only the first could take jobs.
        common += ["--dashboard-agent-listen-port", str(free_port())]
        command = [RAY, "start", *(["--address", self.address] if self.raylets else head), *common]
        pipe = subprocess.PIPE
        raylet = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=self.env)
        self.raylets.append(raylet)
        wait_until_up(raylet)

    def cpus_now(self) -> tuple[float, float]:
        """Return how many CPUs are reserved, and how many there are."""
        command = [RAY, "status", "--address", self.address]
        status = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        found = re.search(r"([\d.]+)/([\d.]+) CPU", status)
        assert found is not None
        return float(found[1]), float(found[2])

    def wait_for_cpus(self, n: int) -> None:
        """Return once there are ``n`` CPUs."""
        for _ in range(20):
            if self.cpus_now()[1] == n:
                return
        raise AssertionError

    def used_cpus(self) -> float:
        """Return the CPUs that are reserved, once there are none or some seconds are over."""
        used = 0.0
        for _ in range(10):
            used, _ = self.cpus_now()
            if used == 0.0:
                break
        return used

    def __exit__(self, *_: object) -> None:
        for raylet in reversed(self.raylets):
            raylet.terminate()
        for raylet in self.raylets:
            try:
                raylet.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                raylet.kill()
                raylet.communicate()
