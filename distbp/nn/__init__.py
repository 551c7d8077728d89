"""The network that one worker computes: layers, activations, losses, the parameter vector."""

from distbp.nn.activations import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from distbp.nn.dense import Dense
from distbp.nn.dropout import Dropout
from distbp.nn.flatten import Flatten
from distbp.nn.gradient_check import check_layer, check_loss
from distbp.nn.initialisers import INITIALISERS
from distbp.nn.layer import LAYERS, Layer
from distbp.nn.losses import LOSSES, BinaryCrossEntropy, CategoricalCrossEntropy, Loss, SquaredError
from distbp.nn.row_blocks import Block, RowBlocks, row_keys
from distbp.nn.sequential import Gradient, Sequential, check_distinct
from distbp.nn.vector import Layout, Parameter, aligned_zeros

__all__ = [
    "ELU",
    "GELU",
    "INITIALISERS",
    "LAYERS",
    "LOSSES",
    "BinaryCrossEntropy",
    "Block",
    "CategoricalCrossEntropy",
    "Dense",
    "Dropout",
    "Flatten",
    "Gradient",
    "Identity",
    "Layer",
    "Layout",
    "LeakyReLU",
    "Loss",
    "Parameter",
    "ReLU",
    "RowBlocks",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SquaredError",
    "Tanh",
    "aligned_zeros",
    "check_distinct",
    "check_layer",
    "check_loss",
    "row_keys",
]
