"""The partition into shards and steps: every row once, whatever does not divide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbp.data import Partition, share, split

sizes = st.tuples(st.integers(1, 300), st.integers(1, 20), st.integers(1, 120), st.integers(0, 3)).filter(
    lambda s: s[0] >= s[1]
)


@given(sizes)
def test_every_row_belongs_to_one_shard(size):
    partition = Partition(*size)
    rows = partition.rows()
    assert sorted(np.concatenate(rows).tolist()) == list(range(partition.n_rows))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@given(sizes, st.integers(0, 5))
def test_every_epoch_uses_every_row_once_in_steps_of_the_batch_size(size, epoch):
    partition = Partition(*size)
    used = []
    for step in range(partition.epoch_steps):
        microbatches = []
        for shard, rows in enumerate(partition.rows()):
            start, stop = partition.span(shard, step)
            microbatches.append(rows[partition.order(shard, epoch)[start:stop]])
        lengths = [len(m) for m in microbatches]
        assert sum(lengths) == partition.count(step)
        assert max(lengths) <= partition.microbatch_rows()
        assert max(lengths) - min(lengths) <= 1
        if step < partition.epoch_steps - 1:
            assert sum(lengths) == partition.batch_size
        used += np.concatenate(microbatches).tolist()
    assert sorted(used) == list(range(partition.n_rows))


def test_epochs_and_shards_have_orders_of_their_own():
    partition = Partition(1000, 2, 10, 0)
    orders = [partition.order(shard, epoch).tolist() for shard in range(2) for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4


@given(st.integers(0, 1000), st.integers(1, 50))
def test_shares_are_neighbours_and_nearly_equal(n, parts):
    ranges = [share(n, parts, i) for i in range(parts)]
    assert [i for r in ranges for i in r] == list(range(n))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("fraction", [0.001, 0.25, 0.9])
def test_split_takes_the_fraction(fraction):
    train, validation = split(100, fraction, seed=0)
    assert len(validation) == max(1, round(100 * fraction))
    assert sorted([*train, *validation]) == list(range(100))
