"""Manifests have the fields that Kubernetes and JobSet know, and the hosts and chips that their topology has."""

import math

import kubernetes_validate
import pytest

from clipjax.planning.tpu_chips import TPUS
from tests.deploy.files import DEPLOY, commands, containers, manifests

KUBERNETES = DEPLOY / "kubernetes"
JOBSETS = sorted(KUBERNETES.glob("jobset-*.yaml"))
# GKE's label of an accelerator -> clipjax's name of the chip. Slices of several hosts have 4 chips on each.
ACCELERATORS = {
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5e",
    "tpu-v5p-slice": "v5p",
    "tpu-v6e-slice": "v6e",
    "tpu7x": "tpu7x",
}
CHIPS_OF_A_HOST = 4
# The fields of JobSet's API, jobset.x-k8s.io/v1alpha2. A dict: an object with these fields, and ! those it must have;
# [x]: a list of x; a set: one of these; a type: a value of it; Job: batch/v1's JobTemplateSpec.
Job = object()
JOBSET = {
    "replicatedJobs!": [
        {
            "name!": str,
            "groupName": str,
            "template!": Job,
            "replicas": int,
            "dependsOn": [{"name!": str, "status!": {"Ready", "Complete"}}],
        }
    ],
    "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
    "successPolicy": {"operator!": {"All", "Any"}, "targetReplicatedJobs": [str]},
    "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
        "rules": [
            {
                "name!": str,
                "action!": {
                    "FailJobSet",
                    "RestartJobSet",
                    "RestartJobSetAndIgnoreMaxRestarts",
                    "RestartJob",
                    "RestartJobAndIgnoreMaxRestarts",
                },
                "onJobFailureReasons": [
                    {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"}
                    | {"PodFailurePolicy"}
                ],
                "onJobFailureMessagePatterns": [str],
                "targetReplicatedJobs": [str],
            }
        ],
    },
    "startupPolicy": {"startupPolicyOrder!": {"AnyOrder", "InOrder"}},
    "suspend": bool,
    "coordinator": {"replicatedJob!": str, "jobIndex": int, "podIndex": int},
    "managedBy": str,
    "ttlSecondsAfterFinished": int,
}


def check(value, schema, where: str) -> None:
    """Asserts that a part of a JobSet has no field that its API does not have, and no value of another type."""
    if schema is Job:
        document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **value}
        kubernetes_validate.validate(document, "1.33", strict=True)
    elif isinstance(schema, dict):
        assert isinstance(value, dict), where
        known = {name.rstrip("!"): part for name, part in schema.items()}
        assert not set(value) - set(known), f"{where}: {sorted(set(value) - set(known))}"
        assert {name[:-1] for name in schema if name.endswith("!")} <= set(value), where
        for name, part in value.items():
            check(part, known[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for index, part in enumerate(value):
            check(part, schema[0], f"{where}[{index}]")
    elif isinstance(schema, set):
        assert value in schema, f"{where}: {value}"
    else:
        assert type(value) is schema, f"{where}: {value}"


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_manifests_have_no_field_that_the_api_does_not_have(path):
    for document in manifests(path):
        if document["kind"] == "JobSet":
            assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
            assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
            check(document["spec"], JOBSET, "spec")
        else:
            kubernetes_validate.validate(document, "1.33", strict=True)


def test_a_misspelt_field_of_a_jobset_is_noticed():
    [spec] = [document["spec"] for document in manifests(JOBSETS[0]) if document["kind"] == "JobSet"]
    spec["failurePolicy"]["maxRestart"] = spec["failurePolicy"].pop("maxRestarts")
    with pytest.raises(AssertionError, match="maxRestart"):
        check(spec, JOBSET, "spec")


def test_a_misspelt_field_of_a_pod_is_noticed():
    [spec] = [document["spec"] for document in manifests(JOBSETS[0]) if document["kind"] == "JobSet"]
    spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(spec, JOBSET, "spec")


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_has_the_hosts_and_chips_of_its_topology(path):
    [jobset] = [document for document in manifests(path) if document["kind"] == "JobSet"]
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    chip = TPUS[ACCELERATORS[pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"]]]
    shape = [int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    assert len(shape) == chip.torus
    [container] = containers(pod)
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips == container["resources"]["requests"]["google.com/tpu"] == CHIPS_OF_A_HOST
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == math.prod(shape) // CHIPS_OF_A_HOST
    # A slice is a node pool, and one Job never gets parts of two.
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert path.stem == f"jobset-{chip.name}" and jobset["metadata"]["name"] == f"clipjax-{chip.name}"
    # A host's name, which has at most 63 characters.
    assert len(f"{jobset['metadata']['name']}-{replicated['name']}-0-{job['completions']}-abcde") <= 63


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_starts_again_after_a_failure_and_not_after_a_wrong_command_line(path):
    [spec] = [document["spec"] for document in manifests(path) if document["kind"] == "JobSet"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    [container] = containers(job)
    assert spec["failurePolicy"]["maxRestarts"] > 0 and job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy needs
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert container["command"][0] == "preemptible"


def test_the_pods_of_the_gpu_job_find_each_other_by_the_headless_service():
    documents = {document["kind"]: document for document in manifests(KUBERNETES / "job-gpu.yaml")}
    service, job = documents["Service"], documents["Job"]
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    [container] = pod["containers"]
    [port] = container["ports"]
    assert f"--coordinator_address={name}-0.{pod['subdomain']}:{port['containerPort']}" in container["args"]
    assert f"--num_processes={job['spec']['completions']}" in container["args"]
    assert "--process_id=$(JOB_COMPLETION_INDEX)" in (KUBERNETES / "job-gpu.yaml").read_text()
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_pods_have_time_to_save_and_shared_memory_and_a_service_account(path):
    documents = manifests(path)
    [account] = [document["metadata"]["name"] for document in documents if document["kind"] == "ServiceAccount"]
    [pod] = [spec for document in documents for spec in pod_specs(document)]
    assert pod["serviceAccountName"] == account and pod["terminationGracePeriodSeconds"] >= 60
    [container] = pod["containers"]
    [mount] = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    assert {"name": mount, "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert len(commands(path)) == 1


def pod_specs(node):
    """Every part of a manifest that has containers."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from pod_specs(part)
