"""Asking pods how far they are: real HTTP, and pods that answer with anything."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web

from tests.operator.test_view import pod
from transfer_api.progress import Progress
from transfer_operator.progress import LONGEST_ANSWER, ProgressBoard
from transfer_operator.queue import WorkQueue
from transfer_operator.view import Key, View

GOOD = Progress(step=7, total_steps=10).model_dump_json()


class Pods:
    """One address that answers as it is told."""

    def __init__(self) -> None:
        self.answer: Any = GOOD
        self.status = 200
        self.asked = 0

    async def tell(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        headers = {"Location": "http://192.0.2.1/"} if self.status == 302 else {}
        body = self.answer.encode() if isinstance(self.answer, str) else self.answer
        return web.Response(body=body, status=self.status, headers=headers)


def runs(number: int = 0, **status: Any) -> dict[str, Any]:
    body = pod(number, version=2)
    return {**body, "status": {"phase": "Running", "podIP": "127.0.0.1", **status}}


async def asked(view: View, pods: Pods, rounds: int = 2, leads: bool = True) -> tuple[ProgressBoard, WorkQueue[Key]]:
    """A board that has asked that many times."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = web.Application()
    app.router.add_get("/progress", pods.tell)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    board, queue, looks = ProgressBoard(port), WorkQueue[Key](), 0

    def may() -> bool:
        nonlocal looks
        looks += 1
        return leads

    keeping = asyncio.create_task(board.keep(view, queue, 0.01, may))
    try:
        async with asyncio.timeout(30):
            while looks <= rounds:
                assert not keeping.done(), keeping.exception()
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await runner.cleanup()
    return board, queue


def seen(*bodies: dict[str, Any]) -> View:
    view = View()
    for body in bodies:
        view.put_pod(body)
    return view


def test_what_a_pod_tells_is_kept_and_its_experiment_is_looked_at() -> None:
    async def case() -> None:
        board, queue = await asked(seen(runs()), Pods())
        assert {uid: told.step for uid, told in board.items()} == {"uid-pod-tiny-0": 7}
        assert await queue.get() == ("lab", "tiny")

    asyncio.run(case())


@pytest.mark.parametrize(
    "body",
    [
        runs(podIP=""),
        runs(phase="Pending"),
        runs(phase="Succeeded"),
        {**runs(), "metadata": {**runs()["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {**runs(), "metadata": {**runs()["metadata"], "labels": {"transfer-operator.dev/experiment": "tiny"}}},
    ],
    ids=["no address", "pending", "ended", "terminating", "no worker"],
)
def test_who_has_nothing_to_tell_is_not_asked(body: dict[str, Any]) -> None:
    async def case() -> None:
        pods = Pods()
        board, queue = await asked(seen(body), pods)
        assert (pods.asked, len(board), len(queue)) == (0, 0, 0)

    asyncio.run(case())


def test_only_the_leader_asks() -> None:
    async def case() -> None:
        pods = Pods()
        await asked(seen(runs()), pods, leads=False)
        assert pods.asked == 0

    asyncio.run(case())


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, "{"), (200, "[]"), (200, '{"step": -1}'), (200, b"\xff"), (200, "[" * 50_000), (200, "x" * (LONGEST_ANSWER + 1)),
        (500, GOOD), (404, GOOD), (302, GOOD), (200, '{"step": 1e400}'), (200, '{"tokens": 99999999999999999999}'),
    ],
    ids=["cut", "a list", "negative", "no text", "deep", "long", "an error", "not found", "elsewhere", "infinite", "more than 64 bits"],
)  # fmt: skip
def test_an_answer_that_is_none_changes_nothing(status: int, answer: Any) -> None:
    async def case() -> None:
        pods = Pods()
        pods.status, pods.answer = status, answer
        board, queue = await asked(seen(runs()), pods)
        assert pods.asked
        assert (len(board), len(queue)) == (0, 0)

    asyncio.run(case())


def test_why_an_answer_is_not_taken_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        pods = Pods()
        pods.answer = '{"tokens": 99999999999999999999}'
        await asked(seen(runs()), pods, rounds=5)
        assert pods.asked > 1

    asyncio.run(case())
    (told,) = [record.getMessage() for record in caplog.records if "progress is not taken" in record.getMessage()]
    assert "tokens: Input should be less than or equal to" in told


def test_of_pods_that_are_gone_nothing_is_kept() -> None:
    async def case() -> None:
        view = seen(runs(0), runs(1))
        pods = Pods()
        board, _ = await asked(view, pods)
        assert len(board) == 2
        board["of long ago"] = Progress()
        other, _ = await asked(view, pods)
        assert len(other) == 2
        view.drop_pod(runs(0))
        keeping = asyncio.create_task(board.keep(view, WorkQueue[Key](), 0.01, lambda: True))
        async with asyncio.timeout(30):
            while len(board) > 1:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(case())
