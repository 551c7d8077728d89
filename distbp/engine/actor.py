"""A worker as an actor: a process in which a job runs in one thread, while others carry its messages.

The job is the same program that MPI ranks run. Wherever it needs others, it asks and waits; ``turn`` hands it the
answer and returns what it asks next. Imports no Ray: any caller of these methods will do.
"""

from __future__ import annotations

import json
import math
import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distbp.engine.arena import AbandonedError, Arena
from distbp.engine.group import MachineGroup, machine_identity
from distbp.engine.machines import Link, MachineExchange, Messages
from distbp.engine.messages import pack, pack_checkpoint, pack_ending, pack_result, unpack, unpack_job
from distbp.engine.push_pull import ActorPushPull, Desk
from distbp.errors import DifferenceError, DistbpError, LostError
from distbp.nn import Layout
from distbp.train import Exchange
from distbp.train.exchange import PushPull, Watcher
from distbp.train.pace import Brake
from distbp.train.phases import Phases
from distbp.train.plan import Plan
from distbp.train.recipe import Recipe
from distbp.train.state import State
from distbp.version import __version__

_PAUSE_S = 0.5  # a turn takes no longer than this, so that its caller hears of trouble elsewhere
_PAUSE_BETWEEN_MACHINES_S = 0.1  # there, others may need the next turn to go on
_START = bytes(64)  # of every message between workers; what follows is aligned
_NOTHING = b"."  # Ray's channels between machines hang on an empty message
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_ABANDONED = object()
_BEAT_S = 0.05
_NEVER = 1 << 62


def versions() -> dict[str, str]:
    """Return the versions of what must be the same in the driver and in all workers."""
    packages = {"ray": metadata.version("ray"), "numpy": np.__version__, "distbp": __version__}
    return {"Python": platform.python_version()} | packages


def forget_semaphores() -> None:
    """Remove the names of the semaphores that this process uses, those of Ray's channels.

    Once all that use them have opened them, they need no names; so nothing stays behind, whatever is killed.
    """
    fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = {int(field[4]) for field in fields if field[-1].startswith(str(_SHARED_MEMORY))}
    for path in _SHARED_MEMORY.glob("sem.*"):
        with suppress(FileNotFoundError):
            if path.stat().st_ino in mapped:
                path.unlink()


