"""The engine ``ray``: worker actors on a Ray cluster, directed by this process; the only place that imports Ray."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, TypeVar

from distbp.engine.crew import Crew, WorkerLostError
from distbp.errors import DistbpError, InputError
from distbp.train import Engine, Outcome, Training, Watcher
from distbp.train.exchange import Job
from distbp.train.pace import Protection

T = TypeVar("T")

CALLS = ("auto", "graph", "plain")
"""Compiled graphs where they are to be had; compiled graphs; plain actor calls. The bits are the same."""

INSTALL = "install it with: pip install 'distbp[ray]'"


def import_ray() -> Any:
    """Return the module ``ray``; raise InputError where it is missing."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # there are no accelerators to hide
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    has_token = "RAY_AUTH_TOKEN" in os.environ or token.exists()
    if has_token and "ray" not in sys.modules:  # show it, as Ray's own commands do; Ray reads the mode but once
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
        import ray.dag
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError("Ray", f"{error}", INSTALL, "engine ray") from None
    return ray


def is_in_cluster() -> bool:
    """Return whether the environment names a Ray cluster, as it does in its jobs."""
    return bool(os.environ.get("RAY_ADDRESS"))


class RayEngine(Engine):
    """Worker actors, made anew for each job.

    Parameters
    ----------
    workers:
        How many.
    machines:
        For tests: treat the actors as if they ran on machines with that many each.
    deadline_s:
        How long to wait for the resources of the cluster, and for a worker.
    address:
        HOST:PORT of a cluster; by default RAY_ADDRESS, else the one that runs on this machine, else one of its own.
    cpus_per_worker:
        CPUs that Ray sets aside for each.
    calls:
        A name of ``CALLS``.
    max_failures:
        How often training goes on with new actors after some were lost.

    Raises
    ------
    InputError
        Where Ray is missing, or nothing answers at the address, or it runs other versions.
    """

    name = "ray"
    worker = 0

    def __init__(
        self,
        workers: int,
        machines: tuple[int, ...] | None,
        deadline_s: float,
        address: str | None,
        cpus_per_worker: float,
        calls: str,
        max_failures: int,
    ) -> None:
        self.max_failures = max_failures
        super().__init__()
        if calls not in CALLS:
            raise InputError(f"one of: {', '.join(CALLS)}", repr(calls), "choose one of these", "--calls")
        self.workers, self.machines, self.deadline_s = workers, machines, deadline_s
        self.cpus_per_worker, self.calls = cpus_per_worker, calls
        self.ray = import_ray()
        logging.getLogger("ray.dag").setLevel(logging.CRITICAL)  # what goes wrong there is raised as well
        self.started_it = _join_or_start(self.ray, address or os.environ.get("RAY_ADDRESS"), workers, cpus_per_worker)
        if threading.current_thread() is threading.main_thread():  # Ray's own handler writes a stack trace
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

    @property
    def n_workers(self) -> int:
        return self.workers

    def first_error(self, error: DistbpError | None) -> DistbpError | None:
        return error

    def finish(self, error: DistbpError | None) -> int:
        return 0 if error is None else error.exit_status

    def close(self) -> None:
        if self.started_it:
            self.ray.shutdown()

    def perform(self, job: Job[T], watcher: Watcher | None = None) -> T:
        try:
            if isinstance(job, Training) and job.is_protected:
                outcome: Any = self._train(job, watcher)
                return outcome
            with Crew(self, self.workers, isinstance(job, Training) and job.recipe.wants_server) as crew:
                return crew.perform(job, watcher)
        except DistbpError as error:
            error.agreed = True
            raise

    def _train(self, job: Training, watcher: Watcher | None) -> Outcome:
        """Train; where actors are lost, go on with new ones from what the others could save."""
        workers, said, n_failures = self.workers, "", 0
        while True:
            try:
                with Crew(self, workers, job.recipe.wants_server, is_anew=n_failures > 0) as crew:
                    if n_failures and watcher:
                        step, history = (job.state.step, job.state.history) if job.state else (0, [])
                        watcher.recovered(said, step, history, crew.workers)
                    return crew.perform(job, watcher)
            except WorkerLostError as lost:
                n_failures += 1
                if n_failures > self.max_failures:
                    raise
                said = lost.who
                protection = dataclasses.replace(job.protection or Protection(), fault=None)
                job = dataclasses.replace(job, state=lost.state or job.state, protection=protection)


def _join_or_start(ray: Any, address: str | None, workers: int, cpus_per_worker: float) -> bool:
    """Connect this process to a cluster; return whether it was started for this."""
    if ray.is_initialized():
        return False
    options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    address = address or _running_here()
    if address is None:
        n_cpus = max(os.cpu_count() or 1, int((workers + 1) * cpus_per_worker + 1))
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, **options)
        return True
    _require_answer(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        given = f"{address}: {_first_line(error.__cause__ or error)}"
        remedy = "use the same Python and Ray as the cluster, and its token (RAY_AUTH_MODE=token) where it wants one"
        raise InputError("a Ray cluster that takes this process in", given, remedy, "--address") from None
    return False


def _running_here() -> str | None:
    """Return the address of the Ray that was started last on this machine, if it still answers."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - as Ray has it
    file = Path(folder) / "ray" / "ray_current_cluster"
    try:
        address = file.read_text().strip()
        _try(address, timeout_s=2)
    except (OSError, ValueError):
        return None
    return address


def _require_answer(address: str) -> None:
    """Raise InputError where nothing answers at ``address``: Ray would try for a minute and then end the process."""
    _, colon, port = address.rpartition(":")
    if "://" in address or not (colon and port.isdigit()):
        remedy = "give the address of the head, or send the command into the cluster with `ray job submit`"
        raise InputError("HOST:PORT of a Ray cluster, such as 10.0.0.1:6379", repr(address), remedy, "--address")
    try:
        _try(address, timeout_s=10)
    except OSError as error:
        given = f"{address}, where nothing answers ({error})"
        remedy = "start one with `ray start --head`, or check the address"
        raise InputError("the address of a running Ray cluster", given, remedy, "--address") from None


def _try(address: str, timeout_s: float) -> None:
    """Raise OSError where nothing answers at ``address``, and ValueError where it has no port."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=timeout_s).close()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
