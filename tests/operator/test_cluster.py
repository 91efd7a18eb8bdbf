"""The verbs of the operator on an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest

from tests.operator.api_server import ApiServer, Wire
from tests.operator.virtual_time import run
from transfer_operator import metrics
from transfer_operator.cluster import EXPERIMENTS, LEASES, PODS, Body, ClusterError, NotLeaderError, Resource


def on(case: Callable[[ApiServer, Wire], Awaitable[None]], may_write: bool = True) -> None:
    async def whole() -> None:
        server = ApiServer()
        await case(server, Wire(server, "one", lambda: may_write))

    run(whole())


def pod(name: str = "worker") -> Body:
    return {"metadata": {"name": name, "labels": {"transfer-operator.dev/experiment": "tiny"}}}


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (PODS, (), "/api/v1/pods"),
        (PODS, ("lab",), "/api/v1/namespaces/lab/pods"),
        (PODS, ("lab", "a b"), "/api/v1/namespaces/lab/pods/a%20b"),
        (EXPERIMENTS, ("lab", "x", "status"), "/apis/transfer-operator.dev/v1alpha1/namespaces/lab/transferexperiments/x/status"),
    ],
    ids=["all", "of a namespace", "one", "a subresource"],
)
def test_addresses(resource: Resource, arguments: tuple[str, ...], path: str) -> None:
    assert resource.path(*arguments) == path


def test_what_exists_is_not_made_again_and_not_an_error() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        made = await wire.create(PODS, "lab", pod())
        assert made is not None
        assert await wire.create(PODS, "lab", pod()) is None
        assert await wire.get(PODS, "lab", "worker") == made
        assert await wire.get(PODS, "lab", "nobody") is None

    on(case)


def test_a_delete_means_one_object_and_not_its_namesake() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        first = server.create("pods", "lab", pod())
        server.remove("pods", "lab", "worker")
        second = server.create("pods", "lab", pod())
        assert await wire.delete(PODS, "lab", "worker", first["metadata"]["uid"], 30) is None
        assert server.every("pods") == [second]
        assert await wire.delete(PODS, "lab", "worker", second["metadata"]["uid"], 30) is not None
        assert server.every("pods") == []
        assert await wire.delete(PODS, "lab", "worker", second["metadata"]["uid"], 30) is None

    on(case)


def test_a_delete_that_is_refused_for_another_reason_than_its_uid_is_an_error() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        made = server.create("pods", "lab", pod())
        wire._fault = lambda request: 409
        with pytest.raises(ClusterError):
            await wire.delete(PODS, "lab", "worker", made["metadata"]["uid"], 30)

    on(case)


def test_a_status_is_written_only_over_the_version_that_was_read() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        read = server.create("transferexperiments", "lab", {"metadata": {"name": "tiny"}, "spec": {}})
        server.edit("lab", "tiny", suspend=True)
        body = {"metadata": {"resourceVersion": read["metadata"]["resourceVersion"]}, "status": {"phase": "Running"}}
        with pytest.raises(ClusterError) as caught:
            await wire.apply_status(EXPERIMENTS, "lab", "tiny", body)
        assert caught.value.status == 409

    on(case)


def test_who_does_not_lead_writes_nothing_and_may_read() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        for write in (
            wire.create(PODS, "lab", pod()),
            wire.apply_status(EXPERIMENTS, "lab", "tiny", {}),
            wire.delete(PODS, "lab", "worker", "uid", 0),
        ):
            with pytest.raises(NotLeaderError):
                await write
        assert not server.writes
        assert await wire.list(PODS) == ([], "0")

    on(case, may_write=False)


@pytest.mark.parametrize("size", [1, 3, 7, 500])
def test_a_list_has_all_pages(size: int) -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        server.page = size
        for number in range(7):
            server.create("pods", "lab", pod(f"w{number}"))
            server.create("pods", "elsewhere", pod(f"w{number}"))
        server.create("pods", "lab", {"metadata": {"name": "of somebody else"}})
        found, version = await wire.list(PODS, "lab", "transfer-operator.dev/experiment")
        assert [body["metadata"]["name"] for body in found] == [f"w{number}" for number in range(7)]
        assert version == "15"
        assert len((await wire.list(PODS))[0]) == 15

    on(case)


@pytest.mark.parametrize(
    ("status", "content", "reason", "words"),
    [
        (404, b'{"reason": "NotFound", "message": "no such pod"}', "NotFound", "no such pod"),
        (502, b"<html>Bad gateway</html>", "", "Bad gateway"),
        (500, b"[]", "", "[]"),
        (200, b"<html>hello</html>", "", "not JSON"),
        (500, b"\xff\xfe", "", ""),
    ],
    ids=["a status", "a proxy's page", "no object", "a page with code 200", "no text"],
)
def test_whatever_comes_back_is_an_answer_or_a_cluster_error(status: int, content: bytes, reason: str, words: str) -> None:
    class Odd(Wire):
        async def _send(
            self, verb: str, path: str, query: Mapping[str, str] | None, body: Body | None, content_type: str
        ) -> tuple[int, Mapping[str, str], bytes]:
            return status, {"Retry-After": "soon"}, content

    async def case() -> None:
        with pytest.raises(ClusterError) as caught:
            await Odd(ApiServer(), "one", lambda: True).list(PODS)
        assert caught.value.reason == reason
        assert words in caught.value.message
        assert caught.value.retry_after is None

    run(case())


def test_no_more_requests_than_allowed_are_under_way_at_once() -> None:
    most = 0

    class Counting(Wire):
        under_way = 0

        async def _send(
            self, verb: str, path: str, query: Mapping[str, str] | None, body: Body | None, content: str
        ) -> tuple[int, Mapping[str, str], bytes]:
            nonlocal most
            self.under_way += 1
            most = max(most, self.under_way)
            await asyncio.sleep(0.1)
            self.under_way -= 1
            return 200, {}, b"{}"

    async def case() -> None:
        wire = Counting(ApiServer(), "one", lambda: True)
        await asyncio.gather(*(wire.create(PODS, "lab", pod(f"w{number}")) for number in range(100)))

    run(case())
    assert most == 20


def test_a_request_that_nobody_waits_for_any_longer_is_counted_as_unanswered() -> None:
    async def case(server: ApiServer, wire: Wire) -> None:
        unanswered = metrics.API_REQUESTS.labels("GET", "leases", "0")
        before = unanswered._value.get()
        wire.frozen = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await wire.get(LEASES, "lab", "transfer-operator")
        assert unanswered._value.get() == before + 1

    on(case)
