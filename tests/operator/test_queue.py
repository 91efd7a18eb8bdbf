"""The work queue: what is looked at, when, and by how many at once."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from tests.operator.virtual_time import clock, run
from transfer_operator.queue import FIRST_DELAY_S, LONGEST_DELAY_S, WorkQueue


async def taken(queue: WorkQueue[str], within: float = 0.0) -> str | None:
    """The next key, if one is due in so many seconds."""
    try:
        async with asyncio.timeout(within):
            return await queue.get()
    except TimeoutError:
        return None


def test_a_key_that_is_added_ten_times_is_looked_at_once() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        for _ in range(10):
            queue.add("a")
        assert len(queue) == queue.depth() == 1
        assert await queue.get() == "a"
        queue.done("a")
        assert await taken(queue, 100) is None

    run(case())


def test_the_earlier_of_two_times_counts() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("a", 10)
        queue.add("a", 3)
        queue.add("a", 20)
        assert await queue.get() == "a"
        assert clock() == pytest.approx(3, abs=1e-3)
        queue.done("a")
        assert await taken(queue, 100) is None

    run(case())


def test_keys_come_in_the_order_in_which_they_are_due() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("late", 5)
        queue.add("soon", 1)
        queue.add("first")
        queue.add("second")
        assert [await queue.get() for _ in range(4)] == ["first", "second", "soon", "late"]
        assert clock() == pytest.approx(5, abs=1e-3)

    run(case())


def test_what_is_added_while_the_key_is_looked_at_waits_for_its_end() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("a")
        await queue.get()
        queue.add("a")
        assert await taken(queue, 5) is None
        queue.done("a")
        assert await taken(queue) == "a"

    run(case())


def test_a_sleeper_wakes_for_what_is_due_earlier_than_what_it_waits_for() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("late", 60)
        sleeper = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        queue.add("now")
        assert await sleeper == "now"
        assert clock() == pytest.approx(1, abs=1e-3)

    run(case())


def test_an_idle_worker_is_not_forgotten_when_a_busy_one_comes_first() -> None:
    """Two keys are added just when one worker begins to wait; another one, which takes one of them, must not take the wake-up too."""

    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("late", 60)
        took: dict[str, float] = {}

        async def idle() -> None:
            took[await queue.get()] = clock()

        waiting = asyncio.create_task(idle())
        await asyncio.sleep(0)  # it has looked, and is about to wait
        queue.add("a")
        queue.add("b")
        assert await queue.get() == "a"
        await asyncio.sleep(30)  # the busy one is busy
        assert took == {"b": pytest.approx(0, abs=1e-3)}
        waiting.cancel()

    run(case())


def test_a_failing_key_comes_back_later_and_later_and_no_later_than_the_cap() -> None:
    async def case() -> list[float]:
        queue = WorkQueue[str]()
        queue.add("a")
        waits = []
        for _ in range(12):
            await queue.get()
            begun = clock()
            announced = queue.failed("a")
            assert await queue.get() == "a"
            waits.append(clock() - begun)
            assert waits[-1] == pytest.approx(announced, abs=1e-3)
            queue.failed("a", after=0)  # as if it were due at once; the count goes on
        return waits

    waits = run(case())
    assert FIRST_DELAY_S * 0.8 <= waits[0] <= FIRST_DELAY_S * 1.2
    assert all(late > early for early, late in itertools.pairwise(waits[:4]))
    assert max(waits) <= LONGEST_DELAY_S * 1.2
    assert min(waits[-3:]) >= LONGEST_DELAY_S * 0.8


def test_success_ends_the_backoff() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        for _ in range(6):
            queue.add("a")
            await queue.get()
            queue.failed("a")
        await queue.get()
        queue.done("a")
        queue.add("a")
        await queue.get()
        assert queue.failed("a") <= FIRST_DELAY_S * 1.2

    run(case())


def test_the_server_may_say_how_long_to_wait() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("a")
        await queue.get()
        assert queue.failed("a", after=7) == 7
        assert await taken(queue, 6.9) is None
        assert await queue.get() == "a"
        assert clock() == pytest.approx(7, abs=1e-3)

    run(case())


def test_nothing_is_due_of_a_forgotten_key_and_it_may_come_back() -> None:
    async def case() -> None:
        queue = WorkQueue[str]()
        queue.add("a")
        queue.forget("a")
        assert len(queue) == 0
        assert await taken(queue, 100) is None
        queue.add("a")
        assert await taken(queue) == "a"

    run(case())


def test_old_times_do_not_pile_up() -> None:
    """A running experiment is due at a far deadline, and looked at every few seconds before it."""

    async def case() -> None:
        queue = WorkQueue[str]()
        for _ in range(10_000):
            queue.add("a")
            await queue.get()
            queue.done("a")
            queue.add("a", 3600)
        assert len(queue._heap) < 1000

    run(case())


@pytest.mark.parametrize("seed", range(20))
def test_many_workers_and_many_keys(seed: int) -> None:
    """Whatever happens: no key at two workers at once, none before its time, none lost, and no worker idle while something is due."""
    chance = random.Random(seed)

    async def case() -> None:
        queue = WorkQueue[str]()
        busy: set[str] = set()
        wanted: dict[str, float] = {}

        def add(key: str, after: float) -> None:
            queue.add(key, after)
            wanted[key] = min(wanted.get(key, float("inf")), clock() + after)

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in busy
                assert wanted.pop(key) <= clock() + 1e-6
                busy.add(key)
                await asyncio.sleep(chance.choice([0, 0, 0.1, 2]))
                busy.remove(key)
                if chance.random() < 0.2:
                    delay = queue.failed(key)
                    wanted[key] = min(wanted.get(key, float("inf")), clock() + delay)
                else:
                    queue.done(key)

        async def trouble() -> None:
            for _ in range(200):
                add(chance.choice("abcdef"), chance.choice([0, 0, 1, 5]))
                await asyncio.sleep(chance.choice([0, 0, 0.05, 1]))
                free = 3 - len(busy)
                late = [key for key, due in wanted.items() if due < clock() - 0.01 and key not in busy]
                assert not (free and late), f"{late} wait while {free} workers are idle"

        workers = [asyncio.create_task(work()) for _ in range(3)]
        await trouble()
        await asyncio.sleep(300)
        assert not wanted
        assert len(queue) == 0
        for worker in workers:
            assert not worker.done()
            worker.cancel()

    run(case())
