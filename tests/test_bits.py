"""Bits name their conditions: other kernels are refused, and the portable ones give the same digest everywhere.

Processors that this machine is not are emulated. What the environment sets of kernels already is overridden by these
tests, so that none is skipped for it; those that need AVX2 and FMA, or the emulator, say so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests_support import (
    COMMAND,
    EMULATOR,
    compare,
    distbp,
    emulated,
    finish,
    needs_avx2,
    needs_emulator,
    needs_families,
    other_kernels,
    result,
    start,
    start_training,
)

pytestmark = pytest.mark.timeout(400)
RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not RAY, reason="Ray is not installed")
OTHER = other_kernels()


def with_kernels(variables):
    return {"env": os.environ | variables}


def mpirun(*programs):
    """Start programs of one rank each, side by side."""
    beside = Path(sys.executable).parent / "mpirun"
    command = [beside if beside.exists() else shutil.which("mpirun"), "--oversubscribe", "--bind-to", "none"]
    for program in programs:
        command += [*([":"] if "-n" in command else []), "-n", "1", *program]
    words = list(map(str, command))
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def env(variables, *program):
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *program]


def refusal(done):
    """Return the one message that a run was refused with."""
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("distbp: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


# Two ranks.


@needs_families
@pytest.mark.parametrize("machines", [[], ["--machines", "1+1"]], ids=["one machine", "two machines"])
def test_ranks_with_other_kernels_are_refused_by_one_message_that_names_them(recipe, tmp_path, machines):
    words = [*COMMAND, "train", recipe, *machines, "--out", tmp_path / "run"]
    said = refusal(finish(mpirun(words, env(OTHER, *words))))
    assert "expected all workers to compute the same bits; given matrix products and vector products that" in said
    assert re.search(r"between worker 0 \(machine \S+, process \d+\): .*openblas", said)
    assert re.search(rf"and worker 1 \(machine \S+, process \d+\): .*openblas \S+ {OTHER['OPENBLAS_CORETYPE']}", said)
    assert "take `bits: portable`" in said
    assert not (tmp_path / "run").exists()


@needs_avx2
@pytest.mark.parametrize(
    ("variables", "operations"),
    [
        ({"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3"}, {"exp", "tanh", "log"}),
        ({"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA"}, {"the C library"}),
    ],
    ids=["NumPy's loops", "the C library"],
)
def test_ranks_whose_functions_differ_are_refused(recipe, tmp_path, variables, operations):
    words = [*COMMAND, "train", recipe, "--out", tmp_path / "run"]
    said = refusal(finish(mpirun(words, env(variables, *words))))
    # Which functions have loops above AVX2 depends on the processor: with AVX-512, expm1 and log1p have some, too.
    assert operations <= set(re.search(r"given (.*) that differ between worker 0", said)[1].split(" and "))


def test_ranks_of_other_versions_are_refused(recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import distbp.version as module\nmodule.__version__ = '0.0.1'\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    words = [*COMMAND, "train", recipe, "--out", tmp_path / "run"]
    said = refusal(finish(mpirun(words, env({"PYTHONPATH": path}, *words))))
    assert re.search(r"expected distbp [\d.]+, as on worker 0 .*; given 0.0.1 on worker 1 .*; install the same", said)


@needs_families
def test_a_script_says_it_as_well(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, tmp_path / "script.py"]
    done = finish(mpirun(words, env(OTHER, *words)))
    assert done.returncode != 0
    assert done.stderr.count("InputError: workers: expected all workers to compute the same bits") == 1


# Ray.


@pytest.fixture(scope="module")
def mixed_cluster():
    """Two raylets, of which the second one's processes take other kernels."""
    if not RAY:
        pytest.skip("Ray is not installed")
    from ray_cluster import Cluster

    with Cluster([2]) as cluster:
        cluster.env = os.environ | OTHER
        cluster.join(2)
        yield cluster


@needs_families
@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_actors_with_other_kernels_are_refused(mixed_cluster, recipe, tmp_path, mode):
    options = ["--address", mixed_cluster.address, "--workers", 3, "--set", f"mode={mode}"]
    said = refusal(distbp("train", recipe, *options, "--out", tmp_path / "run", status=2))
    assert "given matrix products and vector products that differ between worker 0" in said
    assert OTHER["OPENBLAS_CORETYPE"] in said


