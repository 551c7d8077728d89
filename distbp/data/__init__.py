"""Sources of rows, the partition into shards, microbatches, scaling."""

from distbp.data.dataset import Dataset, HeldRows, Rows, check_finite
from distbp.data.partition import Partition, places_of_shards, share, split
from distbp.data.scaling import SCALINGS, Scaling, minmax, standard
from distbp.data.sources import load, name_of

__all__ = [
    "SCALINGS",
    "Dataset",
    "HeldRows",
    "Partition",
    "Rows",
    "Scaling",
    "check_finite",
    "load",
    "minmax",
    "name_of",
    "places_of_shards",
    "share",
    "split",
    "standard",
]
