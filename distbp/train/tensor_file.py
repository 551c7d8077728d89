"""Tensors and a header in one safetensors file, with a checksum for each: no bit of it changes unnoticed.

The metadata of the file are ``format``, a name with a version; ``run``, the header as JSON; and ``sha256``, the
checksums by the names of the tensors, and that of the header under ``run``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distbp.errors import InputError

_KEYS = {"format", "run", "sha256"}
_BROKEN = (KeyError, ValueError, TypeError, AttributeError, RecursionError)


def to_bytes(kind: str, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a file of the format ``kind``."""
    text = json.dumps(header)
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(arrays, {"format": kind, "run": text, "sha256": json.dumps(_checksums(text, arrays))})


def read(path: Path, kind: str, what: str, remedy: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the tensors of the file ``path``; ``what`` and ``remedy`` are for messages.

    Raises
    ------
    InputError
        Where the file cannot be read, is of another format, or was changed.
    """
    try:
        with safe_open(path, framework="np") as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != kind:
                given = metadata.get("format", "a file of another program")
                raise InputError(f"a file of the format {kind!r}", repr(given), remedy, str(path))
            if metadata.keys() != _KEYS:
                given = ", ".join(sorted(metadata))
                raise InputError(f"the metadata {', '.join(sorted(_KEYS))}", given, remedy, str(path))
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        text = metadata["run"]
        sums, found = json.loads(metadata["sha256"]), _checksums(text, tensors)
        damaged = sorted(name for name in {*sums, *found} if sums.get(name) != found.get(name))
        header = json.loads(text)
        if not isinstance(header, dict):
            raise TypeError(type(header))
    except InputError:
        raise
    except (SafetensorError, OSError, *_BROKEN) as error:
        raise InputError(f"a whole {what}", f"{error}", remedy, str(path)) from None
    if damaged:
        given = f"another checksum of {', '.join(damaged)}"
        raise InputError(f"a {what} as it was written", given, remedy, str(path))
    return header, tensors


@contextmanager
def understood(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Raise InputError where what is made of a header inside does not come about."""
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"a whole {what}", repr(error), remedy, str(path)) from None


def _checksums(text: str, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the SHA-256 of the header and, over name, type, shape and content, of each tensor."""
    sums = {"run": hashlib.sha256(text.encode()).hexdigest()}
    for name, array in tensors.items():
        described = hashlib.sha256(f"{name} {array.dtype.str} {array.shape}\n".encode())
        described.update(np.ascontiguousarray(array).data)
        sums[name] = described.hexdigest()
    return sums
