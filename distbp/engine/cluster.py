"""Which Ray cluster is meant, who listens there, and the token that lets this user in."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import warnings
from contextlib import suppress
from pathlib import Path

import psutil

from distbp.errors import InputError

_RUNNING, _OF_ITS_OWN = "auto", "local"
"""Ray's words for the cluster that runs on this machine, and for a new one."""
_TRUSTED = {0, os.geteuid()}
_LISTEN = "0A"
_LONGEST_ADDRESS = 300


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def has_token() -> bool:
    """Return whether this user has a token for Ray clusters."""
    return "RAY_AUTH_TOKEN" in os.environ or _token_file().exists()


def protect_token() -> None:
    """Let nobody else read this user's token, and warn where others could."""
    file = _token_file()
    with suppress(OSError):
        found = file.stat()
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
            file.chmod(0o600)
            told = "other users of this machine could read it, and join your Ray clusters with it; now they cannot"
            warnings.warn(f"{file}: {told}; to be sure, make a new one", stacklevel=2)


def is_in_cluster() -> bool:
    """Return whether the environment names a Ray cluster, as it does in its jobs."""
    return os.environ.get("RAY_ADDRESS", _OF_ITS_OWN) not in ("", _OF_ITS_OWN)


def is_loopback(address: str) -> bool:
    """Return whether only processes of this machine can reach ``address``."""
    try:
        return all(ipaddress.ip_address(a).is_loopback for a in _addresses(_host_and_port(address)[0]))
    except (OSError, ValueError):
        return False


def _running_here() -> str | None:
    """Return the address of the Ray that was started last on this machine, if it still answers and may be trusted.

    Its address stands in a file in a folder that everybody may write to. Who answers there is given a token, or the
    job: so the file must be of this user or of root, and so must be who listens there, on this machine.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - as Ray has it
    try:
        handle = os.open(Path(folder) / "ray" / "ray_current_cluster", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle) as file:
            found = os.fstat(handle)
            if not (stat.S_ISREG(found.st_mode) and found.st_uid in _TRUSTED):
                return None
            address = file.read(_LONGEST_ADDRESS).strip()
        _try(address, timeout_s=2)
    except (OSError, ValueError):
        return None
    return address if _listeners(address) <= _TRUSTED else None


def _listeners(address: str) -> set[int]:
    """Return the users whose processes listen at ``address``, HOST:PORT; -1 stands for those of another machine."""
    host, port = _host_and_port(address)
    if not _is_own(host):
        return {-1}
    users = set()
    for table in ("tcp", "tcp6"):  # proc(5): of each socket the local address, the state and the user
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, user = line.split()[:8]
                if state == _LISTEN and int(local.rpartition(":")[2], 16) == int(port):
                    users.add(int(user))
    return users or {-1}


def _is_own(host: str) -> bool:
    """Return whether ``host`` is an address of this machine."""
    own = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    try:
        return all(a in own or ipaddress.ip_address(a).is_loopback for a in _addresses(host))
    except OSError:
        return False


def _host_and_port(address: str) -> tuple[str, str]:
    """Return both parts of HOST:PORT, an IPv6 host without its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def _addresses(host: str) -> set[str]:
    """Return the addresses of ``host``; raise OSError where nobody knows it."""
    return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}


def meant(address: str | None) -> str | None:
    """Return HOST:PORT of the cluster that ``address`` means; None for one of its own."""
    if address == _OF_ITS_OWN:
        return None
    if address not in (None, "", _RUNNING):
        return address
    running = _running_here()
    if running is None and address == _RUNNING:
        remedy = "start one with `ray start --head`, or give the HOST:PORT of another machine's"
        raise InputError(
            "a Ray cluster that runs on this machine", "none of yours or of root that answers", remedy, "--address auto"
        )
    return running


def require_form(address: str) -> None:
    """Raise InputError where ``address`` is none."""
    kind, separator, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not separator and colon and port.isdigit():
        return
    given, remedy = repr(address), "give the address of the head"
    if separator:
        host = host or rest
        names = {"ray": "the address of a Ray Client, which carries no compiled graphs", "http": "that of its jobs"}
        given = f"{given}, {names.get(kind, 'another kind of address')}"
        remedy = (
            f"on a machine of the cluster give {host}:6379 (the port of `ray start --head`) or auto; from elsewhere, "
            f"send the command into it: ray job submit --address http://{host}:8265 -- distbp train ..."
        )
    raise InputError("HOST:PORT of a Ray cluster, such as 10.0.0.1:6379", given, remedy, "--address")


def require_answer(address: str) -> None:
    """Raise InputError where nothing answers at ``address``: Ray would try for a minute and then end the process."""
    try:
        _try(address, timeout_s=10)
    except OSError as error:
        given = f"{address}, where nothing answers ({error})"
        remedy = "start one with `ray start --head`, or check the address"
        raise InputError("the address of a running Ray cluster", given, remedy, "--address") from None


def _try(address: str, timeout_s: float) -> None:
    """Raise OSError where nothing answers at ``address``, and ValueError where it has no port."""
    host, port = _host_and_port(address)
    socket.create_connection((host, int(port)), timeout=timeout_s).close()
