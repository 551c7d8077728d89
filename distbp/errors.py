"""The errors that a user can mend, in three parts: what was expected, what was given, what to do."""

from __future__ import annotations

from typing import Any


class DistbpError(Exception):
    """Base of all errors that distbp raises on purpose."""

    exit_status = 1
    agreed = False
    """Whether all workers raise it together, so that one of them may say it for all."""

    def parts(self) -> list[Any]:
        """Return what makes this error again, in another process."""
        return [str(self)]


class InputError(DistbpError, ValueError):
    """Something given by the user does not fit; raised before training starts.

    Parameters
    ----------
    expected, given, remedy:
        The three parts of the message, each a phrase without a full stop.
    where:
        What the message is about: a path in the recipe, a file, a layer.
    """

    exit_status = 2

    def __init__(self, expected: str, given: str, remedy: str, where: str = "") -> None:
        super().__init__(expected, given, remedy, where)
        self.expected, self.given, self.remedy, self.where = expected, given, remedy, where

    def parts(self) -> list[Any]:
        return [self.expected, self.given, self.remedy, self.where]

    def at(self, where: str) -> InputError:
        """Return this error about ``where``."""
        return InputError(self.expected, self.given, self.remedy, where)

    def __str__(self) -> str:
        about = f"{self.where}: " if self.where else ""
        return f"{about}expected {self.expected}; given {self.given}; {self.remedy}"


class TrainingError(DistbpError):
    """Training cannot go on: a loss that is not finite, or a worker that does not answer."""

    exit_status = 3


class LostError(Exception):
    """A worker is lost, by its death or beyond a deadline; those that are left may go on from a copy of the state.

    Parameters
    ----------
    knows_who:
        Whether the message says who is lost: some only hear that others have lost somebody.
    """

    def __init__(self, message: str, *, knows_who: bool = True) -> None:
        super().__init__(message)
        self.knows_who = knows_who


class DifferenceError(LostError):
    """The machines see different weights: nobody is lost, but what they have since the last copy is wrong."""


class FitInterrupt(KeyboardInterrupt):
    """``Trainer.fit`` was interrupted; the trainer has the weights of the last whole epoch, and can go on.

    Parameters
    ----------
    signal:
        What this process was interrupted by; 0 where it was another worker.
    """

    agreed = True

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StoppedError(DistbpError):
    """Training was asked to stop before its end, and has; a checkpoint says where.

    Parameters
    ----------
    signal:
        What asked for it; 0 for the time limit of the run.

    Attributes
    ----------
    state, model:
        Of a run that is interruptible: its state, to go on from, and the model after the last whole epoch, if there
        was one.
    """

    state: Any = None
    model: Any = None

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_status = 128 + signal if signal else 75  # EX_TEMPFAIL: to be tried again

    def parts(self) -> list[Any]:
        return [str(self), self.signal]
