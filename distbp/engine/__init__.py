"""Who runs where, and how bytes travel: the engines ``local`` and ``mpi``."""

from __future__ import annotations

import functools

from distbp.engine.local import LocalGroup
from distbp.engine.mpi import MpiGroup
from distbp.engine.mpirun import is_launched
from distbp.errors import InputError
from distbp.train import Group

ENGINES = ("auto", "local", "mpi")
"""auto: mpi where an MPI launcher started this process, else local."""

DEADLINE_S = 60.0


@functools.cache
def connect(
    engine: str = "auto",
    workers: int | None = None,
    machines: tuple[int, ...] | None = None,
    deadline_s: float = DEADLINE_S,
) -> Group:
    """Return the workers that this process is one of.

    Parameters
    ----------
    engine:
        A name of ``ENGINES``.
    workers:
        How many there must be; by default as many as were started.
    machines:
        For tests: treat the MPI ranks as if they ran on machines with that many workers each.
    deadline_s:
        How long to wait for another worker before the run ends with an error.

    Raises
    ------
    InputError
        Where the engine does not exist or is not installed, or the workers were not started.
    """
    if engine not in ENGINES:
        raise InputError(f"an engine of: {', '.join(ENGINES)}", repr(engine), "choose one of these", "engine")
    if engine == "auto":
        engine = "mpi" if is_launched() else "local"
    group: Group = MpiGroup(machines, deadline_s) if engine == "mpi" else LocalGroup()
    if workers is not None and workers != group.n_workers:
        given = f"{group.n_workers} started by the engine {engine}"
        raise InputError(f"{workers} workers", given, f"start them with: mpirun -n {workers} python SCRIPT", "workers")
    return group
