"""The operator's own series, `transfer_operator_*`. What each means stands in docs/metrics.md; a test compares the two."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, for nothing that is asked here

PREFIX = "transfer_operator_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONG_SECONDS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)

RECONCILE_SECONDS = Histogram(PREFIX + "reconcile_duration_seconds", "Time of one reconcile, with its writes.", buckets=SECONDS)
RECONCILES = Counter(PREFIX + "reconcile", "Reconciles by outcome: done, conflict, error, invalid, gone, not-leader.", ["outcome"])
QUEUE_DEPTH = Gauge(PREFIX + "workqueue_depth", "Experiments that wait to be reconciled now.")
LOOP_LAG = Gauge(PREFIX + "event_loop_lag_seconds", "How late the event loop woke up last.")
RESYNC_AGE = Gauge(PREFIX + "resync_age_seconds", "Time since everything was last listed.")
WATCH_LAST_EVENT = Gauge(PREFIX + "watch_last_event_timestamp_seconds", "Unix time of the last watch event.", ["resource"])
WATCH_DRIFT = Counter(PREFIX + "watch_drift", "Objects that a list knew better than the watch.", ["resource"])
API_REQUESTS = Counter(PREFIX + "api_requests", "Requests to the API server; code 0: no answer.", ["verb", "resource", "code"])
LEADER = Gauge(PREFIX + "leader", "1 while this replica leads.")
BUILD_INFO = Gauge(PREFIX + "build_info", "Always 1; the version is the label.", ["version"])
TIME_TO_RUNNING = Histogram(
    PREFIX + "experiment_time_to_running_seconds", "From creation to the first pod that runs.", buckets=LONG_SECONDS
)
RESIZE_SECONDS = Histogram(
    PREFIX + "experiment_resize_duration_seconds", "From a change of the wanted workers to training at that size.", buckets=LONG_SECONDS
)
RESTARTS = Counter(PREFIX + "restarts", "Restarts of all experiments by cause, since this process started.", ["cause"])
RESULTS_WRITTEN = Counter(PREFIX + "results_written", "Experiments whose scores were written to their status.")

__all__ = [
    "API_REQUESTS", "BUILD_INFO", "LEADER", "LONG_SECONDS", "LOOP_LAG", "PREFIX", "QUEUE_DEPTH", "RECONCILES", "RECONCILE_SECONDS",
    "REGISTRY", "RESIZE_SECONDS", "RESTARTS", "RESULTS_WRITTEN", "RESYNC_AGE", "SECONDS", "TIME_TO_RUNNING", "WATCH_DRIFT",
    "WATCH_LAST_EVENT",
]  # fmt: skip
