"""``distbp evaluate``."""

from __future__ import annotations

from distbp.cli.options import Data, Folder, Part


def evaluate(folder: Folder, data: Data, part: Part = None) -> None:
    """Print loss and accuracy of a trained model as JSON."""
    from distbp.cli.kernels import choose_kernels_of_model

    choose_kernels_of_model(folder)  # before anything loads NumPy

    from distbp.cli.rows import rows_of
    from distbp.train import Model
    from distbp.wording import json_text

    model = Model.load(folder)
    print(json_text(model.evaluate(rows_of(model, data, part))))
