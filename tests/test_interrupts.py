"""Ctrl-C in ``fit``: the trainer has the weights of the last whole epoch, and goes on to the bits of a calm run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests_support import finish

from distbp import InputError, Trainer, nn
from distbp.train import Watcher

OPTIONS = {"epochs": 6, "shards": 3, "batch_size": 50, "scaling": "standard", "seed": 2}


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((420, 8))
    return x, (x[:, 0] * x[:, 1] > 0).astype(int)


def trainer(**options):
    return Trainer([nn.Dense(24), nn.ReLU(), nn.Dropout(0.1), nn.Dense(2), nn.Softmax()], **OPTIONS | options)


class InterruptAt(Watcher):
    """Sends this process a signal after a step, as Ctrl-C does."""

    def __init__(self, step, number=signal.SIGINT, times=1):
        self.at, self.number, self.times = step, number, times

    def step(self, step):
        if step >= self.at and self.times:
            self.times -= 1
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def calm():
    """The outcome of the run that nothing happens to."""
    return trainer().fit(*data(), validation=0.2)


STEPS = 7  # an epoch: 336 rows


@pytest.mark.parametrize("step", [STEPS, 2 * STEPS - 1, 3 * STEPS + 4])
def test_the_trainer_has_the_last_whole_epoch_and_goes_on_to_the_bits_of_a_calm_run(calm, step):
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt, match=r"weights of epoch \d of 6; go on with fit\(..., resume=True\)"):
        own.fit(x, y, validation=0.2, watcher=InterruptAt(step))
    n_whole = len(own.history)
    assert n_whole == (step + 2) // STEPS  # one more step is computed before all know
    short = trainer(epochs=n_whole)
    short.fit(x, y, validation=0.2)
    np.testing.assert_array_equal(own.predict(x), short.predict(x))
    outcome = own.fit(x, y, validation=0.2, resume=True)
    assert outcome.weights_sha256 == calm.weights_sha256
    assert [r["validation"] for r in own.history] == [r["validation"] for r in calm.history]


def test_a_run_can_be_interrupted_again_and_again(calm):
    x, y = data()
    own = trainer()
    for step in (10, 11, 25):
        with pytest.raises(KeyboardInterrupt):
            own.fit(x, y, validation=0.2, watcher=InterruptAt(step), resume=step > 10)
    assert own.fit(x, y, validation=0.2, resume=True).weights_sha256 == calm.weights_sha256


def test_in_the_first_epoch_there_are_no_weights_but_a_way_on(calm):
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt, match="no epoch was whole"):
        own.fit(x, y, validation=0.2, watcher=InterruptAt(2))
    with pytest.raises(InputError, match="call fit first"):
        own.predict(x)
    assert own.fit(x, y, validation=0.2, resume=True).weights_sha256 == calm.weights_sha256


class InterruptInTheEnd(Watcher):
    """Sends this process a signal after the last epoch, when only the outcome is still to be evaluated."""

    def epoch(self, record):
        if record["epoch"] == OPTIONS["epochs"]:
            os.kill(os.getpid(), signal.SIGINT)


def test_when_training_is_over_nothing_of_it_is_lost(calm):
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt, match="interrupted when training was over; the trainer has its weights"):
        own.fit(x, y, validation=0.2, watcher=InterruptInTheEnd())
    assert own.model.sha256 == calm.weights_sha256
    assert len(own.history) == OPTIONS["epochs"]


def test_a_signal_that_is_ignored_stays_so(calm):
    x, y = data()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert trainer().fit(x, y, validation=0.2, watcher=InterruptAt(9)).weights_sha256 == calm.weights_sha256
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("place", [0, 133, 419])
def test_one_number_in_one_row_tells_other_rows(place):
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt):
        own.fit(x, y, validation=0.2, watcher=InterruptAt(9))
    other = x.copy()
    other[place, 3] += 1e-9
    for rows, targets in ((other, y), (x, np.where(np.arange(420) == place, 1 - y, y))):
        with pytest.raises(InputError, match="the rows of the run that goes on"):
            own.fit(rows, targets, validation=0.2, resume=True)
    own.fit(x, y, validation=0.2, resume=True)


def test_early_stopping_goes_on_as_if_nothing_had_happened():
    x, y = data()
    options = {"early_stopping": {"patience": 3}, "epochs": 40}
    expected = trainer(**options).fit(x, y, validation=0.2)
    own = trainer(**options)
    with pytest.raises(KeyboardInterrupt):
        own.fit(x, y, validation=0.2, watcher=InterruptAt(2 * STEPS + 3))
    outcome = own.fit(x, y, validation=0.2, resume=True)
    assert (outcome.weights_sha256, outcome.epochs) == (expected.weights_sha256, expected.epochs)


def test_after_fit_the_handler_of_before_is_back():
    before = signal.getsignal(signal.SIGINT)
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt):
        own.fit(x, y, watcher=InterruptAt(9))
    assert signal.getsignal(signal.SIGINT) is before
    own.fit(x, y)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_fit_that_is_not_resumed_begins_anew():
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt):
        own.fit(x, y, watcher=InterruptAt(9))
    assert own.fit(x, y).weights_sha256 == trainer().fit(x, y).weights_sha256
    with pytest.raises(InputError, match="a run that was interrupted"):
        own.fit(x, y, resume=True)


def test_fit_in_another_thread_trains_and_leaves_signals_alone():
    x, y = data()
    found = []
    thread = threading.Thread(target=lambda: found.append(trainer().fit(x, y).weights_sha256))
    thread.start()
    thread.join(60)
    assert found == [trainer().fit(x, y).weights_sha256]


def test_a_checkpoint_lets_another_process_go_on(calm, tmp_path):
    x, y = data()
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(x, y, validation=0.2, watcher=InterruptAt(17, signal.SIGTERM), checkpoint=tmp_path / "run")
    outcome = trainer().fit(x, y, validation=0.2, checkpoint=str(tmp_path / "run"), resume=True)
    assert outcome.weights_sha256 == calm.weights_sha256
    with pytest.raises(InputError, match="given another seed; set them as they were"):
        trainer(seed=5).fit(x, y, validation=0.2, checkpoint=tmp_path / "run", resume=True)


def test_a_folder_that_holds_a_run_is_not_written_into_by_another(tmp_path):
    x, y = data()
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(x, y, watcher=InterruptAt(17), checkpoint=tmp_path)
    with pytest.raises(InputError, match=r"holds the checkpoints of a run; go on with it: fit\(..., resume=True\)"):
        trainer().fit(x, y, checkpoint=tmp_path)
    with pytest.raises(InputError, match=r"the run that goes on; given other rows than the first \d+ steps had"):
        trainer().fit(x, 1 - y, checkpoint=tmp_path, resume=True)


def test_checkpoints_are_not_written_through_a_link(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="remove the link"):
        trainer().fit(*data(), checkpoint=tmp_path / "run")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_run_goes_on_with_its_own_rows_and_options_alone():
    x, y = data()
    own = trainer()
    with pytest.raises(KeyboardInterrupt):
        own.fit(x, y, validation=0.2, watcher=InterruptAt(9))
    with pytest.raises(InputError, match="given another data; set them as they were"):
        own.fit(x, y, resume=True)
    with pytest.raises(InputError, match="the rows of the run that goes on"):
        own.fit(x + 1.0, y, validation=0.2, resume=True)
    assert own.fit(x, y, validation=0.2, resume=True).epochs == 6


def test_a_fit_that_begins_anew_has_no_weights_of_the_one_before():
    x, y = data()
    own = trainer()
    own.fit(x, y)
    with pytest.raises(KeyboardInterrupt, match="no epoch was whole"):
        own.fit(x, y, watcher=InterruptAt(1))
    with pytest.raises(InputError, match="call fit first"):
        own.predict(x)


def test_an_interrupt_of_another_process_before_an_epoch_is_whole_says_so(tmp_path):
    x, y = data()
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(x, y, watcher=InterruptAt(17), checkpoint=tmp_path)
    with pytest.raises(KeyboardInterrupt, match="no epoch was whole"):
        trainer().fit(x, y, watcher=InterruptAt(19), checkpoint=tmp_path, resume=True)


def test_with_a_folder_and_nothing_in_it_resume_begins(calm, tmp_path):
    x, y = data()
    outcome = trainer().fit(x, y, validation=0.2, checkpoint=tmp_path / "new", resume=True)
    assert outcome.weights_sha256 == calm.weights_sha256


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from distbp import Trainer, nn
from distbp.train import Watcher

class Started(Watcher):
    def epoch(self, record):
        Path(sys.argv[1]).with_suffix(".started").touch()

rng = np.random.default_rng(0)
x = rng.standard_normal((420, 8))
y = (x[:, 0] * x[:, 1] > 0).astype(int)
layers = [nn.Dense(24), nn.ReLU(), nn.Dropout(0.1), nn.Dense(2), nn.Softmax()]
trainer = Trainer(layers, epochs=400, shards=3, batch_size=50, scaling="standard", seed=2)
try:
    trainer.fit(x, y, checkpoint=sys.argv[1], resume=True, watcher=Started())
except KeyboardInterrupt as interrupt:
    if trainer.worker == 0:
        print(interrupt, len(trainer.predict(x[:3])), flush=True)
    raise SystemExit(4)
if trainer.worker == 0:
    print(trainer.model.sha256, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_script_under_mpirun_is_interrupted_with_a_checkpoint_and_goes_on(tmp_path, number):
    """mpirun hands SIGUSR1 on; after Ctrl-C it leaves the ranks a moment, which is enough for a checkpoint."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    mpirun = [Path(sys.executable).parent / "mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none"]
    command = [*mpirun, sys.executable, script, tmp_path / "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not (tmp_path / "run.started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    done = finish(process)
    assert done.returncode != 0
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.safetensors")), done.stdout + done.stderr
    if number == signal.SIGUSR1:
        assert "go on with fit(..., resume=True) 3" in done.stdout, done.stdout + done.stderr
    commands = [[sys.executable, script, tmp_path / folder] for folder in ("run", "alone")]
    resumed, alone = (subprocess.run(c, capture_output=True, text=True, timeout=150, check=True) for c in commands)
    assert resumed.stdout == alone.stdout
