"""Blocks of rows in which the outputs for a row depend on that row alone.

The kernel of a matrix product may add up differently in different places of its output. That of OpenBLAS for float32 on
processors with AVX2 works on twelve rows at a time and, for six of them, sums the first and the last eight outputs in
two chains instead of one; and a single row is a matter of another routine. So rows are evaluated in blocks of a few
fixed sizes, filled up where rows are missing. In which places of a block a row gets the same bits is measured, once for
a network; places that agree are a group. Which group a row goes to follows from its content. So its outputs have the
same bits, whatever rows come with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distbp.nn.vector import aligned_zeros
from distbp.randomness import generator

if TYPE_CHECKING:
    from distbp.nn.sequential import Sequential

SIZES = (960, 240, 48, 24, 12)
"""Rows of a block: multiples of what kernels work on at a time, such as 4, 8 and 12."""

_MOST_NUMBERS = 1 << 18  # in what a layer takes or gives for a block: that stays in cache, and calls are few
_WIDE_ROWS = 240  # of a block, however wide the layers are: with less, products take longer
_LEAST_SHARE = 1 / 8  # of the places of a block; smaller groups stay empty
_FULL = 0.9  # a block that is filled so far is better than several smaller ones
_LEAST_TRIALS, _LEAST_NUMBERS = 2, 64  # rows by which places are compared, and numbers that these are to have in all
_MOST_PROBED = 1 << 26  # numbers in the rows that a layer is probed with, if more than the least are wanted
_N_DRAWN = (1 << 16) + 1  # weights, one after another, again and again
_KEY_COLUMNS = 16
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: its multiples spread over all bits


def row_keys(x: np.ndarray) -> np.ndarray:
    """Return, for each of the rows ``x`` (n, k), a number made of its bits (n,); -0 is 0, as in a sparse matrix."""
    return _hashed(x + x.dtype.type(0)) * _ODD >> np.uint64(32)


@dataclass(frozen=True)
class Block:
    """The row in each place of a block, and the places that count; the others are filled up with any row."""

    rows: np.ndarray
    counted: np.ndarray


class RowBlocks:
    """The blocks for one network.

    Parameters
    ----------
    network:
        Built; it is not changed, and its weights do not matter.
    row_limit:
        The largest block that there may be, but for the smallest size.
    lap:
        Is called while places are measured: whoever measures is not stuck.

    Attributes
    ----------
    n_rows:
        Of the largest block.
    columns:
        Of a flattened row of features: those from which its key is made, unless they are all zero.
    """

    def __init__(
        self, network: Sequential, row_limit: int | None = None, lap: Callable[[], None] = lambda: None
    ) -> None:
        self.network, self.lap = network, lap
        width = max(math.prod(shape) for shape in network.shapes)
        most = min(max(_MOST_NUMBERS // width, _WIDE_ROWS), row_limit or max(SIZES))
        self._candidates = [n for n in SIZES if n <= most] or [SIZES[-1]]
        self.n_rows = self._candidates[0]
        n_features = math.prod(network.input_shape)
        self.columns = np.linspace(0, n_features - 1, min(n_features, _KEY_COLUMNS)).astype(np.intp)

    @functools.cached_property
    def groups(self) -> list[dict[int, np.ndarray]]:
        """For each group, its places in a block of each size that is used."""
        signatures = _signatures(self.network, self._candidates, self.lap)
        largest = signatures[self.n_rows]
        kinds, counts = np.unique(largest, return_counts=True)
        is_common = counts >= _LEAST_SHARE * self.n_rows
        common = kinds[is_common] if is_common.any() else kinds[[np.argmax(counts)]]
        sizes = [n for n in self._candidates if np.isin(common, signatures[n]).all()]
        return [{n: np.flatnonzero(signatures[n] == kind) for n in sizes} for kind in common]

    def blocks(self, keys: np.ndarray) -> Iterator[Block]:
        """Return the blocks for rows with these ``row_keys`` (n,)."""
        members = self._members(keys)
        for n in self.groups[0]:
            rooms = [len(group[n]) for group in self.groups]
            enough = 0.0 if n == min(self.groups[0]) else _FULL  # the smallest takes whatever is left
            while any(len(rows) > enough * room for rows, room in zip(members, rooms, strict=True)):
                taken = [rows[:room] for rows, room in zip(members, rooms, strict=True)]
                places = [group[n][: len(rows)] for group, rows in zip(self.groups, taken, strict=True)]
                members = [rows[room:] for rows, room in zip(members, rooms, strict=True)]
                rows, counted = np.concatenate(taken), np.concatenate(places)
                block = np.full(n, rows[0])
                block[counted] = rows
                yield Block(block, counted)

    def _members(self, keys: np.ndarray) -> list[np.ndarray]:
        """Return the rows that go to each group, which has so large a share of them as of the places of a block."""
        if len(self.groups) == 1:
            return [np.arange(len(keys))]
        ends = np.cumsum([len(group[self.n_rows]) for group in self.groups])
        group = np.searchsorted(ends, keys * np.uint64(ends[-1]) >> np.uint64(32), "right")
        return [np.flatnonzero(group == i) for i in range(len(self.groups))]


def _hashed(x: np.ndarray) -> np.ndarray:
    """Return a number made of the bits of each row of ``x`` (n, k)."""
    bits = np.ascontiguousarray(x).view(f"u{x.itemsize}")
    return np.add.reduce(bits * (np.arange(1, 2 * bits.shape[1], 2, dtype=np.uint64) * _ODD), axis=1)


def _signatures(network: Sequential, sizes: list[int], lap: Callable[[], None]) -> dict[int, np.ndarray]:
    """Return, for each size, a number for each place of a block, made of the bits that the same rows get there.

    Each layer is probed by itself, so that it takes the memory of one layer. A layer that takes no random numbers is
    left out: it looks something up.
    """
    signatures = {n: np.zeros(n, np.uint64) for n in sizes}
    drawn = 0.1 * generator(0, "row blocks", "weights").standard_normal(_N_DRAWN).astype(network.layout.dtype)
    for i, layer in enumerate(network.layers):
        probe = type(network)(dataclasses.replace(layer))
        layout = probe.build(network.shapes[i], network.layout.dtype)
        weights = aligned_zeros(layout.size, layout.dtype)
        weights[...] = np.resize(drawn, layout.size)
        probe.bind(weights, max(sizes), backward=False)
        probe.settle()
        for n in sizes:
            with suppress(IndexError, ValueError, TypeError, KeyError):
                signatures[n] = signatures[n] * _ODD + _signatures_of_layer(probe, n, sum(sizes), i, lap)
    return signatures


def _signatures_of_layer(probe: Sequential, n: int, n_in_all: int, number: int, lap: Callable[[], None]) -> np.ndarray:
    rng, dtype = generator(0, "row blocks", number), probe.layout.dtype
    wanted = -(-_LEAST_NUMBERS // math.prod(probe.output_shape))
    n_trials = max(_LEAST_TRIALS, min(wanted, _MOST_PROBED // (n_in_all * math.prod(probe.input_shape))))
    signatures = np.zeros(n, np.uint64)
    probe.resize(n)
    with np.errstate(all="ignore"):
        for _ in range(n_trials):
            row = rng.standard_normal(probe.input_shape).astype(dtype)
            y = probe.layers[0].forward(np.repeat(row[None], n, axis=0))
            signatures = signatures * _ODD + _hashed(y.reshape(n, -1))
            lap()
    return signatures
