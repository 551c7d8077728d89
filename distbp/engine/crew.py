"""The actors that do one job on a Ray cluster, and the driver's side of their work.

The driver reserves resources, machine by machine, and starts an actor on each. Then it hands out steps in turns. A turn
is one execution of a compiled graph with a node an actor: it lets the actors go on and brings back what they report.
Actors of one machine meet in the arena, so that a turn there is a small message for many steps; between machines the
graph has edges too, which carry partials and new weights, and a turn is one round of them. Plain actor calls do the
same, more slowly.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from distbp.engine.actor import RayWorker, versions
from distbp.engine.carriers import Carrier, Graph, PlainCalls
from distbp.engine.group import GUARDED
from distbp.engine.messages import pack, pack_job, pack_rows, unpack_checkpoint, unpack_ending, unpack_result
from distbp.errors import DifferenceError, DistbpError, InputError, LostError, StoppedError, TrainingError
from distbp.train import Training, Watcher
from distbp.train.exchange import Job
from distbp.train.pace import GROW, Brake
from distbp.train.state import State
from distbp.wording import counted

T = TypeVar("T")

_BURST_S = 0.1  # how long actors of one machine go on before they report
_LARGEST_BURST = 4096  # steps
_DEPTH = 2  # turns under way where driver and actors share a machine: the next is there when an actor has done one
_START_DEADLINES = 10  # an actor may take that many to start
_PING_S = 5.0
_ROOM_S = 3.0  # how long to wait for room for all before fewer will do
_LOOK_S = 2.0  # how often to look whether there is room for more, and whether Ray lives
_END_S = 5.0
_PAUSE_S = 5.0  # before actors that did not start are started again, and twice as long each time


class WorkerLostError(TrainingError):
    """Actors died or do not answer; ``state`` is what could be saved."""

    state: State | None = None
    who = ""


@dataclass(frozen=True)
class Terms:
    """What was asked for: as for ``distbp.engine.ray.RayEngine``."""

    machines: tuple[int, ...] | None
    deadline_s: float
    room_s: float
    cpus_per_worker: float
    calls: str

    def free(self, ray: Any) -> int:
        """Return for how many workers the cluster has room, as far as it knows."""
        return int(ray.available_resources().get("CPU", 0.0) // self.cpus_per_worker)


@dataclass(frozen=True)
class Member:
    """An actor, the bundle of resources that it has, the node where that is, and what the actor says of itself."""

    actor: Any
    bundle: int
    node: str
    hello: dict[str, Any]

    @property
    def machine(self) -> tuple[str, str]:
        """What those share that share an arena."""
        return self.node, self.hello["identity"]


class Crew:
    """Actors on reserved resources; on exit nothing of them stays.

    Where some are lost, the others go on in their stead, and new ones are started meanwhile (``mend``).

    Parameters
    ----------
    brake:
        Stops training when it is pulled.
    can_grow:
        Whether training should stop to go on with more workers, given how many there are.
    workers:
        How many compute.
    has_server:
        Whether a parameter server is wanted beside the workers.
    least:
        How many will do, if there is no room for all.
    is_anew:
        Whether these stand in for others; what goes wrong at their start is a loss, too.
    environment:
        Variables that the actors are started with.
    has_died:
        Whether the Ray that was started for this process is no more.

    Raises
    ------
    InputError
        Where the cluster has no room for them, or runs other versions of what they need.
    """

    def __init__(
        self,
        ray: Any,
        terms: Terms,
        brake: Brake,
        can_grow: Callable[[int], bool],
        workers: int,
        has_server: bool,
        *,
        least: int | None = None,
        is_anew: bool = False,
        environment: Mapping[str, str] | None = None,
        has_died: Callable[[], bool] = lambda: False,
    ) -> None:
        self.has_died = has_died
        self.least, self.is_anew = workers if least is None else least, is_anew
        self.ray, self.terms, self.brake, self.can_grow = ray, terms, brake, can_grow
        self.workers, self.has_server, self.environment = workers, has_server, dict(environment or {})
        self.n_actors = workers + has_server
        self.actors: list[Any] = []
        self.ends: list[Any] = []  # of the job, one of each actor
        self.group: Any = None
        self.namespace, self.numbers = f"distbp-{uuid.uuid4().hex[:8]}", itertools.count()
        self.members: list[Member] = []
        self.vacant: list[int] = []  # the bundles of those that were lost
        self.recruits: list[tuple[Any, int, Any]] = []  # actors that start there, bundles, calls that they will answer
        self.arrived: list[Member] = []  # those who did
        self.recruits_from, self.pause_s = 0.0, _PAUSE_S
        self.carrier: Carrier | None = None
        self.lost: list[int] = []
        self.is_growing = False  # whether the job is to stop and go on with more workers
        self.is_orphan = False  # whether the raylet of this process has died: what it asks of Ray now ends it
        self.step, self.told = -1, ""  # what all have done; what others say of those who are lost

    def __enter__(self) -> Crew:
        try:
            self._reserve()
            self._start()
        except BaseException:
            self.__exit__(Exception, None, None)
            raise
        return self

    @property
    def can_rest(self) -> bool:
        """Whether the actors can stay for another job, once they have ended theirs."""
        return self.carrier is None and not self.lost and not self.is_orphan

    @property
    def is_short(self) -> bool:
        """Whether some of its bundles have no actor that works."""
        return bool(self.vacant or self.recruits or self.arrived)

    def renew(self) -> bool:
        """Return whether the actors are ready for another job."""
        self.step, self.told, self.is_growing = -1, "", False
        if self.ends and self.ray.wait(self.ends, num_returns=len(self.ends), timeout=self.terms.deadline_s)[1]:
            return False  # somebody is still at work
        calls = [actor.renew.remote() for actor in self.actors]  # after the turns that are under way
        try:
            self.ray.get(calls, timeout=self.terms.deadline_s)
        except self.ray.exceptions.RayError:
            return False
        return True

    def _reserve(self) -> None:
        """Reserve resources for all or, where there is no room, for fewer."""
        while True:
            bundles = [{"CPU": self.terms.cpus_per_worker}] * self.n_actors
            self.group = self.ray.util.placement_group(bundles, strategy="PACK")
            may_shrink = self.workers > self.least
            if self.group.wait(min(_ROOM_S, self.terms.room_s) if may_shrink else self.terms.room_s):
                return
            if not may_shrink:
                raise self._no_room()
            self.ray.util.remove_placement_group(self.group)
            self.workers = max(self.least, min(self.workers - 1, self.terms.free(self.ray) - self.has_server))
            self.n_actors = self.workers + self.has_server

    def _no_room(self) -> InputError:
        ray, cpus = self.ray, self.terms.cpus_per_worker
        free, total = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
        machines = counted(sum(node["Alive"] for node in ray.nodes()), "machine")
        all_cpus = counted(self.n_actors * cpus, "CPU")
        return InputError(
            f"room for {counted(self.n_actors, 'actor')} of {counted(cpus, 'CPU')} each, {all_cpus} in all",
            f"{free:g} free of {counted(total, 'CPU')} on {machines}, within {self.terms.room_s:g} s",
            "use fewer --workers or --cpus-per-worker, add machines, or wait longer with --deadline",
            "Ray cluster",
        )

    def mend(self, least: int) -> bool:
        """Return whether those that are left, with those that have come since others were lost, are enough to go on.

        They are then ready for ``renew``.
        """
        has_lost_server = self.has_server and self.n_actors - 1 in self.lost
        is_spread = self.carrier is not None or len({member.node for member in self.members}) > 1
        if is_spread or has_lost_server or self.is_orphan:  # a machine may be lost, and its bundles with it
            return False
        self._look_for_recruits()
        kept = [worker for worker in range(self.n_actors) if worker not in self.lost]
        if not (self.lost or self.arrived) or len(kept) - self.has_server + len(self.arrived) < least:
            return False
        calls = [self.actors[worker].abandon.options(concurrency_group="ping").remote() for worker in kept]
        try:
            self.ray.get(calls, timeout=self.terms.deadline_s)
        except self.ray.exceptions.RayError:
            return False
        for worker in self.lost:
            self.ray.kill(self.actors[worker])
            self.vacant.append(self.members[worker].bundle)
        self.ends = [self.ends[worker] for worker in kept]
        members = [self.members[worker] for worker in kept]
        at = len(members) - self.has_server
        self._take_in(members[:at] + self.arrived + members[at:])
        self.lost, self.arrived = [], []
        return True

    def _recruit(self) -> bool:
        """Start actors for those that were lost, where that was not done; return whether more have come, and all."""
        if self.vacant and not self.recruits and time.monotonic() >= self.recruits_from:
            self.recruits = [(actor := self._actor(bundle), bundle, self._hello(actor)) for bundle in self.vacant]
            self.vacant = []
        self._look_for_recruits()
        return bool(self.arrived) and not self.recruits

    def _look_for_recruits(self) -> None:
        """Sort those recruits that have come, or have not managed to, from those that still start."""
        for recruit in list(self.recruits):
            actor, bundle, call = recruit
            if not self.ray.wait([call], timeout=0)[0]:
                continue
            self.recruits.remove(recruit)
            try:
                self.arrived.append(Member(actor, bundle, self.nodes[bundle], json.loads(self.ray.get(call))))
            except self.ray.exceptions.RayError:
                self.ray.kill(actor)
                self.vacant.append(bundle)
                self.recruits_from = time.monotonic() + self.pause_s
                self.pause_s *= 2

    def _take_in(self, members: list[Member]) -> None:
        """Number ``members`` so that those of one machine are neighbours, the parameter server last."""
        machines = [member.machine for member in members]
        of_server = machines[-1] if self.has_server else None
        order = sorted(dict.fromkeys(machines), key=lambda machine: machine == of_server)
        at = sorted(range(len(members)), key=lambda i: order.index(machines[i]))  # keeps the order within a machine
        self.members = [members[i] for i in at]
        self.actors = [member.actor for member in self.members]
        self.n_actors = len(members)
        self.workers = self.n_actors - self.has_server
        self.names = [f"{w} (machine {m.hello['host']}, process {m.hello['pid']})" for w, m in enumerate(self.members)]
        if self.terms.machines is None or sum(self.terms.machines) != self.workers:
            self.machines = [machines.count(machine) for machine in order]
        else:
            self.machines = list(self.terms.machines)
            self.machines[-1] += self.has_server

    def _start(self) -> None:
        """Start the actors."""
        self.nodes: dict[int, str] = self.ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        own_node = self.ray.get_runtime_context().get_node_id()
        self.is_at_home = set(self.nodes.values()) == {own_node} and self.terms.machines is None
        self.actors = [self._actor(bundle) for bundle in range(self.n_actors)]
        self._take_in([Member(self.actors[b], b, self.nodes[b], hello) for b, hello in enumerate(self._hellos())])
        own = versions()
        for name, member in zip(self.names, self.members, strict=True):
            for package, version in own.items():
                if member.hello["versions"][package] != version:
                    given = f"{member.hello['versions'][package]} on worker {name}"
                    raise InputError(f"{package} {version}, as here", given, "install the same there", "Ray cluster")

    def _actor(self, bundle: int) -> Any:
        """Start an actor on this bundle of resources."""
        groups = {"run": 1, "ping": 1, "watch": 1, "push": self.workers}
        cls = self.ray.remote(concurrency_groups=groups)(RayWorker)
        is_server = self.has_server and not self.members and bundle == self.n_actors - 1
        options = {
            "name": "distbp parameter server" if is_server else f"distbp worker {next(self.numbers)}",
            "namespace": self.namespace,
            "num_cpus": self.terms.cpus_per_worker,
            "scheduling_strategy": self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                self.group, bundle
            ),
        }
        if self.environment:
            options["runtime_env"] = {"env_vars": self.environment}
        return cls.options(**options).remote()

    @staticmethod
    def _hello(actor: Any) -> Any:
        return actor.hello.options(concurrency_group="ping").remote()

    def _hellos(self) -> list[dict[str, Any]]:
        """Return what the actors say of themselves; once one has started, the others must soon."""
        calls = [self._hello(actor) for actor in self.actors]
        self.names = [str(worker) for worker in range(self.n_actors)]
        started, _ = self.ray.wait(calls, timeout=self.terms.deadline_s * _START_DEADLINES)
        try:
            return [json.loads(text) for text in self.ray.get(calls, timeout=self.terms.deadline_s * bool(started))]
        except self.ray.exceptions.RayError as error:
            if self.is_anew:
                raise self._lost(error) from None
            if isinstance(error, self.ray.exceptions.GetTimeoutError):
                given = "at least one that does not answer"
                raise InputError("actors that start", given, "see the logs of the Ray cluster", "Ray cluster") from None
            lines = [line.strip() for line in str(error).split("\n") if "Error" in line] or [str(error)]
            remedy = "install the same Python packages on all machines, distbp among them, and give all the same token"
            if self.environment:
                remedy += "; with `bits: portable`, leave out those whose processors have no AVX2 and FMA"
            raise InputError("actors that start", lines[-1], remedy, "Ray cluster") from None

    def perform(self, job: Job[T], watcher: Watcher | None, begins: Callable[[], None] = lambda: None) -> T:
        """Do ``job``; return its result. ``begins`` is called when training begins, before ``watcher`` is told."""
        listener = Listener(watcher, begins)
        try:
            return self._perform(job, listener)
        except WorkerLostError as error:
            error.state = self.rescued() or listener.kept
            done = self.step
            if error.state is not None and error.state.ledger is not None:  # the server counts the steps
                done = error.state.step
            when = "before the first step" if done < 0 else f"after step {done}"
            error.who = f"{error.who} {when}" + (f" ({self.told})" if self.told else "")
            raise
        except StoppedError as stopped:
            stopped.state = listener.kept
            raise
        finally:
            listener.close()

    def rescued(self) -> State | None:
        """Return the newest state that any actor has a whole copy of."""
        calls = [
            a.rescue.options(concurrency_group="ping").remote() for w, a in enumerate(self.actors) if w not in self.lost
        ]
        done, _ = self.ray.wait(calls, num_returns=len(calls), timeout=_PING_S) if calls else ([], [])
        states = []
        for call in done:
            with suppress(self.ray.exceptions.RayError):
                told, content = self.ray.get(call)
                self.told = self.told or told
                if content:
                    states.append(unpack_checkpoint(content)[0])
        return max(states, key=lambda state: state.moment, default=None)

    def _perform(self, job: Job[Any], listener: Listener) -> Any:
        put = self.ray.put
        rows = [b""] * self.n_actors
        if isinstance(job, Training) and job.dataset is not None:
            dataset = job.rows()
            rows = [put(pack_rows(dataset, job.recipe, w, self.workers)) for w in range(self.n_actors)]
        content = put(pack_job(job))
        server = self.actors[-1] if self.has_server else None
        self.ends = [
            actor.run.options(concurrency_group="run").remote(content, self._member(worker), rows[worker], server)
            for worker, actor in enumerate(self.actors)
        ]
        is_guarded = not isinstance(job, Training) or job.recipe.is_synchronous
        self.patience_s = self.terms.deadline_s * (GUARDED if is_guarded else 1)
        with self.brake.manned(isinstance(job, Training) and job.protection is not None):
            self._drive(listener)
        return unpack_result(self._end(0).partition(b"\n")[2])

    def _member(self, worker: int) -> bytes:
        """Return what ``worker`` has to know of the crew."""
        return pack(
            {
                "worker": worker,
                "machines": self.machines,
                "has_server": self.has_server,
                "names": self.names,
                "deadline_s": self.terms.deadline_s,
            }
        )

    def _drive(self, listener: Listener) -> None:
        """Hand out turns until all actors have done the job."""
        carrier: Carrier = PlainCalls(self.ray, self.actors)
        until, burst, since = 1, 1, time.perf_counter()
        answers: dict[str, Any] = {}
        n_turns, looked = 0, since
        while True:
            if time.perf_counter() - looked > _LOOK_S:
                looked = time.perf_counter()
                if self.has_died():  # training would go on for a while, and then end without a word
                    raise self._lost(None)
                can_grow = self._recruit() if self.is_short else self.can_grow(self.workers)
                self.is_growing = self.brake.is_manned and can_grow
            brake = self.brake.signal or (GROW if self.is_growing else 0)
            orders = {"until": until, "brake": brake, "forget": carrier.is_nameless}
            carrier.submit(json.dumps(answers | orders).encode())
            if carrier.is_behind:
                continue
            reports = self._reports(carrier)
            n_turns += 1
            for actor, report in zip(self.actors, reports, strict=True):
                listener.hear(report["events"], partial(self._checkpoint, actor))
            kinds = {report["kind"] for report in reports}
            if "end" in kinds:
                for worker, report in enumerate(reports):
                    if report["kind"] == "end":
                        self._end(worker)
                if kinds == {"end"}:
                    return
            answers = {}
            asked = {report["number"] for report in reports if report["kind"] == "texts"}
            if kinds == {"texts"} and len(asked) == 1:
                answers = {"number": asked.pop(), "texts": [report["text"] for report in reports]}
            if kinds == {"until"} and isinstance(carrier, PlainCalls) and self.wants_graph:
                carrier = self.carrier = self._graph(carrier, [report["peers"] for report in reports], n_turns)
            done = min(report["step"] for report in reports)
            if done > self.step:
                now = time.perf_counter()
                seconds = (now - since) / (done - self.step)
                burst = max(1, min(_LARGEST_BURST, 8 * burst, round(_BURST_S / seconds)))
                self.step, since = done, now
            until = max(until, self.step + 1 + _DEPTH * burst)

    def _checkpoint(self, actor: Any, number: int) -> bytes:
        """Return the checkpoint that ``actor`` reported."""
        try:
            call = actor.checkpoint.options(concurrency_group="ping").remote(number)
            content: bytes = self.ray.get(call, timeout=self.terms.deadline_s)
        except self.ray.exceptions.RayError as error:
            raise self._lost(error) from None
        return content

    @property
    def wants_graph(self) -> bool:
        """Whether turns go through a compiled graph: within a machine a plain call for many steps costs no more."""
        return self.terms.calls == "graph" or (self.terms.calls == "auto" and len(self.machines) > 1)

    def _graph(self, plain: Carrier, peers: list[list[int]], n_turns: int) -> Carrier:
        """Return the compiled graph, or ``plain`` where it is not to be had and was not insisted on."""
        depth = _DEPTH if self.is_at_home else 1  # channels between machines do not queue
        made: list[Carrier] = []
        errors: list[Exception] = []

        def compile_it() -> None:
            try:
                made.append(Graph(self.ray, self.actors, peers, n_turns, depth))
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=compile_it, daemon=True)  # an actor that is stopped holds it up for ever
        thread.start()
        thread.join(self.terms.deadline_s * _START_DEADLINES)
        if made:
            return made[0]
        if not errors:
            raise self._lost(None)
        if self.terms.calls == "graph":
            given = f"{type(errors[0]).__name__}: {errors[0]}".split("\n")[0]
            raise InputError("a Ray that compiles graphs", given, "use --calls auto", "engine ray")
        return plain

    def _reports(self, carrier: Carrier) -> list[dict[str, Any]]:
        """Return what the actors report of the oldest turn under way."""
        try:
            reports = carrier.reports(self.patience_s)
        except self.ray.exceptions.RayError as error:
            raise self._lost(error) from None
        if reports is None:
            raise self._lost(None)
        return reports

    def _end(self, worker: int) -> bytes:
        """Return what ``worker`` ended with; raise where that is an error."""
        try:
            end: bytes = self.ray.get(self.ends[worker], timeout=self.terms.deadline_s)
        except self.ray.exceptions.RayError as error:
            raise self._lost(error) from None
        header = json.loads(end.split(b"\n", 1)[0])
        if header.get("is_difference"):
            raise DifferenceError(header["lost"])
        if "lost" in header:
            raise self._lost(LostError(header["lost"]))
        if "error" in header:
            raise unpack_ending(end)
        if "traceback" in header:
            raise TrainingError(
                f"expected worker {self.names[worker]} to go on; it raised an exception after step {header['step']}, "
                f"and the run ended; correct its cause:\n{header['traceback'].rstrip()}"
            )
        return end

    def _lost(self, error: Exception | None) -> DistbpError:
        """Return the error that says which worker does not answer any more; ``error`` is what Ray said of it."""
        self.is_orphan = self.has_died()
        if self.is_orphan:
            return _ray_died("the Ray of this run")
        pings = [self._hello(actor) for actor in self.actors]
        answered = set(self.ray.wait(pings, num_returns=len(pings), timeout=_PING_S)[0])
        lost, who = [], []
        for worker, (name, ping) in enumerate(zip(self.names, pings, strict=True)):
            self.lost.append(worker)
            who.append(name)
            if ping not in answered:
                lost.append(f"{name} is stopped, or its machine cut off")
                continue
            try:
                self.ray.get(ping)
                self.lost.pop()
                who.pop()
            except self.ray.exceptions.RayError as reason:
                self.is_orphan = self.is_orphan or "its owner has died" in str(reason)
                cause = [line.strip() for line in str(reason).split("\n") if line.strip()][-1]
                lost.append(f"{name} has died ({cause.split(' Some common causes')[0]})")
        if self.is_orphan:
            return _ray_died("the Ray node that this process is connected to")
        if not lost:
            lost = [f"some: {error or 'no report'}".split("\n")[0]]
        error_of_all = WorkerLostError(
            f"expected every worker to answer within {self.terms.deadline_s:g} s; worker {'; worker '.join(lost)}; "
            "see its machine and the logs of the Ray cluster, or allow more with --deadline"
        )
        error_of_all.who = f"worker {', worker '.join(who) or '(some)'} lost"
        return error_of_all

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.is_orphan:
            return
        for worker, actor in enumerate(self.actors):
            if worker in self.lost:  # who is stopped would hold up the others
                self.ray.kill(actor)
            elif kind is not None:
                actor.abandon.options(concurrency_group="ping").remote()
        if self.carrier is not None:
            self.carrier.tear_down()
        if self.actors:  # those that end by themselves clear away their channels
            ends = [actor.__ray_terminate__.remote() for actor in self.actors]
            self.ray.wait(ends, num_returns=len(ends), timeout=_END_S)
        for actor in [*self.actors, *(actor for actor, *_ in self.recruits), *(m.actor for m in self.arrived)]:
            self.ray.kill(actor)
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)


def _ray_died(what: str) -> TrainingError:
    return TrainingError(f"expected {what} to live; it has died, and the actors with it; see its logs")


class Listener:
    """Tells a watcher what the worker reports that is told how training goes."""

    def __init__(self, watcher: Watcher | None, begins: Callable[[], None]) -> None:
        self.watcher, self.begins = watcher, begins
        self.is_on = False
        self.kept: State | None = None  # the newest checkpoint

    def hear(self, events: list[list[Any]], checkpoint: Callable[[int], bytes]) -> None:
        """Pass on ``events``; ``checkpoint`` returns the one with a number."""
        if self.watcher is None:
            return
        for kind, *values in events:
            if kind == "begin":
                self.is_on = True
                self.begins()
                self.watcher.begin(*values)
            elif kind == "steps":
                for step in range(values[0], values[1] + 1):
                    self.watcher.step(step)
            elif kind == "epoch":
                self.watcher.epoch(*values)
            elif kind == "recovered":
                self.watcher.recovered(*values)
            elif kind == "checkpoint":
                state, recipe, is_best = unpack_checkpoint(checkpoint(*values))
                if not is_best:
                    self.kept = state
                self.watcher.checkpoint(state, recipe, is_best=is_best)
            else:
                self.close()

    def close(self) -> None:
        """Say that training is over, if it began."""
        if self.watcher is not None and self.is_on:
            self.is_on = False
            self.watcher.end()
