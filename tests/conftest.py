"""What all tests share: nothing of ours may be left behind by any of them."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest

MARK = f"DISTBP_TEST_{uuid.uuid4().hex}"
os.environ[MARK] = "1"  # every process started by these tests carries it


def our_processes() -> list[psutil.Process]:
    """Return the processes that these tests started and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and MARK in process.environ():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def leavings() -> set[str]:
    """Return what lies in /dev/shm, and what of ours lies among the temporary files."""
    names = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").exists() else set()
    return names | {path.name for path in Path(tempfile.gettempdir()).glob("distbp*")}


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = leavings()
    yield
    deadline = time.monotonic() + 10
    while (running := our_processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in running:
        process.kill()
    assert not running, f"processes left behind: {running}"
    assert leavings() <= before
