"""How much memory there is, and how much this process uses."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil

from distbp.errors import InputError
from distbp.wording import megabytes


def available_bytes() -> int:
    """Return the memory that can still be had: of the machine, of this process's control group, or of its own limit."""
    try:
        available = int(psutil.virtual_memory().available)
        limit_of_addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit_of_addresses != resource.RLIM_INFINITY:
            available = min(available, max(0, limit_of_addresses - psutil.Process().memory_info().vms))
    except OSError:  # /proc is not to be seen
        return sys.maxsize
    try:
        (group,) = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().split() if line[:3] == "0::"]
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def require_room(n_bytes: int, what: str) -> None:
    """Raise InputError where ``n_bytes`` for ``what`` are more than there is."""
    available = available_bytes()
    if n_bytes > available:
        raise InputError(
            f"room for {what}: {megabytes(n_bytes)}",
            f"{megabytes(available)} of memory available",
            "make the network smaller, or use fewer workers a machine",
        )


def require_room_for_file(n_bytes: int, path: Path) -> None:
    """Raise InputError where the ``n_bytes`` that ``path`` unpacks to are more than there is memory for."""
    available = available_bytes()
    if n_bytes > available:
        given, room = f"{megabytes(n_bytes)} once unpacked", f"{megabytes(available)} of memory"
        remedy = "use .npy files, which are mapped"
        raise InputError(f"a file for which there is room, {room}", given, remedy, str(path))


def private_bytes() -> int:
    """Return the memory that only this process uses."""
    return int(psutil.Process().memory_full_info().uss)