@needs_avx2
def test_actors_take_the_portable_kernels_wherever_they_are(mixed_cluster, recipe, portable, tmp_path):
    options = ["--address", mixed_cluster.address, "--workers", 3, "--deadline", 30, "--set", "bits=portable"]
    distbp("train", recipe, *options, "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), portable)


@needs_families
@needs_ray
@pytest.mark.thorough
def test_a_machine_with_other_kernels_that_joins_a_run_is_refused_and_the_run_goes_on_without_it(long, calm, tmp_path):
    from ray_cluster import Cluster

    with Cluster([1]) as cluster:
        process = start_training(tmp_path / "run", long, "--address", cluster.address, "--workers", "1:3")
        process.send_signal(signal.SIGSTOP)  # so that the run is not over before the machine is there
        cluster.env = os.environ | OTHER
        cluster.join(2)
        cluster.wait_for_cpus(3)
        process.send_signal(signal.SIGCONT)
        said = refusal(finish(process, 100))
    assert "given matrix products and vector products that differ between worker" in said
    distbp("train", "--resume", tmp_path / "run")
    compare(result(tmp_path / "run"), result(calm))


# Resuming.


@pytest.fixture
def stopped(recipe, tmp_path):
    """A run that stopped after its first step."""
    distbp("train", recipe, "--max-time", 0, "--out", tmp_path / "run", status=75)
    return tmp_path / "run"


@needs_families
@pytest.mark.parametrize("options", [[], ["--workers", 2]], ids=["local", "mpi"])
def test_a_run_goes_on_with_other_kernels_only_where_that_is_accepted(stopped, alone, options):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    said = refusal(distbp("train", "--resume", stopped, *options, status=2, **with_kernels(OTHER)))
    assert "expected what has computed the run so far (" in said
    assert "given matrix products and vector products that differ from it (" in said
    assert "with --accept-other-arithmetic" in said
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    distbp("train", "--resume", stopped, "--accept-other-arithmetic", *options, **with_kernels(OTHER))
    outcome = result(stopped)
    assert outcome["steps"] == alone["steps"]
    assert outcome["weights_sha256"] != alone["weights_sha256"]
    first, second = outcome["arithmetic"]
    assert first == alone["arithmetic"][0]
    assert OTHER["OPENBLAS_CORETYPE"] in second["kernels"]


@needs_families
@needs_ray
@pytest.mark.thorough
def test_a_run_goes_on_with_other_actors_only_where_that_is_accepted(stopped):
    from ray_cluster import Cluster

    with Cluster([1], env=os.environ | OTHER) as cluster:
        command = ["train", "--resume", stopped, "--address", cluster.address]
        assert "given matrix products and vector products that differ from" in refusal(distbp(*command, status=2))
        distbp(*command, "--accept-other-arithmetic")
    assert len(result(stopped)["arithmetic"]) == 2


def test_a_run_goes_on_with_the_same_kernels_without_a_question(stopped, alone):
    distbp("train", "--resume", stopped, "--workers", 2)
    compare(result(stopped), alone)
    assert result(stopped)["arithmetic"] == alone["arithmetic"]


def test_what_computed_a_run_is_told_with_its_digest(alone):
    (own,) = alone["arithmetic"]
    assert set(own) == {"processor", "kernels", "versions", "threads", "digests"}
    assert {"distbp", "numpy", "Python", "C library"} == set(own["versions"])
    assert own["versions"]["numpy"] == np.__version__
    assert {"matrix products", "vector products", "exp", "tanh", "draws"} <= set(own["digests"])


# The portable kernels.


@pytest.fixture(scope="module")
def portable(recipe, tmp_path_factory):
    """The result of the recipe with ``bits: portable``, in one process of this machine."""
    out = tmp_path_factory.mktemp("portable") / "run"
    distbp("train", recipe, "--set", "bits=portable", "--engine", "local", "--out", out)
    return result(out)


@needs_avx2
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Nehalem", ["--engine", "local"]),
        ("Sandybridge", ["--workers", 2]),
        pytest.param("Nehalem", ["--engine", "ray", "--workers", 2], marks=needs_ray),
        pytest.param("Prescott", ["--workers", 3, "--machines", "2+1"], marks=pytest.mark.thorough),
        pytest.param("Sandybridge", ["--engine", "ray", "--workers", 2], marks=[needs_ray, pytest.mark.thorough]),
    ],
)
def test_portable_bits_are_the_same_whatever_the_environment_says(recipe, portable, tmp_path, family, options):
    said = {"OPENBLAS_CORETYPE": family, "NPY_ENABLE_CPU_FEATURES": "SSE42"}
    distbp("train", recipe, "--set", "bits=portable", *options, "--out", tmp_path / "run", **with_kernels(said))
    compare(result(tmp_path / "run"), portable)
    assert result(tmp_path / "run")["arithmetic"] == portable["arithmetic"]
    assert "Haswell" in portable["arithmetic"][0]["kernels"]


