"""Blocks of rows in which the outputs for a row depend on that row alone.

The kernel of a matrix product may add up differently in different places of its output. That of OpenBLAS for float32 on
processors with AVX2 works on twelve rows at a time and, for six of them, sums the first and the last eight outputs in
two chains instead of one; and a single row is a matter of another routine. So rows are evaluated in blocks of a few
fixed sizes, filled up where rows are missing. In which places of a block a row gets the same bits is measured, once for
a network; places that agree are a group. Which group a row goes to follows from its content. So its outputs have the
same bits, whatever rows come with it.

A small block may meet another kernel in one layer only, mostly in a narrow one: that layer then computes more rows than
the block has.
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

SIZES = (960, 240, 120, 48, 24, 12)
"""Rows of a block: multiples of what kernels work on at a time, such as 4, 8 and 12."""

_MOST_NUMBERS = 1 << 18  # in what a layer takes or gives for a block: that stays in cache, and calls are few
_WIDE_ROWS = 240  # of a block, however wide the layers are: with less, products take longer
_LEAST_SHARE = 1 / 8  # of the places of a block; smaller groups stay empty
_CALLS = 1 << 20  # multiplications that take about as long as the calls for a block
_PACKING = 64  # rows whose products take about as long as reading and packing the weights for a block
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
    """Some rows in a block of ``size`` places.

    Attributes
    ----------
    rows:
        The row in each place, from the first on; places after these hold anything.
    counted:
        The places that count; others hold a row that is there already.
    """

    size: int
    rows: np.ndarray | slice
    counted: np.ndarray | slice

    @property
    def n_filled(self) -> int:
        """How many places, from the first on, are given a row."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)

    @property
    def own_rows(self) -> np.ndarray | slice:
        """The row in each place that counts."""
        return self.rows if isinstance(self.rows, slice) else self.rows[self.counted]


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
        self._overhead = _PACKING + _CALLS / max(1, network.layout.n_parameters)  # of a block, in rows
        self.columns = np.linspace(0, n_features - 1, min(n_features, _KEY_COLUMNS)).astype(np.intp)

    @functools.cached_property
    def _signatures(self) -> list[dict[int, np.ndarray]]:
        return _signatures(self.network, self._candidates, self.lap)

    @functools.cached_property
    def layer_rows(self) -> dict[int, list[int]]:
        """For each size, how many rows each layer computes: the least that meet no kernels but those of the largest."""
        known = [np.unique(of_layer[self.n_rows]) for of_layer in self._signatures]
        return {
            size: [
                min(n for n in self._candidates if n >= size and np.isin(of_layer[n][:size], kinds).all())
                for of_layer, kinds in zip(self._signatures, known, strict=True)
            ]
            for size in self._candidates
        }

    @functools.cached_property
    def groups(self) -> list[dict[int, np.ndarray]]:
        """For each group, its places in a block of each size that is used."""
        signatures = {size: np.zeros(size, np.uint64) for size in self._candidates}
        for size, signature in signatures.items():
            for of_layer, n in zip(self._signatures, self.layer_rows[size], strict=True):
                signature *= _ODD
                signature += of_layer[n][:size]
        largest = signatures[self.n_rows]
        kinds, counts = np.unique(largest, return_counts=True)
        is_common = counts >= _LEAST_SHARE * self.n_rows
        common = kinds[is_common] if is_common.any() else kinds[[np.argmax(counts)]]
        sizes = [size for size in self._candidates if np.isin(common, signatures[size]).all()]
        return [{size: np.flatnonzero(signatures[size] == kind) for size in sizes} for kind in common]

    def blocks(self, keys: np.ndarray) -> Iterator[Block]:
        """Return the blocks for rows with these ``row_keys`` (n,)."""
        members = self._members(keys)
        sizes = list(self.groups[0])
        for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):
            rooms = [len(group[size]) for group in self.groups]
            while (most := max(len(rows) / room for rows, room in zip(members, rooms, strict=True))) > 0:
                n_smaller = math.ceil(min(most, 1.0) * size / smaller) if smaller else 1
                if n_smaller * (smaller + self._overhead) < size + self._overhead and smaller:
                    break
                taken = [rows[:room] for rows, room in zip(members, rooms, strict=True)]
                members = [rows[room:] for rows, room in zip(members, rooms, strict=True)]
                yield self._block(size, taken)

    def _block(self, size: int, taken: list[np.ndarray]) -> Block:
        """Return the block of ``size`` in which the rows of each group are these."""
        places = [group[size][: len(rows)] for group, rows in zip(self.groups, taken, strict=True)]
        if len(taken) == 1 and places[0][-1] == len(places[0]) - 1:  # one after another, both of them
            rows = taken[0]
            return Block(size, slice(int(rows[0]), int(rows[-1]) + 1), slice(0, len(rows)))
        rows, counted = np.concatenate(taken), np.concatenate(places)
        block = np.full(size, rows[0])
        block[counted] = rows
        return Block(size, block, counted)

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


def _signatures(network: Sequential, sizes: list[int], lap: Callable[[], None]) -> list[dict[int, np.ndarray]]:
    """Return, for each layer and each size, a number for each place, made of the bits that the same rows get there.

    Each layer is probed by itself, so that it takes the memory of one layer. A layer that takes no random numbers is
    left out: it looks something up.
    """
    drawn = 0.1 * generator(0, "row blocks", "weights").standard_normal(_N_DRAWN).astype(network.layout.dtype)
    of_layers = []
    for i, layer in enumerate(network.layers):
        probe = type(network)(dataclasses.replace(layer))
        layout = probe.build(network.shapes[i], network.layout.dtype)
        weights = aligned_zeros(layout.size, layout.dtype)
        weights[...] = np.resize(drawn, layout.size)
        probe.bind(weights, max(sizes), backward=False)
        probe.settle()
        signatures = {n: np.zeros(n, np.uint64) for n in sizes}
        with suppress(IndexError, ValueError, TypeError, KeyError):
            signatures = {n: _signatures_of_layer(probe, n, sum(sizes), i, lap) for n in sizes}
        of_layers.append(signatures)
    return of_layers


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
