"""What MPI and Ray cannot start without: a home, a folder for temporary files, /proc."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from distbp.errors import InputError

_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - for files of MPI and Ray, which take care of theirs
_ENOUGH = bytes(1 << 16)


def prepare_surroundings() -> None:
    """Let HOME be set, and TMPDIR name a folder that can be written to.

    Raises
    ------
    InputError
        Where there is none, or no /proc, by which workers find each other's memory.
    """
    if not Path("/proc/self/fd").is_dir():
        given = "none, or one that hides its processes"
        raise InputError("the file system /proc", given, "mount it, or use --engine local", "engine")
    if not os.environ.get("HOME"):
        os.environ["HOME"] = home()
    given = os.environ.get("TMPDIR") or _PLACES[0]
    refusal = _refusal(given)
    if not refusal:
        return
    usable = [place for place in _PLACES if not _refusal(place)]
    if not usable:
        where = f"{given} ({refusal})"
        raise InputError("a folder for temporary files", where, "make room there, or let TMPDIR name another", "TMPDIR")
    os.environ["TMPDIR"] = usable[0]


def home() -> str:
    """Return the folder of this user; the root, as containers have it, for one that the system does not know."""
    try:
        return str(Path.home())
    except RuntimeError:
        return "/"


def _refusal(folder: str) -> str:
    """Return why a file cannot be written into ``folder``; nothing where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return "" if file.write(_ENOUGH) == len(_ENOUGH) else "no room"
    except OSError as error:
        return error.strerror or str(error)
