"""Pushes of worker actors to the parameter server's, and what they pull.

Within a machine, reports and answers are lines in pipes, and the arena carries the rest: the gradient stays where the
worker wrote it, and the weights are put in its place. Between machines a push is a call of the server's actor, which
carries both.
"""

from __future__ import annotations

import json
import os
import queue
import select
from collections.abc import Callable
from typing import Any

import numpy as np

from distbp.engine.arena import AbandonedError, attach
from distbp.engine.group import MachineGroup
from distbp.engine.machines import MachineExchange
from distbp.engine.messages import pack, unpack
from distbp.errors import LostError
from distbp.train.exchange import PushPull

_READ_BYTES = 1 << 16
_GONE = b"gone\n"  # instead of a report or an answer, where the run is over elsewhere


class Mailbox:
    """A pipe into which processes of this machine write lines; its owner reads them.

    Like the arena it has no name, and nothing of it can stay behind. Lines of several writers do not mix as long as
    they are shorter than PIPE_BUF, 4096 bytes.
    """

    def __init__(self) -> None:
        self.reader, self.slot = os.pipe()
        self.text = b""
        self.poll = select.poll()
        self.poll.register(self.reader, select.POLLIN)

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """Return the next line, or None where none comes within ``timeout_s``."""
        while b"\n" not in self.text:
            if not self.poll.poll(None if timeout_s is None else 1e3 * timeout_s):
                return None
            self.text += os.read(self.reader, _READ_BYTES)
        line, _, self.text = self.text.partition(b"\n")
        return line + b"\n"


def post(slot: int, line: bytes) -> None:
    """Write ``line`` into the mailbox with this ``slot``."""
    try:
        while line:
            line = line[os.write(slot, line) :]
    except BrokenPipeError:  # its owner has died: the driver finds that out, and says so
        raise AbandonedError from None


class Desk:
    """Where calls from other machines are taken, by threads of their own, and put before the job."""

    def __init__(self) -> None:
        self.mailbox: Mailbox | None = None
        self.gradients: dict[int, bytes] = {}
        self.answers: dict[int, queue.SimpleQueue[bytes]] = {}
        self.is_abandoned = False

    def push(self, worker: int, message: bytes) -> bytes:
        """Put ``message`` before the job; return its answer."""
        assert self.mailbox is not None
        report, newline, self.gradients[worker] = message.partition(b"\n")
        answer: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.answers[worker] = answer
        post(self.mailbox.slot, report + newline)
        return _GONE if self.is_abandoned else answer.get()

    def abandon(self) -> None:
        """Let nobody wait any more, neither the job nor a caller."""
        self.is_abandoned = True
        if self.mailbox is not None:
            post(self.mailbox.slot, _GONE)
        for answer in list(self.answers.values()):
            answer.put(_GONE)


class ActorPushPull(PushPull):
    """One actor's side.

    Parameters
    ----------
    desk:
        Of this actor.
    call:
        Calls ``push`` of the server's desk.
    """

    def __init__(
        self, group: MachineGroup, exchange: MachineExchange, desk: Desk, call: Callable[[int, bytes], bytes]
    ) -> None:
        self.group, self.worker, self.desk, self.call = group, group.worker, desk, call
        plan = exchange.plan
        self.server = plan.n_computing
        near = plan.workers(plan.machine(self.server))
        self.is_near = self.worker in near
        self.places = {w: vector for (w, node), vector in exchange.arena.partials.items() if node == plan.nodes(w)[0]}
        self.waiting: set[int] = set()  # for an answer
        self.mailbox = desk.mailbox = Mailbox()
        self.slots: dict[int, int] = {}
        doors = group.allgather_text(f"{os.getpid()} {self.mailbox.slot}")
        with group.agreement():  # nobody goes on before all mailboxes are open
            for worker in near if self.is_near else []:
                if (worker == self.server) != (self.worker == self.server):
                    pid, slot = doors[worker].split()
                    self.slots[worker] = attach(int(pid), int(slot))

    def push(self, report: dict[str, Any], gradient: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
        report = {"worker": self.worker} | report
        if self.is_near:
            post(self.slots[self.server], json.dumps(report).encode() + b"\n")
            answer = self.mailbox.receive()
        else:
            answer = self.call(self.worker, pack(report, {"gradient": gradient}))
        if answer is None or answer == _GONE:
            raise AbandonedError
        order, arrays = unpack(answer)
        np.copyto(weights, gradient if self.is_near else arrays["weights"])
        return order

    def receive(self, gradient: np.ndarray, patience: float) -> tuple[int, dict[str, Any]]:
        deadline_s = patience * self.group.deadline_s
        line = self.mailbox.receive(deadline_s)
        if line is None:
            late = "; worker ".join(self.group.names[w] for w in range(self.server) if w not in self.waiting)
            raise LostError(f"the parameter server got no push of worker {late} within {deadline_s:g} s")
        if line == _GONE:
            raise AbandonedError
        report = json.loads(line)
        worker = report.pop("worker")
        if worker in self.places:
            np.copyto(gradient, self.places[worker])
        else:
            np.copyto(gradient, unpack(b"{}\n" + self.desk.gradients.pop(worker))[1]["gradient"])
        self.waiting.add(worker)
        return worker, report

    def answer(self, worker: int, order: dict[str, Any], weights: np.ndarray) -> None:
        self.waiting.remove(worker)
        if worker in self.places:
            np.copyto(self.places[worker], weights)
            post(self.slots[worker], pack(order))
        else:
            self.desk.answers.pop(worker).put(pack(order, {"weights": weights}))
