"""Words in messages that depend on numbers."""

from __future__ import annotations


def counted(n: float, noun: str) -> str:
    """Return the number with the noun, in the plural but for one: ``1 worker``, ``2 workers``, ``0.5 CPUs``."""
    number = f"{n:g}" if isinstance(n, float) else f"{n}"
    return f"{number} {noun}" if n == 1 else f"{number} {noun}s"
