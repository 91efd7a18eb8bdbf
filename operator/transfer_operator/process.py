"""One operator process: wait for the Lease, then watch, list and reconcile until it is lost.

A replica that loses the Lease ends: what it knew is of no use to whoever leads now, and a fresh process is the only state that is
certainly clean. Everything it needs to go on is in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Iterator

import kopf
from prometheus_client import REGISTRY

from transfer_operator import handlers, metrics
from transfer_operator.cluster import EXPERIMENTS, PODS, Body, Cluster, ClusterError, Resource
from transfer_operator.health import FleetCollector, Health, serve
from transfer_operator.lease import Lease
from transfer_operator.progress import ProgressBoard
from transfer_operator.queue import WorkQueue
from transfer_operator.reconcile import Reconciler
from transfer_operator.settings import OperatorSettings
from transfer_operator.view import SELECTOR, Key, View

logger = logging.getLogger(__name__)

LOST = 1
"""Exit code of a replica that lost the Lease or its watches: the kubelet starts it again."""


class Operator:
    """The parts, put together."""

    def __init__(self, settings: OperatorSettings) -> None:
        self.settings = settings
        self.cluster = Cluster(settings.concurrency, settings.request_seconds, self._may_write)
        self.lease = Lease(
            self.cluster, namespace=settings.namespace, name=settings.lease_name, identity=settings.identity,
            seconds=settings.lease_seconds, renew=settings.renew_seconds,
        )  # fmt: skip
        self.view, self.queue, self.health = View(), WorkQueue[Key](), Health(settings)
        self.progress = ProgressBoard(settings.pod_port)
        self.heard: Counter[str] = Counter()
        self.reconciler = Reconciler(self.cluster, self.view, self.queue, self.progress, settings)
        self.stop = asyncio.Event()

    def _may_write(self) -> bool:
        return not self.stop.is_set() and (self.lease.holds() or not self.settings.leader_election)

    async def run(self) -> int:
        """Serves until SIGTERM (0) or until something that must not end has ended (1)."""
        self._catch_signals()
        metrics.BUILD_INFO.labels(importlib.metadata.version("transfer-operator")).set(1)
        REGISTRY.register(FleetCollector(self.view, self.queue, self.health))
        server = await serve(self.health, self.settings.http_port)
        try:
            await self.cluster.connect()
            return await self._lead()
        finally:
            await self.lease.release()
            await self.cluster.close()
            await server.cleanup()

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)

    async def _lead(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            stopped = _task(stack, self.stop.wait(), "stop")
            _task(stack, self.health.measure_lag(), "lag")
            tasks = [stopped]
            if self.settings.leader_election:
                _task(stack, self._note_first_look(), "first look")
                acquired = _task(stack, self.lease.acquire(), "acquire")
                await asyncio.wait([stopped, acquired], return_when=asyncio.FIRST_COMPLETED)
                if self.stop.is_set():
                    return 0
                acquired.result()
                tasks.append(_task(stack, self.lease.keep(), "lease"))
            self.health.begun = self.health.clock()
            first = _task(stack, self._first_list(), "first list")
            await asyncio.wait([*tasks, first], return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                first.result()
                self.health.leads = self.health.ready = True
                self.reconciler.asked_since = self.reconciler.now()
                tasks += [_task(stack, work, name) for name, work in self._work()]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.health.leads = False
            if self.stop.is_set():
                await self.lease.release()  # before the slow goodbyes: nothing is written any more
                return 0
            for task in done:
                logger.error("%s has ended", task.get_name(), exc_info=task.exception())
            return LOST

    async def _note_first_look(self) -> None:
        await self.lease.looked.wait()
        self.health.ready = True

    def _work(self) -> Iterator[tuple[str, Awaitable[object]]]:
        """What a leader does, side by side."""
        for number in range(self.settings.concurrency):
            yield f"worker-{number}", self.reconciler.work()
        yield "resync", self._resync()
        yield "progress", self.progress.keep(self.view, self.queue, self.settings.progress_seconds, self._may_write)
        yield "kopf", self._watch()

    async def _watch(self) -> None:
        registry = kopf.OperatorRegistry()
        handlers.register(registry, self.view, self.queue, self.heard)
        namespaces = self.settings.watch_namespaces
        ours = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry, settings=handlers.configure(self.settings), standalone=True, clusterwide=not namespaces,
            namespaces=namespaces,
        )  # fmt: skip
        self._catch_signals()  # Kopf has put its own in their place
        await kopf.run_tasks(tasks, ignored=ours)

    async def _first_list(self) -> None:
        """Lists until it succeeds: nothing may be decided on an empty view."""
        while True:
            try:
                await self._list()
                return
            except ClusterError as error:
                logger.warning("the first list failed: %s", error)
                await asyncio.sleep(1)

    async def _resync(self) -> None:
        """Lists everything from time to time: finds what the watches missed, and looks at every experiment that is not finished."""
        heard = self.heard.copy()
        while True:
            await asyncio.sleep(self.settings.resync_seconds)
            try:
                drift = await self._list()
            except ClusterError as error:
                logger.warning("resync failed: %s", error)
                continue
            self.health.resync_done(drift, self.heard - heard)
            heard = self.heard.copy()
            for key, known in self.view.experiments.items():
                if known.active:
                    self.queue.add(key)

    async def _list(self) -> Counter[str]:
        """Takes full lists into the view; returns how many objects they knew better. Pods come last: never older than a status."""
        drift = Counter[str]()
        for namespace in self.settings.watch_namespaces or (None,):
            drift[EXPERIMENTS.plural] += self._take(EXPERIMENTS, *await self.cluster.list(EXPERIMENTS, namespace), namespace)
            drift[PODS.plural] += self._take(PODS, *await self.cluster.list(PODS, namespace, SELECTOR), namespace)
        if self.health.resynced is None:
            self.health.resync_done(Counter(), Counter())
        return drift

    def _take(self, resource: Resource, bodies: list[Body], version: str, namespace: str | None) -> int:
        replace = self.view.replace_experiments if resource is EXPERIMENTS else self.view.replace_pods
        keys, drift = replace(bodies, version, namespace)
        for key in keys:
            self.queue.add(key)
        if self.health.resynced is not None:
            metrics.WATCH_DRIFT.labels(resource.plural).inc(drift)
        return drift


def _task(stack: contextlib.AsyncExitStack, work: Awaitable[object], name: str) -> asyncio.Task[object]:
    """A task that ends with the stack."""

    async def run() -> object:
        return await work

    task = asyncio.create_task(run(), name=name)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    stack.push_async_callback(end)
    return task
