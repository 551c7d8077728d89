"""Recipe, worker, coordinator, tree, run, model. Knows no engine by name."""

from distbp.train.exchange import Exchange, Group
from distbp.train.model import Model
from distbp.train.recipe import Recipe
from distbp.train.run import Outcome, Run, Watcher

__all__ = ["Exchange", "Group", "Model", "Outcome", "Recipe", "Run", "Watcher"]
