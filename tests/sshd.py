"""An ssh server of the tests' own: keys, configuration and log in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from pathlib import Path

TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync")


def missing() -> str:
    """Return why a server cannot be had here, or nothing."""
    if os.geteuid() != 0:
        return "sshd needs root to let its users in"
    path = os.environ["PATH"] + ":/usr/sbin"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    return f"needs {', '.join(absent)} (Debian: openssh-server, rsync)" if absent else ""


class Sshd:
    """A server at ``address`` and ``port``, run by the words ``enter`` on another host.

    Servers with the same ``folder`` take the same key.
    """

    def __init__(self, folder: Path, address: str, port: int, enter: list[str]) -> None:
        self.folder, self.address, self.port, self.enter = folder, address, port, enter
        self.key = folder / "id"

    @property
    def options(self) -> list[str]:
        """Options with which ssh reaches this server without a question."""
        return ["-i", str(self.key), *["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]]

    def __enter__(self) -> Sshd:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in (self.key, self.folder / "host"):
            if not key.exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd separates privileges
        config = {
            "ListenAddress": self.address,
            "Port": self.port,
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "StrictModes": "no",
            "Subsystem": "sftp internal-sftp",
        }
        path = self.folder / f"sshd_config-{self.address}"
        path.write_text("".join(f"{key} {value}\n" for key, value in config.items()))
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
        written = self.folder / f"log-{self.address}"
        with written.open("wb") as log:
            command = [*self.enter, str(sshd), "-D", "-e", "-f", str(path)]
            self.server = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 150
        while "Server listening" not in written.read_text():
            assert self.server.poll() is None, written.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.terminate()
        self.server.wait()

    @property
    def user(self) -> str:
        """The user to log in as."""
        return getpass.getuser()
