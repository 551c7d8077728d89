"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUN, WORKERS, RAY, CHECKPOINTS = "Run", "Workers", "Ray", "Checkpoints"
"""The groups that options are shown in."""

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="One of: auto, local, mpi, ray. auto: mpi with several workers, ray where a cluster is given.",
        rich_help_panel=WORKERS,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes; outside mpirun, mpirun is started.", rich_help_panel=WORKERS),
]
Machines = Annotated[
    str | None, typer.Option(hidden=True, help="For tests: treat the workers as on several machines, as in 3+1.")
]
Deadline = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Seconds to wait for a worker that does not get on (10), or for room in a Ray cluster (60).",
        rich_help_panel=WORKERS,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of a Ray cluster, or auto: the running one; by default RAY_ADDRESS.", rich_help_panel=RAY
    ),
]
Cpus = Annotated[float, typer.Option(min=0.0, help="CPUs that Ray sets aside for each worker.", rich_help_panel=RAY)]
Calls = Annotated[str, typer.Option(hidden=True, help="For tests: how Ray calls workers: auto, graph, plain.")]
TrustNetwork = Annotated[
    bool,
    typer.Option(
        "--trust-network",
        help="Join a cluster on a network without a token: anyone who can reach it can execute code on its machines.",
        rich_help_panel=RAY,
    ),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run, or a model file.")]
Data = Annotated[str, typer.Argument(help="digits, a folder of IDX or .npy files, an .npz file.")]
Part = Annotated[str | None, typer.Option(help="train, validation or test; by default test if there is one.")]
