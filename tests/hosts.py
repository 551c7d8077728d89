"""Hosts of a network, for tests: network namespaces of this machine, joined by a bridge.

Each has its own address, hostname, processes, /dev/shm and /tmp/ray, and a home folder laid over the one of this
machine, which is only read; other files are shared. Processes of its own matter because ``ray down`` ends every Ray
that it can see. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import psutil

TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
_PREFIX = "10.203.77"
_ASKED = "8.8.8.8"  # programs that want to know their own address ask for the way to this one


def missing() -> str:
    """Return why hosts cannot be had here, or nothing."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"hosts in network namespaces need {', '.join(absent)} (Debian: iproute2, util-linux)"
    name = f"dbp{uuid.uuid4().hex[:6]}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class Hosts:
    """Some hosts, removed on exit with all that runs on them; what they write at home goes to ``folder``.

    Attributes
    ----------
    addresses:
        The address of each.
    """

    def __init__(self, n: int, folder: Path) -> None:
        self.folder = folder
        self.id = uuid.uuid4().hex[:4]
        self.names = [f"node{i}-{self.id}" for i in range(n)]
        self.addresses = [f"{_PREFIX}.{i + 1}" for i in range(n)]
        self.anchors: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        bridge = f"br-{self.id}"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            _run("ip", "netns", "add", name)
            here, there = f"v{i}-{self.id}", f"w{i}-{self.id}"
            _run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
            _run("ip", "link", "set", there, "netns", name)
            _run("ip", "link", "set", here, "master", bridge)
            _run("ip", "link", "set", here, "up")
            for command in (
                f"addr add {address}/24 dev {there}",
                f"link set {there} up",
                "link set lo up",
                f"route add {_ASKED} dev {there}",  # leads nowhere, but tells programs which address is theirs
                "route add unreachable default",  # whatever else they ask for is refused at once
            ):
                _run("ip", "-n", name, *command.split())
            home = Path("~").expanduser()
            upper, work = self.folder / name, self.folder / f"{name}-work"
            for path in (upper, work):
                path.mkdir(parents=True)
            layers = f"lowerdir={home},upperdir={upper},workdir={work}"
            setup = (
                f"hostname {name} && mount --make-rprivate / && mount -t tmpfs -o size=4g tmpfs /dev/shm"
                " && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray"
                f" && mount -t overlay -o {layers} overlay {home} && echo ready && sleep infinity & wait"
            )  # the first process of a host waits for all, as init does: else the dead would stay
            spaces = ["unshare", "--uts", "--ipc", "--mount-proc", "--pid", "--kill-child", "sh", "-c"]
            anchor = subprocess.Popen(["ip", "netns", "exec", name, *spaces, setup], stdout=subprocess.PIPE)
            self.anchors.append(anchor)
            assert anchor.stdout is not None
            assert anchor.stdout.readline() == b"ready\n"

    def command(self, host: int, *words: object) -> list[str]:
        """Return the command that runs ``words`` on ``host``; SIGTERM to it reaches them."""
        [first] = psutil.Process(self.anchors[host].pid).children()  # in its own space of processes, unlike the anchor
        enter = f"nsenter --target {first.pid} --net --uts --ipc --mount --pid"
        return [*enter.split(), f"--wd={Path.cwd()}", *["setpriv", "--pdeathsig", "TERM", "--"], *map(str, words)]

    def connect(self, host: int, is_on: bool) -> None:
        """Join ``host`` to the others, or cut it off."""
        _run("ip", "link", "set", f"v{host}-{self.id}", "up" if is_on else "down")

    def __exit__(self, *_: object) -> None:
        for anchor in self.anchors:
            anchor.kill()  # its child goes with it, and with that one, the first of its space, all others
            anchor.wait()
            assert anchor.stdout is not None
            anchor.stdout.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        for i in range(len(self.names)):
            subprocess.run(["ip", "link", "delete", f"v{i}-{self.id}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", f"br-{self.id}"], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
