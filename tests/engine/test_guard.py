"""The guard of a machine: who does not get on is killed, who waits or is slow is not, and it ends with the last one."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distbp.engine import guard
from distbp.engine.guard import LINE, Pulse, start_guard

DEADLINE_S = 0.5
BODY = """
import mmap, os, sys, time
sys.path.insert(0, sys.argv[3])
from guard import Pulse
pulse = Pulse(memoryview(mmap.mmap(int(sys.argv[1]), 0)).cast("q"), int(sys.argv[2]))

def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pulse.beat[0] += 1
        time.sleep(0.01)

pulse.watch(True)
print("ready", flush=True)
"""


class Machine:
    """Memory, the processes that beat in it, and their guard."""

    def __init__(self, *bodies):
        self.handle = os.memfd_create("test")
        os.ftruncate(self.handle, 8 * LINE * len(bodies))
        self.pulse = Pulse(memoryview(mmap.mmap(self.handle, 0)).cast("q"), 0)
        self.processes = [self._start(place, body) for place, body in enumerate(bodies)]
        self.guard = start_guard(self.handle, len(bodies), DEADLINE_S)

    def _start(self, place, body):
        words = [self.handle, place, Path(guard.__file__).parent]
        command = [sys.executable, "-c", BODY + body, *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[self.handle], text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.handle)
        for process in self.processes:
            process.kill()
            process.communicate(timeout=10)
        self.guard.wait(10)  # by itself


@pytest.mark.timeout(60)
def test_who_is_stopped_is_killed_and_who_works_is_not():
    with Machine("work(60)", "work(60)") as machine:
        machine.processes[1].send_signal(signal.SIGSTOP)
        assert machine.processes[1].wait(10) == -signal.SIGKILL
        assert [machine.pulse.was_ended(place) for place in (0, 1)] == [False, True]
        assert machine.processes[0].poll() is None
        assert machine.guard.poll() is None


LEFT_ALONE = {
    "slower by and by": "work(0.1)\nfor s in (0.3, 1.2): time.sleep(s); work(0.01)",
    "not watched": "pulse.watch(False); time.sleep(3 * 0.5); pulse.watch(True); work(0.1)",
    "in a call that waits": "with pulse.kept_going(60): time.sleep(3 * 0.5)",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("body", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_who_is_left_alone(body):
    with Machine(body) as machine:
        assert machine.processes[0].wait(10) == 0
        assert not machine.pulse.was_ended(0)


@pytest.mark.timeout(60)
def test_where_all_were_stopped_as_when_a_machine_sleeps_nobody_is_killed():
    with Machine("work(60)") as machine:
        everything = [machine.guard, *machine.processes]
        time.sleep(0.2)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in everything:
                process.send_signal(number)
            time.sleep(2 * DEADLINE_S)
        assert machine.processes[0].poll() is None


@pytest.mark.timeout(60)
def test_who_waits_longer_than_is_allowed_is_killed():
    with Machine("with pulse.kept_going(0.2): time.sleep(60)") as machine:
        assert machine.processes[0].wait(10) == -signal.SIGKILL


@pytest.mark.timeout(60)
def test_once_all_have_dismissed_it_it_ends():
    with Machine("pulse.dismiss(); time.sleep(60)", "time.sleep(0.2); pulse.dismiss(); time.sleep(60)") as machine:
        machine.guard.wait(10)
        assert [process.poll() for process in machine.processes] == [None, None]
