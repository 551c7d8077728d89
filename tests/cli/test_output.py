"""The files of a run, whoever writes them."""

from __future__ import annotations

from tests_support import metrics, result

from distbp import Recipe
from distbp.cli.output import Output
from distbp.engine import connect
from distbp.train import Training

RECIPE = {"data": {"source": "digits"}, "model": [{"dense": 10}, "softmax"], "epochs": 3, "shards": 2}


def test_a_worker_that_was_told_nothing_can_write_what_the_first_one_did_not_come_to(tmp_path):
    outputs = [Output(tmp_path / "run", keep=1) for _ in range(2)]
    outputs[0].take(None)
    outcome = connect("local").perform(Training(Recipe.parse(RECIPE)), outputs[0])
    outputs[0].finish(outcome)
    expected = metrics(tmp_path / "run"), result(tmp_path / "run")
    for file in ("metrics.jsonl", "model.safetensors", "result.json"):
        (tmp_path / "run" / file).unlink()
    outputs[1].finish(outcome)
    assert metrics(tmp_path / "run") == expected[0]
    assert len(expected[0]) == 3
    assert result(tmp_path / "run") == expected[1]
    assert (tmp_path / "run" / "model.safetensors").exists()
