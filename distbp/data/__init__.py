"""Sources of rows, the partition into shards, microbatches, scaling."""

from distbp.data.dataset import Dataset, Rows, check_finite
from distbp.data.partition import Partition, share, split
from distbp.data.scaling import SCALINGS, Scaling, minmax, standard
from distbp.data.sources import load

__all__ = [
    "SCALINGS",
    "Dataset",
    "Partition",
    "Rows",
    "Scaling",
    "check_finite",
    "load",
    "minmax",
    "share",
    "split",
    "standard",
]
