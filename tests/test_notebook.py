"""A notebook as people use it: fit, interrupt, predict, go on, the same on Ray; what it shows is short."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

DATA = """
import os, signal
import numpy as np
from distbp import Trainer, Watcher, nn

rng = np.random.default_rng(0)
x = rng.standard_normal((400, 8))
y = (x[:, 0] * x[:, 1] > 0).astype(int)

def trainer(epochs, **options):
    layers = [nn.Dense(16), nn.ReLU(), nn.Dense(2), nn.Softmax()]
    return Trainer(layers, epochs=epochs, shards=2, seed=1, **options)

class StopButton(Watcher):
    "Is pressed in the third epoch."
    def epoch(self, record):
        if record["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
"""
INTERRUPTED = """
own = trainer(EPOCHS, **OPTIONS)
try:
    own.fit(x, y, validation=0.1, watcher=StopButton())
except KeyboardInterrupt as interrupt:
    said = str(interrupt)
print(said)
assert "go on with fit(..., resume=True)" in said
assert 3 <= len(own.history) < EPOCHS
assert own.predict(x).shape == (400, 2)
"""
GONE_ON = """
outcome = own.fit(x, y, validation=0.1, resume=True)
calm = trainer(EPOCHS).fit(x, y, validation=0.1)
assert outcome.weights_sha256 == calm.weights_sha256
assert own.history[-1]["validation"] == calm.history[-1]["validation"]
outcome
"""


def run(cells, timeout_s=300):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=timeout_s, kernel_name="python3").execute()
    return notebook


def text(cell):
    return "".join(out.get("text", out.get("data", {}).get("text/plain", "")) for out in cell.outputs)


@pytest.mark.timeout(400)
def test_fit_interrupt_predict_and_go_on():
    settings = "EPOCHS, OPTIONS = 300, {}"
    notebook = run([settings, DATA, INTERRUPTED, GONE_ON, "own"])
    said = text(notebook.cells[3])
    assert "epoch 300/300" in said
    assert said.count("epoch ") <= 45
    assert "Outcome(train: loss" in said
    assert len(said) < 6000
    assert text(notebook.cells[4]) == "Trainer(dense, relu, dense, softmax; engine local, trained)"


@pytest.mark.timeout(400)
def test_the_same_on_ray_whose_actors_stay_from_one_fit_to_the_next():
    settings = "EPOCHS, OPTIONS = 1000, {'engine': 'ray', 'workers': 2}"
    first = "trainer(2, **OPTIONS).fit(x, y).weights_sha256 == trainer(2).fit(x, y).weights_sha256"
    pids = """
import psutil
def actors():
    children = psutil.Process().children(recursive=True)
    alive = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
    return {p.pid for p in alive if any("RayWorker" in word for word in p.cmdline())}
before = actors()
assert len(before) == 2, before
"""
    notebook = run([settings, DATA, first, INTERRUPTED, pids, GONE_ON, "assert actors() == before"])
    assert text(notebook.cells[2]).endswith("True")
