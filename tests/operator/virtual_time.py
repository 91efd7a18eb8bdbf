"""An event loop whose clock jumps to whatever is due next: minutes pass in milliseconds, and in the same order always."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")
TURN_S = 1e-6
"""What a turn of the loop takes: a clock that stood still would let rounding make a wait of nothing last for ever."""
START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes while nothing can be done, and hardly at all otherwise."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.failures: list[dict[str, Any]] = []
        super().__init__(_JumpingSelector(self))
        self._clock_resolution = 1e-6
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.passed


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.passed += TURN_S
        if timeout == 0:
            return []
        if ready := super().select(0):
            return ready
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self._loop.passed += max(0.0, timeout)
        return []


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs to the end; exceptions that nobody waited for fail it too."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(work)
        loop = runner.get_loop()
    assert isinstance(loop, VirtualLoop)
    assert not loop.failures, loop.failures
    return result


def clock() -> float:
    """Seconds that never go back."""
    return asyncio.get_running_loop().time()


def now() -> datetime:
    """The time of day."""
    return START + timedelta(seconds=clock())
