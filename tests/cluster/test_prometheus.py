"""A real Prometheus scrapes operator and training pods and has the series that docs/metrics.md promises."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.experiment import wait_for, write_texts
from tests.support.testbed import ROOT
from tests.support.trial import EVALUATION, Trial
from transfer_cli.local import free_port


def configuration(targets: Path) -> dict:
    """Scrapes what stands in a file, as the chart's ServiceMonitor and PodMonitor would.

    Debian's Prometheus is built without the discovery by the Kubernetes API, so the test writes down what that would find.
    """
    jobs = [("operator", True), ("experiments", False)]
    found = [
        {
            "job_name": name, "scrape_interval": "1s", "honor_labels": honor,
            "file_sd_configs": [{"files": [str(targets / f"{name}.json")], "refresh_interval": "1s"}],
        }
        for name, honor in jobs
    ]  # fmt: skip
    return {"global": {"scrape_interval": "1s"}, "scrape_configs": found}


def write_targets(trial: Trial, targets: Path) -> None:
    """Puts down every pod that has the port which the monitors select, with the labels that they give."""
    for name, port, pods in (("operator", "http", trial.bed.operators()), ("experiments", "metrics", trial.pods())):
        groups = [
            {"targets": [f"{pod['status']['podIP']}:{number}"], "labels": labels_of(pod)}
            for pod in pods
            if pod["status"].get("podIP") and pod["status"]["phase"] == "Running"
            for number in [one["containerPort"] for one in pod["spec"]["containers"][0].get("ports", []) if one["name"] == port]
        ]
        written = targets / f"{name}.new"
        written.write_text(json.dumps(groups))
        written.replace(targets / f"{name}.json")


def labels_of(pod: dict) -> dict[str, str]:
    """What the relabelling of the monitors makes of a pod."""
    known = {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
    own = pod["metadata"]["labels"]
    named = {"experiment": own.get("transfer-operator.dev/experiment"), "worker": own.get("transfer-operator.dev/index")}
    return known | {label: value for label, value in named.items() if value is not None}


class Prometheus:
    """One that runs on this machine; pods are reached by their addresses."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, expression: str) -> list[dict]:
        """Series of an instant query; empty while it does not answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    def value(self, expression: str) -> float | None:
        """The value of a query that gives one series."""
        found = self.ask(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None


@pytest.fixture
def prometheus(trial: Trial, tmp_path: Path) -> Iterator[Prometheus]:
    program = subprocess.run([str(ROOT / "hack/cluster/tool"), "prometheus"], capture_output=True, text=True, check=True).stdout.strip()
    settings = tmp_path / "prometheus.yml"
    settings.write_text(yaml.safe_dump(configuration(tmp_path)))
    write_targets(trial, tmp_path)
    port = free_port()
    process = subprocess.Popen(
        [program, f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "prometheus.log").open("w"),
    )  # fmt: skip
    yield Prometheus(port)
    process.terminate()
    process.wait(20)


def test_prometheus_has_the_series_of_operator_training_and_evaluation(trial: Trial, prometheus: Prometheus, tmp_path: Path) -> None:
    document = trial.train()
    write_targets(trial, tmp_path)
    mine = f'namespace="{trial.name}",experiment="tiny"'
    one = f"{{{mine}}}"
    wait_for(lambda: prometheus.value("sum(transfer_operator_leader)") == 1, 30, "one leader among two replicas")
    assert prometheus.value("count(transfer_operator_leader)") == 2
    wait_for(lambda: prometheus.value(f'transfer_operator_experiment_workers{{{mine},state="ready"}}') == 2, 30, "two workers are ready")
    assert prometheus.value(f'transfer_operator_experiment_info{{{mine},stage="pretraining"}}') == 1
    assert (prometheus.value("sum(transfer_operator_reconcile_total)") or 0) > 0
    assert prometheus.ask("transfer_operator_api_requests_total")
    steps = wait_for(lambda: prometheus.value(f"max(transfer_stage_step{one})"), 30, "the step of the training pods")
    wait_for(lambda: (prometheus.value(f"max(transfer_stage_step{one})") or 0) > steps, 30, "a later step")
    assert prometheus.value(f"max(transfer_stage_world_size{one})") == 2
    for series in ("loss", "tokens_per_second", "learning_rate", "gradient_norm", "checkpoint_step", "remaining_seconds"):
        wait_for(lambda series=series: prometheus.ask(f"transfer_stage_{series}{one}"), 60, series)
    told = {found["metric"].get("worker") for found in prometheus.ask(f"transfer_stage_step{one}")}
    assert told <= {"0", "1"}, "who a pod is, its labels say"

    trial.evict(trial.worker(1))
    trial.steps(document, 2, since=time.time())
    write_targets(trial, tmp_path)
    wait_for(
        lambda: prometheus.value(f'transfer_operator_experiment_restarts{{{mine},cause="preemption"}}') == 1, 30, "the eviction is counted"
    )

    write_texts(trial.storage / "texts/many.jsonl", 5, 20_000)  # the pod lives for two scrapes at the very least
    texts = [{"name": "many", "path": "texts/many.jsonl"}]
    trial.apply(trial.document("scored", pretraining=None, evaluation=EVALUATION | {"texts": texts}))
    scored = f'{{namespace="{trial.name}",experiment="scored"}}'

    def items() -> float | None:
        write_targets(trial, tmp_path)
        return prometheus.value(f"max(transfer_stage_step{scored})")

    wait_for(items, 120, "the progress of the evaluation pod")
    assert prometheus.ask(f"transfer_stage_total_steps{scored}")
    undocumented = {
        series["metric"]["__name__"] for series in prometheus.ask('{__name__=~"transfer_.+"}')
    } - documented()  # fmt: skip
    assert not undocumented


def documented() -> set[str]:
    """Names in docs/metrics.md, with those that a histogram has."""
    import re

    names = set(re.findall(r"`(transfer_[a-z_]+)", (ROOT / "docs/metrics.md").read_text()))
    return names | {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count", "total", "created")}
