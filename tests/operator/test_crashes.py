"""The operator may die, be refused or hear nothing at any of its writes: what comes of the experiment is the same.

For every write of a reference run: the operator is killed right before it, or right after it so that nobody hears the answer; the answer
is lost; the write is refused with 403, 409, 429 or 500. For every watch event: it is lost, or comes late. After a kill another operator
goes on with nothing but what is in the cluster. The rig checks each write: no pod is made twice, no index has two pods that live, no
counter falls, and what is Complete stays so.

That is 1,300 runs. `make test` takes the faults by turns, so that each write and event gets one and each fault every fourth write;
`make test EXHAUSTIVE=1`, which CI runs, takes them all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.operator.api_server import Request
from tests.operator.kubelet import Paced
from tests.operator.rig import NAMESPACE, Rig, outcome
from tests.operator.virtual_time import run
from transfer_api.status import Phase
from transfer_operator.cluster import Body

EXHAUSTIVE = bool(os.environ.get("EXHAUSTIVE"))
Work = Callable[[Rig], Awaitable[None]]
FAULTS = ("before", "after", "lost", "refused")
REFUSALS = (403, 409, 429, 500)
"""Answers to a refused write; each write of a workload gets the next one."""


async def _runs_for(rig: Rig, index: int, seconds: float, generation: int = 1) -> Body:
    """A worker that has run for so long."""
    await rig.until(lambda: (pod := rig.worker(index, generation)) is not None and pod["status"]["phase"] == "Running", what="runs")
    await asyncio.sleep(seconds)
    pod = rig.worker(index, generation)
    assert pod is not None
    return pod


async def happy(rig: Rig) -> None:
    """Two workers train, and the result is evaluated."""
    rig.apply()
    await rig.ends()


async def loss(rig: Rig) -> None:
    """A worker's node dies in the middle of its training."""
    rig.apply(evaluation=None)
    rig.kubelet.lose(await _runs_for(rig, 1, 12))
    await rig.until(lambda: rig.worker(1, 2), what="is replaced")
    await rig.ends()


async def resize(rig: Rig) -> None:
    """Three workers are wanted, then one."""
    rig.apply(evaluation=None)
    await _runs_for(rig, 1, 1)
    rig.server.edit(NAMESPACE, "tiny", workers={"replicas": 3})
    await _runs_for(rig, 2, 1)
    rig.server.edit(NAMESPACE, "tiny", workers={"replicas": 1})
    await rig.ends()


async def deletion(rig: Rig) -> None:
    """The experiment is deleted while it trains."""
    rig.apply(evaluation=None)
    await _runs_for(rig, 1, 2)
    rig.server.remove("transferexperiments", NAMESPACE, "tiny")
    await rig.until(lambda: not rig.server.every("pods") and not rig.server.every("services"), what="nothing is left")


async def namesake(rig: Rig) -> None:
    """The experiment is deleted while it trains, and made again under its name while its pods still save."""
    rig.apply(evaluation=None)
    await _runs_for(rig, 1, 2)
    rig.server.remove("transferexperiments", NAMESPACE, "tiny")
    rig.apply(evaluation=None)
    await rig.ends()


async def crash(rig: Rig) -> None:
    """A worker process fails once, which counts against a budget."""
    rig.kubelet.code = lambda pod: 1 if _first(pod) else None
    rig.apply(evaluation=None)
    await rig.ends()


def _first(pod: Body) -> bool:
    return "-pretraining-" in pod["metadata"]["name"] and pod["metadata"]["name"].endswith("-w0-g1")


WORKLOADS: dict[str, tuple[Work, float]] = {
    "happy path": (happy, 0),
    "a worker is lost": (loss, 0.08),
    "a worker crashes": (crash, 0.08),
    "resize": (resize, 0.1),
    "deletion": (deletion, 0.1),
    "namesake": (namesake, 0.1),
}
"""Each with its pace of training, 0 for the usual: what is lost unheard is found by a list, at most thirty seconds later."""


@dataclass
class Run:
    """What a run with one fault came to."""

    rig: Rig
    end: Body | None = None


def go(work: Work, slow: float, prepare: Callable[[Rig], None] = lambda rig: None) -> Run:
    """Runs a workload to its end and a quiet list beyond it."""

    async def whole() -> Run:
        rig = Rig()
        if slow:
            rig.kubelet.steps = Paced(slow)
        prepare(rig)
        async with rig.going():
            await work(rig)
            await rig.is_quiet(35)  # the operator lists everything every thirty
            end = outcome(rig) if rig.experiment() is not None else None
            if end is not None:
                assert end["phase"] is Phase.COMPLETE
            else:
                assert not rig.server.every("pods")
                assert not rig.server.every("services")
        return Run(rig, end)

    return run(whole())


def trouble(fault: str | int, at: int) -> Callable[[Rig], None]:
    """One fault at the write of that number."""

    def prepare(rig: Rig) -> None:
        rig.fault = lambda request: fault if request.number == at else None

    return prepare


def reference(name: str) -> Run:
    """A run without any fault; the same every time."""
    if name not in _REFERENCES:
        _REFERENCES[name] = go(*WORKLOADS[name])
    return _REFERENCES[name]


_REFERENCES: dict[str, Run] = {}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_fault_at_any_write_changes_nothing_of_the_end(name: str, fault: str) -> None:
    wanted = reference(name)
    for at in _turns(range(len(wanted.rig.server.writes)), FAULTS.index(fault) + list(WORKLOADS).index(name), len(FAULTS)):
        try:
            answer = REFUSALS[(at + list(WORKLOADS).index(name)) % len(REFUSALS)]
            found = go(*WORKLOADS[name], trouble(answer if fault == "refused" else fault, at))
            assert found.rig.kills == (fault in ("before", "after"))
            assert found.end == wanted.end
        except BaseException as error:
            error.add_note(f"{name}: {fault} at write {wanted.rig.server.writes[at]}")
            raise


def _turns(places: range, first: int, among: int) -> range:
    """Those of the places that it is this fault's turn to strike."""
    return places if EXHAUSTIVE else places[first % among :: among]


@pytest.mark.parametrize("hold", [None, 8.0], ids=["lost", "late"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_watch_event_that_is_lost_or_late_changes_nothing_of_the_end(name: str, hold: float | None) -> None:
    wanted = reference(name)
    for at in _turns(range(1, wanted.rig.server.told + 1), int(hold is None) + list(WORKLOADS).index(name), 2):

        def prepare(rig: Rig, at: int = at) -> None:
            rig.server.delivery = lambda number, plural, kind, body: hold if number == at else 0.0

        try:
            assert go(*WORKLOADS[name], prepare).end == wanted.end
        except BaseException as error:
            error.add_note(f"{name}: event {at}")
            raise


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_operator_is_killed_every_few_seconds(name: str) -> None:
    wanted = reference(name)

    def prepare(rig: Rig) -> None:
        rig.fault = _every_third

    assert go(*WORKLOADS[name], prepare).end == wanted.end


def _every_third(request: Request) -> str | None:
    return ("before", None, "after", None, None)[request.number % 5]


def test_the_runs_are_the_same_every_time() -> None:
    first, second = (go(*WORKLOADS["happy path"]) for _ in range(2))
    assert [str(write) for write in first.rig.server.writes] == [str(write) for write in second.rig.server.writes]
