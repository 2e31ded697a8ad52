"""The manifests against KubeRay's CRD schemas, the operator's own rules, and ours."""

import copy
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import bs_ray
from bs_ray.config.load import KINDS

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("BS_RAY_SHARED", ROOT.parent / "shared"))
CRDS = SHARED / "data" / "kuberay-crds"
PATHS = sorted((ROOT / "cluster").glob("ray*.yaml"))
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in PATHS}
CLUSTER_FIELD = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}

each_manifest = pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS.keys())


def strict(schema: Any) -> Any:
    """A CRD schema as JSON schema: unknown keys refused, what the server fills in not required."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict):
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
        if isinstance(schema.get("required"), list):
            out["required"] = [k for k in schema["required"] if "default" not in properties[k]]
    if schema.get("x-kubernetes-int-or-string") is True:
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return out


def validator(kind: str) -> jsonschema.Draft202012Validator:
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("needs KubeRay's CRDs: set BS_RAY_SHARED to a folder with data/kuberay-crds")
    versions = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    schema = strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def errors(manifest: dict[str, Any]) -> list[str]:
    found = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    field = CLUSTER_FIELD.get(manifest["kind"])
    return spec[field] if field else spec


def groups_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(manifest)
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def test_all_three_are_here() -> None:
    kinds = {m["kind"] for m in MANIFESTS.values()}
    assert kinds == {"RayCluster", "RayJob", "RayService"}


@each_manifest
def test_valid_against_the_crd(manifest: dict[str, Any]) -> None:
    assert errors(manifest) == []


@each_manifest
def test_the_validation_has_teeth(manifest: dict[str, Any]) -> None:
    for breakage in ({"rayVersoin": "2.60.0"}, {"authOptions": {"mode": "tokn"}}):
        broken = copy.deepcopy(manifest)
        cluster_of(broken).update(breakage)
        assert len(errors(broken)) == 1


@each_manifest
def test_operator_rules_for_clusters(manifest: dict[str, Any]) -> None:
    name, cluster = manifest["metadata"]["name"], cluster_of(manifest)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= LONGEST_NAME[manifest["kind"]]
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52)
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    assert "upgradeStrategy" not in cluster
    for group in groups_of(manifest):
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
        assert "resources" not in group and "labels" not in group["rayStartParams"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@each_manifest
def test_containers_are_bounded_and_hold_no_secret(manifest: dict[str, Any]) -> None:
    for group in groups_of(manifest):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        requests, limits = (container["resources"][k] for k in ("requests", "limits"))
        assert requests["memory"] == limits["memory"] and "cpu" in limits
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")
        assert ("nvidia.com/gpu" in limits) == ("tolerations" in pod)
        assert container["envFrom"] == [{"secretRef": {"name": "bs-ray-object-store"}}]
        assert "env" not in container
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounted = {m["name"] for m in container.get("volumeMounts", [])}
        assert mounted == {v["name"] for v in pod.get("volumes", [])}


@each_manifest
def test_versions_agree(manifest: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None and cluster_of(manifest)["rayVersion"] == pinned[1]
    images = re.findall(r"rayproject/ray:([\d.]+)", (ROOT / "cluster/Dockerfile").read_text())
    assert set(images) == {pinned[1]}
    for group in groups_of(manifest):
        image = group["template"]["spec"]["containers"][0]["image"]
        assert image == f"bs-ray:{bs_ray.__version__}"


def test_the_image_has_all_of_the_package_before_it_installs_it() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    before, installs, _ = dockerfile.partition("pip install --no-cache-dir -c constraints.txt '.")
    assert installs
    copied = {word for line in re.findall(r"^COPY (.*)$", before, re.M) for word in line.split()}
    needed = {*wheel["packages"], *wheel["force-include"], "README.md", "LICENSE"}
    assert needed <= copied, "the wheel is built of these, and fails without one"
    sent = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in needed} <= set(sent)


def test_job_runs_the_mounted_file_and_may_be_retried() -> None:
    spec = MANIFESTS["rayjob.yaml"]["spec"]
    program, verb, path = spec["entrypoint"].split()
    assert program == "bs-ray" and verb in KINDS
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert Path(path).parent == Path(head["containers"][0]["volumeMounts"][0]["mountPath"])
    assert head["volumes"][0]["configMap"]["name"] == "bs-ray-job"
    assert spec["backoffLimit"] > 0
    # The operator refuses deletionRules beside either of these.
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & spec.keys()
    rules = spec["deletionStrategy"]["deletionRules"]
    assert {r["condition"]["jobStatus"] for r in rules} == {"SUCCEEDED", "FAILED"}
    assert {r["policy"] for r in rules} == {"DeleteCluster"}
    assert min(spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) > 0


def test_serve_config() -> None:
    from ray.serve import schema

    manifest = MANIFESTS["rayservice.yaml"]
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    # The schema itself accepts keys it does not know.
    assert config.keys() <= schema.ServeDeploySchema.model_fields.keys()
    (application,) = config["applications"]
    assert application.keys() <= schema.ServeApplicationSchema.model_fields.keys()
    for deployment in application.get("deployments", []):
        assert deployment.keys() <= schema.DeploymentSchema.model_fields.keys()
    parsed = schema.ServeDeploySchema.model_validate(config)
    assert parsed.applications[0].import_path == "bs_ray.serve.deploy:build"
    # The application is built on whichever node Ray picks, so the file must be on each.
    for group in groups_of(manifest):
        (mount,) = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert Path(application["args"]["job"]).parent == Path(mount["mountPath"])


def test_serve_entry_point_exists() -> None:
    text = (ROOT / "bs_ray" / "serve" / "deploy.py").read_text()
    assert re.search(r"^def build\(", text, re.M)
