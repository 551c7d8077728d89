"""The threads of matrix products: how many there are is part of the bits."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

from distbp.errors import InputError


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all libraries of the process: only once


class _Room:
    """The threads of this process that compute at the moment, each with how many threads its products have."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside: list[tuple[int, int]] = []
        self.waiting: set[int] = set()  # those inside that want another number
        self.limit: Any = None  # knows what there was before

    def enter(self, n: int) -> None:
        me = threading.get_ident()
        with self.changed:
            if not self._is_free(n) and any(who == me for who, _ in self.inside):
                if self.waiting:
                    given, remedy = "two that wait for each other", "set the same blas_threads in all recipes"
                    raise InputError(
                        "one number of threads in computations side by side", given, remedy, "blas_threads"
                    )
                self.waiting.add(me)
            self.changed.wait_for(lambda: self._is_free(n))
            self.waiting.discard(me)
            limit = _controller().limit(limits=n, user_api="blas")
            self.limit = self.limit or limit
            self.inside.append((me, n))

    def _is_free(self, n: int) -> bool:
        """Return whether no other thread inside has another number than ``n``."""
        return all(who == threading.get_ident() or theirs == n for who, theirs in self.inside)

    def leave(self, n: int) -> None:
        with self.changed:
            self.inside.remove((threading.get_ident(), n))
            if self.inside:
                _controller().limit(limits=self.inside[-1][1], user_api="blas")
            else:
                self.limit.restore_original_limits()
                self.limit = None
            self.changed.notify_all()


_ROOM = _Room()


@contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Let matrix products use ``n`` threads inside.

    Their number is one for the whole process: threads of it that want the same one compute side by side, and who wants
    another waits until they are through.

    Raises
    ------
    InputError
        Where two that are inside already would wait for each other.
    """
    _ROOM.enter(n)
    try:
        yield
    finally:
        _ROOM.leave(n)