@needs_avx2
def test_ranks_of_a_users_own_mpirun_take_the_portable_kernels(recipe, portable, tmp_path):
    words = [*COMMAND, "train", recipe, "--set", "bits=portable", "--out", tmp_path / "run"]
    done = finish(mpirun(words, env({"OPENBLAS_CORETYPE": "Nehalem"}, *words)))
    assert done.returncode == 0, done.stderr
    compare(result(tmp_path / "run"), portable)


@needs_avx2
@needs_emulator
@pytest.mark.parametrize(
    "processor", ["max", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("Haswell", "EPYC"))]
)
def test_portable_bits_are_the_same_on_another_processor(recipe, portable, tmp_path, processor):
    emulated(processor, "train", recipe, "--set", "bits=portable", "--engine", "local", "--out", tmp_path / "run")
    compare(result(tmp_path / "run"), portable)


@needs_avx2
@needs_emulator
@pytest.mark.thorough
def test_without_them_a_processor_that_openblas_does_not_know_gives_others(recipe, portable, tmp_path):
    emulated("max", "train", recipe, "--engine", "local", "--out", tmp_path / "run")
    assert result(tmp_path / "run")["weights_sha256"] != portable["weights_sha256"]


@needs_avx2
@needs_emulator
@pytest.mark.thorough
@pytest.mark.parametrize("processors", [("max", "max"), ("Haswell", "EPYC"), (None, "max")], ids=str)
def test_portable_ranks_may_run_on_different_processors(recipe, portable, tmp_path, processors):
    words = [*COMMAND, "train", recipe, "--set", "bits=portable", "--out", tmp_path / "run"]
    done = finish(mpirun(*([*([EMULATOR, "-cpu", p] if p else []), *words] for p in processors)), 150)
    assert done.returncode == 0, done.stderr
    compare(result(tmp_path / "run"), portable)


@needs_avx2
@needs_emulator
@needs_ray
@pytest.mark.thorough
@pytest.mark.timeout(400)  # Ray's workers start slowly there
@pytest.mark.parametrize("processor", ["max", "Haswell", "EPYC"])
def test_portable_actors_may_run_on_another_processor(recipe, portable, tmp_path, processor):
    from ray_cluster import Cluster

    python = tmp_path / "python"  # what the raylet starts its workers with
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *default_worker*) exec {EMULATOR} -cpu {processor} {sys.executable} "$@";; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(python)!r}\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with Cluster([2], env=os.environ | {"PYTHONPATH": path, "RAY_worker_register_timeout_seconds": "300"}) as cluster:
        options = ["--address", cluster.address, "--workers", 2, "--deadline", 60, "--set", "bits=portable"]
        done = finish(start("train", recipe, *options, "--out", tmp_path / "run"), 150)
    assert done.returncode == 0, done.stderr
    compare(result(tmp_path / "run"), portable)


@needs_emulator
@pytest.mark.parametrize("processor", ["Nehalem", pytest.param("SandyBridge", marks=pytest.mark.thorough)])
def test_processors_without_avx2_are_refused(recipe, tmp_path, processor):
    options = ["--set", "bits=portable", "--engine", "local", "--out", tmp_path / "run"]
    said = refusal(emulated(processor, "train", recipe, *options, status=2))
    assert "expected an x86-64 processor with AVX2 and FMA; given " in said
    assert "without FMA and AVX2" in said
    assert not (tmp_path / "run" / "model.safetensors").exists()


@needs_avx2
@needs_emulator
@pytest.mark.thorough
def test_one_rank_without_avx2_is_refused_by_all(recipe, tmp_path):
    words = [*COMMAND, "train", recipe, "--set", "bits=portable", "--out", tmp_path / "run"]
    said = refusal(finish(mpirun(words, [EMULATOR, "-cpu", "Nehalem", *words]), 150))
    assert said.startswith("distbp: bits: portable (worker 1 (machine ")


