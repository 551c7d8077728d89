"""The fixed binary tree over shards in whose order all sums are made.

A node (lo, hi) stands for the shards lo..hi-1. Its children are (lo, mid) and (mid, hi), with mid = lo + the largest
power of two smaller than hi - lo. Whoever computes a node gets the same bits: the order of the additions is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

Node = tuple[int, int]


def children(node: Node) -> tuple[Node, Node]:
    """Return the two nodes whose sum is ``node``, which holds at least two shards."""
    lo, hi = node
    mid = lo + (1 << (hi - lo - 1).bit_length() - 1)
    return (lo, mid), (mid, hi)


def cover(lo: int, hi: int, n: int) -> list[Node]:
    """Return the largest nodes of the tree over 0..n-1 that together hold exactly the shards lo..hi-1."""

    def visit(node: Node) -> list[Node]:
        if hi <= node[0] or node[1] <= lo:
            return []
        if lo <= node[0] and node[1] <= hi:
            return [node]
        left, right = children(node)
        return visit(left) + visit(right)

    return visit((0, n)) if lo < hi else []


def total(values: np.ndarray) -> np.ndarray:
    """Return the sum of the rows of ``values`` (n, ...) along the tree, level by level: (...)."""
    while len(values) > 1:
        paired = values[0 : len(values) - 1 : 2] + values[1::2]
        values = np.concatenate([paired, values[-1:]]) if len(values) % 2 else paired
    return values[0]


class SumProgram:
    """The additions that make ``root`` out of the nodes that are there.

    Parameters
    ----------
    root:
        The node wanted.
    available:
        Nodes that together hold exactly the shards of ``root``.

    Notes
    -----
    A program runs on registers: first one for each available node, in order, then ``n_scratch`` of its own. The result
    is in register ``result``. Available nodes are only read.
    """

    def __init__(self, root: Node, available: Collection[Node]) -> None:
        place = {node: i for i, node in enumerate(available)}
        self.additions: list[tuple[int, int, int]] = []
        self.n_scratch = 0

        def visit(node: Node, depth: int) -> int:
            """Compute ``node``, into scratch register ``depth`` if need be; return its register."""
            if node in place:
                return place[node]
            left, right = children(node)
            a, b = visit(left, depth), visit(right, depth + 1)
            out = len(place) + depth
            self.n_scratch = max(self.n_scratch, depth + 1)
            self.additions.append((a, b, out))
            return out

        self.result = visit(root, 0)

    def bind(self, registers: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return the additions (a, b, out) over these arrays."""
        return [(registers[a], registers[b], registers[out]) for a, b, out in self.additions]
