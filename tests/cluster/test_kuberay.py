"""The manifests in cluster/kuberay, without a cluster: what Kubernetes, KubeRay and Ray would make of them."""

import copy
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from melanoma import config as configs
from melanoma.nightly.config import NightlyConfig
from tests.support.manifests import (
    KUBERAY,
    ROOT,
    Manifest,
    build,
    chosen,
    cluster_spec,
    faults,
    node_types,
    pod_templates,
    serve_faults,
)

OVERLAYS = ("cpu", "gpu", "serve")
NIGHTS = ("cpu", "gpu")
GIB = 2**30


@pytest.fixture(scope="module")
def built() -> dict[str, list[Manifest]]:
    """What each overlay makes. Not to be changed."""
    return {name: build(KUBERAY / "overlays" / name) for name in OVERLAYS}


@pytest.fixture
def queued(tmp_path: Path) -> list[Manifest]:
    """The overlay cpu with the component for Kueue, as its comment says."""
    folder = Path(shutil.copytree(KUBERAY, tmp_path / "kuberay"))
    page = folder / "overlays" / "cpu" / "kustomization.yaml"
    last = "  - ../../components/cluster-everywhere"
    page.write_text(page.read_text().replace(last, f"  - ../../components/kueue\n{last}"))
    return build(folder / "overlays" / "cpu")


def night_job(manifests: list[Manifest]) -> Manifest:
    """The RayJob that run_night.py would make."""
    script = runpy.run_path(str(KUBERAY / "base" / "run_night.py"))
    made: Manifest = script["ray_job"](chosen(manifests, "RayCronJob"), "melanoma-night-2026-11-27", "2026-11-27")
    return made


def head_and_workers(manifest: Manifest) -> list[Manifest]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def users_of_ray(manifests: list[Manifest]) -> Manifest:
    return next(manifest for manifest in manifests if manifest["kind"] in ("RayCronJob", "RayService"))


# --- valid -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_and_kuberay_find_nothing_wrong(overlay: str, built: dict[str, list[Manifest]]) -> None:
    assert [problem for manifest in built[overlay] for problem in faults(manifest)] == []
    assert len(built[overlay]) > 10


@pytest.mark.parametrize("overlay", NIGHTS)
def test_the_rayjob_of_a_night_is_valid(overlay: str, built: dict[str, list[Manifest]]) -> None:
    job = night_job(built[overlay])
    assert faults(job) == []
    assert job["spec"]["entrypoint"].startswith("python jobs/nightly.py --config /etc/melanoma/nightly.yaml")
    assert job["spec"]["backoffLimit"] == 2
    assert "suspend" not in job["spec"]


def test_with_kueue_the_rayjob_of_a_night_is_valid(queued: list[Manifest]) -> None:
    job = night_job(queued)
    assert [problem for manifest in queued for problem in faults(manifest)] == []
    assert faults(job) == []
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "melanoma"
    assert faults({**job, "spec": {**job["spec"], "suspend": True}}) == []  # as Kueue sets it


