"""How tests run the ``distbp`` command, and the recipe that they share."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors import safe_open

from distbp import kernels
from distbp.train import tensor_file

COMMAND = [sys.executable, "-m", "distbp"]

# 8 shards; dropout; 1294 training rows and a batch of 100, neither of which 8 divides; Adam, cosine, clipping.
RECIPE = """
data: {source: digits, validation: 0.1, scaling: minmax}
model: [{dense: 96}, relu, {dropout: 0.2}, {dense: 48}, tanh, {dense: 10}, softmax]
optimizer: {adam: {learning_rate: 0.005}}
schedule: {cosine: {warmup_steps: 5}}
clip_norm: 0.5
batch_size: 100
epochs: 3
seed: 3
shards: 8
"""


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start ``distbp`` with these arguments."""
    return start_program(*COMMAND, *arguments, **options)


def start_program(*words: object, **options: object) -> subprocess.Popen[str]:
    """Start any program."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, words)], stdout=pipe, stderr=pipe, text=True, **options)  # type: ignore[call-overload]


def under_mpirun(n: int, *words: object, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a program on ``n`` ranks of an mpirun that is not ours."""
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = beside if beside.exists() else shutil.which("mpirun")
    return start_program(mpirun, "-n", n, "--oversubscribe", "--bind-to", "none", *options, *words)


def finish(process: subprocess.Popen[str], timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    """Return what ``process`` did; end it and fail where it takes longer."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=10)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def distbp(*arguments: object, status: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``distbp`` to its end, which must have this exit status."""
    done = finish(start(*arguments, **options))
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def result(folder: Path) -> dict[str, object]:
    """Return result.json of a run."""
    return json.loads((folder / "result.json").read_text())


def metrics(folder: Path) -> list[dict[str, object]]:
    """Return the lines of metrics.jsonl of a run, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "examples_per_second")} for line in lines]


def compare(found: dict[str, object], expected: dict[str, object]) -> None:
    """Assert that two runs gave the same bits."""
    for key in ("weights_sha256", "train", "validation", "test", "steps"):
        assert found[key] == expected[key]


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Return once ``process`` has written a line with ``text``; fail where it ends without."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    raise AssertionError("".join([*said, process.stderr.read() if process.stderr else ""]))


def start_training(folder: Path, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a run whose output goes to ``folder``, and return it once it trains."""
    process = start("train", *arguments, "--out", folder, **options)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.stat().st_size > 0):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def forge(path: Path, header: Mapping[str, object] = MappingProxyType({}), **tensors: np.ndarray | None) -> None:
    """Change header and tensors (None: leave it out) of a file of ours, with the checksums that go with them.

    In the names of tensors ``__`` stands for a dot.
    """
    with safe_open(path, framework="np") as content:
        kind = content.metadata()["format"]
    found, arrays = tensor_file.read(path, kind, "file", "")
    arrays |= {name.replace("__", "."): array for name, array in tensors.items()}
    changed = {name: array for name, array in arrays.items() if array is not None}
    path.write_bytes(tensor_file.to_bytes(kind, found | dict(header), changed))


@contextmanager
def disk_of(size: str, folder: Path) -> Iterator[Path]:
    """Let a disk of that size be at ``folder``, which is made; skip the test where none can be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs a file system that can be mounted, so root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


if hasattr(os, "geteuid") and os.geteuid() == 0:  # for tests that call mpirun themselves, in a container
    os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def other_kernels() -> dict[str, str]:
    """Return variables with which OpenBLAS takes another family of kernels than in this process."""
    return {"OPENBLAS_CORETYPE": "Sandybridge" if kernels.blas().get("architecture") == "Nehalem" else "Nehalem"}


HAS_FAMILIES = platform.machine() in ("x86_64", "AMD64") and kernels.blas().get("internal_api") == "openblas"
needs_families = pytest.mark.skipif(not HAS_FAMILIES, reason="OpenBLAS has these families of kernels on x86-64 only")
needs_avx2 = pytest.mark.skipif(bool(kernels.lacking()), reason="the portable kernels need AVX2 and FMA, on x86-64")
"""What the environment says of kernels already is overridden by these tests; none is skipped for it."""
EMULATOR = shutil.which("qemu-x86_64")
needs_emulator = pytest.mark.skipif(EMULATOR is None, reason="other processors need qemu-x86_64 (Debian: qemu-user)")


def emulated(processor: str, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``distbp`` on an emulated ``processor``, to its end; leave out what the emulator says of itself."""
    command = [EMULATOR, "-cpu", processor, *COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    said = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("qemu-x86_64: warning"))
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{said}"
    return subprocess.CompletedProcess(command, done.returncode, done.stdout, said)
