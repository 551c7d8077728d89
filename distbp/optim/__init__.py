"""Update rules on a slice of the parameter vector, and learning-rate schedules."""

from distbp.optim.rules import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, Momentum, Nesterov, Optimizer, RMSProp
from distbp.optim.schedules import SCHEDULES, Constant, Cosine, Exponential, Schedule, Step

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Exponential",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "RMSProp",
    "Schedule",
    "Step",
]
