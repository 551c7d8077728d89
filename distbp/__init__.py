"""Data-parallel training of feed-forward networks on CPUs: the same bits on any number of workers."""

from distbp import nn, optim
from distbp.data import load
from distbp.errors import DistbpError, InputError, TrainingError
from distbp.train import Model, Outcome, Recipe
from distbp.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "DistbpError",
    "InputError",
    "Model",
    "Outcome",
    "Recipe",
    "Trainer",
    "TrainingError",
    "load",
    "nn",
    "optim",
]
