"""Numbers in messages and in JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def counted(n: float, noun: str) -> str:
    """Return the number with the noun, in the plural but for one: ``1 worker``, ``2 workers``, ``0.5 CPUs``."""
    number = f"{n:g}" if isinstance(n, float) else f"{n}"
    return f"{number} {noun}" if n == 1 else f"{number} {noun}s"


def json_text(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON, which has no NaN and no infinity: null stands for these."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def megabytes(n_bytes: int) -> str:
    """Return a size for a message, however large a file or a recipe says that it is."""
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1 << 80 else "more MB than there are"
