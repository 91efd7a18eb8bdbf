"""Which pods train together: rounds of torch's dynamic rendezvous, with the settings that recover in seconds.

The store is in a pod of its own (`is_host=false`), so the loss of any worker is the same. A node that is killed is missed after
KEEP_ALIVE; one that leaves on purpose says so and costs the others no wait.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from transfer_pod.context import PodContext
from transfer_trainer.versions import check_versions, versions

logger = logging.getLogger(__name__)

LAST_CALL_SECONDS = 2
"""Wait for more nodes once `min` have come: long enough for pods that were created together to start together."""
KEEP_ALIVE_SECONDS, KEEP_ALIVE_ATTEMPTS = 1, 3
STORE_SECONDS, STORE_RETRY_SECONDS = 5.0, 0.5
JOIN_SECONDS = 7 * 86400
"""Waiting for enough nodes ends by the operator's deadline (belowMinSeconds), never here."""


class RendezvousOverError(Exception):
    """The rendezvous was closed: a pod of the attempt saw that the stage is done, or that others have taken it over."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round as a node sees it: number `node` of `nodes`; the processes meet at `address`:`port`."""

    node: int = 0
    nodes: int = 1
    round: int = 0
    incarnation: str = ""
    address: str = "127.0.0.1"
    port: int = 0


class Membership(Protocol):
    """How a pod meets the others."""

    def join(self) -> Round:
        """Waits for the next round and joins it."""

    def others_wait(self) -> bool:
        """Whether a node waits that the current round has room for."""

    def leave(self) -> None:
        """Takes this node out, so that the others need not wait for it."""

    def close(self) -> None:
        """Ends the rendezvous for everybody: the stage is done, or the attempt is over."""


def membership(context: PodContext) -> Membership:
    """The membership of a pod: alone where there is no rendezvous."""
    return Rendezvous(context) if context.rendezvous else Alone()


class Alone:
    """A single pod."""

    def __init__(self) -> None:
        self._round = -1

    def join(self) -> Round:
        """The next round, at once. Its processes, where there are several, meet at a port of this machine."""
        self._round += 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Round(round=self._round, port=probe.getsockname()[1])

    def others_wait(self) -> bool:
        """Nobody ever waits."""
        return False

    def leave(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def wait_for_store(endpoint: str, connect: Callable[..., socket.socket] = socket.create_connection) -> None:
    """Returns once the store answers. Its name may not resolve yet, and its pod may start later than those that meet there.

    Waiting ends by the operator's deadlines or by a signal, which torch's own client, waiting in C++, would see a minute later.
    """
    host, _, port = endpoint.rpartition(":")
    failure = ""
    while True:
        try:
            connect((host.strip("[]"), int(port)), timeout=STORE_SECONDS).close()
        except OSError as error:  # also a name that does not resolve
            if str(error) != failure:
                failure = str(error)
                logger.info("the rendezvous store %s is not there yet: %s", endpoint, failure)
            time.sleep(STORE_RETRY_SECONDS)
        else:
            return


class Rendezvous:
    """A node of torch's dynamic rendezvous over the attempt's store."""

    def __init__(self, context: PodContext) -> None:
        # With a shared store torch hands out the address of a node that is gone, and the next round hangs (research: torch 2.13).
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        self._context = context
        self._nodes = 0
        self._connect()

    def _connect(self) -> None:
        """Comes to the store, however long that takes: a store that is lost costs the attempt, which is not this pod's fault.

        Raises:
            VersionMismatch: the pods that are there run something else.
        """
        from torch.distributed import DistError
        from torch.distributed.elastic.rendezvous import RendezvousConnectionError

        while True:
            wait_for_store(self._context.rendezvous)
            try:
                return self._meet()
            except (RendezvousConnectionError, DistError) as error:
                logger.warning("the rendezvous store was lost again: %s", error)
                time.sleep(STORE_RETRY_SECONDS)

    def _meet(self) -> None:
        from torch.distributed.elastic.rendezvous import RendezvousParameters, dynamic_rendezvous
        from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
        from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

        # For the name of an event that nobody records, torch reads the whole stack with its sources: 20 ms of every change to the state
        # that all nodes write, and of every change that comes too late and is tried again.
        dynamic_rendezvous.get_method_name = lambda depth=2: "rendezvous"
        context = self._context
        parameters = RendezvousParameters(
            backend="c10d", endpoint=context.rendezvous, run_id=context.attempt or context.stage.key, min_nodes=context.min_nodes,
            max_nodes=context.max_nodes, local_addr=context.address, is_host="false", last_call_timeout=LAST_CALL_SECONDS,
            join_timeout=JOIN_SECONDS, keep_alive_interval=KEEP_ALIVE_SECONDS, keep_alive_max_attempt=KEEP_ALIVE_ATTEMPTS,
        )  # fmt: skip
        backend, store = create_backend(parameters)
        kind = context.stage.kind
        # Before it joins: the others do not notice one that is refused.
        check_versions(json.loads(store.compare_set("transfer/versions", "", json.dumps(versions(kind))).decode()), versions(kind))
        self._handler = create_handler(store, backend, parameters)
        self._incarnation = store.compare_set("transfer/incarnation", "", secrets.token_hex(8)).decode()

    def join(self) -> Round:
        """Waits until at least `min` nodes are there, and before that for the store, should it be lost.

        Raises:
            RendezvousOverError: it was closed.
            VersionMismatch: another store is there, and pods that run something else.
            RendezvousError: the rendezvous is in a state that torch cannot go on from.
        """
        from torch.distributed import DistError
        from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError

        while True:
            try:
                info = self._handler.next_rendezvous()
                break
            except RendezvousClosedError as error:
                raise RendezvousOverError(str(error)) from error
            except (RendezvousConnectionError, DistError) as error:  # the latter also where node 0 is gone before it told its address
                logger.warning("meeting again, once the rendezvous store answers: %s", error)
                self._handler._stop_heartbeats()
                self._connect()
        meeting = info.bootstrap_store_info
        assert meeting is not None
        self._nodes = info.world_size
        number = int(self._handler._state_holder.state.round)
        return Round(
            node=info.rank, nodes=info.world_size, round=number, incarnation=self._incarnation,
            address=meeting.master_addr, port=meeting.master_port,
        )  # fmt: skip

    def others_wait(self) -> bool:
        """Asks the store; a store that does not answer has nobody waiting, and training goes on without it."""
        from torch.distributed.elastic.rendezvous import RendezvousError

        try:
            return self._nodes < self._context.max_nodes and self._handler.num_nodes_waiting() > 0
        except RendezvousError as error:
            logger.warning("the rendezvous store does not answer: %s", error)
            return False

    def leave(self) -> None:
        """Deregisters the node. Where that fails, its silence tells the others after KEEP_ALIVE."""
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousExitOp

        self._handler._stop_heartbeats()
        try:
            self._handler._op_executor.run(_RendezvousExitOp(), time.monotonic() + 5)
        except RendezvousError as error:
            logger.warning("could not leave the rendezvous: %s", error)

    def close(self) -> None:
        """Closes it, so that a pod that comes late ends instead of waiting."""
        self._handler.shutdown()
