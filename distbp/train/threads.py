"""The threads of matrix products: how many there are is part of the bits."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

_LIMITED = threading.RLock()


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all libraries of the process: only once


@contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Let matrix products use ``n`` threads inside; only one thread of this process can be there at a time."""
    with _LIMITED, _controller().limit(limits=n, user_api="blas"):
        yield
