"""The tree: equal bits for any number of shards and any contiguous assignment."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.train.plan import BLOCK, Plan
from distbp.train.tree import SumProgram, children, cover, total


def by_definition(leaves, lo, hi):
    """combine(lo, hi) = combine(lo, mid) + combine(mid, hi), mid = lo + the largest power of two below hi - lo."""
    if hi - lo == 1:
        return leaves[lo]
    power = 1
    while power * 2 < hi - lo:
        power *= 2
    return by_definition(leaves, lo, lo + power) + by_definition(leaves, lo + power, hi)


@st.composite
def assignments(draw):
    """Return (n_shards, the bounds of the workers' shards)."""
    n = draw(st.integers(1, 70))
    cuts = draw(st.lists(st.integers(0, n), max_size=8))
    return n, sorted({0, n, *cuts})


def run(program, values):
    registers = [*values, *(np.empty_like(values[0]) for _ in range(program.n_scratch))]
    for a, b, out in program.bind(registers):
        np.add(a, b, out=out)
    return registers[program.result]


@settings(max_examples=300)
@given(assignments(), st.integers(0, 2**32 - 1))
def test_any_contiguous_assignment_gives_the_same_bits(assignment, seed):
    n, bounds = assignment
    rng = np.random.default_rng(seed)
    leaves = (rng.standard_normal((n, 5)) * 10.0 ** rng.integers(-6, 6, (n, 1))).astype(np.float32)
    kept = leaves.copy()
    partials = {}
    for lo, hi in itertools.pairwise(bounds):
        for node in cover(lo, hi, n):
            partials[node] = run(SumProgram(node, [(i, i + 1) for i in range(*node)]), list(leaves[slice(*node)]))
    result = run(SumProgram((0, n), list(partials)), list(partials.values()))
    assert result.tobytes() == by_definition(kept, 0, n).tobytes()
    np.testing.assert_array_equal(leaves, kept)  # what is handed over is only read


@given(assignments())
def test_a_worker_hands_over_few_partials_that_cover_its_shards(assignment):
    n, bounds = assignment
    for lo, hi in itertools.pairwise(bounds):
        nodes = cover(lo, hi, n)
        assert [i for node in nodes for i in range(*node)] == list(range(lo, hi))
        assert len(nodes) <= max(1, 2 * (n - 1).bit_length())
    assert cover(0, n, n) == [(0, n)]


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_total_is_the_sum_along_the_tree(n, seed):
    values = np.random.default_rng(seed).standard_normal((n, 2)) * 1e6
    assert total(values).tobytes() == by_definition(values, 0, n).tobytes()


def test_children_split_at_the_largest_power_of_two():
    assert children((0, 8)) == ((0, 4), (4, 8))
    assert children((0, 7)) == ((0, 4), (4, 7))
    assert children((4, 7)) == ((4, 6), (6, 7))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 30), st.integers(1, 50_000))
def test_a_plan_gives_every_shard_and_every_element_to_one_worker(machines, more_shards, n_elements):
    n_workers = sum(machines)
    for n_coordinators in (1, n_workers):
        plan = Plan(n_workers + more_shards, tuple(machines), n_elements, n_coordinators)
        workers = range(n_workers)
        assert [s for w in workers for s in plan.shards(w)] == list(range(plan.n_shards))
        slices = [plan.slice(w) for w in workers]
        assert [i for s in slices for i in (s.start, s.stop)][:: 2 * n_workers] == [0]
        assert sum(s.stop - s.start for s in slices) == n_elements
        assert all(s.start % BLOCK == 0 for s in slices if s.stop > s.start)
        assert [plan.machine(w) for w in workers] == [m for m, n in enumerate(machines) for _ in range(n)]
        for machine in range(len(machines)):
            assert all(plan.delegate(c, machine) in plan.workers(machine) for c in range(n_coordinators))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 30), st.integers(1, 50_000))
def test_a_parameter_server_has_the_whole_vector_and_no_shard(machines, more_shards, n_elements):
    n_workers = sum(machines)
    n_shards = max(1, n_workers - 1) + more_shards
    machines = (*machines, 1) if n_workers == 1 else tuple(machines)
    plan = Plan(n_shards, machines, n_elements, 1, has_server=True)
    *computing, server = range(plan.n_workers)
    assert [s for w in computing for s in plan.shards(w)] == list(range(n_shards))
    assert (list(plan.shards(server)), plan.nodes(server)) == ([], [])
    assert plan.slice(server) == slice(0, n_elements)
    assert all(plan.slice(w).start == plan.slice(w).stop for w in computing)
    assert [s for m in range(len(machines)) for s in plan.machine_shards(m)] == list(range(n_shards))
    assert [b for m in range(len(machines)) for b in plan.machine_blocks(m)] == list(range(plan.n_blocks))
