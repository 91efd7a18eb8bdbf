"""Kopf at the edge: its watches fill the view and the queue, and that is all they do.

`on.event` only: no annotation is written, no finalizer set, nothing retried here, so none of Kopf's own back-offs can hold
anything up. What a watch misses, the resync of `process.py` finds.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import kopf

from transfer_api.spec import API_GROUP
from transfer_operator import metrics
from transfer_operator.queue import WorkQueue
from transfer_operator.settings import OperatorSettings
from transfer_operator.view import SELECTOR, Key, View


def register(registry: kopf.OperatorRegistry, view: View, queue: WorkQueue[Key], heard: Counter[str]) -> None:
    """Puts the two handlers into a registry.

    Args:
        registry: of the Kopf operator.
        view: takes the objects.
        queue: takes the keys.
        heard: events so far by resource.
    """

    def note(resource: str) -> None:
        heard[resource] += 1
        metrics.WATCH_LAST_EVENT.labels(resource).set_to_current_time()

    @kopf.on.event(API_GROUP, "v1alpha1", "transferexperiments", registry=registry)
    async def experiment_changed(event: kopf.RawEvent, **_: Any) -> None:
        note("transferexperiments")
        body = dict(event["object"])
        for key in view.drop_experiment(body) if event["type"] == "DELETED" else view.put_experiment(body):
            queue.add(key)

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_changed(event: kopf.RawEvent, **_: Any) -> None:
        note("pods")
        body = dict(event["object"])
        for key in view.drop_pod(body) if event["type"] == "DELETED" else view.put_pod(body):
            queue.add(key)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def configure(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Kopf's settings; why each, stands beside it."""
    wanted = kopf.OperatorSettings()
    wanted.peering.standalone = True  # the Lease decides who leads
    wanted.scanning.disabled = True  # needs rights on namespaces and CRDs of the whole cluster, for what never changes here
    wanted.posting.enabled = False  # our own few events are enough
    wanted.watching.label_selectors["v1", "pods"] = SELECTOR  # a shared cluster has many pods that are none of ours
    wanted.watching.connect_timeout = 5
    wanted.watching.server_timeout = 600
    wanted.networking.request_timeout = 30
    wanted.networking.error_backoffs = [0.2, 0.5, 1, 2, 4, 8, 15]
    wanted.queueing.worker_limit = None  # an idle worker holds its slot, so a limit would cap the rate
    wanted.queueing.idle_timeout = 1
    wanted.execution.default_backoff = 2
    logging.getLogger("kopf").setLevel(logging.WARNING if settings.log_level != "DEBUG" else logging.DEBUG)
    return wanted
