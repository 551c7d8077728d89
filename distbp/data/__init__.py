"""Sources of rows, what users pass as rows, the partition into shards, microbatches, scaling."""

from distbp.data.columns import Columns, column_name, columns_of, in_order
from distbp.data.dataset import Dataset, HeldRows, Rows
from distbp.data.form import RowForm
from distbp.data.numbers import check_numbers, precarious
from distbp.data.partition import Partition, places_of_shards, share, split
from distbp.data.scaling import SCALINGS, Scaling, minmax, standard
from distbp.data.sources import load, name_of, same_source
from distbp.data.sparse import Matrix, SparseRows
from distbp.data.table import as_features, as_rows

__all__ = [
    "SCALINGS",
    "Columns",
    "Dataset",
    "HeldRows",
    "Matrix",
    "Partition",
    "RowForm",
    "Rows",
    "Scaling",
    "SparseRows",
    "as_features",
    "as_rows",
    "check_numbers",
    "column_name",
    "columns_of",
    "in_order",
    "load",
    "minmax",
    "name_of",
    "places_of_shards",
    "precarious",
    "same_source",
    "share",
    "split",
    "standard",
]
