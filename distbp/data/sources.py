"""Where rows come from: the digits shipped here, a folder of IDX or .npy files, an .npz file."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from distbp.data.dataset import Dataset, Rows
from distbp.data.idx import missing, read_idx
from distbp.data.table import as_rows
from distbp.errors import InputError
from distbp.memory import require_room_for_file

_EMBEDDED = Path(__file__).parent / "digits" / "digits.npz"
_IDX_PREFIXES = {"train": "train", "test": "t10k"}
_PARTS = {"train": "", "validation": "_validation", "test": "_test"}
_MISNAMED = ("_train", "_val", "_valid", "_dev", "_eval")
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
)  # what NumPy and zipfile raise for headers that are none
_LAYOUTS = (
    "the name `digits`; a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte (and t10k-..., .gz or not); "
    "an .npz file or a folder of .npy files with x and y (and x_validation, y_validation, x_test, y_test)"
)


def load(source: str | os.PathLike[str]) -> Dataset:
    """Return the dataset that ``source`` names: ``digits``, a folder or an .npz file.

    Files of .npy are memory-mapped: rows are read when they are needed.

    Raises
    ------
    InputError
        Where there is no such source, or a file of it is missing or broken.
    """
    if source == "digits":
        return _digits()
    path = _expanded(source)
    if not path.exists():
        raise InputError(_LAYOUTS, f"none: {source} does not exist", "check the path", "data.source")
    files = _signs(path)
    if path.is_file() and path.suffix == ".npz":
        return _from_arrays(read_npz(path), path, files)
    if path.is_dir() and (path / "x.npy").exists():
        arrays = {file.stem: read_npy(file) for file in sorted(path.glob("*.npy"))}
        return _from_arrays(arrays, path, files)
    if path.is_dir() and _idx_file(path, "train-images"):
        return _from_idx(path, files)
    raise InputError(_LAYOUTS, f"{str(source)!r}", "put the files under these names", "data.source")


def _signs(path: Path) -> tuple[str, ...]:
    """Return name, size and time of change of a file, or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    with suppress(OSError):  # one of them has been removed: the rows themselves will tell
        stats = [(file.name, file.stat()) for file in files]
        return tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return ()


def name_of(source: str) -> str:
    """Return what a run on ``source`` is called."""
    return _expanded(source).resolve().stem or "data"


def _expanded(source: str | os.PathLike[str]) -> Path:
    """Return the path in which ~ is the home folder, for a user who has one."""
    with suppress(RuntimeError):
        return Path(source).expanduser()
    return Path(source)


def same_source(one: str, other: str) -> bool:
    """Return whether both name the same rows."""
    return one == other or _expanded(one).resolve() == _expanded(other).resolve()


def _digits() -> Dataset:
    arrays = read_npz(_EMBEDDED)
    x, y = arrays["x"].reshape(-1, 64), arrays["y"]
    is_test = np.arange(len(x)) % 5 == 4
    train, test = Rows(x[~is_test], y[~is_test], "digits"), Rows(x[is_test], y[is_test], "digits")
    return Dataset(train=train, test=test)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the .npz file ``path``; raise InputError where it is broken or holds objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            require_room_for_file(sum(entry.file_size for entry in archive.infolist()), path)
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: _numbers(file[name], name) for name in file.files}
    except FileNotFoundError:
        raise missing(path) from None
    except InputError:
        raise
    except (*_BROKEN, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            "a whole .npz file of numbers", f"{error}", "write it again with numpy.savez", str(path)
        ) from None


def _numbers(array: object, name: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):  # an entry that is no .npy file comes as bytes
        raise ValueError(f"{name} is no array")
    return array


def read_npy(path: Path) -> np.ndarray:
    """Return the .npy file ``path`` as a memory map; raise InputError where it is broken or holds objects."""
    try:
        with np.errstate(over="ignore"):  # of a shape that is none
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise missing(path) from None
    except _BROKEN as error:
        raise InputError(
            "a whole .npy file of numbers", f"{error}", "write it again with numpy.save", str(path)
        ) from None


def _from_arrays(arrays: dict[str, np.ndarray], path: Path, files: tuple[str, ...]) -> Dataset:
    for name in ("x", "y"):
        if name not in arrays:
            raise InputError(
                "arrays x and y", f"{sorted(arrays) or 'nothing'}", "save them under these names", str(path)
            )
    for suffix in (*_PARTS.values(), *_MISNAMED):  # what would be left out without a word
        found = [f"{name}{suffix}" for name in "xy" if f"{name}{suffix}" in arrays]
        if found and suffix in _MISNAMED:
            raise InputError(
                "x and y, x_validation and y_validation, x_test and y_test",
                f"{found[0]}",
                "rename it, or keep it elsewhere",
                str(path),
            )
        if len(found) == 1:
            raise InputError(f"x{suffix} and y{suffix}", f"{found[0]} alone", "add the other one", str(path))
    parts = {
        part: as_rows(arrays[f"x{suffix}"], arrays[f"y{suffix}"], f"{path}, {part}")
        for part, suffix in _PARTS.items()
        if f"x{suffix}" in arrays
    }
    return Dataset.of(parts, files)


def _idx_file(folder: Path, stem: str) -> Path | None:
    """Return the file of ``folder`` whose name starts with ``stem``, in either common spelling."""
    found = sorted(f for f in folder.iterdir() if f.name.startswith((f"{stem}-idx", f"{stem}.idx")))
    return found[0] if found else None


def _from_idx(folder: Path, files: tuple[str, ...]) -> Dataset:
    parts = {}
    for part, prefix in _IDX_PREFIXES.items():
        images, labels = _idx_file(folder, f"{prefix}-images"), _idx_file(folder, f"{prefix}-labels")
        if images and labels:
            parts[part] = as_rows(read_idx(images), read_idx(labels), f"{folder}, {part}")
        elif images or part == "train":
            raise InputError(
                f"images and labels for {prefix}", "images only", f"add {prefix}-labels-idx1-ubyte", str(folder)
            )
    return Dataset.of(parts, files)
