"""Words in messages that depend on numbers."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """Return the number with the noun, in the plural but for one: ``1 worker``, ``2 workers``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
