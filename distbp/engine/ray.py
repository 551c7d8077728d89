"""The engine ``ray``: worker actors on a Ray cluster, directed by this process; the only place that imports Ray."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import psutil

from distbp.engine.cluster import has_token, is_loopback, meant, protect_token, require_answer, require_form
from distbp.engine.crew import Crew, Terms, WorkerLostError
from distbp.engine.surroundings import prepare_surroundings
from distbp.errors import DifferenceError, DistbpError, InputError, StoppedError
from distbp.kernels import portable_environment
from distbp.train import Engine, Outcome, Training, Watcher
from distbp.train.exchange import Job
from distbp.train.pace import GROW
from distbp.train.state import State
from distbp.train.training import twice

T = TypeVar("T")

CALLS = ("auto", "graph", "plain")
"""Compiled graphs between machines, where they are to be had; compiled graphs; plain calls. The bits are the same."""

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
_GROW_PAUSE_S = 5.0  # at least so long from one growth to the next, and twice as long each time
_LONGEST_PAUSE_S = 30.0

_PARTS = ("raylet", "gcs_server")
"""The processes of a Ray without which it is none."""

_RESTING: WeakSet[RayEngine] = WeakSet()
"""Those of this process whose actors stay for the next job."""

INSTALL = "install it with: pip install 'distbp[ray]'"


def import_ray() -> Any:
    """Return the module ``ray``; raise InputError where it is missing."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # there are no accelerators to hide
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of calls whose results nobody asks for: we say it once
    prepare_surroundings()
    protect_token()
    if has_token() and "ray" not in sys.modules:  # show it, as Ray's own commands do; Ray reads the mode but once
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
        import ray.dag
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError("Ray", f"{error}", INSTALL, "engine ray") from None
    return ray


