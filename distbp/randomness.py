"""Random draws by key.

Every draw comes from a Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) whose
key is a hash of the seed and of what is drawn for whom. Which process draws, and when, changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *whom: int | str) -> np.random.Generator:
    """Return the generator for ``purpose`` ("order", "dropout", ...) and ``whom`` (shard, epoch, layer, ...)."""
    text = repr((int(seed), purpose, *whom)).encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
