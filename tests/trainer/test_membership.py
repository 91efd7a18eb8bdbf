"""Pods that come to the rendezvous before it is there, and pods that are asked to leave while they wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.experiment import wait_for
from tests.support.pods import cluster, make_storage, steps_at, training_stage
from transfer_api.progress import Activity
from transfer_cli.local import free_port
from transfer_trainer import membership
from transfer_trainer.membership import wait_for_store


def test_a_name_that_does_not_resolve_yet_and_a_port_that_refuses_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "STORE_RETRY_SECONDS", 0.001)
    tried: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(address)
        if len(tried) == 1:
            raise socket.gaierror(-2, "Name or service not known")
        return socket.create_connection(address if len(tried) > 2 else ("127.0.0.1", closed), timeout)

    closed = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_for_store(f"localhost:{port}", connect)
    assert tried == [("localhost", port)] * 3


def test_a_worker_that_comes_before_the_store_trains_once_it_is_there(tmp_path: Path) -> None:
    dataset = make_storage(tmp_path)
    port = free_port()
    # A rendezvous that the cluster does not start: it comes when the worker already waits.
    with cluster(tmp_path, training_stage("a" * 32, dataset, steps=3), max_nodes=2, port=port) as group:
        pod = group.start(0, store=False)
        wait_for(lambda: pod.progress.activity is Activity.LOADING, what="the worker waits for the store")
        store = subprocess.Popen(
            [sys.executable, "-m", "transfer_trainer.rendezvous"], env=os.environ | {"TRANSFER_RENDEZVOUS": f"localhost:{port}"}
        )
        try:
            assert pod.wait() == 0
        finally:
            store.send_signal(signal.SIGTERM)
            assert store.wait(20) == 75, "asked to stop: no crash, and no promise of an artifact"


def test_a_worker_that_waits_for_the_store_leaves_at_once_when_asked(tmp_path: Path) -> None:
    dataset = make_storage(tmp_path)
    with cluster(tmp_path, training_stage("a" * 32, dataset, steps=3), max_nodes=2) as group:
        pod = group.start(0, store=False)
        wait_for(lambda: pod.progress.activity is Activity.LOADING, what="the worker waits for the store")
        pod.ask()
        assert pod.wait(20) == 75


def test_a_worker_whose_store_is_lost_waits_for_it_and_is_not_to_blame(tmp_path: Path) -> None:
    dataset = make_storage(tmp_path)
    with cluster(tmp_path, training_stage("a" * 32, dataset, steps=200, checkpoint_steps=5), max_nodes=2) as group:
        pod = group.start(0)
        wait_for(steps_at(group, 1), what="it trains")
        group.lose_store()
        for pid in pod.workers():  # now it has to come to the store again
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pod.progress.activity is Activity.RENDEZVOUS, what="it comes to the store that is gone")
        done = group.ledger.steps
        group.start_store()
        assert pod.wait() == 0
        assert group.ledger.steps == 200 > done
