"""Where the command writes: standard output, whose failures are said like all others, and standard error."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from distbp.errors import DistbpError, TrainingError

_RELAY_VARIABLE = "DISTBP_OUTPUT"
"""Names the pipe of a Relay to the ranks."""
_RELAY_BYTES = 1 << 16
_REST_S = 5.0  # to wait for what ranks have written


class StandardOutput(io.TextIOWrapper):
    """Standard output: where the system cannot write it, this and all later writing raises TrainingError."""

    error: TrainingError | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        with self._attempt():
            return super().write(text)

    def flush(self) -> None:  # no second time: Python flushes once more at the end
        with self._attempt():
            super().flush()

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _lead_nowhere(self.fileno())
            self.error = _unwritten(error)
            raise self.error from None


class StandardError(io.TextIOWrapper):
    """Standard error: what cannot be written goes nowhere, since there is nobody to tell."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _lead_nowhere(self.fileno())
            return len(text)


def _lead_nowhere(handle: int) -> None:
    """Let what is written to ``handle`` go nowhere, also what is left in buffers."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)


def prepare_streams() -> None:
    """Let ``sys.stdout`` be a StandardOutput; what is written to a stream that was closed goes nowhere."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    handle = 1
    if (file := os.environ.get(_RELAY_VARIABLE)) is not None:
        with suppress(OSError):  # as where /proc cannot be read
            handle = os.open(file, os.O_WRONLY)
    # Characters that a terminal does not have, such as those of boxes, are replaced.
    sys.stdout = StandardOutput(_bytes(handle), _encoding(sys.stdout), "replace", line_buffering=True)
    sys.stderr = StandardError(_bytes(2), _encoding(sys.stderr), "backslashreplace", line_buffering=True)


def _bytes(handle: int) -> io.BufferedWriter:
    return io.BufferedWriter(io.FileIO(handle, "wb", closefd=False))


def _encoding(stream: TextIO | None) -> str | None:
    return None if stream is None else stream.encoding


class Relay:
    """Takes what ranks write to standard output past mpirun, which does not tell them where that fails.

    Here it does: their pipe is closed then.

    Attributes
    ----------
    variables:
        The environment variables that the ranks must have.
    error:
        Why something could not be written.
    """

    def __enter__(self) -> Relay:
        self.error: TrainingError | None = None
        reading, self.writing = os.pipe()
        self.variables = {_RELAY_VARIABLE: f"/proc/{os.getpid()}/fd/{self.writing}"}
        self.thread = threading.Thread(target=self._hand_on, args=[reading], daemon=True)
        self.thread.start()
        return self

    def _hand_on(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            try:
                for content in iter(lambda: pipe.read(_RELAY_BYTES), b""):
                    rest = content
                    while rest:
                        rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except OSError as error:
                self.error = _unwritten(error)

    def __exit__(self, *_: object) -> None:
        os.close(self.writing)
        self.thread.join(_REST_S)


def _unwritten(error: OSError) -> TrainingError:
    from distbp.train.files import unwritten

    return unwritten("standard output", error)


def say(error: DistbpError) -> None:
    """Write the message of ``error``, on a line of standard error."""
    print(f"distbp: {error}", file=sys.stderr, flush=True)
