"""Ranks that die or stop while training goes on: the others end with the bits of the calm run."""

from __future__ import annotations

import re
import signal
import time

import pytest
from conftest import our_processes, ranks
from tests_support import compare, distbp, finish, metrics, result, start_training

from distbp.train.checkpoint import Checkpoints
from distbp.train.fault import PHASES
from distbp.wording import counted

pytestmark = pytest.mark.timeout(400)


VICTIMS = {
    "the first": ([0], 3, []),
    "all but one at once": ([0, 1, 3], 4, []),
    "one of each machine": ([1, 3], 4, ["--machines", "2+2"]),
    "a whole machine": ([0, 1], 4, ["--machines", "2+2"]),
}


@pytest.mark.parametrize(("victims", "workers", "options"), VICTIMS.values(), ids=VICTIMS)
def test_killed_ranks_are_done_without(long, calm, tmp_path, victims, workers, options):
    process = start_training(tmp_path / "run", long, "--workers", workers, *options)
    running = ranks(process)
    for victim in victims:
        running[victim].kill()
    done = finish(process, 150)
    assert done.returncode == 0, done.stderr
    assert f"with {counted(workers - len(victims), 'worker')}\n" in done.stdout
    compare(result(tmp_path / "run"), result(calm))
    assert metrics(tmp_path / "run") == metrics(calm)


def test_ranks_may_be_lost_one_after_another_down_to_the_last_one(long, calm, tmp_path):
    process = start_training(tmp_path / "run", long, "--workers", 4)
    for victim in ranks(process)[:3]:
        victim.kill()
        time.sleep(0.3)
    assert finish(process, 150).returncode == 0
    compare(result(tmp_path / "run"), result(calm))


def test_a_time_limit_counts_what_was_trained_before_a_loss(long, tmp_path):
    endless = tmp_path / "recipe.yaml"
    endless.write_text(long.read_text().replace("epochs: 150", "epochs: 1000000"))
    process = start_training(tmp_path / "run", endless, "--workers", 3, "--max-time", 0.1)
    time.sleep(4)
    ranks(process)[1].kill()
    done = finish(process, 150)
    assert done.returncode == 75, done.stderr
    assert "with 2 workers" in done.stdout
    _, state, _ = Checkpoints(tmp_path / "run", 1).newest()
    assert state.seconds < 8  # 6, not 4 and another 6


@pytest.mark.parametrize(
    ("machines", "worker", "phase"),
    [("3", 1, "copy"), ("2+1", 1, "exchange"), ("2+1", 2, "forward"), ("1+1+1", 0, "copy")],
)
def test_a_stopped_rank_is_killed_and_done_without(recipe, alone, tmp_path, phase, machines, worker):
    options = ["--workers", 3, "--machines", machines, "--deadline", 1, "--fault", f"stop:{phase}:20:{worker}"]
    done = distbp("train", recipe, *options, "--out", tmp_path / "run")
    assert f"worker {worker} (machine" in done.stdout
    assert "going on from step 16 with 2 workers" in done.stdout
    compare(result(tmp_path / "run"), alone)


def test_ranks_may_be_stopped_at_once_and_while_the_others_recover(long, calm, tmp_path):
    process = start_training(tmp_path / "run", long, "--workers", 4, "--deadline", 1)
    running = ranks(process)
    running[1].send_signal(signal.SIGSTOP)
    running[3].send_signal(signal.SIGSTOP)
    running[0].kill()
    done = finish(process, 150)
    assert done.returncode == 0, done.stderr
    assert "with 1 worker\n" in done.stdout
    compare(result(tmp_path / "run"), result(calm))


PLACES = [
    pytest.param(phase, worker, marks=[pytest.mark.thorough] * (worker != i % 3))
    for i, phase in enumerate(PHASES)
    for worker in range(3)
]


@pytest.mark.parametrize(("phase", "worker"), PLACES)
def test_a_rank_may_die_at_any_phase_of_a_step(recipe, alone, tmp_path, phase, worker):
    options = ["--checkpoint-steps", 5, "--fault", f"kill:{phase}:20:{worker}"]
    machines = ["--machines", "2+1"] if PHASES.index(phase) % 2 else []
    distbp("train", recipe, "--workers", 3, *options, *machines, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), alone)


FLIP = ["--fault", "flip:copy:20:2"]


@pytest.mark.parametrize("machines", ["2+1", "1+1+1"])
def test_where_machines_see_different_weights_the_steps_since_the_last_copy_are_done_again(
    recipe, alone, tmp_path, machines
):
    done = distbp("train", recipe, "--workers", 3, "--machines", machines, *FLIP, "--out", tmp_path / "run")
    named = re.findall(r"worker (\d)", done.stdout)
    assert named == (["2"] if machines == "1+1+1" else ["0", "2"])  # the majority is right
    assert "going on from step 16 with 3 workers" in done.stdout
    compare(result(tmp_path / "run"), alone)


def test_where_they_do_so_again_the_run_ends_and_names_the_machine(recipe, tmp_path):
    options = ["--workers", 3, "--machines", "1+1+1", *FLIP, *FLIP, "--checkpoint-steps", 10]
    done = distbp("train", recipe, *options, "--out", tmp_path / "run", status=3)
    assert "the machine of worker 2 (machine" in done.stderr
    assert "for the second time" in done.stderr
    assert f"go on with it: distbp train --resume {tmp_path / 'run'}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_where_all_are_lost_the_status_says_so_and_a_checkpoint_leads_on(long, calm, tmp_path):
    process = start_training(tmp_path / "run", long, "--workers", 2, "--checkpoint-steps", 10)
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    for victim in ranks(process):
        victim.kill()
    done = finish(process, 150)
    assert done.returncode != 0
    assert f"go on with it: distbp train --resume {tmp_path / 'run'}" in done.stderr
    assert not our_processes()
    distbp("train", "--resume", tmp_path / "run")
    compare(result(tmp_path / "run"), result(calm))
