"""The store at which the workers of an attempt meet: `python -m transfer_trainer.rendezvous`.

It runs in a pod of its own, so no training pod is special. It holds nothing that must survive: when it is lost, training
goes on until the membership changes, and the next attempt gets a new one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from transfer_api.errors import ExitCode, SpecError, TransferError
from transfer_trainer.process import die_with_parent


def main() -> int:
    """Serves on the port of TRANSFER_RENDEZVOUS (host:port) until SIGTERM; exit code 75 then, 10 when the port is in use.

    75 like every pod that is asked to stop: a drain then costs no restart of a budget, and 0 would promise an artifact.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    die_with_parent()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before the store's threads start, so that only sigwait sees them
    try:
        serve(os.environ.get("TRANSFER_RENDEZVOUS", ""))
    except TransferError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    signal.sigwait(stop)
    return int(ExitCode.SAVED)


def serve(endpoint: str) -> object:
    """Starts the store and returns it; it serves from threads of its own while it is referenced.

    Raises:
        SpecError: the endpoint has no port, or the port is in use.
    """
    global _store
    from torch._C._distributed_c10d import TCPStore  # after the signal mask is set: it starts threads

    port = endpoint.rpartition(":")[2]
    if not port.isdigit():
        raise SpecError("is not host:port", field="TRANSFER_RENDEZVOUS", value=endpoint)
    try:
        # The master binds all addresses; the host name is only what its own client connects to.
        _store = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False, multi_tenant=True)
    except RuntimeError as error:
        raise SpecError(
            "port is in use",
            field="TRANSFER_RENDEZVOUS",
            value=endpoint,
            next_step="Choose another, or stop the program that listens there",
        ) from error
    logging.getLogger(__name__).info("rendezvous store on port %s", port)
    return _store


_store: object = None

if __name__ == "__main__":
    sys.exit(main())
