"""Train a calm run, then runs whose workers are killed or stopped at random; print what became of each.

Run by scripts/chaos. A run that ends for lack of its workers is resumed from its last checkpoint. The faults follow
from the seed, but for the moment at which they strike. Only processes that this script started are touched.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RECIPE = """
data: {source: digits, validation: 0.1, scaling: minmax}
model: [{dense: 96}, relu, {dropout: 0.2}, {dense: 48}, tanh, {dense: 10}, softmax]
optimizer: {adam: {learning_rate: 0.005}}
schedule: {cosine: {warmup_steps: 5}}
clip_norm: 0.5
batch_size: 100
epochs: 300
seed: 3
shards: 8
"""
MARK = f"DISTBP_CHAOS_{uuid.uuid4().hex}"
DEADLINES_S = {"mpi": 1.0, "ray": 2.0}
LIMIT_S = 120.0


@dataclass
class Run:
    """What became of one run."""

    faults: list[str] = field(default_factory=list)
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    """From what, and in how many seconds."""
    redone: int = 0
    resumed: int = 0
    is_equal: bool = False
    left: list[str] = field(default_factory=list)


def ours() -> set[psutil.Process]:
    """Return the processes that this script started and that still run."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and MARK in process.environ():
                found.add(process)
    return found


def leavings() -> set[str]:
    """Return what lies in /dev/shm and among the temporary files, but for the folder in which Ray keeps its logs."""
    paths = {path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("*")}
    return {str(path) for path in paths if path.name != "ray"}


def workers() -> list[psutil.Process]:
    found = []
    for process in ours():
        with suppress(psutil.Error):
            words = process.cmdline()
            is_rank = "distbp" in words and "-m" in words and "OMPI_COMM_WORLD_RANK" in process.environ()
            if (is_rank or "RayWorker" in words[0]) and process.status() != psutil.STATUS_STOPPED:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


class Training:
    """One ``distbp train``, whose lines are read as they come."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "distbp", "train", *map(str, words)]
        pipe = subprocess.PIPE
        environment = os.environ | {MARK: "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
        self.lines: list[tuple[float, str]] = []
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait_for(self, text: str, after: float = 0.0) -> float | None:
        """Return when a line with ``text`` came after a moment; None where the run ends before."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            is_over = self.process.poll() is not None
            for moment, line in list(self.lines):
                if moment > after and text in line:
                    return moment
            if is_over:
                return None
            time.sleep(0.005)
        raise SystemExit("\n".join(line for _, line in self.lines) + f"\nno {text!r} within {LIMIT_S:g} s")

    def end(self) -> int:
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise SystemExit("\n".join(line for _, line in self.lines) + "\na run that hangs") from None
        self.thread.join()
        return status


def chaos(recipe: Path, options: argparse.Namespace, folder: Path, rng: random.Random, calm: dict[str, object]) -> Run:
    """Do one run with faults."""
    run, before, n_workers = Run(), leavings(), options.workers
    engine_options = ["--engine", options.engine, "--workers", n_workers]
    machines = ["--machines", options.machines] if options.machines else []
    engine_options += [*machines, "--checkpoint-steps", 50, "--deadline", DEADLINES_S[options.engine]]
    training = Training(recipe, *engine_options, "--out", folder)
    n_faults = rng.randint(1, n_workers - 1)
    for _ in range(n_faults):
        if training.wait_for("epoch ") is None:
            break
        time.sleep(rng.uniform(0.0, 0.6))
        victims = workers()
        if len(victims) < 2 or training.process.poll() is not None:
            break
        place, kind = rng.randrange(len(victims)), rng.choice(["kill", "stop"])
        struck = time.monotonic()
        try:
            victims[place].send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        except psutil.NoSuchProcess:
            continue
        run.faults.append(f"{kind} {place}")
        gone_on = training.wait_for("going on from step", after=struck)
        if gone_on is not None:
            run.recoveries.append((kind, gone_on - struck))
    status = training.end()
    said = "\n".join(line for _, line in training.lines)
    for lost, back in re.findall(r"of step (\d+).*going on from step (\d+)", said):
        run.redone += max(0, int(lost) - int(back))
    while status != 0 and run.resumed < 3:
        run.resumed += 1
        training = Training("--resume", folder, "--engine", options.engine, "--workers", n_workers)
        status = training.end()
    result = folder / "result.json"
    run.is_equal = result.exists() and json.loads(result.read_text())["weights_sha256"] == calm["weights_sha256"]
    deadline = time.monotonic() + 10
    while (ours() or not leavings() <= before) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.left = [str(process) for process in ours()] + sorted(leavings() - before)
    for process in ours():
        process.kill()
    return run


def quantiles(values: list[float]) -> str:
    if not values:
        return "none"
    worst = sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
    return f"{len(values)}, median {statistics.median(values):.2f} s, 99th percentile {worst:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["mpi", "ray"], default="mpi")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--machines", help="treat the workers as on several machines, as in 2+2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE)
        training = Training(recipe, "--engine", "local", "--out", folder / "calm")
        assert training.end() == 0, training.lines
        calm = json.loads((folder / "calm" / "result.json").read_text())
        print(f"calm run {calm['weights_sha256'][:12]}; engine {options.engine}, {options.workers} workers")
        print("| run | faults | digest | steps redone | recovered in | resumed | left behind |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        runs = []
        for i in range(options.runs):
            rng = random.Random(f"{options.seed} {i}")
            run = chaos(recipe, options, folder / f"run-{i}", rng, calm)
            runs.append(run)
            times = ", ".join(f"{seconds:.2f} s" for _, seconds in run.recoveries)
            equal, left = "equal" if run.is_equal else "DIFFERENT", "; ".join(run.left) or "nothing"
            cells = [i, ", ".join(run.faults), equal, run.redone, times, run.resumed, left]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    n_equal, n_clean = sum(run.is_equal for run in runs), sum(not run.left for run in runs)
    n_redone = sum(run.redone for run in runs)
    print(f"\n{n_equal} of {len(runs)} digests equal; nothing left behind by {n_clean}; {n_redone} steps redone")
    for kind in ("kill", "stop"):
        print(f"recoveries from {kind}: {quantiles([s for run in runs for k, s in run.recoveries if k == kind])}")
    raise SystemExit(0 if n_equal == n_clean == len(runs) else 1)


if __name__ == "__main__":
    main()
