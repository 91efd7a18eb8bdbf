"""Asks the pods that run how far they are.

Pulled by pod IP, so that pods need no credentials and know nothing of the operator. What they say is untrusted: bounded in size and
time, and parsed as data.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp
from pydantic import ValidationError

from transfer_api.problems import faults
from transfer_api.progress import Progress
from transfer_operator.decide import Role
from transfer_operator.queue import WorkQueue
from transfer_operator.view import Key, View, owner_of

logger = logging.getLogger(__name__)

ROLE_LABEL = "transfer-operator.dev/role"
TIMEOUT_S = 2.0
LONGEST_ANSWER = 1 << 16
AT_ONCE = 64


class ProgressBoard(dict[str, Progress]):
    """The last answer of each pod, by UID."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self._refused: set[str] = set()
        """UIDs of pods of which it was told that their answers cannot be taken."""

    async def keep(self, view: View, queue: WorkQueue[Key], every: float, leads: Callable[[], bool]) -> None:
        """Asks all that run, for ever; experiments whose pods told something new are looked at."""
        slots = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False) as session:
            while True:
                await asyncio.sleep(every)
                if not leads():
                    continue
                pods = [pod for pod in view.pods.values() if _answers(pod)]
                changed = await asyncio.gather(*(self._ask(session, slots, pod) for pod in pods))
                for key in {owner for pod, new in zip(pods, changed, strict=True) if new and (owner := owner_of(pod))}:
                    queue.add(key)
                there = {pod["metadata"]["uid"] for pod in view.pods.values()}
                for uid in set(self) - there:
                    del self[uid]
                self._refused &= there

    async def _ask(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, pod: dict[str, Any]) -> bool:
        """True when the pod told something new; a pod that does not answer, or says what cannot be taken, keeps its last word."""
        address, uid = pod["status"]["podIP"], pod["metadata"]["uid"]
        host = f"[{address}]" if ":" in address else address
        try:
            async with slots, session.get(f"http://{host}:{self._port}/progress", allow_redirects=False) as answer:
                if answer.status != 200:
                    return False
                told = Progress.model_validate_json(await _bounded(answer))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.debug("%s: no progress: %s", pod["metadata"]["name"], error)
            return False
        except ValueError as error:
            if uid not in self._refused:
                self._refused.add(uid)
                why = faults(error) if isinstance(error, ValidationError) else str(error)
                logger.warning("%s/%s: its progress is not taken: %s", pod["metadata"]["namespace"], pod["metadata"]["name"], why)
            return False
        new = self.get(uid) != told
        self[uid] = told
        return new


def _answers(pod: dict[str, Any]) -> bool:
    """Whether a pod runs, has an address and something to tell."""
    labels = pod["metadata"].get("labels") or {}
    going = "deletionTimestamp" in pod["metadata"]
    status = pod.get("status") or {}
    return not going and status.get("phase") == "Running" and bool(status.get("podIP")) and labels.get(ROLE_LABEL) == Role.WORKER


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    data = b""
    async for chunk in answer.content.iter_chunked(1 << 14):
        data += chunk
        if len(data) > LONGEST_ANSWER:
            raise ValueError(f"more than {LONGEST_ANSWER} bytes")
    return data