class RayEngine(Engine):
    """Worker actors, made anew for each job or, on one machine, held for the next one.

    Parameters
    ----------
    workers:
        How many.
    machines:
        For tests: treat the actors as if they ran on machines with that many each.
    deadline_s, room_s:
        How long to wait for a worker, and for the resources of the cluster.
    address:
        HOST:PORT of a cluster, ``auto`` for the one that runs on this machine, ``local`` for one of its own; by default
        RAY_ADDRESS, else the one that runs on this machine, else one of its own.
    cpus_per_worker:
        CPUs that Ray sets aside for each.
    calls:
        A name of ``CALLS``.
    max_failures:
        How often training goes on with new actors after some were lost.
    least:
        How many workers will do while there is no room for more; by default ``workers``.
    trust_network:
        Whether to join a cluster on a network without a token.

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
        room_s: float,
        address: str | None,
        cpus_per_worker: float,
        calls: str,
        max_failures: int,
        least: int | None = None,
        *,
        trust_network: bool = False,
    ) -> None:
        super().__init__()
        self.max_failures, self.least = max_failures, least or workers
        self.grows_from, self.grow_pause_s = 0.0, _GROW_PAUSE_S
        self.idle: Crew | None = None
        if calls not in CALLS:
            raise InputError(f"one of: {', '.join(CALLS)}", repr(calls), "choose one of these", "--calls")
        self.workers = workers
        self.terms = Terms(machines, deadline_s, room_s, cpus_per_worker, calls)
        self.ray = import_ray()
        logging.getLogger("ray.dag").setLevel(logging.CRITICAL)  # what goes wrong there is raised as well
        self.started_it, self.parts = False, list[psutil.Process]()
        if not self.ray.is_initialized():
            address = meant(address or os.environ.get("RAY_ADDRESS"))
            if address is not None:
                _join(self.ray, address, trust_network)
            else:
                _start(self.ray, workers, cpus_per_worker)
                self.started_it = True
                self.parts = [p for p in psutil.Process().children() if p.name() in _PARTS]
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
        self.release()
        if self.started_it:
            self.ray.shutdown()

    def perform(self, job: Job[T], watcher: Watcher | None = None) -> T:
        try:
            if isinstance(job, Training) and job.protection is not None:
                outcome: Any = self._train(job, watcher)
                return outcome
            with self._crew(job, self.least) as crew:
                return crew.perform(job, watcher)
        except DistbpError as error:
            error.agreed = True
            raise

    def _train(self, job: Training, watcher: Watcher | None) -> Outcome:
        """Train; where actors are lost or there is room for more, go on from what the others saved."""
        losses: list[str] = []  # that the watcher has not heard of
        n_failures, n_in_vain, is_anew, is_repeated = 0, 0, False, False
        while True:
            assert job.protection is not None
            began, protection = time.monotonic(), job.protection
            least = self.fewest if is_anew else self.least
            may_mend = n_failures < self.max_failures
            try:
                with self._crew(job, least, is_anew=is_anew, may_mend=may_mend) as crew:
                    try:
                        return crew.perform(job, watcher, partial(_tell, watcher, losses, job.state, crew))
                    except StoppedError as stopped:
                        if stopped.signal != GROW:
                            raise
                        losses.append("there is room for more workers")
                        state = crew.rescued()
                    except DifferenceError as difference:
                        if is_repeated:
                            raise twice(difference) from None
                        losses.append(str(difference))
                        state, is_repeated = crew.rescued(), True
                        protection = protection.after_loss()
            except WorkerLostError as lost:
                n_failures += 1
                if n_failures > self.max_failures:
                    raise
                losses.append(lost.who)
                state = lost.state
                if state is not None:
                    n_in_vain = 0
                elif n_in_vain := n_in_vain + 1:
                    time.sleep(min(_LONGEST_PAUSE_S, 2.0 ** (n_in_vain - 2)) if n_in_vain > 1 else 0.0)
                protection = protection.after_loss()
            is_anew = True
            protection = protection.left_after(time.monotonic() - began)
            job = dataclasses.replace(job, state=state or job.state, protection=protection)

    @property
    def fewest(self) -> int:
        """With how many workers training goes on after a loss."""
        return 1 if self.least == self.workers else self.least

    @contextmanager
    def _crew(self, job: Job[Any], least: int, *, is_anew: bool = False, may_mend: bool = False) -> Iterator[Crew]:
        """Give the actors for ``job``: those that have stayed, or new ones."""
        recipe = job.recipe if isinstance(job, Training) else None
        has_server = recipe is not None and recipe.wants_server
        environment = portable_environment() if recipe is not None and recipe.bits == "portable" else {}
        crew = self._rested(has_server, environment)
        if crew is None:
            for other in list(_RESTING):  # their actors hold what these may need
                other.release()
            brake, n = self.brake, self.workers
            options: dict[str, Any] = {
                "least": least,
                "is_anew": is_anew,
                "environment": environment,
                "has_died": self._has_died,
            }
            crew = Crew(self.ray, self.terms, brake, self._can_grow, n, has_server, **options).__enter__()
        error: BaseException | None = None
        try:
            yield crew
        except BaseException as raised:
            error = raised
            raise
        finally:
            is_whole = crew.can_rest and crew.workers == self.workers
            rests = self.n_holders and is_whole and (error is None or isinstance(error, StoppedError))
            goes_on = may_mend and (crew.is_growing or isinstance(error, WorkerLostError))
            if rests or (goes_on and crew.mend(self.fewest)):
                self.idle = crew
                _RESTING.add(self)
            else:
                crew.__exit__(None if error is None else type(error), error, None)

    def _rested(self, has_server: bool, environment: dict[str, str]) -> Crew | None:
        """Return the actors that have stayed, if they fit and are well; else let them go."""
        crew = self.idle
        if crew is None:
            return None
        if (crew.has_server, crew.environment) == (has_server, environment) and crew.renew():
            self.idle = None
            return crew
        self.release()
        return None

    def release(self) -> None:
        crew, self.idle = self.idle, None
        if crew is not None and self.ray.is_initialized():
            crew.__exit__(None, None, None)

    def _has_died(self) -> bool:
        """Return whether a part of the Ray that this process started is no more."""
        return not all(part.is_running() and part.status() != psutil.STATUS_ZOMBIE for part in self.parts)

    def _can_grow(self, n_workers: int) -> bool:
        """Return whether there is room for more than ``n_workers``; after each time, not so soon again."""
        now = time.monotonic()
        if n_workers >= self.workers or now < self.grows_from or not self.terms.free(self.ray):
            return False
        self.grow_pause_s *= 2
        self.grows_from = now + self.grow_pause_s
        return True


def _tell(watcher: Watcher | None, losses: list[str], state: State | None, crew: Crew) -> None:
    """Tell ``watcher`` of the ``losses`` after which ``crew`` goes on from ``state``."""
    if losses and watcher is not None:
        step, history = (state.step, state.history) if state else (0, [])
        watcher.recovered("; ".join(losses), step, history, crew.workers)
    losses.clear()


def _start(ray: Any, workers: int, cpus_per_worker: float) -> None:
    """Start a Ray for this process alone, which listens where only processes of this machine reach it."""
    if not has_token():  # Ray would write one into the home folder, which may be read-only
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    n_cpus = max(os.cpu_count() or 1, int((workers + 1) * cpus_per_worker + 1))
    with _on_loopback():
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, **_QUIET)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that is started inside take the loopback address for that of this machine.

    That is what Ray does where it makes no clusters, as on Windows; its option for an address changes a loopback one
    into that of a network.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, is_enabled = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_enabled
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _join(ray: Any, address: str, trust_network: bool) -> None:
    """Connect this process to the cluster at ``address``."""
    require_form(address)
    if not (trust_network or os.environ.get("RAY_AUTH_MODE") == "token" or is_loopback(address)):
        raise InputError(
            "token authentication in a cluster that is reached over a network (RAY_AUTH_MODE=token)",
            f"{address}, without it",
            "start the cluster with a token (ray get-auth-token --generate), or say --trust-network, which risks that "
            "whoever reaches the cluster can execute code on its machines and on this one",
            "--address",
        )
    require_answer(address)
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        given = f"{address}: {_first_line(error.__cause__ or error)}"
        remedy = "use the same Python and Ray as the cluster, and its token (RAY_AUTH_MODE=token) where it wants one"
        raise InputError("a Ray cluster that takes this process in", given, remedy, "--address") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
