"""Sockets of a launcher that listen to the whole network, though all that it starts is on this machine.

Open MPI's launcher has no option for that: its daemons of several machines would meet there. So the sockets are bound
to the loopback device from outside, which a process may do to its children (Linux 5.6).
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_PIDFD_GETFD = 438  # the system call, on every architecture
_PAUSE_S = 0.01
_LONGEST_S = 30.0  # until the launcher listens and has started something


@contextmanager
def kept_on_loopback(pid: int) -> Iterator[None]:
    """Let what the launcher ``pid`` listens to be reached from this machine alone, from its start on.

    Where the system does not let that be done, nothing changes.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_keep, args=[pid, is_over], daemon=True)
    if sys.platform == "linux":
        thread.start()
    try:
        yield
    finally:
        is_over.set()


def _keep(pid: int, is_over: threading.Event) -> None:
    until = time.monotonic() + _LONGEST_S
    has_started, bound = False, set()
    with suppress(psutil.Error, OSError):
        launcher = psutil.Process(pid)
        while not is_over.wait(_PAUSE_S) and time.monotonic() < until:
            was_started, has_started = has_started, bool(launcher.children())
            for connection in launcher.net_connections("inet"):
                is_open = connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip)
                if is_open and connection.fd not in bound:
                    _bind_to_loopback(pid, connection.fd)
                    bound.add(connection.fd)
            if was_started:  # it listens before it starts ranks
                return


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.removeprefix("::ffff:")).is_loopback


def _bind_to_loopback(pid: int, handle: int) -> None:
    """Let the socket ``handle`` of the process ``pid`` take connections over the loopback device alone."""
    process = os.pidfd_open(pid)
    try:
        own = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, handle, 0)
        if own < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=own) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    finally:
        os.close(process)
