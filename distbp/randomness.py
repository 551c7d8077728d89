"""Random draws by key.

Every draw comes from a Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) whose
key is a hash of the seed and of what is drawn for whom. Which process draws, and when, changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np

_NOTHING = np.zeros(4, np.uint64)


def generator(seed: int, purpose: str, *whom: int | str) -> np.random.Generator:
    """Return the generator for ``purpose`` ("order", "dropout", ...) and ``whom`` (shard, epoch, layer, ...)."""
    made = np.random.Generator(np.random.Philox(0))
    set_key(made, seed, purpose, *whom)
    return made


def set_key(made: np.random.Generator, seed: int, purpose: str, *whom: int | str) -> None:
    """Let a generator that is there already be the one that ``generator`` would return: thirty times as fast."""
    text = repr((int(seed), purpose, *whom)).encode()
    key = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), "<u8")
    made.bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": _NOTHING, "key": key},
        "buffer": _NOTHING,
        "buffer_pos": len(_NOTHING),
        "has_uint32": 0,
        "uinteger": 0,
    }
