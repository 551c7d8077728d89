"""Where the command writes: standard output, whose failures are said like all others, and standard error."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
            nowhere = os.open(os.devnull, os.O_WRONLY)  # for what is left in the buffers
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.error = _unwritten(error)
            raise self.error from None


def prepare_streams() -> None:
    """Let ``sys.stdout`` be a StandardOutput, and closed streams fail where they are written to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would be taken for it
            os.open(os.devnull, os.O_RDONLY)
    given = sys.stdout
    handle = 1
    if (file := os.environ.get(_RELAY_VARIABLE)) is not None:
        with suppress(OSError):  # as where /proc cannot be read
            handle = os.open(file, os.O_WRONLY)
    sys.stdout = StandardOutput(
        io.BufferedWriter(io.FileIO(handle, "wb", closefd=False)),
        encoding=getattr(given, "encoding", None),
        errors="replace",  # as on a terminal without box characters
        line_buffering=True,
    )
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


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
    with suppress(OSError):  # as on a terminal that is gone
        print(f"distbp: {error}", file=sys.stderr, flush=True)
