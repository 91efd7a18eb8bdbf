"""Who holds the others up is found by what it computes itself, not by the time of a step, which is the same for all."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.experiment import wait_for
from tests.support.meanwhile import meanwhile
from tests.support.pods import cluster, make_storage, steps_at, training_stage
from transfer_trainer.straggler import Computed, ComputeTimer, Stragglers, ratios


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param([2.0], [1.0], id="alone"),
        pytest.param([1.0, 3.0], [1.0, 3.0], id="of two, the faster is the measure"),
        pytest.param([1.0, 1.0, 4.0, 1.0], [1.0, 1.0, 4.0, 1.0], id="one of four"),
        pytest.param([2.0, 4.0, 2.0], [1.0, 2.0, 1.0], id="one of three"),
        pytest.param([0.0, 0.0], [1.0, 1.0], id="nothing was computed"),
    ],
)
def test_a_ratio_is_over_the_median(times: list[float], expected: list[float]) -> None:
    assert ratios(times) == expected


def test_it_is_told_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    everyone, itself, other = (Stragglers(range(own, own + 2), tells_all=own == 0) for own in (0, 2, 4))
    for watch in (everyone, itself, other):
        for slow in (1.0, 2.0, 2.1, 1.4, 1.0):
            ratio = watch.judge([1.0, 1.0, 1.0, slow, 1.0, 1.0])
            assert ratio == (slow if watch is itself else 1.0)
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "process 3 computes 2.00 times as long as the median of all 6, over 20 steps",
        "process 3 is no straggler any more: it computes 1.40 times as long as the median of all 6, over 20 steps",
    ]


def test_seconds_are_for_a_row_so_that_a_larger_share_is_no_fault() -> None:
    computed = Computed()
    computed.add(3.0, 2)
    computed.add(1.0, 2)
    assert computed.take() == 1.0
    assert computed.take() == 0.0


def test_only_the_layers_are_timed() -> None:
    class Sleep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return x

    layers = nn.ModuleList([Sleep(), Sleep()])
    timer = ComputeTimer(layers, torch.device("cpu"))
    for layer in layers:
        layer(torch.zeros(1))
        time.sleep(0.2)
    assert 0.1 <= timer.take() < 0.25
    assert timer.take() == 0.0


def slowed(pids: list[int]) -> contextlib.AbstractContextManager[None]:
    """Lets processes run a fifth of the time. By stopping them: on a busy core, what sleeps often gets its turn before others do."""

    def send(number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    def stop_and_go(over: threading.Event) -> None:
        send(signal.SIGSTOP)
        over.wait(0.04)
        send(signal.SIGCONT)

    return meanwhile(stop_and_go, 0.01)


def test_a_worker_that_is_held_up_is_named_in_the_log_and_in_its_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = make_storage(tmp_path)
    with cluster(tmp_path, training_stage("a" * 32, dataset, steps=2000, checkpoint_steps=1000), max_nodes=2) as group:
        first, second = group.start(0), group.start(1)
        wait_for(steps_at(group, 2), what="both train")
        with slowed(second.workers()):
            wait_for(lambda: (second.progress.straggler_ratio or 0) > 1.5, what="it is found")
            assert (first.progress.straggler_ratio or 0) <= 1.5
        with urllib.request.urlopen(f"http://127.0.0.1:{second.context.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert "transfer_stage_straggler_ratio{" in text
        assert "transfer_stage_compute_seconds{" in text
    assert "times as long as the median of all 2, over 20 steps" in capfd.readouterr().err
