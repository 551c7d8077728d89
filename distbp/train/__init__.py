"""Recipe, worker, coordinator, tree, run, model. Knows no engine by name."""

from distbp.train.exchange import Engine, Exchange, Group, Watcher
from distbp.train.model import Model
from distbp.train.recipe import Recipe
from distbp.train.run import Outcome, Run
from distbp.train.training import Training

__all__ = ["Engine", "Exchange", "Group", "Model", "Outcome", "Recipe", "Run", "Training", "Watcher"]
