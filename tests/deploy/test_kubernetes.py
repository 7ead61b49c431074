"""The manifests against the published schemas, and against rules of our own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from serving.config import ServerConfig
from serving.front_door.limits import Limits
from tests.deploy import manifests
from tests.deploy.manifests import KSERVE, KUBERNETES, Object

VERSIONS = ("1.28", "1.37")  # the oldest meant, and the newest that the tool knows
DEPLOYMENT = manifests.kind("Deployment", *KUBERNETES)
POD = DEPLOYMENT["spec"]["template"]["spec"]
RUNTIME = manifests.kind("ServingRuntime", *KSERVE)["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_every_object_fits_its_schema(path: Path, version: str) -> None:
    for each in manifests.objects(path):
        assert kubernetes_validate.validate(each, version, strict=True)


def test_the_tool_sees_mistakes() -> None:
    for wrong in ({"replicas": "two"}, {"replica": 2}):
        broken = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], **wrong}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_kserve_hands_on_to_a_pod_fits_the_schema_of_pods(version: str) -> None:
    own = {"multiModel", "protocolVersions", "supportedModelFormats"}
    service = manifests.kind("InferenceService", *KSERVE)["spec"]["predictor"]
    container = {key: value for key, value in service["model"].items() if key in ("resources",)}
    for spec in (
        {key: value for key, value in RUNTIME.items() if key not in own},
        {key: value for key, value in service.items() if key not in ("model", "minReplicas", "maxReplicas")}
        | {"containers": [{"name": "model", **container}]},
    ):
        pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        assert kubernetes_validate.validate(pod, version, strict=True)


def test_kserve_names_what_is_there() -> None:
    model = manifests.kind("InferenceService", *KSERVE)["spec"]["predictor"]["model"]
    assert model["runtime"] == manifests.kind("ServingRuntime", *KSERVE)["metadata"]["name"]
    assert model["modelFormat"]["name"] in [known["name"] for known in RUNTIME["supportedModelFormats"]]
    claim = manifests.kind("PersistentVolumeClaim", *KUBERNETES)["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/"


@pytest.mark.parametrize("container", manifests.containers().values(), ids=lambda each: each["name"])
def test_containers_are_bounded_and_have_no_rights(container: Object) -> None:
    name, _, tag = container["image"].rpartition(":")
    assert name
    assert re.fullmatch(r"v?\d[\w.-]*", tag), "images are pinned by their version"
    for probe in ("readinessProbe", "livenessProbe"):
        assert probe in container
    for amount in ("cpu", "memory"):
        assert container["resources"]["limits"][amount] == container["resources"]["requests"][amount]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (POD["securityContext"] | security)["runAsNonRoot"] is True
    assert (POD["securityContext"] | security)["seccompProfile"] == {"type": "RuntimeDefault"}


def test_no_pod_talks_to_the_cluster() -> None:
    assert POD["automountServiceAccountToken"] is False
    assert manifests.kind("ServiceAccount", *KUBERNETES)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("spec", [POD, RUNTIME], ids=["pod", "kserve"])
def test_what_is_mounted_is_declared_and_used(spec: Object) -> None:
    declared = {volume["name"] for volume in spec["volumes"]}
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", ())}
    assert mounted == declared


@pytest.mark.parametrize("spec", [POD, RUNTIME], ids=["pod", "kserve"])
def test_volumes_name_what_there_is(spec: Object) -> None:
    there = {each["metadata"]["name"]: each for each in manifests.objects(*KUBERNETES)}
    for volume in spec["volumes"]:
        if "configMap" in volume:
            keys = {item["key"] for item in volume["configMap"].get("items", ())}
            assert keys <= there[volume["configMap"]["name"]]["data"].keys()
        if "persistentVolumeClaim" in volume:
            assert there[volume["persistentVolumeClaim"]["claimName"]]["kind"] == "PersistentVolumeClaim"
    for mount in (mount for container in spec["containers"] for mount in container.get("volumeMounts", ())):
        if mount["name"] == "door-config":
            assert mount["subPath"] in there["seqserve-door"]["data"]


def test_no_secret_is_committed() -> None:
    files = [path for path in manifests.DEPLOY.rglob("*") if path.is_file()]
    assert not any(each["kind"] == "Secret" for each in manifests.objects(*KUBERNETES, *KSERVE))
    for path in files:
        assert not re.search(r"PRIVATE KEY|\b[0-9a-f]{32,}\b|default [0-9a-f]{64};", path.read_text()), path


def test_ports_are_those_of_serving() -> None:
    default = ServerConfig()
    ports = {port["name"]: port["containerPort"] for each in POD["containers"] for port in each.get("ports", ())}
    assert (ports["http"], ports["grpc"], ports["metrics"]) == (
        default.http_port,
        default.grpc_port,
        default.metrics_port,
    )
    service = {port["name"]: port for port in manifests.kind("Service", *KUBERNETES)["spec"]["ports"]}
    assert {name: port["port"] for name, port in service.items()} == {"http": ports["http"], "grpc": ports["grpc"]}
    assert {port["targetPort"] for port in service.values()} <= ports.keys()
    rules = manifests.kind("NetworkPolicy", *KUBERNETES)["spec"]["ingress"]
    assert [{port["port"] for port in rule["ports"]} for rule in rules] == [
        {"http", "grpc"},
        {"metrics", "door-metrics"},
    ]


def test_everything_selects_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        manifests.kind("Service", *KUBERNETES)["spec"]["selector"],
        manifests.kind("PodDisruptionBudget", *KUBERNETES)["spec"]["selector"]["matchLabels"],
        manifests.kind("NetworkPolicy", *KUBERNETES)["spec"]["podSelector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    target = manifests.kind("HorizontalPodAutoscaler", *KUBERNETES)["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": DEPLOYMENT["metadata"]["name"]}


def test_a_pod_has_the_time_to_drain() -> None:
    triton = manifests.containers()["triton"]
    limit_s = int(triton["lifecycle"]["preStop"]["exec"]["command"][-1])
    exit_s = next(int(flag.partition("=")[2]) for flag in triton["args"] if "exit-timeout" in flag)
    assert POD["terminationGracePeriodSeconds"] >= limit_s + exit_s + 15


def test_more_pods_come_before_the_door_refuses() -> None:
    metrics = manifests.kind("HorizontalPodAutoscaler", *KUBERNETES)["spec"]["metrics"]
    targets = {metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"] for metric in metrics}
    assert int(targets["seqserve_open_streams"]) <= 0.75 * Limits().streams


def test_the_door_refuses_before_triton_lets_streams_wait() -> None:
    """The official backend has no limit of its own, and Triton lets what it has no room for wait without a word."""
    repository = manifests.DEPLOY.parent / "model_repository"
    for flag in manifests.containers()["triton"]["args"]:
        if flag.startswith("--load-model="):
            config = (repository / flag.partition("=")[2] / "config.pbtxt").read_text()
            candidates = re.search(r"max_candidate_sequences: (\d+)", config)
            assert candidates is None or int(candidates[1]) >= Limits().streams


def test_probes_outlive_their_canaries() -> None:
    for container in ("triton", "kserve-container"):
        for probe in ("readinessProbe", "startupProbe"):
            given = manifests.containers()[container][probe]
            models: list[Any] = copy.copy(given["exec"]["command"])[4:]
            assert given["timeoutSeconds"] > 4 * len(models)
