"""Which row belongs to which shard, and which rows a shard contributes to which step.

The rows are permuted once and dealt to the shards like cards: shard s gets places s, s + S, s + 2S, ... In each epoch
every shard shuffles its own rows, and step k takes places kB to (k + 1) B of the whole deck, whoever holds them. So a
step has exactly B rows (the last one what is left), microbatches differ by one row at most, and every row is used once
an epoch. All of it follows from the seed and the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distbp.data.dataset import Dataset
from distbp.randomness import generator


@dataclass(frozen=True)
class Partition:
    """``n_rows`` rows, dealt to ``n_shards`` shards and cut into steps of ``batch_size`` rows."""

    n_rows: int
    n_shards: int
    batch_size: int
    seed: int

    @property
    def epoch_steps(self) -> int:
        """Steps an epoch."""
        return -(-self.n_rows // self.batch_size)

    def rows(self) -> list[np.ndarray]:
        """Return the row numbers of each shard."""
        deck = generator(self.seed, "partition").permutation(self.n_rows)
        return [deck[shard :: self.n_shards] for shard in range(self.n_shards)]

    def order(self, shard: int, epoch: int) -> np.ndarray:
        """Return the order in which ``shard`` uses its own rows in ``epoch``: a permutation of their places."""
        return generator(self.seed, "order", shard, epoch).permutation(self._dealt(shard, self.n_rows))

    def span(self, shard: int, step: int) -> tuple[int, int]:
        """Return [start, stop) in ``order`` of the microbatch of ``shard`` at ``step`` of an epoch."""
        start = step * self.batch_size
        return self._dealt(shard, start), self._dealt(shard, min(start + self.batch_size, self.n_rows))

    def count(self, step: int) -> int:
        """Return the rows of all shards at ``step`` of an epoch."""
        return min(self.batch_size, self.n_rows - step * self.batch_size)

    def microbatch_rows(self) -> int:
        """Return the rows of the largest microbatch."""
        return min(-(-self.batch_size // self.n_shards), -(-self.n_rows // self.n_shards))

    def _dealt(self, shard: int, n_places: int) -> int:
        """Return how many of the first ``n_places`` places belong to ``shard``."""
        return (n_places - shard + self.n_shards - 1) // self.n_shards


def split(n_rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and of the validation part, each in ascending order."""
    deck = generator(seed, "validation").permutation(n_rows)
    n_validation = max(1, round(n_rows * fraction))
    return np.sort(deck[n_validation:]), np.sort(deck[:n_validation])


def share(n: int, parts: int, part: int) -> range:
    """Return the range of 0..n-1 that falls to ``part`` when cut into ``parts`` neighbouring, nearly equal ranges."""
    return range(n * part // parts, n * (part + 1) // parts)


def places_of_shards(dataset: Dataset, partition: Partition, shards: range) -> dict[str, list[np.ndarray]]:
    """Return, for each part, the places of the rows of each of ``shards``: in training dealt, else in their order."""
    dealt = partition.rows()
    places = {"train": [dealt[shard] for shard in shards]}
    for part, rows in dataset.parts.items():
        if part != "train":
            spans = [share(len(rows), partition.n_shards, shard) for shard in shards]
            places[part] = [np.arange(span.start, span.stop) for span in spans]
    return places