class RayWorker:
    """One worker process. Its methods are called by the driver: ``run`` for a job, the others while that goes on."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Be ready for a job, as if there had been none before."""
        self.asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.request: dict[str, Any] | None = None  # what the job waits for
        self.group: ActorGroup | None = None
        self.recorder = Recorder()
        self.brake = Brake()
        self.desk = Desk()
        self.step, self.loss = -1, ""
        self.n_texts = 0
        self.n_turns, self.turned = 0, threading.Condition()
        self.pause_s = _PAUSE_S
        self.is_nameless = False
        self.round: Round | None = None
        self.arena: Arena | None = None
        self.inbox: dict[int, list[bytes]] = {}  # of each peer, in ascending order

    def hello(self) -> str:
        """Return where this is and what it runs on, as JSON."""
        return json.dumps(
            {"identity": machine_identity(), "host": platform.node(), "pid": os.getpid(), "versions": versions()}
        )

    def run(self, job: bytes, crew: bytes, rows: bytes, server: Any = None) -> bytes:
        """Do ``job`` as the worker that ``crew`` says, with ``rows``; return the result of worker 0, or an error.

        ``server`` is the actor of the parameter server, for those that push to it.
        """
        self.group = group = ActorGroup(self, server, **unpack(crew)[0])
        try:
            result = group.perform(unpack_job(job, rows), self.recorder)
            end = pack({}) + (pack_result(result) if group.worker == 0 else b"")
        except DistbpError as error:
            end = pack_ending(error)
        except LostError as lost:  # the driver finds out who died, and says so
            self.loss = str(lost)
            end = pack({"lost": self.loss, "is_difference": isinstance(lost, DifferenceError)})
        except Exception:
            end = pack({"traceback": traceback.format_exc(), "step": self.step})
        except AbandonedError:
            end = pack({})
        self.asked.put({"kind": "end"})
        return end

    def abandon(self) -> None:
        """Have the job end, since the run is over elsewhere."""
        if self.arena is not None:
            self.arena.is_abandoned = True
        self.answers.put(_ABANDONED)
        self.desk.abandon()

    def push(self, worker: int, report: bytes) -> bytes:
        """Take what ``worker`` pushes; return the parameter server's answer, once it has one."""
        return self.desk.push(worker, report)

    def turn(self, command: bytes) -> bytes:
        """Answer what the job waits for; return, as JSON, what it asks next.

        ``command`` is JSON: the step to go on ``until``, once all have asked for them the ``texts`` of all, the signal
        that pulled the ``brake``, and whether to ``forget`` the names of semaphores.
        The report says the ``kind`` of request: texts, until, round, end, or busy where the job asks for nothing soon.
        """
        answers = json.loads(command)
        if answers.get("forget") and not self.is_nameless:
            forget_semaphores()
            self.is_nameless = True
        if answers.get("brake"):
            self.brake.pull(answers["brake"])
        kind = None if self.request is None else self.request["kind"]
        if kind == "texts" and answers.get("number") == self.request["number"]:  # type: ignore[index]
            self._answer(answers["texts"])
        elif kind == "until" and answers["until"] > self.step + 1:
            self._answer(answers["until"])
        if self.request is None:
            with suppress(queue.Empty):
                self.request = self.asked.get(timeout=self.pause_s)
        with self.turned:
            self.n_turns += 1
            self.turned.notify_all()
        report = {"kind": "busy"} if self.request is None else self.request
        return json.dumps(
            report | {"events": self.recorder.take(), "step": self.step, "peers": list(self.inbox)}
        ).encode()

    def checkpoint(self, number: int) -> bytes:
        """Return the checkpoint that was reported under ``number``."""
        return self.recorder.checkpoints.pop(number)

    def rescue(self) -> tuple[str, bytes]:
        """Return what this worker knows of the loss, and the newest state that this machine has a whole copy of."""
        run = None if self.group is None else self.group.run
        state = run and run.rescued()
        return self.loss, pack_checkpoint(state, run.recipe, is_best=False) if run and state else b""

    def has_turned(self, n_turns: int) -> None:
        """Return when ``turn`` has done its work that often."""
        with self.turned:
            self.turned.wait_for(lambda: self.n_turns >= n_turns)

    def outgoing(self) -> tuple[bytes, ...] | bytes:
        """Return the messages of this round to each of the peers; nothing where there is none, or it was sent."""
        messages = (_NOTHING,) * len(self.inbox)
        if self._is_in_round() and not self.round.is_sent:  # type: ignore[union-attr]
            messages = self.round.messages(list(self.inbox))  # type: ignore[union-attr]
        return messages if len(messages) > 1 else messages[0]

    def incoming(self, *messages: bytes) -> bytes:
        """Take messages from each of the peers; once all of the round are there, the job goes on."""
        for queued, message in zip(self.inbox.values(), messages, strict=True):
            if message != _NOTHING:
                queued.append(message)
        if self._is_in_round() and all(self.inbox.values()):
            self.round.fill({peer: queued.pop(0) for peer, queued in self.inbox.items()})  # type: ignore[union-attr]
            self._answer(None)
        return _NOTHING

    def turn_and_outgoing(self, command: bytes) -> tuple[bytes, ...]:
        """Do both, as one node of a graph."""
        report, messages = self.turn(command), self.outgoing()
        return (report, *messages) if isinstance(messages, tuple) else (report, messages)

    def _is_in_round(self) -> bool:
        return self.request is not None and self.request["kind"] == "round"

    def _answer(self, answer: Any) -> None:
        self.request = None
        self.answers.put(answer)

    def ask(self, kind: str, timeout_s: float = math.inf, **content: Any) -> Any:
        """Let the job wait for the answer to a request; called by the job. Raises queue.Empty after ``timeout_s``."""
        self.asked.put({"kind": kind} | content)
        until = time.monotonic() + timeout_s
        while True:
            try:
                answer = self.answers.get(timeout=max(0.0, min(_BEAT_S, until - time.monotonic())))
                break
            except queue.Empty:
                if time.monotonic() >= until:
                    raise
            if self.arena is not None:
                self.arena.pulse.beat[0] += 1  # who waits is not stuck
        if answer is _ABANDONED:
            raise AbandonedError
        return answer


class Round:
    """What the job sends to its peers and receives from them in one round; each sends each other one message."""

    def __init__(self, sends: Messages, receives: Messages) -> None:
        self.sends, self.receives = sends, receives
        self.is_sent = False

    def messages(self, peers: list[int]) -> tuple[bytes, ...]:
        """Return what goes to each of ``peers``."""
        self.is_sent = True
        parts: dict[int, list[Any]] = {peer: [_START] for peer in peers}
        for to, array in self.sends:
            parts[to].append(array.data)
        return tuple(b"".join(own) for own in parts.values())

    def fill(self, messages: dict[int, bytes]) -> None:
        """Fill the arrays that are received from what came from each peer."""
        places = dict.fromkeys(messages, len(_START))
        for source, array in self.receives:
            values = np.frombuffer(messages[source], array.dtype, array.size, places[source])
            array[...] = values.reshape(array.shape)
            places[source] += array.nbytes


