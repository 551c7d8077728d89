"""The engine ``mpi``: one worker for each MPI rank; the only place that imports mpi4py.

mpi4py's buffer calls only: no object is pickled.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from distbp.engine.group import MachineGroup, machine_identity
from distbp.engine.guard import LATE
from distbp.engine.machines import Link, Messages
from distbp.engine.mpirun import INSTALL, STATUS_VARIABLE, is_launched
from distbp.engine.surroundings import prepare_surroundings
from distbp.engine.waiting import wait_until
from distbp.errors import DifferenceError, DistbpError, InputError, LostError, TrainingError
from distbp.wording import counted

_START_DEADLINES = 60  # before training, workers read data: they may take that many deadlines
_SPINS = 200
_NOBODYS = memoryview(bytearray(8)).cast("q")  # beats that nobody counts
_ULFM_VARIABLE = "OMPI_MCA_mpi_ft_enable"  # set by mpirun --with-ft ulfm


def import_mpi(*, initialize: bool = True) -> Any:
    """Return mpi4py.MPI; raise InputError where it or the MPI library is missing.

    A launcher is no rank: it does not ``initialize`` MPI, which would leave shared memory of its own behind.
    """
    prepare_surroundings()
    session = os.environ.get("PMIX_SERVER_TMPDIR")
    if session is not None:  # Open MPI's own shared files: in the folder that mpirun removes, not in /dev/shm
        os.environ.setdefault("OMPI_MCA_btl_sm_backing_directory", session)
    elif (
        initialize and not is_launched()
    ):  # one rank without mpirun shares nothing, and Open MPI would leave its file behind
        os.environ.setdefault("OMPI_MCA_btl", "self")
    try:
        import mpi4py

        mpi4py.rc.initialize = initialize
        from mpi4py import MPI
    except ImportError as error:
        raise InputError("mpi4py and an MPI library", f"{error}".split("\n")[0], INSTALL, "engine mpi") from None
    return MPI


class MpiGroup(MachineGroup):
    """All ranks of MPI_COMM_WORLD, numbered so that those of one machine are neighbours.

    Parameters
    ----------
    machines:
        For tests: treat the ranks as if they ran on machines with that many workers each.
    deadline_s:
        How long to wait for another worker.
    """

    name = "mpi"
    no_recovery = "the others can go on only under mpirun --with-ft ulfm; start it so"
    """Where ranks of this MPI cannot go on without one that dies: what to do about it."""

    def __init__(self, machines: tuple[int, ...] | None, deadline_s: float) -> None:
        super().__init__()
        self.MPI = MPI = import_mpi()
        self.deadline_s = deadline_s
        self.status: int | None = None  # to exit with, once a rank was lost
        self.failures = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
        self.has_ulfm = os.environ.get(_ULFM_VARIABLE) == "1"
        if not MPI.Get_library_version().startswith("Open MPI v5"):
            self.no_recovery = "the others can go on only with Open MPI 5; install openmpi in place of this MPI"
            self.never_recovers = True
        self.comm = MPI.COMM_WORLD
        self.worker = self.comm.Get_rank()
        self.host = MPI.Get_processor_name()
        sys.excepthook = self._end_all
        self.names = {}
        self.identity, n_ranks = machine_identity(), self.comm.Get_size()
        if machines is not None:
            if sum(machines) != n_ranks or min(machines) < 1:
                given = "+".join(map(str, machines))
                raise InputError(
                    f"machines of {counted(n_ranks, 'worker')} in all", given, "let them add up", "machines"
                )
            self.identity = [str(m) for m, n in enumerate(machines) for _ in range(n)][self.worker]
        self._number()
        _forget_segments()

    def _number(self) -> None:
        """Number the ranks of ``comm`` so that those of one machine are neighbours."""
        self.worker = self.comm.Get_rank()
        identities = self.allgather_text(self.identity)
        names = list(dict.fromkeys(identities))
        self.machines = tuple(identities.count(name) for name in names)
        order = sorted(range(len(identities)), key=lambda rank: names.index(identities[rank]))
        if order != list(range(len(order))):
            with self.losses("at the start"):
                self.comm = self.comm.Split(0, order.index(self.worker))
            self.worker = self.comm.Get_rank()
        hosts = self.allgather_text(f"{self.host}, process {os.getpid()}")
        self.names = {worker: f"{worker} (machine {host})" for worker, host in enumerate(hosts)}

    @property
    def can_recover(self) -> bool:  # type: ignore[override]
        return self.has_ulfm and self.n_workers > 1

    def recover(self, moments: Collection[int], lost: LostError) -> tuple[int, LostError]:
        if self.arena is not None:
            self.arena.break_off()
            self.arena.deaths.close()
        if self.status is None:
            self.status = 0
            atexit.register(self._leave)
        while True:
            self.comm.Revoke()
            with self._patiently():
                self.comm = self.comm.Shrink()
            with suppress(LostError):  # another one, meanwhile
                self._number()
                rank = 2 * isinstance(lost, DifferenceError) + lost.knows_who
                given = [json.loads(t) for t in self.allgather_text(json.dumps([sorted(moments), rank, str(lost)]))]
                if self.arena is not None:
                    self.arena.pulse.dismiss()
                _, rank, said = max(given, key=lambda own: own[1])
                agreed = DifferenceError(said) if rank > 1 else LostError(said)
                return max(set.intersection(*(set(own[0]) for own in given)), default=0), agreed

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        """Let the guard see that this worker gets on, in a call that waits for all who live."""
        if self.arena is None:
            yield
            return
        with self.arena.pulse.kept_going(_START_DEADLINES * self.deadline_s):
            yield

    def _leave(self) -> None:
        """End this process without MPI_Finalize, which has been seen to hang after the loss of several ranks."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status or 0)

    def conclude(self, act: Callable[[], None]) -> None:
        while True:
            try:
                return super().conclude(act)
            except LostError as lost:
                if not self.has_ulfm:
                    raise TrainingError(f"expected all workers to go on; {lost}, and {self.no_recovery}") from None
                self.recover((), lost)

    @contextmanager
    def losses(self, what: str) -> Iterator[None]:
        """Raise LostError where MPI says that a process has failed, missed where ``what`` says."""
        try:
            yield
        except self.MPI.Exception as error:
            if not self._is_loss(error):
                raise
            failed = self.comm.Get_failed()
            ranks = self.MPI.Group.Translate_ranks(failed, range(failed.Get_size()), self.comm.Get_group())
            names = ", worker ".join(self.names.get(rank, str(rank)) for rank in ranks)
            lost = f"worker {names} died, missed" if names else "others have lost a worker, said"
            raise LostError(f"{lost} {what}", knows_who=bool(names)) from None

    def _is_loss(self, error: Exception) -> bool:
        kind = error.Get_error_class()  # type: ignore[attr-defined]
        if kind == self.MPI.ERR_IN_STATUS:  # of one of several requests
            return self.has_ulfm and bool(self.comm.Is_revoked() or self.comm.Get_failed().Get_size())
        return kind in self.failures

    def allgather_text(self, text: str) -> list[str]:
        """Return the texts of all workers."""
        with self.losses("between two steps"):
            return self._allgather_text(text)

    def _allgather_text(self, text: str) -> list[str]:
        data = np.frombuffer(text.encode(), np.uint8)
        sizes = np.empty(self.comm.Get_size(), np.int64)
        what, deadline_s = "the other workers at the start", self.deadline_s * _START_DEADLINES
        self.wait([self.comm.Iallgather(np.array([data.size], np.int64), sizes)], what, deadline_s)
        joined = np.empty(int(sizes.sum()), np.uint8)
        self.wait([self.comm.Iallgatherv(data, (joined, sizes.tolist()))], what, deadline_s)
        ends = np.cumsum(sizes)
        return [joined[end - size : end].tobytes().decode() for end, size in zip(ends, sizes, strict=True)]

    def wait(self, requests: list[Any], what: str, deadline_s: float | None = None) -> None:
        """Return when all MPI ``requests`` are done; raise TrainingError at the deadline."""
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        try:
            self._wait(requests, what, deadline_s)
        except self.MPI.Exception as error:
            if self._is_loss(error):  # the buffers of the others are in use until these are done, too
                self.comm.Revoke()
                for request in requests:
                    with suppress(self.MPI.Exception):
                        request.Wait()
            raise

    def _wait(self, requests: list[Any], what: str, deadline_s: float) -> None:
        for _ in range(_SPINS):
            if self.MPI.Request.Testall(requests):
                return
        beat = _NOBODYS if self.arena is None else self.arena.pulse.beat
        if not wait_until(lambda: self.MPI.Request.Testall(requests), deadline_s, beat):
            raise TrainingError(
                f"expected {what}; worker {self.worker} on {self.host} got nothing within {deadline_s:g} s; see "
                "whether a worker is stopped or a machine cut off, or allow more with --deadline"
            )

    def link(self) -> Link:
        return MpiLink(self)

    def finish(self, error: DistbpError | None) -> int:
        # Under ``launch`` the status goes through a file: mpirun would comment on it, and loses it where a rank died.
        status = 0 if error is None else error.exit_status
        file = os.environ.get(STATUS_VARIABLE)

        def leave() -> None:
            if file is not None:
                Path(file).write_text(str(status))

        self.conclude(leave)  # worker 0 has written its message
        given = status if file is None else 0
        if self.status is not None:
            self.status = given
        return given

    def _end_all(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """End all ranks when an exception ends this one, after its traceback; stands in for sys.excepthook."""
        if getattr(error, "agreed", False):
            if self.worker == 0:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.stderr.flush()
            self.allgather_text("said")
            return
        if isinstance(error, DistbpError):
            lines = [f"{type(error).__name__}: {error}\n"]
        else:
            lines = traceback.format_exception(kind, error, trace)
        sys.stderr.write(f"worker {self.worker} on {self.host} ends the run:\n{''.join(lines)}")
        sys.stderr.flush()
        time.sleep(0.2)  # let the launcher pass it on
        self.MPI.COMM_WORLD.Abort(error.exit_status if isinstance(error, DistbpError) else 1)


def _forget_segments() -> None:
    """Remove the names of MPICH's shared memory, which all have opened by now: nothing of it stays behind then."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        file = Path(line.rpartition(" ")[2])
        if file.name.startswith("mpich_shm_"):
            file.unlink(missing_ok=True)


class MpiLink(Link):
    """Messages by MPI, which keeps those between two ranks in order."""

    def __init__(self, group: MpiGroup) -> None:
        self.group = group
        self.ended, self.longest_s = time.monotonic(), 0.0

    def round(self, sends: Messages, receives: Messages, what: str, patience: float = 1.0) -> None:
        comm = self.group.comm
        self.longest_s = max(self.longest_s, time.monotonic() - self.ended)  # what the others may take as well
        deadline_s = self.group.patience_s(max(patience * self.group.deadline_s, LATE * self.longest_s))
        with self.group.losses(f"in the exchange of {what}"):
            requests = [comm.Irecv(array, source) for source, array in receives]
            requests += [comm.Isend(array, to) for to, array in sends]
            self.group.wait(requests, what, deadline_s)
        self.ended = time.monotonic()

    def step_done(self, step: int) -> None:
        pass
