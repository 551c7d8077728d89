"""What a process finds around it: imports, batch systems, folders, addresses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests_support import COMMAND, disk_of, distbp, result

from distbp import InputError
from distbp.engine import arena, choose, surroundings
from distbp.engine.cluster import meant, require_form
from distbp.engine.mpirun import is_first_rank, is_launched

HEAVY = {"numpy", "pydantic", "ray", "mpi4py", "yaml", "rich", "psutil", "safetensors", "threadpoolctl", "distbp.train"}
SHORT = ["train", "--epochs", 1, "--shards", 2, "--quiet"]
SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOBID": "1",
    "SLURM_NODELIST": "node[7-8]",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "4", "PMI_FD": "77", "PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.1.0"}


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_imports_nothing_that_it_does_not_need(words):
    code = (
        "import sys, distbp.cli.main as m\n"
        f"sys.argv = ['distbp', *{words!r}]\n"
        "try:\n    m.main()\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_package_gives_all_that_it_names_and_no_more():
    code = (
        "import sys, distbp\n"
        "assert 'numpy' not in sys.modules\n"
        "assert set(distbp.__all__) <= set(dir(distbp))\n"
        "from distbp import *\n"
        "from distbp import Trainer, nn, optim, load, Watcher\n"
        "assert Trainer is distbp.Trainer is distbp.trainer.Trainer and nn.Dense and optim.Adam\n"
        "assert all(hasattr(distbp, name) for name in distbp.__all__)\n"
        "assert not hasattr(distbp, 'Trainr')\n"
        "from distbp import Trainr\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("ImportError: cannot import name 'Trainr'")


def test_the_variables_of_a_batch_system_do_not_make_a_rank(monkeypatch):
    for name, value in (SLURM | PMI).items():
        monkeypatch.setenv(name, value)
    assert not is_launched()
    assert is_first_rank()
    assert choose("auto") == "local"


def test_a_launcher_that_is_there_makes_a_rank(monkeypatch, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv("PMI_RANK", "3")
        monkeypatch.setenv("PMI_FD", str(ours.fileno()))
        assert is_launched()
        assert not is_first_rank()
        monkeypatch.setenv("PMI_RANK", "0")
        assert is_first_rank()
    assert not is_launched()  # the socket is closed
    monkeypatch.setenv("PMIX_RANK", "2")
    monkeypatch.setenv("PMIX_SERVER_TMPDIR", str(tmp_path))
    assert is_launched()
    assert not is_first_rank()
    monkeypatch.setenv("PMIX_SERVER_TMPDIR", str(tmp_path / "gone"))
    assert not is_launched()


@pytest.mark.parametrize(
    "found",
    [SLURM, SLURM | PMI, {"PBS_JOBID": "1.x", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODEFILE": "/nonexistent"}],
    ids=["Slurm", "Slurm and PMI", "PBS"],
)
def test_workers_start_on_this_machine_in_a_batch_job(found, tmp_path):
    distbp(*SHORT, "--workers", 2, "--out", tmp_path / "run", env=dict(os.environ) | found)
    assert result(tmp_path / "run")["workers"] == 2


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


@pytest.mark.parametrize("engine", [["--workers", 2], ["--engine", "mpi"]], ids=["workers", "mpi"])
@pytest.mark.parametrize("home", [None, "", "/nonexistent", "/proc"])
def test_it_trains_without_a_home(engine, home, tmp_path):
    environment = without("HOME") | ({} if home is None else {"HOME": home})
    distbp(*SHORT, *engine, "--out", tmp_path / "run", env=environment)
    assert result(tmp_path / "run")["epochs"] == 1


def test_a_user_whom_the_system_does_not_know_has_a_home(monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    surroundings.prepare_surroundings()
    assert os.environ["HOME"] == "/"


@pytest.fixture
def no_room(tmp_path):
    """A folder on a full disk."""
    with disk_of("4k", tmp_path / "full") as folder:
        (folder / "all").write_bytes(bytes(4096))
        yield folder


def test_it_trains_where_the_folder_for_temporary_files_is_full(no_room, tmp_path):
    distbp(*SHORT, "--workers", 2, "--out", tmp_path / "run", env=dict(os.environ) | {"TMPDIR": str(no_room)})
    assert result(tmp_path / "run")["workers"] == 2


def test_a_folder_for_temporary_files_that_is_missing_is_not_made(tmp_path):
    folder = tmp_path / "missing"
    distbp(*SHORT, "--workers", 2, "--out", tmp_path / "run", env=dict(os.environ) | {"TMPDIR": str(folder)})
    assert not folder.exists()


def test_where_no_temporary_file_can_be_written_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr(surroundings, "_PLACES", (str(tmp_path / "gone"),))
    with pytest.raises(InputError, match=r"missing \(No such file or directory\).*let TMPDIR name another"):
        surroundings.prepare_surroundings()
    monkeypatch.setattr(surroundings, "_PLACES", (str(tmp_path),))
    surroundings.prepare_surroundings()
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_a_folder_that_can_be_used_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", "/somewhere")
    surroundings.prepare_surroundings()
    assert (os.environ["TMPDIR"], os.environ["HOME"]) == (str(tmp_path), "/somewhere")
    assert list(tmp_path.iterdir()) == []


def in_own_mounts(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh", *map(str, words)]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts of its own need root on Linux")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_without_proc_one_process_trains_and_several_say_what_is_missing(tmp_path):
    hide = "mount --make-rprivate / && mount -t tmpfs tmpfs /proc"
    done = in_own_mounts(hide, *COMMAND, *SHORT, "--engine", "local", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for engine in (["--workers", 2], ["--engine", "mpi"], ["--engine", "ray"]):
        done = in_own_mounts(hide, *COMMAND, *SHORT, *engine, "--out", tmp_path / "other")
        assert done.returncode == 2
        assert "expected the file system /proc" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_memory_of_another_user_is_refused_with_a_reason():
    handle = arena.reserve(4096)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            parent = os.getppid()
            os.setresuid(54321, 54321, 54321)
            arena.attach(parent, handle)
        except InputError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(handle)
    assert "a refusal to open the memory" in said
    assert "as one user" in said


def test_memory_that_is_hidden_is_not_taken_for_that_of_a_process_that_died():
    with pytest.raises(InputError, match="a refusal to open the memory"):
        arena.attach(os.getpid(), 987654)
    with tempfile.TemporaryFile() as file:
        os.close(arena.attach(os.getpid(), file.fileno()))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", ["Ray Client", "10.0.0.1:6379", "ray job submit --address http://10.0.0.1:8265"]),
        ("http://10.0.0.1:8265", ["that of its jobs", "10.0.0.1:6379", "ray job submit"]),
        ("anyscale://prod", ["another kind of address"]),
        ("10.0.0.1", ["HOST:PORT of a Ray cluster", "the address of the head"]),
    ],
)
def test_an_address_of_another_kind_is_answered_with_what_to_write_instead(address, words):
    with pytest.raises(InputError) as caught:
        require_form(address)
    for word in words:
        assert word in str(caught.value)


def test_the_words_of_ray_for_a_cluster_are_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert meant(None) is None
    assert meant("local") is None
    assert meant("n7:6379") == "n7:6379"
    with pytest.raises(InputError, match=r"a Ray cluster that runs on this machine.*ray start --head"):
        meant("auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(running)
        assert meant("auto") == meant(None) == meant("") == running


def test_a_cluster_of_its_own_is_not_a_cluster_to_join(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert choose("auto") == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert choose("auto") == "ray"


def test_a_host_that_does_not_resolve_is_named():
    done = distbp(*SHORT, "--address", "nowhere.invalid:6379", "--trust-network", status=2)
    assert "nowhere.invalid:6379, where nothing answers" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_workers_start_on_a_host_that_does_not_know_its_own_name(tmp_path):
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a name of its own needs root on Linux")
    words = [*COMMAND, *map(str, SHORT), "--workers", "2", "--out", str(tmp_path / "run")]
    command = ["unshare", "--uts", "sh", "-c", 'hostname nowhere-to-be-found && exec "$@"', "sh", *words]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert result(tmp_path / "run")["workers"] == 2
