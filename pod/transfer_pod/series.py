"""The Prometheus series of a pod, `transfer_stage_*`: one table from which they are served and docs/metrics.md is written.

    python -m transfer_pod.series        prints the table of docs/metrics.md

Each series carries the labels experiment, namespace and stage; which pod it is, the scrape adds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transfer_api.progress import Progress

PREFIX = "transfer_stage_"
LABELS = ("experiment", "namespace", "stage")


@dataclass(frozen=True)
class Series:
    """One figure of `Progress` as a series."""

    name: str
    """Without the prefix; a counter's ends in _total."""
    kind: Literal["gauge", "counter"]
    field: str
    """Field of `Progress`."""
    text: str


SERIES: tuple[Series, ...] = (
    Series("step", "gauge", "step", "Steps finished: optimizer steps in training, documents, tokens or items elsewhere."),
    Series("total_steps", "gauge", "total_steps", "Steps of the whole stage; 0 where that is not known."),
    Series("tokens_total", "counter", "tokens", "Tokens done by the whole stage, those of steps done again counted once."),
    Series("tokens_per_second", "gauge", "tokens_per_second", "Tokens of the last steps over their time, all workers."),
    Series(
        "mfu",
        "gauge",
        "mfu",
        "Model FLOPs of the last steps over their time and the dense bfloat16 peak of the round's GPUs, 0 to 1; only where that is known.",
    ),
    Series("padding_ratio", "gauge", "padding_ratio", "Share of the tokens in the rows of training that are padding."),
    Series("loss", "gauge", "loss", "Loss of the last step, nats per token."),
    Series("learning_rate", "gauge", "learning_rate", "Learning rate of the last step."),
    Series("gradient_norm", "gauge", "gradient_norm", "Norm of the gradient of the last step, before clipping."),
    Series("world_size", "gauge", "world_size", "Processes in the current round of the rendezvous."),
    Series("rendezvous_round", "gauge", "round", "Round of the rendezvous; grows with every change of membership."),
    Series("remaining_seconds", "gauge", "remaining_seconds", "Expected time to the end of the stage."),
    Series("last_step_timestamp_seconds", "gauge", "last_step_time", "Unix time of the last step, or of other work that went on."),
    Series("checkpoint_step", "gauge", "checkpoint_step", "Step of the last complete checkpoint."),
    Series(
        "checkpoint_timestamp_seconds", "gauge", "checkpoint_time", "Unix time of the last complete checkpoint; its age is time() minus it."
    ),
    Series(
        "checkpoint_duration_seconds",
        "gauge",
        "checkpoint_seconds",
        "Time that the last checkpoint took, from its step until it was complete.",
    ),
    Series(
        "checkpoint_stall_seconds",
        "gauge",
        "checkpoint_stall_seconds",
        "Time of the current round in which training stood still for checkpoints.",
    ),
    Series(
        "checkpoint_interval_seconds",
        "gauge",
        "checkpoint_interval_seconds",
        "Time between two checkpoints, with checkpointInterval: Auto.",
    ),
    Series(
        "data_wait_seconds_total",
        "counter",
        "data_wait_seconds",
        "Time in which this pod's first process waited for rows instead of training.",
    ),
    Series(
        "compute_seconds",
        "gauge",
        "compute_seconds",
        "Time of a step in which this pod's slowest process computed by itself: waiting for rows, and the layers' forward pass.",
    ),
    Series(
        "straggler_ratio",
        "gauge",
        "straggler_ratio",
        "That time over the median of all processes.",
    ),
    Series("lost_steps_total", "counter", "lost_steps", "Steps done again after a restart."),
    Series("skipped_steps_total", "counter", "skipped_steps", "Steps left out because their loss was no number or a spike."),
    Series("productive_seconds_total", "counter", "productive_seconds", "Time in which steps were done for the first time."),
)
METRIC = "metric"
METRIC_TEXT = "Latest value of a named measurement, such as bits_per_byte/NAME of a held-out text; further label: name."


class ProgressCollector(Collector):
    """Shows a `Progress` as series.

    A counter never falls while the pod lives: processes of two rounds measure the same second a little differently, and
    Prometheus would take the difference for a restart from zero.
    """

    def __init__(self, read: Callable[[], Progress | None], labels: Mapping[str, str] | None = None) -> None:
        self._read = read
        self._labels = {"experiment": "", "namespace": "", **(labels or {})}
        self._highest: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """One family for each figure that is known now."""
        progress = self._read()
        if progress is None:
            return
        values = [self._labels["experiment"], self._labels["namespace"], progress.stage]
        for series in SERIES:
            value = getattr(progress, series.field)
            if value is None:
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if series.kind == "counter":
                family = CounterMetricFamily(PREFIX + series.name, series.text, labels=LABELS)
                value = self._grown(series.name, progress.stage, float(value))
            else:
                family = GaugeMetricFamily(PREFIX + series.name, series.text, labels=LABELS)
            family.add_metric(values, float(value))
            yield family
        metrics = GaugeMetricFamily(PREFIX + METRIC, METRIC_TEXT, labels=[*LABELS, "name"])
        for name, value in sorted(progress.metrics.items()):
            metrics.add_metric([*values, name], value)
        yield metrics

    def _grown(self, name: str, stage: str, value: float) -> float:
        with self._lock:
            highest = self._highest[name, stage] = max(value, self._highest.get((name, stage), 0.0))
        return highest


def table() -> str:
    """The table of docs/metrics.md."""
    rows = [(series.name, series.kind, series.text) for series in SERIES] + [(METRIC, "gauge", METRIC_TEXT)]
    return "\n".join(
        ["| series | type | meaning |", "|---|---|---|", *(f"| `{PREFIX}{name}` | {kind} | {text} |" for name, kind, text in rows)]
    )


if __name__ == "__main__":
    print(table())
