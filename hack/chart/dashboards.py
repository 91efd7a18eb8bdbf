"""The Grafana dashboards of the chart, as a list of panels; `python -m hack.chart.dashboards` writes their JSON.

Grafana's own files repeat a page of settings for every panel. Here a panel is its title, unit and queries. Pods are many and
come and go, so every query is an aggregate: a worker that was replaced does not break the line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "transfer-operator" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ONE = 'namespace="$namespace", experiment="$experiment"'
HEIGHT, COLUMNS = 8, 24

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel: queries as legend to expression; `kind` is Grafana's name of it."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    about: str = ""
    step: bool = False
    """Drawn as steps: a count."""


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def _quantile(metric: str, share: float) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket[$__rate_interval])))"


def _stage(metric: str) -> str:
    return f"max by (stage) (transfer_stage_{metric}{{{ONE}}})"


OPERATOR = [
    Panel(
        "Replicas", {"answering": "count(transfer_operator_build_info)", "leading": "sum(transfer_operator_leader)"}, kind="stat", width=4,
    ),
    Panel("Version", {"{{version}}": "count by (version) (transfer_operator_build_info)"}, kind="stat", width=4),
    Panel("Experiments", {"{{phase}}": "max by (phase) (transfer_operator_experiments)"}, kind="stat", width=16),
    Panel(
        "Experiments by phase",
        {
            "{{phase}}": "max by (phase) (transfer_operator_experiments)",
            "unreadable": "max(transfer_operator_experiments_unreadable)",
        },
        step=True, about="Nothing is done for one whose status is unreadable; its events say why.",
    ),
    Panel(
        "Reconciles", {"{{outcome}}": _rate("transfer_operator_reconcile_total", "outcome")}, "ops", about="An error is tried again.",
    ),
    Panel(
        "Time of a reconcile",
        {f"p{share * 100:.0f}": _quantile("transfer_operator_reconcile_duration_seconds", share) for share in (0.5, 0.9, 0.99)},
        "s",
    ),
    Panel("Waiting to be reconciled", {"experiments": "max(transfer_operator_workqueue_depth)"}),
    Panel("Event loop lag", {"{{pod}}": "max by (pod) (transfer_operator_event_loop_lag_seconds)"}, "s"),
    Panel(
        "Since the last full list and the last watch event",
        {
            "list": "max(transfer_operator_resync_age_seconds)",
            "event: {{resource}}": "time() - max by (resource) (transfer_operator_watch_last_event_timestamp_seconds)",
        },
        "s", about="A watch is silent where nothing happens; see what only lists found.",
    ),
    Panel("API requests", {"{{verb}} {{resource}}": _rate("transfer_operator_api_requests_total", "verb, resource")}, "reqps"),
    Panel(
        "API requests refused",
        {"{{code}} {{verb}} {{resource}}": _rate('transfer_operator_api_requests_total{code!~"2.."}', "code, verb, resource")},
        "reqps", about="409 is a conflict and harmless; 403 is a missing right; 0 is no answer.",
    ),
    Panel("Found by lists, missed by watches", {"{{resource}}": _rate("transfer_operator_watch_drift_total", "resource")}, "ops"),
    Panel(
        "Creation to first running pod",
        {f"p{share * 100:.0f}": _quantile("transfer_operator_experiment_time_to_running_seconds", share) for share in (0.5, 0.9)}, "s",
    ),
    Panel(
        "Resize to training at the new size",
        {f"p{share * 100:.0f}": _quantile("transfer_operator_experiment_resize_duration_seconds", share) for share in (0.5, 0.9)}, "s",
    ),
    Panel("Restarts", {"{{cause}}": "sum by (cause) (increase(transfer_operator_restarts_total[$__rate_interval]))"}, step=True),
    Panel("Scores written", {"experiments": "sum(increase(transfer_operator_results_written_total[$__rate_interval]))"}, step=True),
    Panel(
        "Stalled", {"{{namespace}}/{{experiment}}": "max by (namespace, experiment) (transfer_operator_experiment_stalled) > 0"}, step=True,
    ),
    Panel(
        "Running",
        {"": 'max by (namespace, experiment, phase, stage) (transfer_operator_experiment_info{phase!="Pending"})'}, kind="table", width=8,
    ),
]  # fmt: skip

EXPERIMENT = [
    Panel(
        "Phase and stage", {"{{phase}} {{stage}}": f"max by (phase, stage) (transfer_operator_experiment_info{{{ONE}}})"}, kind="stat",
        width=6,
    ),
    Panel(
        "Progress of the stage",
        {"{{stage}}": f"{_stage('step')} / {_stage('total_steps')}"}, "percentunit", "stat", 6,
    ),
    Panel("Remaining", {"{{stage}}": _stage("remaining_seconds")}, "s", "stat", 6),
    Panel("Since the last checkpoint", {"{{stage}}": f"time() - {_stage('checkpoint_timestamp_seconds')}"}, "s", "stat", 6),
    Panel("Loss", {"{{stage}}": _stage("loss")}, about="Nats per token, of the last step.", width=12),
    Panel("Throughput", {"{{stage}}": _stage("tokens_per_second")}, "short", about="Tokens per second of all workers.", width=12),
    Panel(
        "Workers",
        {
            "{{state}}": f"max by (state) (transfer_operator_experiment_workers{{{ONE}}})",
            "processes in the round": f"max(transfer_stage_world_size{{{ONE}}})",
        },
        step=True, width=12, about="Vertical marks: the rendezvous met anew, after a resize or a loss.",
    ),
    Panel("Restarts by cause", {"{{cause}}": f"max by (cause) (transfer_operator_experiment_restarts{{{ONE}}})"}, step=True, width=12),
    Panel("Learning rate", {"{{stage}}": _stage("learning_rate")}, "sci"),
    Panel("Gradient norm", {"{{stage}}": _stage("gradient_norm")}, about="Before clipping."),
    Panel("Tokens", {"{{stage}}": _stage("tokens_total")}, "short"),
    Panel(
        "Checkpoints",
        {"step reached": f"max(transfer_stage_step{{{ONE}}})", "step saved": f"max(transfer_stage_checkpoint_step{{{ONE}}})"},
        about="The gap is what a loss of all workers would cost.",
    ),
    Panel(
        "Time of a checkpoint", {"{{stage}}": _stage("checkpoint_duration_seconds")}, "s",
        about="From its step until it was complete; training goes on meanwhile.",
    ),
    Panel(
        "Waiting for data", {"{{stage}}": f"max by (stage) (rate(transfer_stage_data_wait_seconds_total{{{ONE}}}[$__rate_interval]))"},
        "percentunit", about="Share of the time in which the worst pod waited for rows instead of training.",
    ),
    Panel(
        "MFU", {"{{stage}}": _stage("mfu")}, "percentunit",
        about="Model FLOPs over the peak of the GPUs (docs/metrics.md); nothing where the card is unknown or the precision Float32.",
    ),
    Panel(
        "Work done again", {"lost steps": f"max by (stage) (transfer_stage_lost_steps_total{{{ONE}}})"}, step=True,
    ),
    Panel(
        "Bits per byte along training", {"{{name}}": f'max by (name) (transfer_stage_metric{{{ONE}, name=~"bits_per_byte/.*"}})'}, width=12,
        about="Of held-out texts; lower is better. Comparable between tokenizers.",
    ),
    Panel(
        "Scores",
        {
            "{{task}} {{language}} {{metric}}": "max by (task, language, metric) "
            f"(last_over_time(transfer_operator_experiment_score{{{ONE}}}[30d]))"
        },
        kind="bargauge", width=24, about="Of the last evaluation.",
    ),
    Panel(
        "Measurements along the way, latest", {"{{stage}} {{name}}": f"max by (stage, name) (transfer_stage_metric{{{ONE}}})"},
        kind="bargauge", width=12,
    ),
]  # fmt: skip


def generated() -> dict[Path, str]:
    """Every dashboard: path to content."""
    first = _variable("namespace", "label_values(transfer_operator_experiment_info, namespace)")
    second = _variable("experiment", 'label_values(transfer_operator_experiment_info{namespace="$namespace"}, experiment)')
    marks = _marks("Resize", f"changes(max(transfer_stage_rendezvous_round{{{ONE}}})[1m:15s]) > 0")
    boards = {
        "operator": _board("transfer-operator", "Transfer: operator", OPERATOR, [], []),
        "experiment": _board("transfer-experiment", "Transfer: one experiment", EXPERIMENT, [first, second], [marks]),
    }
    return {FOLDER / f"{name}.json": json.dumps(board, indent=2) + "\n" for name, board in boards.items()}


def _board(uid: str, title: str, panels: list[Panel], variables: list[Json], marks: list[Json]) -> Json:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid, "title": title, "tags": ["transfer-operator"], "schemaVersion": 39, "version": 1, "editable": True,
        "time": {"from": "now-3h", "to": "now"}, "refresh": "30s", "graphTooltip": 1,
        "templating": {"list": [source, *variables]}, "annotations": {"list": marks}, "panels": _place(panels),
    }  # fmt: skip


def _variable(name: str, query: str) -> Json:
    return {"name": name, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1}


def _marks(name: str, expression: str) -> Json:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": expression,
        "step": "15s",
        "titleFormat": name,
    }


def _place(panels: list[Panel]) -> list[Json]:
    """Panels from left to right, a new row where one does not fit."""
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y = 0, y + HEIGHT
        placed.append(_panel(panel, number) | {"gridPos": {"h": HEIGHT, "w": panel.width, "x": x, "y": y}})
        x += panel.width
    return placed


def _panel(panel: Panel, number: int) -> Json:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend,
            "instant": panel.kind != "timeseries",
            **({"format": "table"} if table else {}),
        }
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]  # fmt: skip
    custom = {"lineInterpolation": "stepAfter"} if panel.step else {}
    found: Json = {
        "id": number, "title": panel.title, "description": panel.about, "type": panel.kind, "datasource": SOURCE, "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
    }  # fmt: skip
    if panel.title == "Loss":
        del found["fieldConfig"]["defaults"]["min"]
    if panel.kind == "stat":
        found["options"] = {"textMode": "value_and_name", "graphMode": "none", "colorMode": "none"}
    return found


if __name__ == "__main__":
    for path, content in generated().items():
        path.write_text(content)
