"""`/metrics`, `/healthz` and `/readyz` of the operator.

Healthy is not who answers HTTP: a leader must have listed everything lately, its watches must tell what its lists find, and its event
loop must not lag. A standby only has to look at the Lease. What fails is named in the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import REGISTRY, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transfer_api.status import Cause, Phase
from transfer_operator import metrics
from transfer_operator.queue import WorkQueue
from transfer_operator.settings import OperatorSettings
from transfer_operator.view import Key, View

LAG_PERIOD_S = 1.0
MISSED_RESYNCS = 4
DEAF_RESYNCS = 2


@dataclass
class Health:
    """What is known of this process's own state."""

    settings: OperatorSettings
    clock: Callable[[], float] = time.monotonic
    leads: bool = False
    ready: bool = False
    """The Lease was looked at once."""
    begun: float | None = None
    """When this process, holding the Lease, began to list."""
    resynced: float | None = None
    deaf: Counter[str] = field(default_factory=Counter)
    """By resource: lists in a row that found changes while its watch told of none."""
    lag: float = 0.0
    problems: list[str] = field(default_factory=list)

    def resync_done(self, drift: Counter[str], heard: Counter[str]) -> None:
        """Notes a full list: by resource, objects it knew better than the view, and watch events since the one before."""
        self.resynced = self.clock()
        self.deaf = Counter({resource: self.deaf[resource] + 1 for resource, found in drift.items() if found and not heard[resource]})

    def check(self) -> list[str]:
        """What is wrong; empty when nothing is."""
        found = []
        if self.lag > self.settings.lag_seconds:
            found.append(f"the event loop is {self.lag:.1f} s late")
        last = self.resynced if self.leads else self.begun
        if last is not None:
            age = self.clock() - last
            if age > MISSED_RESYNCS * self.settings.resync_seconds + self.settings.request_seconds:
                found.append(f"nothing was listed for {age:.0f} s")
        for resource, times in self.deaf.items() if self.leads else ():
            if times >= DEAF_RESYNCS:
                found.append(f"{times} lists in a row found changes of {resource} that no watch told of")
        return found

    async def measure_lag(self) -> None:
        """Measures how late the event loop wakes up, for ever."""
        while True:
            begun = self.clock()
            await asyncio.sleep(LAG_PERIOD_S)
            self.lag = max(0.0, self.clock() - begun - LAG_PERIOD_S)
            metrics.LOOP_LAG.set(self.lag)


class FleetCollector(Collector):
    """Figures of the experiments, taken from the view when somebody asks."""

    def __init__(self, view: View, queue: WorkQueue[Key], health: Health) -> None:
        self._view = view
        metrics.QUEUE_DEPTH.set_function(queue.depth)
        metrics.LEADER.set_function(lambda: health.leads)
        metrics.RESYNC_AGE.set_function(lambda: 0.0 if health.resynced is None else health.clock() - health.resynced)

    def collect(self) -> Iterator[Metric]:
        """Only the leader has any."""
        phases = GaugeMetricFamily(metrics.PREFIX + "experiments", "Experiments by phase.", labels=["phase"])
        info, workers, stalled, restarts, scores = _per_experiment()
        count, unreadable = dict.fromkeys(Phase, 0), 0
        for (namespace, name), known in self._view.experiments.items():
            if known.unreadable:
                unreadable += 1
                continue
            count[known.phase] += 1
            if known.phase.terminal and not _just(known.completed):
                continue  # finished ones would only pile up
            status = known.status
            if known.phase.terminal:
                for score in status.results.scores if status.results is not None else ():
                    scores.add_metric([namespace, name, score.suite, score.task, score.language, score.metric], float(score.value))
                continue
            info.add_metric([namespace, name, status.phase, status.stage], 1)
            workers.add_metric([namespace, name, "desired"], status.workers.desired)
            workers.add_metric([namespace, name, "ready"], status.workers.ready)
            stalled.add_metric([namespace, name], any(one.type == "Stalled" and one.status == "True" for one in status.conditions))
            for cause in Cause:
                restarts.add_metric([namespace, name, cause.value], status.restarts.count(cause))
        for phase, number in count.items():
            phases.add_metric([phase], number)
        text = "Experiments whose status cannot be read, so that nothing is done for them; they are in no phase."
        yield GaugeMetricFamily(metrics.PREFIX + "experiments_unreadable", text, value=unreadable)
        yield from (phases, info, workers, stalled, restarts, scores)


def _per_experiment() -> tuple[GaugeMetricFamily, ...]:
    def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{metrics.PREFIX}experiment_{name}", text, labels=["namespace", "experiment", *labels])

    return (
        family("info", "Always 1; phase and stage of an experiment that is not finished.", "phase", "stage"),
        family("workers", "Pods of its running stage, desired and ready.", "state"),
        family("stalled", "1 from a restart for lack of steps until a new highest step is seen."),
        family("restarts", "Its restarts by cause.", "cause"),
        family("score", "Scores of an experiment, from its end on for an hour.", "suite", "task", "language", "metric"),
    )


def _just(moment: datetime | None) -> bool:
    """Whether it was within the last hour: long enough for every scrape, and finished experiments do not pile up."""
    return moment is not None and datetime.now(UTC) - moment < timedelta(hours=1)


async def serve(health: Health, port: int) -> web.AppRunner:
    """Starts the HTTP server."""

    async def healthz(_: web.Request) -> web.Response:
        problems = health.check()
        return web.Response(text="\n".join(problems) or "ok", status=500 if problems else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok" if health.ready else "has not looked at the Lease yet", status=200 if health.ready else 503)

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