class Recorder(Watcher):
    """A watcher whose driver hears everything with the next report; told by the job, asked by another thread."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []
        self.checkpoints: dict[int, bytes] = {}
        self.n_checkpoints = 0
        self.best: tuple[State, Recipe] | None = None
        self.lock = threading.Lock()

    def begin(self, n_steps: int, n_epochs: int) -> None:
        self._add("begin", n_steps, n_epochs)

    def step(self, step: int) -> None:
        with self.lock:
            if self.events and self.events[-1][0] == "steps":
                self.events[-1][2] = step
            else:
                self.events.append(["steps", step, step])

    def epoch(self, record: dict[str, Any]) -> None:
        self._add("epoch", record)

    def checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        if is_best:  # goes with the next one
            self.best = (state, recipe)
            return
        self._add_best()
        self._add_checkpoint(state, recipe, is_best=False)

    def recovered(self, lost: str, step: int, history: list[dict[str, Any]], n_workers: int) -> None:
        self._add("recovered", lost, step, history, n_workers)

    def _add_best(self) -> None:
        if self.best is not None:
            self._add_checkpoint(*self.best, is_best=True)
            self.best = None

    def _add_checkpoint(self, state: State, recipe: Recipe, *, is_best: bool) -> None:
        self.n_checkpoints += 1
        self.checkpoints[self.n_checkpoints] = pack_checkpoint(state, recipe, is_best=is_best)
        self._add("checkpoint", self.n_checkpoints)

    def end(self) -> None:
        if self.n_checkpoints:
            self._add_best()
        self._add("end")

    def _add(self, *event: Any) -> None:
        with self.lock:
            self.events.append(list(event))

    def take(self) -> list[list[Any]]:
        """Return what happened since the last call."""
        with self.lock:
            taken, self.events = self.events, []
        return taken


class ActorGroup(MachineGroup):
    """The actors of a run, as one of them sees it."""

    name = "ray"
    can_recover = True

    def __init__(
        self,
        actor: RayWorker,
        server: Any,
        worker: int,
        machines: list[int],
        has_server: bool,
        names: list[str],
        deadline_s: float,
    ) -> None:
        self.server, self.brake = server, actor.brake
        self.actor, self.worker, self.machines, self.has_server = actor, worker, tuple(machines), has_server
        self.names, self.deadline_s = dict(enumerate(names)), deadline_s

    def allgather_text(self, text: str) -> list[str]:
        self.actor.n_texts += 1
        texts: list[str] = self.actor.ask("texts", number=self.actor.n_texts, text=text)
        return texts

    def link(self) -> Link:
        return ActorLink(self)

    def exchange(self, plan: Plan, layout: Layout, phases: Phases, copied: Sequence[str] = ()) -> Exchange:
        exchange = super().exchange(plan, layout, phases, copied)
        assert isinstance(exchange, MachineExchange)
        self.actor.arena = exchange.arena
        self.actor.inbox = {peer: [] for peer in exchange.peers}
        if len(self.machines) > 1:  # who has no peers asks for nothing while others are in a round
            self.actor.pause_s = _PAUSE_BETWEEN_MACHINES_S if exchange.peers else 0.0
        return exchange

    def recover(self, moments: Collection[int], lost: LostError) -> tuple[int, LostError]:
        raise lost  # the driver makes new actors

    def push_pull(self, exchange: Exchange) -> PushPull:
        assert isinstance(exchange, MachineExchange)
        return ActorPushPull(self, exchange, self.actor.desk, self._push)

    def _push(self, worker: int, report: bytes) -> bytes:
        """Call the parameter server's actor."""
        try:
            answer: bytes = self.server.push.options(concurrency_group="push").remote(worker, report).future().result()
        except Exception:  # the server has died: the driver finds that out, and says so
            raise AbandonedError from None
        return answer

    def finish(self, error: DistbpError | None) -> int:
        return 0 if error is None else error.exit_status


class ActorLink(Link):
    """Messages that the driver's calls carry."""

    def __init__(self, group: ActorGroup) -> None:
        self.group, self.actor = group, group.actor
        self.until = 0  # go on without asking before this step

    def round(self, sends: Messages, receives: Messages, what: str, patience: float = 1.0) -> None:
        if not self.actor.inbox:
            return
        self.actor.round = Round(sends, receives)
        deadline_s = self.group.patience_s(patience * self.group.deadline_s)
        try:
            self.actor.ask("round", deadline_s)
        except queue.Empty:
            late = ", ".join(self.group.names[peer] for peer, queued in self.actor.inbox.items() if not queued)
            raise LostError(f"{what} from worker {late} did not come within {deadline_s:g} s") from None

    def step_done(self, step: int) -> None:
        self.actor.step = step
        if step + 1 >= self.until:
            self.until = self.actor.ask("until")
            if len(self.group.machines) > 1:  # there, each step takes the driver's turns
                self.until = _NEVER
