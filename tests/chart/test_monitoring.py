"""Alerts and dashboards ask for series that exist; monitors find the pods that have them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from hack.chart import dashboards
from hack.chart.check import ALERTS, rules
from tests.chart.rendered import DOCUMENT, EVERYTHING, VALUES, of_kind, selects, text, values_file
from tests.chart.test_objects import WORKER
from transfer_operator import metrics
from transfer_operator.health import FleetCollector
from transfer_operator.view import View
from transfer_pod import series

NAME = re.compile(r"\b(transfer_(?:operator|stage)_\w+)")
SWITCHES = VALUES["prometheusRule"]["alerts"]


def shown() -> set[str]:
    """Names of the series of the operator and of the pods."""
    own = [one for value in vars(metrics).values() if isinstance(value, MetricWrapperBase) for one in value.describe()]
    fleet = FleetCollector.__new__(FleetCollector)  # its constructor would put a queue without a loop behind the process's own series
    fleet._view = View()
    names = set()
    for metric in (*own, *fleet.collect()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(metric.type, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names | {series.PREFIX + name for name in (series.METRIC, *(one.name for one in series.SERIES))}


def alerts(*options: str) -> dict[str, dict[str, object]]:
    return {rule["alert"]: rule for group in rules(text(*options))["groups"] for rule in group["rules"]}


def test_alerts_ask_for_series_that_exist() -> None:
    asked = {name for rule in alerts(*EVERYTHING).values() for name in NAME.findall(str(rule["expr"]))}
    assert len(asked) > 6
    assert asked <= shown()


@pytest.mark.parametrize("path", sorted(dashboards.generated()), ids=lambda path: path.stem)
def test_dashboards_ask_for_series_that_exist(path: Path) -> None:
    board = json.loads(path.read_text())
    asked = set(NAME.findall(json.dumps(board)))
    assert len(asked) > 8
    assert asked <= shown()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("path", sorted(dashboards.generated()), ids=lambda path: path.stem)
def test_dashboards_are_up_to_date_and_do_not_overlap(path: Path) -> None:
    assert path.read_text() == dashboards.generated()[path], "run `make generate`"
    squares = set()
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        mine = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not mine & squares
        squares |= mine


def test_the_operators_dashboard_shows_all_of_its_own_series() -> None:
    board = (dashboards.FOLDER / "operator.json").read_text()
    own = {name for name in shown() if name.startswith("transfer_operator_") and not name.endswith(("_count", "_sum"))}
    of_one_experiment = {f"transfer_operator_experiment_{name}" for name in ("workers", "restarts", "score")}
    assert own - of_one_experiment <= set(NAME.findall(board))


@pytest.mark.parametrize("half", [list(SWITCHES)[::2], list(SWITCHES)[1::2]], ids=["even", "odd"])
def test_alerts_are_switched_by_their_values(half: list[str], tmp_path: Path) -> None:
    on = {"prometheusRule": {"enabled": True, "alerts": {name: {"enabled": name in half} for name in SWITCHES}}}
    found = alerts(*values_file(tmp_path, on))
    assert [switch(name) for name in found] == half
    for name, rule in found.items():
        assert rule["for"] == SWITCHES[switch(name)]["for"]
        assert rule["labels"] == {"severity": SWITCHES[switch(name)]["severity"]}


def test_alerts_are_tuned_by_their_values(tmp_path: Path) -> None:
    limits = {name: set(values) - {"enabled", "for", "severity"} for name, values in SWITCHES.items()}
    tuned = {name: {"enabled": True, "for": "7m", "severity": "page", **dict.fromkeys(limits[name], 1)} for name in SWITCHES}
    before = alerts(*EVERYTHING)
    for name, rule in alerts(*values_file(tmp_path, {"prometheusRule": {"enabled": True, "alerts": tuned}})).items():
        assert (rule["for"], rule["labels"]) == ("7m", {"severity": "page"})
        same = str(rule["expr"]).replace('job="transfer-operator-metrics"', 'job="experiments-metrics"') == before[name]["expr"]
        assert same == (not limits[switch(name)])


def switch(alert: str) -> str:
    """The value that switches an alert: TransferOperatorNoLeader is noLeader."""
    (found,) = (name for name in SWITCHES if alert.lower().removeprefix("transfer").endswith(name.lower()))
    return str(found)


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [case for test in yaml.safe_load(ALERTS.read_text())["tests"] for case in test["alert_rule_test"]]
    names = set(alerts(*EVERYTHING))
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_the_document_lists_every_alert_with_its_limits() -> None:
    section = DOCUMENT.split("### Alerts")[1].split("## Network")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*?) ?\|$", section, re.M))
    assert list(rows) == list(SWITCHES)
    for name, cell in rows.items():
        for limit, value in re.findall(r"`(\w+): ([\w.]+)`", cell):
            assert str(SWITCHES[name][limit]) == value


def test_monitors_find_the_operator_and_the_pods_of_experiments() -> None:
    (service,), (of_service,), (of_pods,) = (of_kind(kind, *EVERYTHING) for kind in ("Service", "ServiceMonitor", "PodMonitor"))
    assert selects(of_service["spec"]["selector"], service["metadata"]["labels"])
    assert of_service["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert selects(of_pods["spec"]["selector"], WORKER)
    read = {label for one in of_pods["spec"]["podMetricsEndpoints"][0]["relabelings"] for label in one["sourceLabels"]}
    assert read <= {"__meta_kubernetes_pod_label_" + re.sub(r"[^a-z0-9]", "_", label) for label in WORKER}


def test_nothing_of_prometheus_or_grafana_is_made_unless_asked_for() -> None:
    assert not [kind for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap") if of_kind(kind)]
    (deployment,) = of_kind("Deployment")
    assert not [name for name in deployment["spec"]["template"]["metadata"]["annotations"] if name.startswith("prometheus.io/")]


def test_every_series_is_documented() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "metrics.md").read_text()
    plain = {name for name in shown() if not name.endswith(("_bucket", "_count", "_sum"))}
    assert {name for name in plain if f"`{name}`" not in text} == set()
    assert set(NAME.findall(text)) <= shown() | {name.removesuffix("_bucket") for name in shown()}, "a series that nobody shows"
