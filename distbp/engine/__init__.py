"""Who runs where, and how bytes travel: the engines ``local``, ``mpi`` and ``ray``."""

from __future__ import annotations

import functools

from distbp.engine.cluster import is_in_cluster
from distbp.engine.local import LocalGroup
from distbp.engine.mpi import MpiGroup
from distbp.engine.mpirun import is_launched
from distbp.engine.ray import CALLS, RayEngine
from distbp.errors import InputError
from distbp.train import Engine
from distbp.wording import counted

ENGINES = ("auto", "local", "mpi", "ray")
"""auto: mpi where an MPI launcher started this process, ray where an address of a cluster is known, else local."""

DEADLINE_S, ROOM_S = 10.0, 60.0
"""How long to wait for another worker, and for the resources of a Ray cluster, by default."""


def choose(engine: str, address: str | None = None) -> str:
    """Return the engine that ``engine`` means here: a name of ``ENGINES``, but never ``auto``.

    Raises
    ------
    InputError
        Where there is no such engine.
    """
    if engine not in ENGINES:
        raise InputError(f"an engine of: {', '.join(ENGINES)}", repr(engine), "choose one of these", "engine")
    if engine != "auto":
        return engine
    if is_launched():
        return "mpi"
    return "ray" if address is not None or is_in_cluster() else "local"


@functools.cache
def connect(
    engine: str = "auto",
    workers: int | None = None,
    machines: tuple[int, ...] | None = None,
    deadline_s: float | None = None,
    address: str | None = None,
    cpus_per_worker: float = 1.0,
    calls: str = "auto",
    max_failures: int = 3,
    least: int | None = None,
    trust_network: bool = False,
) -> Engine:
    """Return what does the jobs of this program: the workers that it is one of, or those of a Ray cluster.

    Parameters
    ----------
    engine:
        A name of ``ENGINES``.
    workers:
        How many there must be; by default as many as were started, and with ray one.
    machines:
        For tests: treat the workers as if they ran on machines with that many each.
    deadline_s:
        How long to wait for another worker that does not get on, and for the resources of a Ray cluster; by default
        ``DEADLINE_S`` and ``ROOM_S``.
    address, cpus_per_worker, calls, max_failures, least, trust_network:
        As for ``distbp.engine.ray.RayEngine``.

    Raises
    ------
    InputError
        Where the engine does not exist, is not installed or not to be reached, or the workers were not started.
    """
    engine = choose(engine, address)
    if engine == "ray":
        return RayEngine(
            workers or 1,
            machines,
            deadline_s or DEADLINE_S,
            deadline_s or ROOM_S,
            address,
            cpus_per_worker,
            calls,
            max_failures,
            least,
            trust_network=trust_network,
        )
    group = MpiGroup(machines, deadline_s or DEADLINE_S) if engine == "mpi" else LocalGroup()
    if least is not None and least != workers:
        given = f"{least}:{workers} with the engine {engine}"
        raise InputError("the engine ray, which can begin with fewer workers", given, "give one number", "--workers")
    if workers is not None and workers != group.n_workers:
        given = f"{group.n_workers} started by the engine {engine}"
        raise InputError(
            counted(workers, "worker"), given, f"start them with: mpirun -n {workers} python SCRIPT", "workers"
        )
    return group


__all__ = ["CALLS", "DEADLINE_S", "ENGINES", "choose", "connect"]
