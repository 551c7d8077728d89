"""What the command says where it fails."""

from __future__ import annotations

import sys
from contextlib import suppress

from distbp.errors import DistbpError


def say(error: DistbpError) -> None:
    """Write the message of ``error``, on a line of standard error."""
    with suppress(OSError):  # as on a terminal that is gone
        print(f"distbp: {error}", file=sys.stderr, flush=True)
