"""Who leads: one Lease, two replicas.

A standby does not trust clocks: it takes the Lease when its content has not changed for `lease_seconds` of its own time. The leader
stops to believe in itself before that, `holds()` being asked in front of every write, so that a leader which was frozen and wakes up
writes nothing. (`kubernetes.aio.leaderelection` compares wall clocks, knows no such question and does not hand over.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from transfer_operator.cluster import LEASES, Body, Cluster, ClusterError
from transfer_operator.settings import TRUST

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Lease:
    """This replica's view of the Lease.

    Args:
        cluster: the API server.
        namespace, name: of the Lease.
        identity: unique to this replica.
        seconds: how long a silent leader is waited for.
        renew: seconds between two looks or renewals.
        clock: seconds that never go back.
    """

    def __init__(
        self, cluster: Cluster, *, namespace: str, name: str, identity: str, seconds: float, renew: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._cluster, self._namespace, self._name, self._identity = cluster, namespace, name, identity
        self._seconds, self._renew, self._clock = seconds, renew, clock
        self._patience = (TRUST * seconds - renew) / 2
        """Longest time for one request: after one that hung there is still time for another before the leader gives up."""
        self._seen: tuple[str, float] | None = None
        """resourceVersion of the Lease and when it was first seen."""
        self._renewed: float | None = None
        """When the last renewal that succeeded was begun."""
        self._body: Body | None = None
        self.looked = asyncio.Event()
        """The API server has answered: what the Lease says is known."""
        self._given_back = False
        self._turn = asyncio.Lock()

    def holds(self) -> bool:
        """Whether this replica leads and no other can have taken over yet."""
        return self._renewed is not None and self._clock() - self._renewed < TRUST * self._seconds

    async def acquire(self) -> None:
        """Returns once this replica leads."""
        while not await self._try():
            await asyncio.sleep(self._renew)
        logger.info("leading as %s", self._identity)

    async def keep(self) -> None:
        """Renews until the Lease is lost; then returns."""
        pause = self._renew
        while True:
            await asyncio.sleep(pause)
            begun = self._clock()
            if not await self._try() and not self.holds():
                logger.error("the Lease is lost: another replica may lead")
                return
            pause = max(0.0, self._renew - (self._clock() - begun))

    async def release(self) -> None:
        """Gives the Lease back, so that a standby need not wait; as good as it goes."""
        self._given_back = True  # before a renewal that is due could take it again
        async with self._turn:
            await self._release()

    async def _release(self) -> None:
        if not self.holds() or self._body is None:
            return
        self._renewed = None
        spec = self._body["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            await self._ask(self._cluster.replace(LEASES, self._namespace, self._name, self._body | {"spec": spec}))
        except ClusterError as error:
            logger.warning("the Lease was not given back: %s", error)

    async def _try(self) -> bool:
        """One look: takes or renews the Lease where that is right. False where it is not, or the API server does not answer."""
        async with self._turn:
            return not self._given_back and await self._look()

    async def _look(self) -> bool:
        begun = self._clock()
        try:
            if self._body is not None and self.holds():
                self._body = await self._write(self._body)  # one request; a conflict says that somebody else wrote
            else:
                body = await self._ask(self._cluster.get(LEASES, self._namespace, self._name))
                self.looked.set()
                if body is not None and not self._free(body):
                    return False
                self._body = await self._write(body)
        except ClusterError as error:
            logger.log(logging.INFO if error.status == 409 else logging.WARNING, "Lease: %s", error)
            self._body = None
            return False
        self._renewed = begun
        return True

    def _free(self, body: Body) -> bool:
        """Whether it is ours, nobody's, or of somebody who has been silent for too long."""
        holder = (body.get("spec") or {}).get("holderIdentity") or ""
        version = body["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        if holder == self._identity:
            return True
        self._renewed = None
        return not holder or self._clock() - self._seen[1] > self._seconds

    async def _write(self, old: Body | None) -> Body:
        spec = dict((old or {}).get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec |= {"acquireTime": _now(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (old is not None)}
        # Whole seconds, at least one, is what the API takes; standbys go by their own setting.
        spec |= {"holderIdentity": self._identity, "renewTime": _now(), "leaseDurationSeconds": max(1, round(self._seconds))}
        if old is None:
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}, "spec": spec}
            return await self._ask(self._cluster.insert(LEASES, self._namespace, body))
        return await self._ask(self._cluster.replace(LEASES, self._namespace, self._name, old | {"spec": spec}))

    async def _ask(self, request: Awaitable[Answer]) -> Answer:
        """Waits for an answer, but not as long as others may: a request that hangs must not outlast the Lease."""
        try:
            async with asyncio.timeout(self._patience):
                return await request
        except TimeoutError as error:
            raise ClusterError(0, f"no answer in {self._patience:g} s") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
