"""What all tests share: nothing of ours may be left behind by any of them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import hypothesis
import psutil
import pytest
from tests_support import RECIPE, distbp, result

hypothesis.settings.register_profile("distbp", deadline=None)  # how long an example takes depends on who else computes
hypothesis.settings.load_profile("distbp")

CLONE_NEWNS = 0x20000


def have_own_shared_memory() -> None:
    """Give this process, and those that it starts, a /dev/shm and a /tmp/ray of their own (root on Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "tests can run side by side only where mount namespaces can be made")
    Path("/tmp/ray").mkdir(exist_ok=True)
    for words in (["--make-rprivate", "/"], *(["-t", "tmpfs", "tmpfs", place] for place in ("/dev/shm", "/tmp/ray"))):
        subprocess.run(["mount", *words], check=True)


if "PYTEST_XDIST_WORKER" in os.environ:  # else it would be seen as left behind what a test beside this one has in use
    have_own_shared_memory()

MARK = f"DISTBP_TEST_{uuid.uuid4().hex}"
os.environ[MARK] = "1"  # every process started by these tests carries it


# Two of these files run at a time: for as long as possible one with Ray, whose processes take much of the machine,
# beside one without; those that take long do not come last.
ORDER = ("ray/test_recovery", "test_resume", "mpi/test_recovery", "mpi/test_same_bits", "ray/test_same_bits", "mpi/")
LAST = "ray/"


def pytest_collection_modifyitems(items):
    """Put the tests into that order."""

    def place(item):
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        places = [i for i, start in enumerate(ORDER) if file.startswith(start)]
        return places[0] if places else len(ORDER) + file.startswith(LAST)

    items.sort(key=place)


def our_processes() -> set[psutil.Process]:
    """Return the processes that these tests started and that still run."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and MARK in process.environ():
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def ranks(process):
    """Return the worker processes of a run under mpirun, not mpirun itself, as they were started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return sorted((p for p in children if "python" in p.name()), key=lambda p: p.pid)


def actors():
    """Return the processes of our Ray actors, as they were started."""
    found = []
    for process in our_processes():
        try:
            if any("RayWorker" in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda p: p.pid)


def new_processes(before: set[psutil.Process]) -> set[psutil.Process]:
    """Return those of our processes that are neither among ``before`` nor descend from them, as idle Ray workers do."""
    found = set()
    for process in our_processes() - before:
        try:
            if not before.intersection(process.parents()):
                found.add(process)
        except psutil.NoSuchProcess:
            continue
    return found


def leavings() -> set[str]:
    """Return what lies in /dev/shm, and what of ours lies among the temporary files."""
    names = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").exists() else set()
    return names | {path.name for path in Path(tempfile.gettempdir()).glob("distbp*")}


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """A file with the recipe that the engines are compared on."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def alone(recipe, tmp_path_factory):
    """The result of that recipe in one process."""
    out = tmp_path_factory.mktemp("local") / "run"
    distbp("train", recipe, "--engine", "local", "--out", out)
    return result(out)


@pytest.fixture(scope="session")
def long(tmp_path_factory):
    """A file with the same recipe, but for so many epochs that something can happen while it runs."""
    path = tmp_path_factory.mktemp("long") / "recipe.yaml"
    path.write_text(RECIPE.replace("epochs: 3", "epochs: 150"))
    return path


@pytest.fixture(scope="session")
def calm(long, tmp_path_factory):
    """The folder of that run in one process, to which nothing happened."""
    out = tmp_path_factory.mktemp("calm") / "run"
    distbp("train", long, "--engine", "local", "--out", out)
    return out


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    processes, files = our_processes(), leavings()
    yield

    def running():
        if our_processes() <= processes:
            return set()
        return new_processes(processes) | (set(actors()) - processes)  # actors descend from a raylet that may stay

    deadline = time.monotonic() + 60
    while ((left := running()) or not leavings() <= files) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        process.kill()
    assert not left, f"processes left behind: {left}"
    assert leavings() <= files
