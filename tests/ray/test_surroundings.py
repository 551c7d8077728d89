"""Ray in surroundings that users have."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray_cluster import Cluster
from tests_support import COMMAND, distbp, result

SHORT = ["train", "--epochs", 1, "--shards", 2, "--quiet"]
OWN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}


@pytest.mark.parametrize("home", [None, "/proc"], ids=["unset", "read-only"])
def test_a_ray_of_its_own_needs_no_home(home, tmp_path):
    environment = {name: value for name, value in OWN.items() if name != "HOME"} | ({"HOME": home} if home else {})
    distbp(*SHORT, "--engine", "ray", "--out", tmp_path / "run", env=environment)
    assert result(tmp_path / "run")["engine"] == "ray"


def test_a_ray_of_its_own_leaves_no_token_in_the_home(tmp_path):
    distbp(*SHORT, "--engine", "ray", "--out", tmp_path / "run", env=OWN | {"HOME": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir() if path.name == ".ray"] == []


def test_a_folder_for_temporary_files_that_is_missing_is_not_needed(tmp_path):
    environment = OWN | {"TMPDIR": str(tmp_path / "missing")}
    distbp(*SHORT, "--engine", "ray", "--out", tmp_path / "run", env=environment)
    assert not (tmp_path / "missing").exists()


def test_auto_joins_the_cluster_that_runs_here(tmp_path):
    with Cluster([3]) as cluster:
        assert cluster.address in Path("/tmp/ray/ray_current_cluster").read_text()
        for name, options, environment in (
            ("option", ["--address", "auto"], {}),
            ("variable", [], {"RAY_ADDRESS": "auto"}),
        ):
            distbp(*SHORT, *options, "--out", tmp_path / name, env=dict(os.environ) | environment)
            assert result(tmp_path / name)["engine"] == "ray"
        assert cluster.used_cpus() == 0.0


def test_a_host_that_does_not_know_its_own_name_starts_a_ray(tmp_path):
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a name of its own needs root on Linux")
    words = [*COMMAND, *map(str, SHORT), "--engine", "ray", "--out", str(tmp_path / "run")]
    command = ["unshare", "--uts", "sh", "-c", 'hostname nowhere-to-be-found && exec "$@"', "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
