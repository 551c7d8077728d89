"""IDX files, the format of MNIST and its kin (http://yann.lecun.com/exdb/mnist), gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from distbp.errors import InputError

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
            is_gzip = raw.read(2) == b"\x1f\x8b"
        with cast("BinaryIO", gzip.open(path, "rb")) if is_gzip else path.open("rb") as file:
            return _read(file, path)
    except FileNotFoundError:
        raise missing(path) from None
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: of a shape that NumPy cannot have
        raise _broken(path, f"a file that cannot be read ({error})") from None


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES or head[3] == 0:
        raise _broken(path, f"a file that starts with {head.hex() or 'nothing'}")
    dtype, n_dimensions = np.dtype(_DTYPES[head[2]]), head[3]
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise _broken(path, "a header that ends early")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    n_bytes = math.prod(shape) * dtype.itemsize
    chunks, n_left = [], n_bytes + 1
    while n_left and (chunk := file.read(min(n_left, 1 << 24))):  # memory follows the file, not its header
        chunks.append(chunk)
        n_left -= len(chunk)
    body = b"".join(chunks)
    if len(body) != n_bytes:
        more = "more than that" if len(body) > n_bytes else f"{len(body)} bytes"
        raise _broken(path, f"a header for {n_bytes} bytes of shape {shape}, and {more}")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def missing(path: Path) -> InputError:
    """Return the error for a file that does not exist."""
    return InputError("a file of rows", f"none: {path} does not exist", "check the path")


def _broken(path: Path, given: str) -> InputError:
    return InputError("a whole IDX file", given, "fetch the file again", str(path))