def _set(*path: str | int, value: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        inner: Any = manifest
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
CONTAINER = (*WORKERS, "template", "spec", "containers", 0)
RULE = ("spec", "deletionStrategy", "deletionRules", 0)
PLANTED = {
    "a typo in a field": (_set("spec", "backofLimit", value=2), "backofLimit"),
    "a typo in a pod": (_set(*CONTAINER, "resorces", value={}), "resorces"),
    "a typo in the cluster": (_set(*CLUSTER, "enableInTreeAutoscalling", value=True), "enableInTreeAutoscalling"),
    "replicas as a string": (_set(*WORKERS, "replicas", value="1"), "is not of type 'integer'"),
    "a number as a parameter": (_set(*HEAD, "rayStartParams", "num-cpus", value=0), "is not of type 'string'"),
    "an unknown policy": (_set(*RULE, "policy", value="DeleteAll"), "is not one of"),
    "an old version": (_set("apiVersion", value="ray.io/v1alpha1"), "not ray.io/v1"),
    "a name too long": (_set("metadata", "name", value="m" * 48), "48 characters"),
    "a name that begins with a digit": (_set("metadata", "name", value="2026-11-27"), "DNS-1035"),
    "more at least than at most": (_set(*WORKERS, "minReplicas", value=9), "minReplicas <= replicas <= maxReplicas"),
    "two ways of shutting down": (_set("spec", "shutdownAfterJobFinishes", value=True), "exclude each other"),
    "a time to live of nothing": (_set("spec", "ttlSecondsAfterFinished", value=60), "needs shutdownAfterJobFinishes"),
    "suspended": (_set("spec", "suspend", value=True), "suspend needs"),
    "workers deleted under the autoscaler": (_set(*RULE, "policy", value="DeleteWorkers"), "with autoscaling"),
    "a rule twice": (_set(*RULE, "policy", value="DeleteSelf"), "two deletion rules"),
    "the job deleted first": (_set(*RULE, "condition", "ttlSeconds", value=10**6), "before its parts"),
    "a rule without a condition": (_set(*RULE, "condition", value={}), "needs one of"),
    "no time": (_set("spec", "activeDeadlineSeconds", value=0), "must be positive"),
    "a token for an old Ray": (_set(*CLUSTER, "rayVersion", value="2.51.0"), "2.52.0"),
    "resources twice": (_set(*HEAD, "resources", value={"CPU": "0"}), "say the same"),
    "a pod that restarts": (_set(*WORKERS, "template", "spec", "restartPolicy", value="Always"), "restartPolicy"),
    "a label that is none": (_set(*WORKERS, "labels", value={"role": "de code"}), "is no label"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_in_a_rayjob_is_found(mistake: str, built: dict[str, list[Manifest]]) -> None:
    job = copy.deepcopy(night_job(built["cpu"]))
    change, said = PLANTED[mistake]
    change(job)
    assert said in "\n".join(faults(job))


PLANTED_IN_CORE = {
    "a typo": ("CronJob", None, _set("spec", "concurencyPolicy", value="Forbid"), "concurencyPolicy"),
    "a word for a number": ("CronJob", None, _set("spec", "startingDeadlineSeconds", value="3h"), "integer"),
    "a port by another name": (
        "NetworkPolicy",
        "submitter",
        _set("spec", "egress", 0, "ports", 0, value={"number": 8265}),
        "number",
    ),
}


@pytest.mark.parametrize("mistake", PLANTED_IN_CORE)
def test_a_mistake_in_a_kind_of_kubernetes_is_found(mistake: str, built: dict[str, list[Manifest]]) -> None:
    kind, name, change, said = PLANTED_IN_CORE[mistake]
    manifest = copy.deepcopy(chosen(built["cpu"], kind, name))
    change(manifest)
    assert said in "\n".join(faults(manifest))


# --- the night -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", NIGHTS)
def test_one_night_at_a_time_and_none_is_caught_up(overlay: str, built: dict[str, list[Manifest]]) -> None:
    night = chosen(built[overlay], "CronJob")["spec"]
    template = chosen(built[overlay], "RayCronJob")["spec"]
    assert (night["concurrencyPolicy"], night["timeZone"]) == ("Forbid", "Etc/UTC")
    assert 0 < night["startingDeadlineSeconds"] < 86_400
    assert template["suspend"] is True
    pod = night["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][-2:] == ["--template", "melanoma-night"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it


def test_the_tries_of_a_night_end_before_its_watcher_and_the_watcher_within_the_day(
    built: dict[str, list[Manifest]],
) -> None:
    script = runpy.run_path(str(KUBERAY / "base" / "run_night.py"))
    watched = script["longest_wait"](night_job(built["cpu"]))
    job = chosen(built["cpu"], "CronJob")["spec"]["jobTemplate"]["spec"]
    assert 3 * 25_200 < watched < job["activeDeadlineSeconds"] < 86_400


def test_a_code_of_the_night_is_final_and_a_lost_node_is_not(built: dict[str, list[Manifest]]) -> None:
    script = runpy.run_path(str(KUBERAY / "base" / "run_night.py"))
    lost, final = chosen(built["cpu"], "CronJob")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert (lost["action"], lost["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    codes = {script[name] for name in ("REFUSED", "FAILED", "STOPPED")} | set(script["_CODES_OF_A_JOB"])
    assert (final["action"], set(final["onExitCodes"]["values"])) == ("FailJob", codes)
    assert script["ENDED_FROM_OUTSIDE"] not in codes


@pytest.mark.parametrize("overlay", NIGHTS)
def test_the_configuration_of_the_night_is_one(overlay: str, built: dict[str, list[Manifest]], tmp_path: Path) -> None:
    found = yaml.safe_load(chosen(built[overlay], "ConfigMap", "melanoma-nightly")["data"]["nightly.yaml"])
    command = night_job(built[overlay])["spec"]["entrypoint"].split()
    place = tmp_path / "nightly.yaml"
    place.write_text(yaml.safe_dump(found))
    config = configs.load(NightlyConfig, str(place), [word for word in command if "=" in word])
    gpus = {"cpu": 0, "gpu": 2}[overlay]
    assert config.score.gpus == gpus
    groups = {
        group["groupName"]: group for group in cluster_spec(chosen(built[overlay], "RayCronJob"))["workerGroupSpecs"]
    }
    assert groups.get("gpu", {}).get("maxReplicas", 0) == gpus
    # Workers and networks find their nodes by the labels of the groups.
    types = node_types(night_job(built[overlay]))
    places = {"cpu": config.score.worker_labels, "gpu": config.score.gpu_labels}
    assert all(places.values())
    for name in set(types) - {"headgroup"}:
        assert places[name].items() <= types[name]["labels"].items()


def test_only_the_head_of_the_night_has_its_configuration_and_the_secrets_of_delivery(
    built: dict[str, list[Manifest]],
) -> None:
    head, worker = (
        group["template"]["spec"]["containers"][0] for group in head_and_workers(users_of_ray(built["cpu"]))
    )
    assert {mount["mountPath"] for mount in head["volumeMounts"]} >= {"/etc/melanoma", "/tmp", "/dev/shm"}
    assert [source["secretRef"]["name"] for source in head["envFrom"]] == ["melanoma-aws", "melanoma-delivery"]
    assert [source["secretRef"]["name"] for source in worker["envFrom"]] == ["melanoma-aws"]


# --- the service -----------------------------------------------------------------------------------------------------


def serve_config(built: dict[str, list[Manifest]]) -> Manifest:
    config: Manifest = yaml.safe_load(chosen(built["serve"], "RayService")["spec"]["serveConfigV2"])
    return config


DEPLOYMENT = ("applications", 0, "deployments", 0)
PLANTED_IN_SERVE = {
    "a typo at the top": (_set("proxy_locaton", value="EveryNode"), "proxy_locaton"),
    "an unknown option of HTTP": (_set("http_options", "prot", value=8000), "prot"),
    "an unknown key of the application": (_set("applications", 0, "import_pth", value="a:b"), "import_pth"),
    "an unknown key of a deployment": (_set(*DEPLOYMENT, "max_queued", value=4), "max_queued"),
    "an unknown key of the scaling": (_set(*DEPLOYMENT, "autoscaling_config", "min_replica", value=1), "min_replica'"),
    "an unknown option of an actor": (_set(*DEPLOYMENT, "ray_actor_options", "num_cpu", value=1), "num_cpu'"),
    "more at least than at most": (_set(*DEPLOYMENT, "autoscaling_config", "min_replicas", value=9), "max_replicas"),
    "a proxy nowhere": (_set("proxy_location", value="Everywhere"), "proxy_location"),
    "a port as a word": (_set("http_options", "port", value="http"), "port"),
}


@pytest.mark.parametrize("mistake", PLANTED_IN_SERVE)
def test_a_mistake_in_the_configuration_of_serve_is_found(mistake: str, built: dict[str, list[Manifest]]) -> None:
    config = serve_config(built)
    change, said = PLANTED_IN_SERVE[mistake]
    assert serve_faults(yaml.safe_dump(config)) == []
    change(config)
    assert said in "\n".join(serve_faults(yaml.safe_dump(config)))


def test_every_node_answers_and_the_key_is_in_no_manifest(built: dict[str, list[Manifest]]) -> None:
    config = serve_config(built)
    assert config["proxy_location"] == "EveryNode"
    assert "key" not in yaml.safe_dump(config).lower()
    for group in head_and_workers(users_of_ray(built["serve"])):
        found = {item["name"]: item for item in group["template"]["spec"]["containers"][0]["env"]}
        source = {"secretKeyRef": {"name": "melanoma-serve", "key": "MELANOMA_API_KEY"}}
        assert found["MELANOMA_API_KEY"] == {"name": "MELANOMA_API_KEY", "valueFrom": source}


def test_what_serve_imports_is_there(built: dict[str, list[Manifest]]) -> None:
    application = serve_config(built)["applications"][0]
    module, _, name = application["import_path"].partition(":")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for deployment in application["deployments"]:
        assert f"class {deployment['name']}:" in text
    assert f"def {name}(" in text


def test_replicas_find_room_on_the_workers(built: dict[str, list[Manifest]]) -> None:
    deployment = serve_config(built)["applications"][0]["deployments"][0]
    (group,) = cluster_spec(chosen(built["serve"], "RayService"))["workerGroupSpecs"]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    wanted = deployment["autoscaling_config"]["max_replicas"] * deployment["ray_actor_options"]["num_cpus"]
    assert group["minReplicas"] >= 1
    assert wanted <= cores * group["maxReplicas"]


@pytest.mark.parametrize("budget", ["melanoma-serve-workers", "melanoma-serve-head"])
def test_a_disruption_budget_covers_pods_that_exist(budget: str, built: dict[str, list[Manifest]]) -> None:
    wanted = chosen(built["serve"], "PodDisruptionBudget", budget)["spec"]["selector"]["matchLabels"]
    labels = [template["metadata"]["labels"] for _, template in pod_templates(users_of_ray(built["serve"]))]
    assert sum(wanted.items() <= found.items() for found in labels) == 1
    assert not any(wanted.items() <= template["metadata"]["labels"].items() for _, template in night_pods(built))


def night_pods(built: dict[str, list[Manifest]]) -> list[tuple[str, Manifest]]:
    return [found for manifest in built["gpu"] for found in pod_templates(manifest)]


# --- pods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_root_or_without_limits(overlay: str, built: dict[str, list[Manifest]]) -> None:
    templates = [found for manifest in built[overlay] for found in pod_templates(manifest)]
    assert len(templates) == {"cpu": 4, "gpu": 5, "serve": 2}[overlay]
    scaler = cluster_spec(users_of_ray(built[overlay]))["autoscalerOptions"]
    containers = [("autoscaler", scaler)]
    for place, template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, place
        assert pod["securityContext"]["runAsUser"] == 1000, place
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, place
        assert pod["terminationGracePeriodSeconds"] == 60, place
        containers += [(place, container) for container in pod["containers"]]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in (mount for container in pod["containers"] for mount in container["volumeMounts"]):
            assert mount["name"] in volumes, place
            if mount["mountPath"] == "/dev/shm":
                assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"
    for place, container in containers:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True, place
        assert context["allowPrivilegeEscalation"] is False, place
        assert context["capabilities"] == {"drop": ["ALL"]}, place
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], place
        assert set(container["resources"]) == {"requests", "limits"}, place
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, place
        # KubeRay's samples have `preStop: ray stop`, which prevents the draining.
        assert "lifecycle" not in container, place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_pods_hide_gpus_that_nobody_asked_for_and_carry_no_secret(
    overlay: str, built: dict[str, list[Manifest]]
) -> None:
    user = users_of_ray(built[overlay])
    assert cluster_spec(user)["authOptions"] == {"mode": "token", "secretName": "melanoma-ray-token"}
    for group in head_and_workers(user):
        pod = group["template"]["spec"]
        environment = {item["name"]: item for item in pod["containers"][0]["env"]}
        assert environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"]["value"] == "1"
        assert environment["TF_FORCE_GPU_ALLOW_GROWTH"]["value"] == "true"
        named = [item for name, item in environment.items() if name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD"))]
        assert all("value" not in item for item in named)
        assert pod["serviceAccountName"] in ("melanoma-ray-head", "melanoma-ray-worker")
    assert not [manifest for manifest in built[overlay] if manifest["kind"] == "Secret"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_is_never_on_spot(overlay: str, built: dict[str, list[Manifest]]) -> None:
    head = cluster_spec(users_of_ray(built[overlay]))["headGroupSpec"]["template"]
    assert head["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    assert head["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize(("overlay", "group", "kinds"), [
    ("cpu", 0, ["spot", "on-demand"]), ("gpu", 1, ["spot", "on-demand"]), ("serve", 0, ["on-demand"]),
])  # fmt: skip
def test_workers_of_the_night_are_on_spot_and_those_of_the_service_are_not(
    overlay: str, group: int, kinds: list[str], built: dict[str, list[Manifest]]
) -> None:
    pod = cluster_spec(users_of_ray(built[overlay]))["workerGroupSpecs"][group]["template"]["spec"]
    rules = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
    wanted = {rule["key"]: rule["values"] for rule in rules["matchExpressions"]}
    assert wanted["karpenter.sh/capacity-type"] == kinds
    assert wanted.get("karpenter.k8s.aws/instance-gpu-name") == (["l4"] if overlay == "gpu" else None)


# --- what Ray's autoscaler makes of it -------------------------------------------------------------------------------


def test_the_autoscaler_sees_a_head_without_cores_and_workers_from_none(built: dict[str, list[Manifest]]) -> None:
    types = node_types(night_job(built["gpu"]))
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in types.items()} == {
        "headgroup": (0, 0),
        "cpu": (0, 8),
        "gpu": (0, 2),
    }
    assert {name: kind["resources"] for name, kind in types.items()} == {
        "headgroup": {"CPU": 0, "memory": 5 * GIB},
        "cpu": {"CPU": 7, "memory": 13 * GIB},
        "gpu": {"CPU": 3, "GPU": 1, "memory": 12 * GIB},
    }
    assert types["cpu"]["labels"] == {"melanoma/role": "decode"}
    assert types["gpu"]["labels"] == {"melanoma/role": "inference", "ray.io/accelerator-type": "L4"}
    assert set(node_types(night_job(built["cpu"]))) == {"headgroup", "cpu"}


def test_the_service_keeps_a_worker(built: dict[str, list[Manifest]]) -> None:
    types = node_types(chosen(built["serve"], "RayService"))
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["cpu"]["min_workers"], types["cpu"]["max_workers"]) == (1, 2)


# --- network and rights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_comes_or_goes_unless_a_policy_says_so(overlay: str, built: dict[str, list[Manifest]]) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in built[overlay] if item["kind"] == "NetworkPolicy"}
    assert policies["nothing-unless-allowed"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    # Who may come to which port of Ray's pods from other pods; ports of Ray's nodes among each other are all open.
    doors = {
        name: {port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
        for name, spec in policies.items()
        if spec.get("ingress")
    }
    common = {"ray-nodes": set(), "from-operator": {8265, 52365, 8000}, "from-prometheus": {8080, 44217, 44227}}
    own = {"from-ingress": {8000}} if overlay == "serve" else {"from-submitter": {8265}}
    assert doors == {**common, **own}
    for name, spec in policies.items():
        for rule in spec.get("egress", []):
            assert rule["to"], name
            for way in (way for way in rule["to"] if "ipBlock" in way):
                assert way["ipBlock"]["except"] == ["169.254.169.254/32"], name
                assert rule["ports"], name


@pytest.mark.parametrize("overlay", NIGHTS)
def test_policies_select_pods_that_exist(overlay: str, built: dict[str, list[Manifest]]) -> None:
    labels = [template["metadata"]["labels"] for item in built[overlay] for _, template in pod_templates(item)]
    for policy in (item for item in built[overlay] if item["kind"] == "NetworkPolicy"):
        wanted = policy["spec"]["podSelector"].get("matchLabels", {})
        set_by_kuberay = wanted == {"ray.io/is-ray-node": "yes"}
        assert set_by_kuberay or any(wanted.items() <= found.items() for found in labels), policy["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_is_in_one_namespace_and_accounts_exist(overlay: str, built: dict[str, list[Manifest]]) -> None:
    manifests = built[overlay]
    assert {item["metadata"].get("namespace", "melanoma") for item in manifests} == {"melanoma"}
    assert chosen(manifests, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {item["metadata"]["name"] for item in manifests if item["kind"] == "ServiceAccount"}
    used = {template["spec"].get("serviceAccountName") for item in manifests for _, template in pod_templates(item)}
    assert used - {None} <= accounts
    for binding in (item for item in manifests if item["kind"] == "RoleBinding"):
        assert [subject["namespace"] for subject in binding["subjects"]] == ["melanoma"]


# --- the site --------------------------------------------------------------------------------------------------------


def test_a_value_of_the_site_reaches_every_place_where_it_stands(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(KUBERAY, tmp_path / "kuberay"))
    page = folder / "site" / "site.env"
    lines = [line for line in page.read_text().splitlines() if "=" in line and not line.startswith("#")]
    values = {line.partition("=")[0]: f"{number}" for number, line in enumerate(lines, 101)}
    values |= {"SCHEDULE": "7 3 * * *", "TIME_ZONE": "Europe/Vienna"}
    page.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    whole = {overlay: yaml.safe_dump(build(folder / "overlays" / overlay)) for overlay in OVERLAYS}
    for key, value in values.items():
        where = "serve" if key.startswith(("SERVE", "INGRESS")) else "gpu"
        assert value in whole[where], key
    night = chosen(build(folder / "overlays" / "gpu"), "CronJob")["spec"]
    assert (night["schedule"], night["timeZone"]) == ("7 3 * * *", "Europe/Vienna")
    zone = night["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert zone == {"name": "NIGHT_TIME_ZONE", "value": "Europe/Vienna"}
    assert f"gpus={values['GPU_WORKERS_MAX']}" in whole["gpu"]


@pytest.mark.parametrize(
    "path",
    [*sorted(KUBERAY.rglob("*.yaml")), KUBERAY / "site" / "site.env"],
    ids=lambda path: str(path.relative_to(KUBERAY)),
)
def test_every_file_begins_with_its_command_and_its_cost(path: Path) -> None:
    lines = path.read_text().splitlines()
    begin = " ".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])
    assert re.search(r"kubectl (apply|create|get) |python jobs/", begin)
    assert re.search(r"\b[Cc]osts?\b", begin)
