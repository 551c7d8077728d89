"""IDX files, the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist), gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np

from distbp.errors import InputError
from distbp.memory import require_room_for_file

_UNREADABLE = (OSError, EOFError, ValueError, MemoryError, zlib.error)  # ValueError: NumPy cannot have the shape
_CHUNK = 1 << 24  # bytes
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """Return the array in the IDX file ``path``.

    The header is two zero bytes, a byte for the type, a byte for the number of dimensions, and each dimension as a
    big-endian 32-bit integer; the elements follow.

    Raises
    ------
    InputError
        Where the file is no IDX file, is truncated, or holds more than its header says.
    """
    try:
        with path.open("rb") as raw:
            n_there = None if raw.read(2) == b"\x1f\x8b" else path.stat().st_size
        with cast("BufferedIOBase", path.open("rb") if n_there is not None else gzip.open(path, "rb")) as file:
            return _read(file, path, n_there)
    except FileNotFoundError:
        raise missing(path) from None
    except InputError:
        raise
    except _UNREADABLE as error:
        raise _broken(path, f"a file that cannot be read ({error})") from None


def _read(file: BufferedIOBase, path: Path, n_there: int | None) -> np.ndarray:
    """Return the array in ``file``, of ``n_there`` bytes if that is known."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES or head[3] == 0:
        raise _broken(path, f"a file that starts with {head.hex() or 'nothing'}")
    dtype, n_dimensions = np.dtype(_DTYPES[head[2]]), head[3]
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise _broken(path, "a header that ends early")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_there is not None and n_there - file.tell() != n_bytes:
        raise _broken(path, f"a header for {n_bytes} bytes of shape {shape}, and {n_there - file.tell()} bytes")
    require_room_for_file(n_bytes, path)
    array = np.empty(shape, dtype)  # takes no room before something is read into it
    body, n_read = array.reshape(-1).view(np.uint8).data, 0
    while n_read < n_bytes and (n := file.readinto(body[n_read : n_read + _CHUNK])):
        n_read += n
    if n_read < n_bytes or file.read(1):
        given = f"{n_read} bytes" if n_read < n_bytes else "more than that"
        raise _broken(path, f"a header for {n_bytes} bytes of shape {shape}, and {given}")
    return array.astype(dtype.newbyteorder("="), copy=False)


def missing(path: Path) -> InputError:
    """Return the error for a file that does not exist."""
    return InputError("a file of rows", f"none: {path} does not exist", "check the path")


def _broken(path: Path, given: str) -> InputError:
    return InputError("a whole IDX file", given, "fetch the file again", str(path))
