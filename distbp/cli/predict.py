"""``distbp predict``."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated

import typer

from distbp.cli.options import Folder, Part
from distbp.errors import InputError


def predict(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="As for evaluate, or an .npy file of features alone.")],
    out: Annotated[Path, typer.Option(help="The file to write: .npy, or .csv with a line for each row.")],
    part: Part = None,
    classes: Annotated[
        bool, typer.Option(help="Write the number of each row's class, or 0 and 1 for each output, not the outputs.")
    ] = False,
) -> None:
    """Write the outputs of a trained model for each row, (rows, outputs)."""
    from distbp.cli.kernels import choose_kernels_of_model

    choose_kernels_of_model(folder)  # before anything loads NumPy

    import numpy as np

    from distbp.cli.rows import rows_of
    from distbp.data.sources import read_npy
    from distbp.train import Model
    from distbp.train.files import write_bytes, writing
    from distbp.wording import counted

    is_array = Path(data).suffix == ".npy"
    if part is not None and is_array:
        raise InputError("data with parts", f"{data}, an array of features", "leave out --part", "--part")
    _require_writable(out)
    model = Model.load(folder)
    x = read_npy(Path(data)) if is_array else rows_of(model, data, part).x
    y = model.predict_classes(x) if classes else model.predict(x)
    content = io.BytesIO()
    if out.suffix == ".npy":
        np.save(content, y, allow_pickle=False)
    else:
        digits = {np.dtype(np.float32): "%.9g", np.dtype(np.float64): "%.17g"}  # from which the same bits can be read
        np.savetxt(content, y, digits.get(y.dtype, "%d"), delimiter=",")
    with writing(out):
        write_bytes(out.resolve(), content.getvalue())  # a link stays one
    print(f"{counted(len(y), 'row')} written to {out}")


def _require_writable(out: Path) -> None:
    """Raise InputError where ``out`` is no file that can be written, before anything is computed for it."""
    if out.suffix not in (".npy", ".csv"):
        raise InputError("a name that ends in .npy or .csv", str(out), "choose another with --out", "output")
    if out.is_dir():
        raise _unwritable(f"{out}, a folder")
    if not out.parent.is_dir():
        raise _unwritable(f"{out}, in a folder that does not exist")
    if not os.access(out.parent, os.W_OK):
        raise _unwritable(f"{out}, in a folder that cannot be written to")


def _unwritable(given: str) -> InputError:
    return InputError("a file that can be written", given, "choose another with --out", "output")
