"""What training needs from an engine: who is there, and how partials and weights get where they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import numpy as np

from distbp.errors import DistbpError, InputError, LostError
from distbp.nn import Layout
from distbp.train.pace import Brake
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.recipe import Recipe
from distbp.train.state import Copy, State
from distbp.train.tree import Node

T = TypeVar("T", covariant=True)


class Exchange(ABC):
    """One worker's side of the exchange of gradients and weights.

    Attributes
    ----------
    weights:
        The whole parameter vector (n_elements,), as this worker reads it.
    partials:
        For each node of ``plan.nodes(worker)`` the vector (n_elements,) that the worker writes its sum into.
    inputs:
        What this worker's slice is summed from, once ``gather`` has returned: the slice of each node.
    norms:
        The squared norms of all blocks (n_blocks,), float64; a coordinator writes those of its own.
    copies:
        Places for copies of the state.
    own_elements:
        The part of the weights that this worker copies, among those of its machine.
    compares:
        Whether ``complete`` compares what machines see of the weights.
    """

    plan: Plan
    worker: int
    phases: Phases
    weights: np.ndarray
    partials: list[np.ndarray]
    inputs: dict[Node, np.ndarray]
    norms: np.ndarray
    copies: list[Copy]
    own_elements: slice
    compares = True

    @abstractmethod
    def watch(self, is_on: bool) -> None:
        """Turn deadlines and the noticing of deaths on or off, to measure what they cost."""

    @abstractmethod
    def gather(self, step: int, notice: int) -> int:
        """Hand over the partials; return when those of this worker's slice have come.

        ``notice`` is what this worker tells the others (``distbp.train.pace``). Returns the highest notice of all, so
        that all do the same, before ``step`` is committed.
        """

    @abstractmethod
    def gather_norms(self, step: int) -> None:
        """Return when ``norms`` holds the norms of all blocks."""

    @abstractmethod
    def spread(self, step: int) -> None:
        """Hand over the new weights of this worker's slice; return when ``weights`` is new as a whole."""

    @abstractmethod
    def allgather(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of all shards (n_shards, k), given those of this worker's shards, in float64."""

    @abstractmethod
    def complete(self, copy: Copy) -> None:
        """Fill in what other machines hold of the state, once this worker has written its part into ``copy``.

        Raises
        ------
        DifferenceError
            Where the machines see different weights.
        """

    def busy(self) -> AbstractContextManager[None]:
        """Let others see that this worker gets on, in work that may last and says nothing of itself."""
        return nullcontext()

    def barrier(self) -> None:
        """Return when all workers have called this."""
        self.allgather(np.zeros((len(self.plan.shards(self.worker)), 1)))

    @property
    @abstractmethod
    def leads_machine(self) -> bool:
        """Whether this worker writes what the workers of its machine share, such as the initial weights."""

    @property
    @abstractmethod
    def shared_bytes(self) -> int:
        """The memory that the workers of this machine share."""


class PushPull(ABC):
    """The way between workers and a parameter server that does not wait for all of them."""

    @abstractmethod
    def push(self, report: dict[str, Any], gradient: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        """Hand ``report`` and ``gradient`` to the server; return its order, once ``weights`` holds what it sent."""

    @abstractmethod
    def receive(self, gradient: np.ndarray, patience: float) -> tuple[int, dict[str, Any]]:
        """Return the worker that pushed next and its report, once ``gradient`` holds what it sent.

        Raises
        ------
        LostError
            Where nobody pushes before the deadline, which is ``patience`` times as long as usual.
        """

    @abstractmethod
    def answer(self, worker: int, order: dict[str, Any], weights: np.ndarray) -> None:
        """Answer the push of ``worker``, by which it pulls ``weights``."""


class Engine(ABC):
    """What does the jobs of a program: the workers that this process is one of, or those that it directs.

    Attributes
    ----------
    brake:
        Asks the job that is being done to stop.
    """

    name: str
    worker: int
    """The number of this process among the workers; 0 where it directs them."""

    def __init__(self) -> None:
        self.brake = Brake()
        self.n_holders = 0

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """How many workers compute shards."""

    @abstractmethod
    def first_error(self, error: DistbpError | None) -> DistbpError | None:
        """Return the error of the first process that has one, the same on all that call this."""

    @abstractmethod
    def finish(self, error: DistbpError | None) -> int:
        """Return the status to exit with, after an ``error`` that all workers raise or none; all must call it."""

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Let all raise where one of them raises a DistbpError inside."""
        mine: DistbpError | None = None
        try:
            yield
        except DistbpError as error:
            mine = error
        first = self.first_error(mine)
        if first is not None:
            first.agreed = True
            raise first

    def first(self, text: str) -> str:
        """Return what the first process gives as ``text``."""
        return text

    def conclude(self, act: Callable[[], None]) -> None:
        """Let the first process ``act`` after a job; where it is lost before all know that, the next one does."""
        with self.agreement():
            if self.worker == 0:
                act()

    @abstractmethod
    def perform(self, job: Job[T], watcher: Watcher | None = None) -> T:
        """Do ``job`` on all workers; return what it gives, the same on all that call this."""

    def hold(self) -> None:
        """Keep what a job needs, such as worker processes, for the next job of one more holder, until it leaves."""
        self.n_holders += 1

    def leave(self) -> None:
        """Let go of what is kept, if that was the last one who wanted it."""
        self.n_holders -= 1
        if not self.n_holders:
            self.release()

    def release(self) -> None:  # noqa: B027
        """Let go of what is kept for the next job."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the engine holds."""


class Job(Protocol[T]):
    """Something that all workers do together."""

    def perform(self, group: Group, watcher: Watcher | None) -> T:
        """Do this worker's share; ``watcher`` is told how it goes, by one worker only."""


class Watcher:
    """Somebody who is told how training goes: a base class whose hooks do nothing."""

    def begin(self, n_steps: int, n_epochs: int) -> None:
        """Training starts; it will take that many steps and epochs, if it does not stop early."""

    def step(self, step: int) -> None:
        """``step`` (from 0) is done."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done; ``record`` is its line in metrics.jsonl."""

    def recovered(self, lost: str, step: int, history: list[dict[str, Any]], n_workers: int) -> None:
        """Training goes on with ``n_workers`` from ``step`` on, after the loss that ``lost`` tells of.

        ``history`` are the records of the epochs that are over.
        """

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        """Here is the state of a run of ``recipe``, to be kept; ``is_best``: with the best validation metric so far."""

    def end(self) -> None:
        """Training has ended, whether it reached its last step or not."""


_HOOKS = [name for name in vars(Watcher) if not name.startswith("_")]


def as_watcher(given: object) -> Watcher:
    """Return ``given`` as a Watcher: what is none, but has some of its hooks, is told of these alone.

    Raises
    ------
    InputError
        Where it has none of them.
    """
    if isinstance(given, type):
        name = given.__name__
        raise InputError("a watcher", f"the class {name}", f"give one of it: watcher={name}()", "watcher")
    if isinstance(given, Watcher):
        return given
    own = {name: getattr(given, name) for name in _HOOKS if callable(getattr(given, name, None))}
    if not own:
        expected = f"a Watcher, with one or more of: {', '.join(_HOOKS)}"
        raise InputError(expected, type(given).__name__, "derive its class from distbp.Watcher", "watcher")
    watcher = Watcher()
    watcher.__dict__.update(own)
    return watcher


@contextmanager
def watched(watcher: Watcher | None, n_steps: int, n_epochs: int) -> Iterator[None]:
    """Tell ``watcher``, if there is one, that training goes on inside."""
    if watcher is None:
        yield
        return
    watcher.begin(n_steps, n_epochs)
    try:
        yield
    finally:
        watcher.end()


class Rescuable(Protocol):
    """A run whose state another thread may ask for while it goes on."""

    recipe: Recipe

    def rescued(self) -> State | None:
        """Return the newest state that is whole, in memory of its own; None where there is none."""


class Group(Engine):
    """The workers of a run, of which this process is one.

    Attributes
    ----------
    machines:
        The number of workers on each machine, with the parameter server.
    has_server:
        Whether the last worker is a parameter server, which computes no shard.
    names:
        What each worker is called in messages.
    """

    machines: tuple[int, ...]
    names: dict[int, str]
    has_server = False
    can_recover = False
    """Whether the others can go on when a worker is lost."""
    no_recovery = "the others cannot go on without it"
    """Why not, for a message."""
    never_recovers = False
    """Whether what carries its messages cannot go on without one of them, however it is started."""
    run: Rescuable | None = None
    """The run that is being done."""

    @property
    def n_workers(self) -> int:
        return sum(self.machines) - self.has_server

    @abstractmethod
    def allgather_text(self, text: str) -> list[str]:
        """Return the texts of all workers."""

    @abstractmethod
    def private_bytes(self) -> int:
        """Return the memory that only this worker uses."""

    @abstractmethod
    def exchange(self, plan: Plan, layout: Layout, phases: Phases, copied: Sequence[str] = ()) -> Exchange:
        """Return this worker's exchange, with places for copies of the vectors that ``copied`` names.

        Raises
        ------
        InputError
            Where there is no room for it.
        """

    def recover(self, moments: Collection[int], lost: LostError) -> tuple[int, LostError]:
        """Leave out the workers that are lost.

        Returns
        -------
        The highest of ``moments`` that all of those left have given, and the loss as the one of them saw it who knows
        most: both the same on all. Where somebody else brings about the recovery, ``lost`` is raised again.
        """
        raise NotImplementedError

    def push_pull(self, exchange: Exchange) -> PushPull:
        """Return the way to the parameter server; only for groups that have one."""
        raise NotImplementedError

    def perform(self, job: Job[T], watcher: Watcher | None = None) -> T:
        return job.perform(self, watcher)

    def close(self) -> None:
        pass
