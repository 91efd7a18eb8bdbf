"""Who leads: one at a time, whatever happens, and soon another one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.operator.api_server import ApiServer, Wire
from tests.operator.virtual_time import clock, run
from transfer_operator.cluster import EXPERIMENTS, LEASES, ClusterError, NotLeaderError
from transfer_operator.lease import Lease

SECONDS, RENEW = 10.0, 2.0


class Replica:
    """A candidate with a connection of its own."""

    def __init__(self, server: ApiServer, name: str) -> None:
        self.wire = Wire(server, name, lambda: self.lease.holds())
        self.lease = Lease(self.wire, namespace="lab", name="transfer-operator", identity=name, seconds=SECONDS, renew=RENEW, clock=clock)
        self.task: asyncio.Task[None] | None = None
        self.terms = 0

    def start(self) -> None:
        self.task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        await self.lease.acquire()
        self.terms += 1
        await self.lease.keep()

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def leads(replica: Replica, within: float) -> float:
    """How long it took until the replica leads."""
    begun = clock()
    while not replica.lease.holds():
        assert clock() - begun < within, f"does not lead within {within} s"
        await asyncio.sleep(0.05)
    return clock() - begun


def pair() -> tuple[ApiServer, Replica, Replica]:
    server = ApiServer()
    return server, Replica(server, "one"), Replica(server, "two")


def test_the_first_leads_at_once_and_goes_on_while_it_renews() -> None:
    async def case() -> None:
        _, one, two = pair()
        one.start()
        assert await leads(one, 1) < 0.2
        two.start()
        for _ in range(1000):
            await asyncio.sleep(0.1)
            assert one.lease.holds()
            assert not two.lease.holds()
        await one.stop()
        await two.stop()

    run(case())


def test_a_renewal_is_one_request() -> None:
    async def case() -> None:
        server, one, _ = pair()
        one.start()
        await leads(one, 1)
        server.requests.clear()
        await asyncio.sleep(10 * RENEW)
        assert server.requests["PUT leases"] == 10
        assert server.requests["GET leases"] == 0
        await one.stop()

    run(case())


def test_a_silent_leader_is_replaced_after_lease_seconds_and_not_before() -> None:
    async def case() -> None:
        _, one, two = pair()
        one.start()
        await leads(one, 1)
        two.start()
        await asyncio.sleep(RENEW * 3)
        await one.stop()  # killed: gives nothing back
        taken = await leads(two, 60)
        assert SECONDS - RENEW <= taken <= SECONDS + 2 * RENEW + 0.1
        assert not one.lease.holds()
        await two.stop()

    run(case())


def test_release_hands_over_at_the_next_look_and_is_not_taken_back() -> None:
    async def case() -> None:
        _, one, two = pair()
        one.start()
        await leads(one, 1)
        two.start()
        await asyncio.sleep(3)
        await one.lease.release()  # the leader says goodbye slowly: its renewals still run
        assert await leads(two, 60) <= RENEW + 0.1
        await asyncio.sleep(60)
        assert two.lease.holds()
        assert not one.lease.holds()
        await one.stop()
        await two.stop()

    run(case())


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.002, 0.003, 0.004, 0.005], ids=str)
def test_release_in_the_middle_of_a_renewal_leaves_no_holder(moment: float) -> None:
    async def case() -> None:
        server, one, _ = pair()
        one.start()
        await leads(one, 1)
        await asyncio.sleep(RENEW * 3 - clock() % RENEW + moment)
        await one.lease.release()
        await asyncio.sleep(10)
        assert server.objects["leases", "lab", "transfer-operator"]["spec"]["holderIdentity"] == ""
        await one.stop()

    run(case())


def test_a_leader_that_was_frozen_writes_nothing_when_it_wakes() -> None:
    async def case() -> None:
        _, one, two = pair()
        one.start()
        await leads(one, 1)
        two.start()
        one.wire.frozen = True
        await leads(two, 60)
        one.wire.frozen = False
        with pytest.raises(NotLeaderError):
            await one.wire.apply_status(EXPERIMENTS, "lab", "tiny", {})
        await asyncio.sleep(5)
        assert not one.lease.holds()
        assert two.lease.holds()
        assert one.task is not None
        assert one.task.done(), "who lost the Lease ends"
        await two.stop()

    run(case())


def test_a_request_that_waited_for_a_slot_asks_again_whether_it_may_write() -> None:
    async def case() -> None:
        _, one, _ = pair()
        one.start()
        await leads(one, 1)
        for _ in range(20):
            await one.wire._slots.acquire()
        write = asyncio.create_task(one.wire.create(EXPERIMENTS, "lab", {"metadata": {"name": "tiny"}}))
        await asyncio.sleep(0.1)
        await one.stop()
        await asyncio.sleep(SECONDS)
        for _ in range(20):
            one.wire._slots.release()
        with pytest.raises(NotLeaderError):
            await write

    run(case())


def test_requests_that_hang_do_not_cost_the_lead() -> None:
    async def case() -> None:
        _, one, _ = pair()
        for _ in range(20):
            await one.wire._slots.acquire()
        one.start()
        await leads(one, 1)
        await asyncio.sleep(60)
        assert one.lease.holds()
        await one.stop()

    run(case())


class Hanging(Wire):
    """A connection on which so many requests for the Lease get no answer."""

    hang = 0

    async def _send(self, verb: str, path: str, *rest: Any) -> Any:
        if self.hang:
            self.hang -= 1
            await asyncio.get_running_loop().create_future()
        return await super()._send(verb, path, *rest)


def test_a_renewal_that_hangs_is_tried_again_in_time() -> None:
    async def case() -> None:
        server, one, two = pair()
        one.lease._cluster = wire = Hanging(server, "one", lambda: True)
        one.start()
        await leads(one, 1)
        two.start()
        for _ in range(5):
            wire.hang = 1
            for _ in range(100):
                await asyncio.sleep(0.1)
                assert one.lease.holds()
            assert wire.hang == 0
        await one.stop()
        await two.stop()

    run(case())


def test_requests_that_all_hang_hand_the_lead_over() -> None:
    async def case() -> None:
        server, one, two = pair()
        one.lease._cluster = wire = Hanging(server, "one", lambda: True)
        one.start()
        await leads(one, 1)
        two.start()
        wire.hang = 1000
        assert await leads(two, SECONDS + 2 * RENEW) > RENEW
        assert not one.lease.holds()
        assert one.task is not None
        assert one.task.done(), "it does not wait for an answer that cannot help any more"
        await two.stop()

    run(case())


def test_a_leader_that_cannot_renew_gives_up_before_another_one_may_lead() -> None:
    async def case() -> None:
        server, one, _ = pair()
        one.start()
        await leads(one, 1)
        server.down = True
        begun = clock()
        while one.lease.holds():
            await asyncio.sleep(0.05)
        assert clock() - begun < SECONDS - 1
        server.down = False
        await one.stop()

    run(case())


def test_one_failing_renewal_costs_nothing() -> None:
    async def case() -> None:
        server, one, two = pair()
        one.start()
        await leads(one, 1)
        two.start()
        for _ in range(20):
            server.down = True
            await asyncio.sleep(RENEW * 1.5)
            server.down = False
            await asyncio.sleep(RENEW * 3)
            assert one.lease.holds()
        await one.stop()
        await two.stop()

    run(case())


def test_after_an_outage_somebody_leads_again() -> None:
    async def case() -> None:
        server, one, two = pair()
        one.start()
        await leads(one, 1)
        two.start()
        server.down = True
        await asyncio.sleep(300)
        server.down = False
        await leads(two, SECONDS + 2 * RENEW + 0.2)
        await two.stop()
        await one.stop()

    run(case())


def test_a_lease_that_somebody_deleted_is_made_again() -> None:
    async def case() -> None:
        server, one, _ = pair()
        one.start()
        await leads(one, 1)
        server.remove("leases", "lab", "transfer-operator")
        await asyncio.sleep(RENEW * 3)
        assert one.lease.holds()
        assert ("leases", "lab", "transfer-operator") in server.objects
        await one.stop()

    run(case())


@pytest.mark.parametrize("seed", range(40))
def test_never_two_lead(seed: int) -> None:
    """Three replicas freeze, die, are cut off and begin anew at any time: at no moment do two of them believe that they lead."""
    chance = random.Random(seed)

    async def case() -> None:
        server = ApiServer()
        replicas = [Replica(server, f"r{number}") for number in range(3)]

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.05)
                holding = [replica for replica in replicas if replica.lease.holds()]
                assert len(holding) <= 1

        async def live(number: int) -> None:
            while True:
                replica = replicas[number] = Replica(server, f"r{number}-{clock()}")
                replica.start()
                for _ in range(chance.randrange(1, 5)):
                    await asyncio.sleep(chance.uniform(0, 20))
                    replica.wire.frozen = chance.random() < 0.4
                if chance.random() < 0.3:
                    replica.wire.frozen = False
                    await replica.lease.release()
                await replica.stop()
                await asyncio.sleep(chance.uniform(0, 5))

        async def outages() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0, 60))
                server.down = not server.down

        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in (watch(), live(0), live(1), live(2), outages())]
        done, _ = await asyncio.wait(tasks, timeout=600, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        for replica in replicas:
            await replica.stop()

    run(case())


def test_an_unexpected_answer_is_an_error_and_not_the_end() -> None:
    async def case() -> None:
        server, one, _ = pair()
        server.down = True
        with pytest.raises(ClusterError):
            await one.wire.get(LEASES, "lab", "transfer-operator")
        one.start()
        await asyncio.sleep(20)
        server.down = False
        await leads(one, RENEW + 0.2)
        await one.stop()

    run(case())
