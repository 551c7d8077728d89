"""A fault on purpose, at a named place of a named step on a named worker: for tests."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import numpy as np

from distbp.errors import InputError

PHASES = ("forward", "exchange", "update", "commit", "copy", "checkpoint", "end")
"""Before the forward pass; before and after partials are exchanged; between update and commit; in the middle of a copy
of the state; before a checkpoint is handed on; when training is over."""
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_KINDS = (*_SIGNALS, "flip")


@dataclass(frozen=True)
class Fault:
    """``kind`` strikes ``worker`` at the first step from ``step`` on that comes to ``phase``.

    kill and stop are signals to the process; flip turns a bit of the weights that its machine sees.
    """

    kind: str
    phase: str
    step: int
    worker: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that ``text`` says, as in kill:update:17:2."""
        words = text.split(":")
        fits = len(words) == 4 and words[0] in _KINDS and words[1] in PHASES
        if not (fits and words[2].isdigit() and words[3].isdigit()):
            expected = f"KIND:PHASE:STEP:WORKER, with {' or '.join(_KINDS)}, a phase of {', '.join(PHASES)}"
            raise InputError(expected, repr(text), "write for example kill:update:17:2", "--fault")
        return cls(words[0], words[1], int(words[2]), int(words[3]))

    def strike(self, phase: str, step: int, worker: int, weights: np.ndarray) -> None:
        """Strike this process, if it is there."""
        if (phase, worker) != (self.phase, self.worker) or step < self.step:
            return
        if self.kind == "flip":
            weights.view(np.uint8)[0] ^= 1
        else:
            os.kill(os.getpid(), _SIGNALS[self.kind])
