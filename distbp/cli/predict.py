"""``distbp predict``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from distbp.cli.kernels import choose_kernels_of_model
from distbp.cli.options import Folder, Part
from distbp.errors import InputError


def predict(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="As for evaluate, or an .npy file of features alone.")],
    out: Annotated[Path, typer.Option(help="The .npy file to write.")],
    part: Part = None,
    classes: Annotated[bool, typer.Option(help="Write the number of the largest output, not the outputs.")] = False,
) -> None:
    """Write the outputs of a trained model for each row, (rows, outputs), as an .npy file."""
    choose_kernels_of_model(folder)  # before anything loads NumPy

    import numpy as np

    from distbp.cli.rows import rows_of
    from distbp.data import load
    from distbp.data.sources import read_npy
    from distbp.train import Model
    from distbp.train.files import write_bytes
    from distbp.wording import counted

    model = Model.load(folder)
    x = read_npy(Path(data)) if Path(data).suffix == ".npy" else rows_of(load(data), part).x
    y = model.predict(x)
    content = io.BytesIO()
    np.save(content, np.argmax(y, axis=1) if classes else y, allow_pickle=False)
    try:
        write_bytes(out, content.getvalue())
    except OSError as error:
        given = f"{out} ({error.strerror})"
        raise InputError("a file that can be written", given, "choose another with --out", "output") from None
    print(f"{counted(len(y), 'row')} written to {out}")
