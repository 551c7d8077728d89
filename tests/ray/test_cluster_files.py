"""The files of cluster/: against the schema of their tool, or run with stand-ins for it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from ray_cluster import free_port
from tests_support import RECIPE, distbp, result

CLUSTER = Path(__file__).parents[2] / "cluster"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
pytestmark = pytest.mark.timeout(400)


@needs_ray
@pytest.mark.parametrize("name", ["ssh", "aws"])
def test_a_cluster_file_keeps_to_the_schema_of_ray(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()))
    validate_config(config)
    with pytest.raises(Exception, match="unknown_key"):  # the schema does say no
        validate_config(config | {"unknown_key": 1})


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_every_option_of_distbp_in_a_manifest_exists(path):
    words = re.sub(r"[,\[()]", " ", path.read_text()).split()
    given = {word for word in words if word.startswith("--") and "=" not in word}
    others = {"--generate", "--allow-run-as-root", "--bind-to", "--quiet", "--head", "--disable-usage-stats"}
    known = distbp("train", "--help", env=os.environ | {"COLUMNS": "200"}).stdout
    assert all(option in known for option in given - others - {"--"}), given


# The fields of custom resources as their operators publish them, with what must be there first, before a semicolon:
# KubeRay, ray-operator/apis/ray/v1 (rayjob_types.go, raycluster_types.go); Kubeflow MPI operator,
# pkg/apis/kubeflow/v2beta1/types.go. Pods are Kubernetes' own.
FIELDS = {
    "RayJob": "apiVersion kind metadata; spec",
    "RayJob.spec": "; activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
    "RayJob.spec.rayClusterSpec": "headGroupSpec; workerGroupSpecs rayVersion enableInTreeAutoscaling "
    "autoscalerOptions headServiceAnnotations suspend",
    "RayJob.spec.rayClusterSpec.headGroupSpec": "rayStartParams template; serviceType headService enableIngress",
    "RayJob.spec.rayClusterSpec.workerGroupSpecs": "groupName minReplicas maxReplicas rayStartParams template; "
    "replicas numOfHosts scaleStrategy",
    "MPIJob": "apiVersion kind metadata; spec",
    "MPIJob.spec": "mpiReplicaSpecs; slotsPerWorker runPolicy sshAuthMountPath waitForWorkers mpiImplementation",
    "MPIJob.spec.runPolicy": "; cleanPodPolicy ttlSecondsAfterFinished activeDeadlineSeconds backoffLimit "
    "schedulingPolicy suspend",
    "MPIJob.spec.mpiReplicaSpecs": "; Launcher Worker",
    "MPIJob.spec.mpiReplicaSpecs.Launcher": "; replicas template restartPolicy",
    "MPIJob.spec.mpiReplicaSpecs.Worker": "; replicas template restartPolicy",
}


def check_fields(path, value):
    """Assert that ``value`` has the fields that ``path`` may have; return the pods in it."""
    if isinstance(value, list):
        return [pod for item in value for pod in check_fields(path, item)]
    if path.endswith(("template", "submitterPodTemplate")):
        return [value]
    if path not in FIELDS:
        return []
    required, optional = (set(part.split()) for part in FIELDS[path].split(";"))
    assert required <= set(value) <= required | optional, path
    return [pod for key, part in value.items() for pod in check_fields(f"{path}.{key}", part)]


@pytest.mark.parametrize(("name", "n_pods"), [("kuberay-rayjob", 3), ("kubeflow-mpijob", 2)])
@pytest.mark.filterwarnings("default")
def test_a_manifest_keeps_to_the_schemas_of_its_operator_and_of_kubernetes(name, n_pods):
    manifest = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    pods = check_fields(manifest["kind"], manifest)
    assert len(pods) == n_pods
    for pod in pods:
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        kubernetes_validate.validate(template, "1.31", strict=True)
        template["template"] = pod | {"spec": pod["spec"] | {"restart": "Never"}}
        with pytest.raises(kubernetes_validate.ValidationError):  # the schema does say no
            kubernetes_validate.validate(template, "1.31", strict=True)


STAND_INS = {
    "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
}


def end_job(script):
    """End what is left of a job as Slurm does, and return what it said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(script.pid, number)
            return script.communicate(timeout=3)[0]
    return script.communicate(timeout=10)[0]


@pytest.mark.parametrize("engine", ["mpi", pytest.param("ray", marks=needs_ray)])
def test_a_slurm_script_trains_with_stand_ins_for_slurm(tmp_path, engine):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = free_port() - 20000 if engine == "ray" else 7
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ENVIRONMENT": sys.prefix,
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "HOME": str(tmp_path),
    }
    script = subprocess.Popen(
        ["bash", CLUSTER / f"slurm-{engine}.sh", "recipe.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        status = script.wait(timeout=90)
    finally:
        said = end_job(script)
    assert status == 0, said
    distbp("train", tmp_path / "recipe.yaml", "--engine", "local", "--out", tmp_path / "alone")
    found = result(tmp_path / "runs" / f"slurm-{job}")
    assert found["weights_sha256"] == result(tmp_path / "alone")["weights_sha256"]
    assert (found["engine"], found["workers"]) == (engine, 2)
