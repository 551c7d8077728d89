"""A worker: forward and backward passes on its shards, summed into the partials that it hands over.

A worker knows no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distbp.data import Partition
from distbp.data.shard import Shard
from distbp.nn import Gradient, Loss, Sequential, aligned_zeros
from distbp.train.evaluator import TALLY, Evaluator, total_loss
from distbp.train.phases import Phases
from distbp.train.tree import Node, children

_ROWS_NAMED = 20
_STACK_BYTES = 1 << 22  # of gradients, and of activations, of shards that are computed together: they stay in cache


def is_finite(vector: np.ndarray) -> bool:
    """Return whether all of ``vector`` is finite; its norm, which is cheaper to compute, mostly says so."""
    return math.isfinite(float(np.dot(vector, vector))) or bool(np.all(np.isfinite(vector)))


class Worker:
    """The computation of some neighbouring shards.

    Parameters
    ----------
    network, loss:
        Built and fused, not yet bound.
    shards:
        For each part of the data ("train", "validation", "test"), the shards of this worker by number.
    nodes:
        The nodes of the tree that this worker hands over.
    weights:
        The parameter vector (n_elements,), written by others.
    partials:
        For each node the vector (n_elements,) that receives its sum of gradients.
    row_limit:
        Most rows computed at once. A longer microbatch is cut at multiples of it, and the pieces are summed along a
        tree of their own: a property of the recipe, so that it is the same on any number of workers.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        partition: Partition,
        shards: Mapping[str, Mapping[int, Shard]],
        nodes: Sequence[Node],
        weights: np.ndarray,
        partials: Sequence[np.ndarray],
        *,
        row_limit: int | None,
        phases: Phases,
    ) -> None:
        self.network, self.loss, self.partition, self.phases = network, loss, partition, phases
        self.shards = shards
        self.step_rows = min(partition.microbatch_rows(), row_limit or partition.microbatch_rows())
        layout = network.layout
        self.n_stacked = self._most_stacked(nodes)
        n_rows = self.n_stacked * self.step_rows
        self.evaluator = Evaluator(network, loss, row_limit, at_least=n_rows, phases=phases)
        network.bind(weights, self.evaluator.n_rows)
        self.x, self.t = self.evaluator.x, self.evaluator.t
        self.partials = [(node, network.gradient(vector)) for node, vector in zip(nodes, partials, strict=True)]
        n_pieces = -(-partition.microbatch_rows() // self.step_rows)
        n_scratch = max(((hi - lo - 1).bit_length() for lo, hi in nodes), default=0) + (n_pieces - 1).bit_length()
        self.stack = np.zeros((self.n_stacked if self.n_stacked > 1 else 0, layout.size), layout.dtype)
        self.stacked: dict[tuple[int, int], Gradient] = {}  # for the rows from .. to of it
        self.scratch = [network.gradient(aligned_zeros(layout.size, layout.dtype)) for _ in range(n_scratch)]
        self.has_random_layers = any(layer.is_random for layer in network.layers)
        self.epoch = -1
        self.orders: dict[int, np.ndarray] = {}
        self.tally = {shard: np.zeros(len(TALLY)) for shard in shards["train"]}

    def _most_stacked(self, nodes: Sequence[Node]) -> int:
        """Return how many shards are computed together, at most: a power of two; 1 for large networks."""
        if not self.network.is_stackable or self.step_rows < self.partition.microbatch_rows():
            return 1
        n_activations = self.step_rows * sum(math.prod(shape) for shape in self.network.shapes)
        n_bytes = self.network.layout.dtype.itemsize * max(self.network.layout.size, n_activations)
        most = min(_STACK_BYTES // n_bytes, max((hi - lo for lo, hi in nodes), default=1))
        return 1 << max(0, most.bit_length() - 1)

    def compute(self, step: int) -> int:
        """Compute the partials of ``step`` of the run; return a shard whose loss or gradient is not finite, or -1."""
        epoch, self.epoch_step = divmod(step, self.partition.epoch_steps)
        self.step = step
        if epoch != self.epoch:
            self.epoch = epoch
            self.orders = {shard: self.partition.order(shard, epoch) for shard in self.shards["train"]}
        self.bad_shard = -1
        for node, gradient in self.partials:
            self._sum(node, gradient, self._microbatch, 0)
            if self.bad_shard < 0 and not is_finite(gradient.vector):
                self.bad_shard = next((s for s in range(*node) if not self._has_finite_gradient(s, gradient)), node[0])
        return self.bad_shard

    def _has_finite_gradient(self, shard: int, out: Gradient) -> bool:
        self._microbatch(shard, out, 0)
        return is_finite(out.vector)

    def diagnose(self, shard: int) -> str:
        """Return where the last microbatch of ``shard`` stops being finite, for a message."""
        start, stop = self.partition.span(shard, self.epoch_step)
        places, rows = self.orders[shard][start:stop], self.shards["train"][shard]
        layer = None
        for first in range(0, len(places), self.step_rows):
            piece = places[first : first + self.step_rows]
            x, t = self.x[: len(piece)], self.t[: len(piece)]
            rows.gather(piece, x, t)
            if self.has_random_layers:
                self.network.randomise(self.partition.seed, [shard], self.step)
            if (name := self.network.first_not_finite(x)) is not None:
                layer = name
                break
        if layer is None:
            self.bad_shard, (_, gradient) = -1, self.partials[0]
            self._microbatch(shard, gradient, 0)
            views = self.network.layout.views(gradient.vector)
            bad = [name for name, view in views.items() if not is_finite(view.ravel())]
            layer = "the loss" if self.bad_shard == shard or not bad else f"the gradient of {bad[-1]}"
        numbers = np.sort(np.asarray(rows.numbers)[places])
        some = ", ".join(map(str, numbers[:_ROWS_NAMED])) + (", ..." if len(numbers) > _ROWS_NAMED else "")
        return f"first in {layer}; rows {some} of {rows.where or 'the training rows'}"

    def _sum(self, node: Node, out: Gradient, leaf: Callable[[int, Gradient, int], None], depth: int) -> None:
        """Write the sum of the gradients of the leaves of ``node`` into ``out``, in the order of the tree."""
        n_leaves = node[1] - node[0]
        if n_leaves == 1:
            leaf(node[0], out, depth)
            return
        if n_leaves <= self.n_stacked and leaf == self._microbatch:
            self._stacked_sum(node, out)
            return
        left, right = children(node)
        self._sum(left, out, leaf, depth)
        other = self.scratch[depth]
        self._sum(right, other, leaf, depth + 1)
        np.add(out.vector, other.vector, out=out.vector)
        self.phases.lap("exchange")

    def _stacked_sum(self, node: Node, out: Gradient) -> None:
        """Write the sum of the gradients of the shards of ``node`` into ``out``; they are computed together.

        Those with as many rows are neighbours in the stack: microbatches differ by one row at most.
        """
        spans = {shard: self.partition.span(shard, self.epoch_step) for shard in range(*node)}
        by_rows: dict[int, list[int]] = {}
        for shard, (start, stop) in spans.items():
            by_rows.setdefault(stop - start, []).append(shard)
        place: dict[int, int] = {}
        for n, shards in by_rows.items():
            first = len(place)
            place |= {shard: first + i for i, shard in enumerate(shards)}
            if n == 0:
                self.stack[first : len(place)].fill(0.0)
            else:
                self._rows_of_shards(shards, n, [slice(*spans[shard]) for shard in shards], first)

        def add_up(lo: int, hi: int) -> np.ndarray:
            if hi - lo == 1:
                return self.stack[place[lo]]
            left, right = children((lo, hi))
            into = out.vector if (lo, hi) == node else self.stack[place[lo]]
            return np.add(add_up(*left), add_up(*right), out=into)

        add_up(*node)
        self.phases.lap("exchange")

    def _rows_of_shards(self, shards: list[int], n: int, spans: list[slice], first: int) -> None:
        """Write the gradients of ``n`` rows of each of ``shards`` into the stack, from the row ``first`` on."""
        if self.has_random_layers:
            self.network.randomise(self.partition.seed, shards, self.step)
        x, t = self.x[: n * len(shards)], self.t[: n * len(shards)]
        for i, (shard, span) in enumerate(zip(shards, spans, strict=True)):
            part = slice(i * n, (i + 1) * n)
            self.shards["train"][shard].gather(self.orders[shard][span], x[part], t[part])
        rows = (first, first + len(shards))
        if rows not in self.stacked:
            views = self.stack[rows[0]] if len(shards) == 1 else self.stack[slice(*rows)]
            self.stacked[rows] = self.network.gradient(views)
        self.network.use(self.stacked[rows])
        self.network.stack(len(shards))
        losses = self.loss.forward(self.network.logits(x), t)
        self.phases.lap("forward")
        self.network.backward(self.loss.dz[: len(x)])
        self.phases.lap("backward")
        self.network.stack(1)
        for i, shard in enumerate(shards):
            self._book(shard, total_loss(losses[i * n : (i + 1) * n]), n)

    def _book(self, shard: int, losses: float, n: int) -> None:
        """Add the sum of the losses of ``n`` rows to the tally of ``shard``."""
        if not math.isfinite(losses):
            self.bad_shard = shard
        tally = self.tally[shard]
        tally[0] += losses
        tally[1] += n

    def _microbatch(self, shard: int, out: Gradient, depth: int) -> None:
        """Write the sum of the gradients of the microbatch of ``shard`` into ``out``; add its losses to the tally."""
        start, stop = self.partition.span(shard, self.epoch_step)
        if self.has_random_layers:
            self.network.randomise(self.partition.seed, [shard], self.step)
        places, rows = self.orders[shard][start:stop], self.shards["train"][shard]
        n = stop - start
        losses = 0.0

        def piece(i: int, gradient: Gradient, _: int) -> None:
            nonlocal losses
            losses += self._rows(rows, places[i * self.step_rows : (i + 1) * self.step_rows], gradient)

        if n == 0:
            out.vector.fill(0.0)
        elif n <= self.step_rows:
            losses = self._rows(rows, places, out)
        else:
            self._sum((0, -(-n // self.step_rows)), out, piece, depth)
        self._book(shard, losses, n)

    def _rows(self, rows: Shard, places: np.ndarray, gradient: Gradient) -> float:
        """Write the sum of the gradients of some rows into ``gradient``; return the sum of their losses."""
        n = len(places)
        x, t = self.x[:n], self.t[:n]
        rows.gather(places, x, t)
        self.network.use(gradient)
        losses = total_loss(self.loss.forward(self.network.logits(x), t))
        self.phases.lap("forward")
        self.network.backward(self.loss.dz[:n])
        self.phases.lap("backward")
        return losses

    def tallies(self) -> np.ndarray:
        """Return the tally of the training rows since it was taken (n_own_shards, 3); no accuracy."""
        return np.array(list(self.tally.values())).reshape(-1, len(TALLY))

    def take_tally(self) -> np.ndarray:
        """Return ``tallies``, and start anew."""
        taken = self.tallies()
        for tally in self.tally.values():
            tally.fill(0.0)
        return taken

    def evaluate(self, part: str) -> np.ndarray:
        """Return the tally of all rows of ``part`` under the present weights (n_own_shards, 3)."""
        return np.array([self.evaluator.tally(rows) for rows in self.shards[part].values()]).reshape(-1, len(TALLY))
