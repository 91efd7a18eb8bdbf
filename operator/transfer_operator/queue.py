"""Which experiments are to be looked at, and when: keys, not events.

A key that is added ten times before anybody looks is looked at once. A key that is being looked at is not given to a second
worker; what is added meanwhile is looked at afterwards. A key that fails comes back later and later, with jitter.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 30.0
SLACK = 64
"""Entries of the heap that may be out of date before it is made anew."""


class WorkQueue(Generic[Key]):
    """Keys with the time from which each is due. For one event loop; its clock counts."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due, or will be."""
        return len(self._due)

    def depth(self) -> int:
        """Keys that are due now."""
        now = asyncio.get_running_loop().time()
        return sum(1 for due in self._due.values() if due <= now)

    def add(self, key: Key, after: float = 0.0) -> None:
        """Has the key looked at after so many seconds; of two times the earlier counts."""
        due = asyncio.get_running_loop().time() + after
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._push(key)

    async def get(self) -> Key:
        """Waits for a key that is due and that nobody looks at."""
        while True:
            self._changed.clear()
            wait = self._drop_stale()
            if wait is None or wait > 0:
                await self._sleep(wait)
                continue
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self._busy.add(key)
            return key

    def done(self, key: Key) -> None:
        """The look succeeded."""
        self._failures.pop(key, None)
        self._free(key)

    def failed(self, key: Key, after: float | None = None, first: float = FIRST_DELAY_S) -> float:
        """The look failed: it is repeated, with a delay that doubles each time from `first` on (or `after`); returns that delay."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        delay = after if after is not None else min(LONGEST_DELAY_S, first * 2 ** min(count - 1, 10)) * jitter
        self._free(key)
        self.add(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The object is gone: nothing of it is due."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    def _free(self, key: Key) -> None:
        self._busy.discard(key)
        if key in self._due:  # added meanwhile; its entry was passed over
            self._push(key)

    def _push(self, key: Key) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self._due[key], self._count, key))
        if len(self._heap) > SLACK + 2 * len(self._due):  # entries of later times that an earlier one has overtaken
            self._heap = [(due, number, key) for number, (key, due) in enumerate(self._due.items())]
            heapq.heapify(self._heap)
            self._count = len(self._heap)
        self._changed.set()

    def _drop_stale(self) -> float | None:
        """Seconds until the first entry that counts is due; None when there is none."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due and key not in self._busy:
                return due - asyncio.get_running_loop().time()
            heapq.heappop(self._heap)
        return None

    async def _sleep(self, seconds: float | None) -> None:
        # Not wait_for: it begins to wait a moment later, and what is added in between could be overlooked.
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
