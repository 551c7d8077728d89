"""What carries turns from the driver to its actors and back: a compiled graph, or plain calls.

A turn lets all actors go on and brings back what they report. Where they are on several machines, it is also one round
of messages between them, which go from actor to actor.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from distbp.engine.actor import forget_semaphores

_LOOK_S = 0.05  # how often to look whether an actor has died while others are at work


class Carrier(ABC):
    """What carries turns to the actors and back."""

    is_nameless = False
    """Whether all that use its semaphores have opened them."""

    @property
    @abstractmethod
    def is_behind(self) -> bool:
        """Whether another turn should be submitted before the reports of the oldest are asked for."""

    @abstractmethod
    def submit(self, command: bytes) -> None:
        """Start a turn."""

    @abstractmethod
    def reports(self, timeout_s: float) -> list[dict[str, Any]] | None:
        """Return what all actors report of the oldest turn, or None where they have not within ``timeout_s``."""

    @abstractmethod
    def tear_down(self) -> None:
        """End it."""


class PlainCalls(Carrier):
    """A call of each actor a turn and, where there is a round, two more, whose results go from actor to actor."""

    is_behind = False

    def __init__(self, ray: Any, actors: Sequence[Any]) -> None:
        self.ray, self.actors = ray, actors

    def submit(self, command: bytes) -> None:
        self.calls = [actor.turn.remote(command) for actor in self.actors]

    def reports(self, timeout_s: float) -> list[dict[str, Any]] | None:
        until = time.monotonic() + timeout_s
        while (ready := self._ready(until))[1]:
            self.ray.get(ready[0])  # ends here if one of them has died, whatever the others are at
            if time.monotonic() >= until:
                return None
        reports = [json.loads(report) for report in self.ray.get(self.calls)]
        if any(report["kind"] == "round" for report in reports):
            peers = [report["peers"] for report in reports]
            sent: dict[tuple[int, int], Any] = {}
            for worker, actor in enumerate(self.actors):
                if peers[worker]:
                    messages = actor.outgoing.options(num_returns=len(peers[worker])).remote()
                    messages = messages if isinstance(messages, list) else [messages]
                    sent |= {(worker, peer): message for peer, message in zip(peers[worker], messages, strict=True)}
            for worker, actor in enumerate(self.actors):
                if peers[worker]:
                    actor.incoming.remote(*(sent[peer, worker] for peer in peers[worker]))
        return reports

    def _ready(self, until: float) -> tuple[list[Any], list[Any]]:
        """Wait a moment, at most ``until``; return the calls that have been answered, and those that have not."""
        timeout_s = max(0.0, min(_LOOK_S, until - time.monotonic()))
        ready, late = self.ray.wait(self.calls, num_returns=len(self.calls), timeout=timeout_s)
        return ready, late

    def tear_down(self) -> None:
        pass


class Graph(Carrier):
    """A compiled graph: a node for each actor and, where it has peers on other machines, one that takes in messages.

    Parameters
    ----------
    peers:
        Of each actor, the workers that it exchanges messages with.
    n_turns:
        How many turns the actors have done.
    depth:
        How many may be under way at once.
    """

    def __init__(self, ray: Any, actors: Sequence[Any], peers: list[list[int]], n_turns: int, depth: int) -> None:
        with ray.dag.InputNode() as command:
            outputs, taken = [], []
            sent: dict[tuple[int, int], Any] = {}
            for worker, actor in enumerate(actors):
                if not peers[worker]:
                    outputs.append(actor.turn.bind(command))
                    continue
                node = actor.turn_and_outgoing.options(num_returns=1 + len(peers[worker])).bind(command)
                outputs.append(node[0])
                sent |= {(worker, peer): node[i] for i, peer in enumerate(peers[worker], 1)}
            for worker, actor in enumerate(actors):
                if peers[worker]:
                    taken.append(actor.incoming.bind(*(sent[peer, worker] for peer in peers[worker])))
            root = ray.dag.MultiOutputNode(outputs + taken)
        self.ray, self.actors, self.n_turns = ray, actors, n_turns
        self.depth = depth
        self.graph = root.experimental_compile(_max_inflight_executions=self.depth)
        self.under_way: deque[Any] = deque()

    @property
    def is_behind(self) -> bool:
        return len(self.under_way) < self.depth

    def submit(self, command: bytes) -> None:
        self.under_way.append(self.graph.execute(command))

    def reports(self, timeout_s: float) -> list[dict[str, Any]] | None:
        # Reading from a channel spins until something is there. So a plain call sleeps until the turn is over.
        turned = self.actors[0].has_turned.options(concurrency_group="watch").remote(self.n_turns + 1)
        if not self.ray.wait([turned], timeout=timeout_s)[0]:
            return None
        self.ray.get(turned)
        try:
            values = self.ray.get(self.under_way.popleft(), timeout=timeout_s)
        except self.ray.exceptions.GetTimeoutError:
            return None
        self.n_turns += 1
        if not self.is_nameless:
            forget_semaphores()
            self.is_nameless = True
        return [json.loads(report) for report in values[: len(self.actors)]]

    def tear_down(self) -> None:
        self.graph.teardown()
        self.under_way.clear()
