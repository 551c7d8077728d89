"""Starting mpirun, and what a process can know of having been started by it. Imports no MPI."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from distbp.engine.loopback import kept_on_loopback
from distbp.errors import InputError
from distbp.train.pace import stopping_signals

INSTALL = "install it with: pip install 'distbp[mpi]'"
_LAUNCHERS: dict[str, str | None] = {
    "OMPI_COMM_WORLD_RANK": None,
    "MV2_COMM_WORLD_RANK": None,
    "PMI_RANK": "PMI_FD",
    "PMIX_RANK": "PMIX_SERVER_TMPDIR",
}
"""Where launchers tell a rank its number, each with the variable that names the way to the launcher: a process without
it has found the variables of others in its environment, as of Slurm."""
STATUS_VARIABLE = "DISTBP_STATUS_FILE"
"""Names the file in which worker 0 leaves the exit status, since mpirun would comment on it."""
_TERMINAL_VARIABLE = "DISTBP_TERMINAL"
_HERE = {f"{program}_MCA_{part}": "^slurm,pbs,tm" for program in ("PRTE", "OMPI") for part in ("ras", "plm")}
_HERE |= {"OMPI_MCA_btl": "self,sm"}
"""Tells Open MPI to stay on this machine, whatever a batch system has set aside, and its ranks to use no network."""
_PR_SET_PDEATHSIG = 1
_ALL_LOST = 3  # no rank has come to the end, whatever mpirun says


def is_launched() -> bool:
    """Return whether this process was started by an MPI launcher."""
    return bool(_ranks())


def has_joined() -> bool:
    """Return whether this process has joined the other ranks, which the engine ends where this one fails."""
    return is_launched() and "mpi4py.MPI" in sys.modules


def is_first_rank() -> bool:
    """Return whether this process is rank 0, as far as its environment says, or no rank at all."""
    return _ranks() <= {"0"}


def _ranks() -> set[str]:
    """Return the rank of this process, as launchers that are there have told it."""
    return {os.environ[name] for name, way in _LAUNCHERS.items() if name in os.environ and _is_there(way)}


def _is_there(way: str | None) -> bool:
    """Return whether the variable ``way`` names a socket that this process has, or a folder."""
    if way is None:
        return True
    value = os.environ.get(way, "-")
    try:
        return stat.S_ISSOCK(os.fstat(int(value)).st_mode) if value.isdigit() else Path(value).is_dir()
    except OSError:
        return False


def has_terminal() -> bool:
    """Return whether a terminal shows what ranks write: only ``launch`` knows, as mpirun stands between."""
    return _TERMINAL_VARIABLE in os.environ


def launch(
    command: list[str], n_workers: int, blas_threads: int, when_lost: Callable[[bool], None], variables: dict[str, str]
) -> int:
    """Run ``command`` under mpirun with ``n_workers`` ranks on this machine, and these environment ``variables``.

    Returns the exit status.

    Where no rank came to an end that it could tell of, ``when_lost`` is called, and told whether ranks of this MPI can
    go on without one that died.

    The ranks end with this process. The first signal that asks it to stop is handed on to them as SIGUSR1, since mpirun
    leaves them no time after others; the next one ends mpirun, and with it the ranks.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None:
        raise InputError("mpirun", "none beside python nor on the PATH", INSTALL, "engine mpi")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    options, can_recover = ["-n", str(n_workers)], False
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    environment |= variables | {"OPENBLAS_NUM_THREADS": str(blas_threads)}
    if "Open MPI" in version or "OpenRTE" in version:
        # Ranks bound to one core by default would share it; more ranks than cores are for tests.
        options += ["--bind-to", "none", "--oversubscribe"]
        environment = _HERE | environment
        can_recover = "Open MPI) 5" in version
        if can_recover:
            options += ["--with-ft", "ulfm"]
        if os.geteuid() == 0:  # as in containers
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if sys.stdout.isatty():
        environment |= {_TERMINAL_VARIABLE: "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
    status = os.memfd_create("distbp-status")  # a file without a name: nothing of it can stay behind
    environment[STATUS_VARIABLE] = f"/proc/{os.getpid()}/fd/{status}"
    child = subprocess.Popen(  # in a session of its own, so that Ctrl-C on a terminal does not reach it as well
        [mpirun, *options, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    caught: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        child.send_signal(signal.SIGTERM if caught else signal.SIGUSR1)
        caught.append(number)

    kept = {number: signal.signal(number, hand_on) for number in stopping_signals()}
    try:
        with kept_on_loopback(child.pid):
            code = child.wait()
    finally:
        # An mpirun that was killed leaves this behind; one that gets the same number later would not start.
        shutil.rmtree(Path(tempfile.gettempdir()) / f"ompi.{child.pid}", ignore_errors=True)
        for number, handler in kept.items():
            signal.signal(number, handler)
    said = os.pread(status, 16, 0)
    os.close(status)
    if caught:
        return 128 + caught[0]
    if said:
        return int(said)
    when_lost(can_recover)
    return code if code > 0 else 128 - code if code < 0 else _ALL_LOST


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
