"""What the operator says of itself: alive, ready, and its series."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.operator.rig import Rig
from tests.operator.test_view import txp
from tests.operator.virtual_time import run
from transfer_operator import metrics
from transfer_operator.health import FleetCollector, Health, serve
from transfer_operator.queue import WorkQueue
from transfer_operator.settings import OperatorSettings
from transfer_operator.view import Key, View

SETTINGS = OperatorSettings()
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Watched(Health):
    """Health with a clock of the test's own."""

    def __init__(self) -> None:
        self.time = 0.0
        super().__init__(SETTINGS, clock=lambda: self.time)
        self.leads = True
        self.resync_done(Counter(), Counter())


def test_a_leader_that_lists_and_hears_is_well() -> None:
    health = Watched()
    for _ in range(20):
        health.time += SETTINGS.resync_seconds
        health.resync_done(Counter(pods=3), Counter(pods=1))
        assert health.check() == []


def test_a_leader_that_has_listed_nothing_for_long_is_not() -> None:
    health = Watched()
    health.time = 4 * SETTINGS.resync_seconds + SETTINGS.request_seconds + 1
    assert "listed" in health.check()[0]


def test_a_holder_of_the_lease_whose_first_list_does_not_come_is_not_well() -> None:
    health = Watched()
    health.leads, health.resynced, health.begun = False, None, 0.0
    assert health.check() == []
    health.time = 4 * SETTINGS.resync_seconds + SETTINGS.request_seconds + 1
    assert "listed" in health.check()[0]


def test_a_standby_need_not_list() -> None:
    health = Watched()
    health.leads = False
    health.time = 10_000
    assert health.check() == []


def test_a_watch_that_tells_nothing_of_what_lists_find_is_found_out_though_another_one_tells_much() -> None:
    health = Watched()
    health.resync_done(Counter(pods=1), Counter(transferexperiments=9))
    assert health.check() == []
    health.resync_done(Counter(pods=1), Counter(transferexperiments=9))
    assert "pods" in health.check()[0]
    health.resync_done(Counter(), Counter())
    assert health.check() == []


def test_an_event_loop_that_is_late_is_told() -> None:
    health = Watched()
    health.lag = SETTINGS.lag_seconds + 1
    assert "event loop" in health.check()[0]


def test_lag_is_what_the_loop_was_held_up() -> None:
    async def case() -> None:
        loop = asyncio.get_running_loop()
        health = Health(SETTINGS, clock=loop.time)
        measuring = asyncio.create_task(health.measure_lag())
        await asyncio.sleep(0.5)
        loop.passed += 4  # type: ignore[attr-defined]  # something blocked it
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert health.lag == pytest.approx(3.5, abs=0.01)
        measuring.cancel()

    run(case())


def test_a_replica_is_ready_once_the_api_server_has_answered_and_not_before() -> None:
    async def case() -> None:
        rig = Rig(leader_election=True)
        rig.server.down = True
        first = rig.start("one")
        await asyncio.sleep(20)
        assert not first.health.ready
        rig.server.down = False
        await asyncio.sleep(5)
        assert first.health.ready
        assert first.health.leads
        running = rig.running
        second = rig.start("two")
        await asyncio.sleep(5)
        assert second.health.ready
        assert not second.health.leads
        await rig.stop()
        rig.operator, rig.running = first, running
        await rig.stop()

    run(case())


def test_the_three_pages_answer() -> None:
    async def case() -> None:
        health, port = Health(SETTINGS), _free_port()
        runner = await serve(health, port)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

                async def get(path: str) -> tuple[int, str]:
                    async with session.get(path) as answer:
                        return answer.status, await answer.text()

                assert (await get("/readyz"))[0] == 503
                health.ready = True
                assert (await get("/readyz"))[0] == 200
                assert await get("/healthz") == (200, "ok")
                health.lag = 99
                status, text = await get("/healthz")
                assert status == 500
                assert "99.0 s late" in text
                assert "transfer_operator_leader" in (await get("/metrics"))[1]
        finally:
            await runner.cleanup()

    asyncio.run(case())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def families() -> dict[str, tuple[str, set[str]]]:
    """Every series: its type and labels, the fleet's among them."""
    found = {}
    view = View()
    view.put_experiment(txp())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(view, WorkQueue[Key](), Health(SETTINGS)))
    for family in registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        found[family.name] = (family.type, labels)
    for name in metrics.__all__:
        series = getattr(metrics, name)
        if hasattr(series, "_labelnames"):
            suffix = "_total" if series._type == "counter" else ""
            found[series._name + suffix] = (series._type, set(series._labelnames))
    return found


def test_an_experiment_whose_status_cannot_be_read_is_in_no_phase() -> None:
    async def shown() -> str:
        view = View()
        view.put_experiment(txp(status={"phase": "Elsewhere"}))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(FleetCollector(view, WorkQueue[Key](), Health(SETTINGS)))
        return generate_latest(registry).decode()

    text = run(shown())
    assert "transfer_operator_experiments_unreadable 1.0" in text
    assert 'transfer_operator_experiments{phase="Pending"} 0.0' in text
    assert "transfer_operator_experiment_info{" not in text


def test_docs_and_code_name_the_same_series_types_and_labels() -> None:
    async def collect() -> dict[str, tuple[str, set[str]]]:
        return families()

    coded = run(collect())
    section = DOCS.read_text().split("## Operator")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(transfer_operator_\w+)` \| (\w+) \| ([^|]*) \|", section, re.MULTILINE)
    told = {name: (kind, {label for label in labels.replace(" ", "").split(",") if label}) for name, kind, labels in rows}
    assert told.keys() == coded.keys()
    for name, (kind, labels) in coded.items():
        assert told[name][0] == kind, name
        assert labels <= told[name][1], name


def test_series_of_the_issue_are_all_there() -> None:
    """What operators of operators ask for; no histogram has a label by which it could grow."""
    names = {"reconcile_duration_seconds", "workqueue_depth", "leader", "experiment_time_to_running_seconds"}

    async def collect() -> str:
        return generate_latest().decode()

    text = run(collect())
    assert {name for name in names if f"# TYPE transfer_operator_{name} " not in text} == set()
    assert not any(metrics.RECONCILE_SECONDS._labelnames + metrics.TIME_TO_RUNNING._labelnames + metrics.RESIZE_SECONDS._labelnames)
