"""Schedules: the factor at known steps."""

from __future__ import annotations

import pytest

from distbp.errors import InputError
from distbp.optim import SCHEDULES, Constant, Cosine, Exponential, Step


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        (Constant(), 70, 1.0),
        (Step(every_epochs=2, gamma=0.1), 19, 1.0),
        (Step(every_epochs=2, gamma=0.1), 20, 0.1),
        (Step(every_epochs=2, gamma=0.1), 40, 0.01),
        (Exponential(gamma=0.5), 10, 0.5),
        (Exponential(gamma=0.5), 5, 0.5**0.5),
        (Cosine(), 0, 1.0),
        (Cosine(), 50, 0.5),
        (Cosine(final=0.2), 100, 0.2),
        (Cosine(warmup_steps=20), 60, 0.5),
    ],
)
def test_factor(schedule, step, factor):
    assert schedule.factor(step, n_steps=100, epoch_steps=10) == pytest.approx(factor)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_linear_warm_up_precedes_any_schedule(name):
    schedule = SCHEDULES[name](warmup_steps=4)
    assert [schedule.factor(step, 100, 10) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="gamma in"):
        Exponential(gamma=1.5)
