"""Files that are there as a whole or not at all, and folders that one process alone writes to."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distbp.errors import TrainingError


class Hold:
    """Holds a folder against all others that would hold it, until this is let go or the process ends."""

    def __init__(self) -> None:
        self.handle = -1

    def take(self, folder: Path) -> bool:
        """Return whether the folder is held, or its file system cannot say so."""
        if self.handle >= 0:
            return True
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            return not isinstance(error, BlockingIOError)  # others come from network file systems
        self.handle = handle
        return True

    def let_go(self) -> None:
        """Let others have the folder."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def unwritten(what: str | os.PathLike[str], error: OSError) -> TrainingError:
    """Return the error of a run that could not write ``what``."""
    said = error.strerror or error
    return TrainingError(
        f"expected to be able to write {os.fspath(what)}; the system says: {said}; make room, or let it go elsewhere"
    )


@contextmanager
def writing(what: str | os.PathLike[str]) -> Iterator[None]:
    """Raise TrainingError where the system does not let ``what`` be written inside."""
    try:
        yield
    except OSError as error:
        raise unwritten(what, error) from None


def append_line(path: Path, line: str) -> None:
    """Append ``line`` to the file at ``path``; where there is no room for all of it, none of it stays."""
    rest = line.encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that nobody ever sees a part of it: beside it, synced, then renamed.

    What is there already and is no regular file, such as a device or a pipe, is written into: it must not be replaced.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
