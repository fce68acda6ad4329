"""The alert rules and the dashboard: they name what is exported, each rule has cases, and promtool runs them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import yaml

from melanoma.imaging.errors import ErrorKind
from melanoma.scoring.progress import Progress, _Collector

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "monitoring"
RULES = (FOLDER / "alerts.yml").read_text()
CASES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*_test.yml"))}
DASHBOARD = (FOLDER / "grafana" / "nights.json").read_text()
PROMETHEUS = (FOLDER / "prometheus.yml").read_text()

OF_NIGHTS: dict[str, dict[str, set[str]]] = {
    "melanoma_night_finished_timestamp_seconds": {},
    "melanoma_night_failed": {},
    "melanoma_night_images": {"result": {"listed", "new", "scored", "rejected"}},
    "melanoma_night_alerts": {"level": {"urgent", "review"}},
    "melanoma_night_seconds": {},
    "melanoma_night_undelivered": {},
    "melanoma_night_drift": {"of": {"sharpness", "exposure", "outlier_score", "p_melanoma", "p_malignant"}},
    "melanoma_night_store_up": {},
}
"""What `melanoma status OUT --metrics-port` exports, with the values of its labels."""
OF_KUBERNETES: dict[str, dict[str, set[str]]] = {
    # kube-state-metrics
    "kube_job_status_failed": {"namespace": set(), "job_name": set()},
    "kube_job_status_start_time": {"namespace": set(), "job_name": set()},
    # the operator of KubeRay: ray-operator/controllers/ray/metrics
    "kuberay_job_deployment_status": {
        "namespace": set(),
        "name": set(),
        "deployment_status": {
            "New",
            "Initializing",
            "Running",
            "Complete",
            "Failed",
            "Suspended",
            "Retrying",
            "Waiting",
        },
    },
}
_NO_METRICS = {"and", "or", "unless", "offset", "bool"}


def of_runs() -> dict[str, dict[str, set[str]]]:
    """What the driver of a run exports, as it does."""
    found: dict[str, dict[str, set[str]]] = {}
    for metric in _Collector(Progress(1, 0, 1, 1), "r").collect():
        for sample in metric.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    for labels in found.values():
        labels["run_id"] = set()
    return found


def of_ray() -> dict[str, dict[str, set[str]]]:
    """What the dashboards that Ray brings along are made of."""
    panels = (Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards").glob("*.py")
    names = {name for path in panels for name in re.findall(r"\bray_\w+", path.read_text())}
    return {name: {"application": set(), "deployment": set()} for name in names}


KNOWN = {**OF_NIGHTS, **OF_KUBERNETES, **of_runs(), **of_ray()}


def metrics(expression: str) -> Iterator[tuple[str, str]]:
    """The names of metrics in PromQL, each with what stands in its braces."""
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)|\[[^\]]*\]", " ", expression)
    for found in re.finditer(r'"[^"]*"|(?<![\w.$])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?![\w:])(?!\s*\()', text):
        if found[1] and found[1] not in _NO_METRICS:
            yield found[1], found[2] or ""


def faults_of_expression(expression: str, known: dict[str, dict[str, set[str]]]) -> list[str]:
    faults = []
    for name, braces in metrics(expression):
        if name not in known:
            faults.append(f"{name} is exported by nobody")
            continue
        for label, value in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', braces):
            if label not in known[name]:
                faults.append(f"{name} has no label {label}")
            elif (values := known[name][label]) and "$" not in value:
                faults += [f"{name} has no {label} {each}" for each in value.split("|") if each not in values]
    return faults


def rules_of(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def faults_of_rules(text: str, cases: dict[str, str]) -> list[str]:
    """What is wrong with the rules: names, severities, sentences, and missing cases."""
    rules = rules_of(text)
    known = {**KNOWN, **{rule["record"]: {} for rule in rules if "record" in rule}}
    faults = [fault for rule in rules for fault in faults_of_expression(rule["expr"], known)]
    names = [rule["alert"] for rule in rules if "alert" in rule]
    faults += [f"{name} is there twice" for name in set(names) if names.count(name) > 1]
    for rule in (rule for rule in rules if "alert" in rule):
        name, said = rule["alert"], rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in ("page", "ticket"):
            faults.append(f"{name} is neither for now nor for the morning")
        faults += [f"{name} has no {key}" for key in ("summary", "description") if not said.get(key)]
    faults += faults_of_cases(names, cases)
    return faults


def faults_of_cases(names: list[str], cases: dict[str, str]) -> list[str]:
    fires: set[str] = set()
    silent: set[str] = set()
    groups = []
    for text in cases.values():
        whole = yaml.safe_load(text)
        groups.append(whole["rule_files"])
        for case in whole["tests"]:
            for tried in case.get("promql_expr_test", []):
                name = re.search('alertname="(\\w+)", alertstate="firing"', tried["expr"])
                (fires if tried["exp_samples"] else silent).add(name[1] if name else "")
    faults = [f"{name} has no case in which it fires" for name in names if name not in fires]
    faults += [f"{name} has no case in which it does not" for name in names if name not in silent]
    faults += [f"there is no alert {name}" for name in sorted((fires | silent) - set(names))]
    return faults + ["a case is of other rules" for files in groups if files != ["alerts.yml"]]


def faults_of_dashboard(text: str, rules: str) -> list[str]:
    """What is wrong with the dashboard: names, double numbers, panels that lie over each other."""
    dashboard = json.loads(text)
    known = {**KNOWN, **{rule["record"]: {} for rule in rules_of(rules) if "record" in rule}}
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    numbers: set[int] = set()
    taken: set[tuple[int, int]] = set()
    faults = []
    for panel in dashboard["panels"]:
        if panel["id"] in numbers:
            faults.append(f"the number {panel['id']} is there twice")
        numbers.add(panel["id"])
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        if cells & taken or place["x"] + place["w"] > 24:
            faults.append(f"{panel['title']} lies over another, or beyond the edge")
        taken |= cells
        for target in panel.get("targets", []):
            faults += [f"{panel['title']}: {fault}" for fault in faults_of_expression(target["expr"], known)]
            used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
            faults += [f"{panel['title']}: there is no variable {name}" for name in sorted(used - variables)]
    return faults


def test_the_rules_name_what_is_exported_and_have_cases() -> None:
    assert faults_of_rules(RULES, CASES) == []


def test_the_dashboard_names_what_is_exported() -> None:
    assert faults_of_dashboard(DASHBOARD, RULES) == []


def test_all_that_nights_export_is_looked_at() -> None:
    shown = RULES + DASHBOARD
    assert [name for name in [*OF_NIGHTS, *of_runs()] if name not in shown] == []
    assert set(of_runs()["melanoma_scoring_rejects_total"]["error_kind"]) == set(get_args(ErrorKind))


def test_prometheus_asks_where_the_exporters_answer() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(PROMETHEUS)["scrape_configs"]}
    status = (ROOT / "cluster" / "onpremises" / "melanoma-status.service").read_text()
    port = re.search(r"--metrics-port (\d+)", status)
    assert port
    assert jobs["melanoma-status"]["static_configs"] == [{"targets": [f"127.0.0.1:{port[1]}"]}]
    assert jobs["melanoma-run"]["static_configs"] == [{"targets": ["127.0.0.1:9100"]}]
    assert "such as 9100" in (ROOT / "configs" / "score.yaml").read_text()
    assert "credentials_file" in jobs["ray"]["http_sd_configs"][0]["authorization"]


def test_names_are_found_in_an_expression() -> None:
    expression = 'sum by (le, a) (rate(b_total{c="d", e=~"f|g"}[5m] offset 1d)) > 2 and on (h) i == 1 or absent(j:k)'
    assert list(metrics(expression)) == [("b_total", '{c="d", e=~"f|g"}'), ("i", ""), ("j:k", "")]


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("melanoma_night_failed == 1", "melanoma_nights_failed == 1", "melanoma_nights_failed is exported by nobody"),
        ("melanoma_scoring_images_done_total", "melanoma_scoring_images_done", "is exported by nobody"),
        ("ray_serve_deployment_error_counter_total", "ray_serve_deployment_errors_total", "is exported by nobody"),
        ("kube_job_status_failed", "kube_job_failed_status", "is exported by nobody"),
        ("record: melanoma:night_alert_share", "record: melanoma:alert_share", "is exported by nobody"),
        ('melanoma_night_images{result="new"}', 'melanoma_night_images{result="fresh"}', "has no result fresh"),
        ('result=~"scored|rejected"', 'result=~"scored|refused"', "has no result refused"),
        ('{error_kind="access"}', '{error_kind="acces"}', "has no error_kind acces"),
        ('{error_kind="access"}', '{kind="access"}', "has no label kind"),
        ('deployment_status="Failed"', 'deployment_status="FAILED"', "has no deployment_status FAILED"),
        ("labels: {severity: page}", "labels: {severity: pgae}", "is neither for now nor for the morning"),
        ("          summary: The newest night", "          sumary: The newest night", "has no summary"),
        ("alert: MelanomaDrift", "alert: MelanomaDrifted", "MelanomaDrifted has no case in which it fires"),
        ("alert: MelanomaDrift", "alert: MelanomaDrifted", "there is no alert MelanomaDrift"),
        ("alert: MelanomaStatusGone", "alert: MelanomaNightNever", "is there twice"),
    ],
)
def test_a_mistake_in_the_rules_is_found(was: str, becomes: str, said: str) -> None:
    assert was in RULES
    assert said in "; ".join(faults_of_rules(RULES.replace(was, becomes, 1), CASES))


def test_a_rule_that_is_never_silent_in_its_cases_is_found() -> None:
    cases = {name: re.sub(r"exp_samples: \[\]", "exp_samples: [{value: 1}]", text) for name, text in CASES.items()}
    assert "MelanomaDrift has no case in which it does not" in faults_of_rules(RULES, cases)


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("max(melanoma_night_seconds)", "max(melanoma_night_second)", "melanoma_night_second is exported by nobody"),
        ("melanoma:night_reject_share[14d]", "melanoma:rejects[14d]", "melanoma:rejects is exported by nobody"),
        ('=~\\"$application\\"', '=~\\"$app\\"', "there is no variable app"),
        ('{"id": 1,', '{"id": 2,', "the number 2 is there twice"),
        ('"w": 6, "x": 0, "y": 1}', '"w": 7, "x": 0, "y": 1}', "lies over another"),
    ],
)
def test_a_mistake_in_the_dashboard_is_found(was: str, becomes: str, said: str) -> None:
    assert was in DASHBOARD
    assert said in "; ".join(faults_of_dashboard(DASHBOARD.replace(was, becomes, 1), RULES))


# --- Prometheus' own opinion ------------------------------------------------------------------------------------------

PROMTOOL = shutil.which("promtool", path=f"{ROOT / '.tools'}:{os.environ['PATH']}")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is neither in .tools nor on the PATH")


def promtool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL
    return subprocess.run([PROMTOOL, *words], cwd=folder, capture_output=True, text=True, check=False)


def only(text: str, alert: str) -> str:
    """The cases of one alert."""
    whole = yaml.safe_load(text)
    whole["tests"] = [case for case in whole["tests"] if case["name"].startswith(f"{alert} ")]
    return yaml.safe_dump(whole)


def tried(folder: Path, rules: str, alert: str) -> subprocess.CompletedProcess[str]:
    """The cases of one alert, tried on rules."""
    (folder / "alerts.yml").write_text(rules)
    (name,) = [name for name, text in CASES.items() if f"'{alert} " in text]
    (folder / name).write_text(only(CASES[name], alert))
    return promtool(folder, "test", "rules", name)


@needs_promtool
def test_promtool_takes_the_rules_and_the_configuration() -> None:
    for words in (("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")):
        ended = promtool(FOLDER, *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
@pytest.mark.parametrize("name", sorted(CASES))
def test_each_alert_fires_where_it_should_and_only_there(name: str) -> None:
    ended = promtool(FOLDER, "test", "rules", name)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "was", "becomes"),
    [
        ("MelanomaNightLate", "> 26 * 3600", "> 24 * 3600"),
        ("MelanomaNightLate", "> 26 * 3600", "> 36 * 3600"),
        ("MelanomaNightFailed", "melanoma_night_failed == 1", "melanoma_night_failed == 0"),
        ("MelanomaNightSawLittle", "offset 7d", "offset 2d"),
        ("MelanomaNightRaisedTooMany", ">= 100", ">= 10"),
        ("MelanomaNightRaisedTooFew", ">= 10\n        for", ">= 1\n        for"),
        ("MelanomaNightRejectsTooMany", "> 3 * quantile", "> 0.3 * quantile"),
        ("MelanomaDrift", "melanoma_night_drift > 0.2", "melanoma_night_drift > 0.02"),
        ("MelanomaRunStandsStill", "== 0\n        for: 15m", ">= 0\n        for: 15m"),
        ("MelanomaCronJobFailed", "kube_job_status_start_time < 26", "kube_job_status_start_time < 260"),
        ("MelanomaServeSlow", "> 5000", "> 50000"),
    ],
)
def test_a_wrong_threshold_is_found(alert: str, was: str, becomes: str, tmp_path: Path) -> None:
    assert was in RULES
    right = tried(tmp_path, RULES, alert)
    assert right.returncode == 0, right.stdout + right.stderr
    assert tried(tmp_path, RULES.replace(was, becomes), alert).returncode != 0
