"""When a run stops early."""

from __future__ import annotations

from typing import Any

from distbp.train.recipe import EarlyStopping


class Stopper:
    """Follows the validation metric that ``rule`` names, epoch by epoch.

    Without a rule it follows the loss, where there is one, and never stops a run.

    Attributes
    ----------
    best_epoch:
        The epoch (from 1) with the best value so far; None before there is one.
    """

    def __init__(self, rule: EarlyStopping | None) -> None:
        self.rule = rule
        self.best, self.n_worse = float("inf"), 0
        self.best_epoch: int | None = None

    def is_best(self, record: dict[str, Any]) -> bool:
        """Take the record of the next epoch; return whether its weights are the best so far."""
        if "validation" not in record:
            return False
        rule = self.rule or EarlyStopping()
        value = record["validation"][rule.metric]
        value = -value if rule.metric == "accuracy" else value
        if value < self.best - rule.min_delta:
            self.best, self.n_worse, self.best_epoch = value, 0, record["epoch"]
            return True
        self.n_worse += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether the metric has not got better for as long as the rule has patience."""
        return self.rule is not None and self.n_worse >= self.rule.patience


def best_epoch(rule: EarlyStopping | None, history: list[dict[str, Any]]) -> int | None:
    """Return the epoch whose weights a run with this ``history`` keeps; None for those of the last one."""
    stopper = Stopper(rule)
    for record in history:
        stopper.is_best(record)
    return None if rule is None else stopper.best_epoch
