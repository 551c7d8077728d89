"""Train `digits` on Ray in every mode, with workers that are slowed down on purpose: time, accuracy and staleness.

Run as: python scripts/bench_modes.py [--workers 3] [--rounds 5] [--slowed one], with distbp[ray] installed. A worker is
slowed down from outside, by stopping and continuing its process. Printed are medians over rounds, which take all modes
in turn, or with --json a line for each run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import yaml

import distbp
from distbp.engine import connect
from distbp.train import Outcome, Recipe, Training

RECIPE = Path(distbp.__file__).parent / "recipes" / "digits.yaml"
MODES = ["synchronous", {"bounded": 8}, {"bounded": 64}, "asynchronous"]
SLOWED = {
    "none": ("nobody is slow", 0.0, 0.0),
    "one": ("worker 0 runs a quarter of the time", 0.015, 0.005),
    "turns": ("one after another stands still, 20 of 40 ms", 0.020, 0.020),
}
"""Who is slowed down; for how many seconds a worker is stopped, and all run then."""


class Slowing:
    """Slows workers down while they train; a watcher.

    Parameters
    ----------
    stopped_s, runs_s:
        How long a worker is stopped, and how long all run until the next one is.
    by_turns:
        Whether the next one is another worker, or always worker 0.
    """

    def __init__(self, stopped_s: float, runs_s: float, *, by_turns: bool) -> None:
        self.stopped_s, self.runs_s, self.by_turns = stopped_s, runs_s, by_turns
        self.is_over = threading.Event()

    def begin(self, n_steps: int, n_epochs: int) -> None:
        self.thread = threading.Thread(target=self._slow, args=(worker_pids(),))
        self.thread.start()

    def _slow(self, pids: list[int]) -> None:
        for pid in itertools.cycle(pids if self.by_turns else pids[:1]):
            if not self.stopped_s or self.is_over.is_set():
                return
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.stopped_s)
                os.kill(pid, signal.SIGCONT)
            time.sleep(self.runs_s)

    def step(self, step: int) -> None:
        pass

    def epoch(self, record: dict[str, object]) -> None:
        pass

    def end(self) -> None:
        self.is_over.set()
        self.thread.join()


def worker_pids() -> list[int]:
    """Return the processes of the workers, in their order, without the parameter server."""
    named = ray.util.list_named_actors(all_namespaces=True)
    actors = sorted((a["name"], a["namespace"]) for a in named if a["name"].startswith("distbp worker "))
    hellos = [ray.get_actor(*actor).hello.options(concurrency_group="ping").remote() for actor in actors]
    return [json.loads(hello)["pid"] for hello in ray.get(hellos)]


def train(mode: object, workers: int, slowing: Slowing) -> Outcome:
    recipe = Recipe.parse(yaml.safe_load(RECIPE.read_text()) | {"mode": mode})
    return connect("ray", workers).perform(Training(recipe), slowing)


def figures(mode: object, outcome: Outcome) -> dict[str, object]:
    stale = outcome.staleness or {"mean": 0.0, "max": 0, "largest_lead": 0, "steps_of_workers": [outcome.steps]}
    return {
        "mode": json.dumps(mode).strip("{}").replace('"', ""),
        "seconds": outcome.train_seconds,
        "test_accuracy": outcome.metrics["test"]["accuracy"],
    } | stale


def print_table(runs: list[dict[str, Any]]) -> None:
    print("| mode | time | test accuracy | staleness: mean | largest | largest lead | steps of worker 0 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for mode, own in itertools.groupby(sorted(runs, key=lambda run: run["order"]), key=lambda run: run["mode"]):
        group = list(own)

        def median(key: str, group: list[dict[str, Any]] = group) -> float:
            return statistics.median(run[key] for run in group)

        accuracy = statistics.mean(run["test_accuracy"] for run in group)
        steps = statistics.median(run["steps_of_workers"][0] for run in group)
        print(
            f"| {mode} | {median('seconds'):.2f} s | {accuracy:.4f} | {median('mean'):.1f} | {median('max'):.0f} "
            f"| {median('largest_lead'):.0f} | {steps:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slowed", choices=SLOWED, action="append", help="by default all of these, one after another")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for slowed in options.slowed or SLOWED:
        name, stopped_s, runs_s = SLOWED[slowed]
        runs = []
        for _ in range(options.rounds):
            for order, mode in enumerate(MODES):
                slowing = Slowing(stopped_s, runs_s, by_turns=slowed == "turns")
                runs.append(figures(mode, train(mode, options.workers, slowing)) | {"order": order})
                if options.json:
                    print(json.dumps(runs[-1]), flush=True)
        if not options.json:
            print(f"\n{name}; digits, {options.workers} workers, medians of {options.rounds} rounds\n")
            print_table(runs)


if __name__ == "__main__":
    main()
