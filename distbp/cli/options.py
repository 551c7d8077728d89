"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="One of: auto, local, mpi, ray. auto: mpi with several workers, ray where a cluster is given."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; outside mpirun, mpirun is started.")]
Machines = Annotated[str | None, typer.Option(help="For tests: treat the workers as on several machines, as in 3+1.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Seconds to wait for a worker that does not get on (10), or for room in a Ray cluster (60)."
    ),
]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster, or auto: the running one; by default RAY_ADDRESS.")
]
Cpus = Annotated[float, typer.Option(min=0.0, help="CPUs that Ray sets aside for each worker.")]
Calls = Annotated[str, typer.Option(help="How Ray calls workers: auto, graph, plain.")]
TrustNetwork = Annotated[
    bool,
    typer.Option(
        "--trust-network",
        help="Ray: join a cluster on a network without a token; whoever reaches it runs what he likes.",
    ),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run, or a model file.")]
Data = Annotated[str, typer.Argument(help="digits, a folder of IDX or .npy files, an .npz file.")]
Part = Annotated[str | None, typer.Option(help="train, validation or test; by default test if there is one.")]