@needs_avx2
def test_other_architectures_are_refused(recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import platform\nplatform.machine = lambda: 'aarch64'\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    options = ["--set", "bits=portable", "--out", tmp_path / "run"]
    done = distbp("train", recipe, *options, status=2, **with_kernels({"PYTHONPATH": path}))
    assert "expected an x86-64 processor with AVX2 and FMA" in refusal(done)


@needs_avx2
def test_a_portable_run_goes_on_wherever_the_portable_kernels_are(recipe, portable, tmp_path):
    run = tmp_path / "run"
    distbp("train", recipe, "--set", "bits=portable", "--max-time", 0, "--out", run, status=75)
    distbp("train", "--resume", run, "--workers", 2, **with_kernels(OTHER))
    compare(result(run), portable)


@needs_avx2
def test_a_portable_model_predicts_and_evaluates_with_the_portable_kernels(recipe, tmp_path):
    run = tmp_path / "run"
    distbp("train", recipe, "--set", "bits=portable", "--out", run)
    said = [distbp("evaluate", run, "digits", **with_kernels(own)).stdout for own in ({}, OTHER)]
    assert said[0] == said[1]
    outputs = []
    for name, own in (("here", {}), ("there", OTHER)):
        distbp("predict", run, "digits", "--out", tmp_path / f"{name}.npy", **with_kernels(own))
        outputs.append((tmp_path / f"{name}.npy").read_bytes())
    assert outputs[0] == outputs[1]


@needs_families
def test_a_model_predicts_on_other_kernels_than_it_was_trained_with(recipe, tmp_path):
    run = tmp_path / "run"
    distbp("train", recipe, "--out", run)
    distbp("evaluate", run, "digits", **with_kernels(OTHER))


# Scripts and notebooks.

SCRIPT = """
from distbp import Trainer, load, nn, optim
digits = load("digits")
trainer = Trainer([nn.Dense(8), nn.Tanh(), nn.Dense(10), nn.Softmax()], epochs=1, shards=2, bits="BITS")
outcome = trainer.fit(digits.train.x, digits.train.y)
if trainer.worker == 0:
    print(outcome.weights_sha256)
""".replace("BITS", "fastest")
PORTABLE_SCRIPT = SCRIPT.replace("fastest", "portable")


def run_script(tmp_path, text, variables):
    (tmp_path / "script.py").write_text(text)
    words = [sys.executable, tmp_path / "script.py"]
    environment = os.environ | variables
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_avx2
def test_where_numpy_is_loaded_already_it_is_said_what_to_do_and_that_helps(tmp_path):
    refused = run_script(tmp_path, PORTABLE_SCRIPT, OTHER)
    assert refused.returncode != 0
    assert "OpenBLAS with the kernels Haswell" in refused.stderr
    assert "`import distbp.portable`" in refused.stderr
    variables = re.search(r"start Python with (.*); a NumPy", refused.stderr)[1]
    with_import = run_script(tmp_path, "import distbp.portable\n" + PORTABLE_SCRIPT, OTHER)
    assert with_import.returncode == 0, with_import.stderr
    words = ["sh", "-c", f"{variables} {sys.executable} {tmp_path / 'script.py'}"]
    (tmp_path / "script.py").write_text(PORTABLE_SCRIPT)
    with_variables = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert with_variables.stdout == with_import.stdout


@needs_avx2
def test_the_import_comes_too_late_where_numpy_has_taken_other_kernels(tmp_path):
    late = run_script(tmp_path, "import numpy\nimport distbp.portable\n", OTHER)
    assert late.stderr.splitlines()[-1].startswith("distbp.errors.InputError: bits: portable: expected OpenBLAS with")
    in_time = run_script(tmp_path, "import distbp.portable\nimport numpy\nimport distbp.portable\n", OTHER)
    assert in_time.returncode == 0, in_time.stderr


def test_a_mistyped_kind_of_bits_is_answered_with_the_right_ones(recipe, tmp_path):
    said = refusal(distbp("train", recipe, "--set", "bits=portble", "--out", tmp_path / "run", status=2))
    assert "recipe.yaml: bits: expected 'fastest' or 'portable'; given 'portble'" in said
