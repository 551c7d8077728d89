"""What the README tells new users to type works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL) if README.exists() else []


def block_with(text: str) -> str:
    found = [block for block in BLOCKS if text in block]
    assert found, text
    return found[0]


def test_the_environment_is_activated_before_the_command_is_used():
    lines = "".join(BLOCKS).splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(r"(^|\s)distbp train", line))
    assert any(line.startswith("source .venv/bin/activate") for line in lines[:first])


def test_ray_stop_is_never_told_without_what_it_ends():
    lines = [line for block in BLOCKS for line in block.splitlines() if "ray stop" in line]
    assert lines
    assert all("EVERY Ray" in line for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="a shell")
def test_four_ranks_run_as_root_on_two_cores_as_it_stands_there(tmp_path):
    (tmp_path / "script.py").write_text("from mpi4py import MPI\nprint(MPI.COMM_WORLD.Get_size(), flush=True)\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_ALLOW")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    words = ["bash", "-euc", block_with("mpirun -n 4")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"] * 4


def test_options_that_the_readme_names_exist():
    lines = re.findall(r"^distbp train[^#\n]*", "".join(BLOCKS), re.MULTILINE)
    named = set(re.findall(r"--[a-z][a-z-]+", " ".join(lines)))
    words = [sys.executable, "-m", "distbp", "train", "--help"]
    environment = dict(os.environ) | {"COLUMNS": "200"}
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    assert len(named) > 5
    assert named <= set(re.findall(r"--[a-z][a-z-]+", shown))
