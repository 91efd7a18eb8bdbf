"""A worker that hangs is found by how long its steps took before, says where it stands, and is started again."""

from __future__ import annotations

import collections
import math
import os
import re
import signal
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.experiment import wait_for
from tests.support.pods import ORDER, ROWS_PER_STEP, Cluster, Pod, cluster, make_storage, steps_at, training_stage
from transfer_trainer.ledger import verify_ledger
from transfer_trainer.watchdog import WINDOW, Pulse, Watchdog, allowed_seconds, top, waits_for_peer

KEY = "a" * 32
HUNG = """Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f2 (most recent call first):
  File "/site-packages/torch/nn/functional.py", line 1690 in silu
  File "/site-packages/torch/nn/modules/module.py", line 1775 in _call_impl
  File "/site-packages/transformers/models/llama/modeling_llama.py", line 150 in forward
  File "/site-packages/torch/distributed/fsdp/_fully_shard/_fsdp_state.py", line 62 in fsdp_hook_wrapper
  File "/app/trainer/transfer_trainer/loop.py", line 250 in _train_step
  File "/app/trainer/transfer_trainer/loop.py", line 140 in run
"""
WAITING = """Current thread 0x00007f2 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 3180 in all_reduce
  File "/site-packages/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "/app/trainer/transfer_trainer/parallel.py", line 63 in sum
  File "/app/trainer/transfer_trainer/loop.py", line 240 in _train_step
"""
REPLICA = """Current thread 0x00007f2 (most recent call first):
  File "/app/trainer/transfer_trainer/replicas.py", line 93 in finish
  File "/app/trainer/transfer_trainer/loop.py", line 258 in _train_step
  File "/app/trainer/transfer_trainer/loop.py", line 110 in run
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("steps", "allowed"),
    [
        pytest.param([], math.inf, id="the first step takes what it takes"),
        pytest.param([0.1, 0.2], 60.0, id="short steps have the floor"),
        pytest.param([30.0, 2.0], 150.0, id="five times the longest"),
        pytest.param([100.0] + [1.0] * WINDOW, 60.0, id="what is long ago counts no more"),
    ],
)
def test_a_step_may_take_five_times_the_longest_before_it(steps: list[float], allowed: float) -> None:
    assert allowed_seconds(collections.deque(steps, maxlen=WINDOW), 60.0) == allowed


def test_a_step_is_watched_and_what_is_between_steps_is_not(tmp_path: Path) -> None:
    clock = Clock()
    pulse, dog = Pulse(tmp_path / "pulse", floor=3.0, clock=clock), Watchdog(tmp_path / "pulse")

    def passes(seconds: float) -> list[bool]:
        looks = []
        for _ in range(round(seconds * 2)):
            clock.now += 0.5
            looks.append(dog.look(clock.now))
        return looks

    assert not any(passes(50)), "it has not begun"
    with pulse.step():
        assert not any(passes(50)), "the first step"
    pulse = Pulse(tmp_path / "pulse", floor=3.0, clock=clock)
    for _ in range(3):
        with pulse.step():
            assert not any(passes(1))
        assert not any(passes(50)), "between steps"
    with pulse.step():
        looks = passes(7)
    assert looks == [False] * 11 + [True] * 3, "five times one second, counted from the first look at it"
    with pulse.step():
        pulse.rest()
        assert not any(passes(50)), "in a step that rolls back"


@given(
    gaps=st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0, 8.0, 64.0]), max_size=60), allowed=st.floats(1, 60),
)  # fmt: skip
def test_a_launcher_that_was_frozen_itself_blames_nobody(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], allowed: float
) -> None:
    path = tmp_path_factory.mktemp("pulse") / "pulse"
    path.write_bytes(struct.pack("<qd", 1, allowed))
    dog, now = Watchdog(path), 0.0
    dog.look(now)
    seen = 0.0
    for gap in gaps:
        now += gap
        seen += min(gap, 1.0)
        assert dog.look(now) is (seen > allowed)


def test_whoever_is_in_a_collective_waits_for_another() -> None:
    assert not waits_for_peer(HUNG), "FSDP's wrappers are in every stack"
    assert waits_for_peer(WAITING)
    assert waits_for_peer(REPLICA)
    assert waits_for_peer(HUNG + "\nThread 0x00007f3 (most recent call first):\n" + WAITING.split("\n", 1)[1]), (
        "such as a thread of autograd"
    )
    assert not waits_for_peer("")


def test_the_top_is_of_the_thread_that_trains() -> None:
    assert top(HUNG, 2) == "silu (functional.py:1690) < _call_impl (module.py:1775)"
    assert top("") == ""


@pytest.fixture
def short_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_HANG_FLOOR", "4")


def freeze(pod: Pod, which: int = -1) -> int:
    """Stops a worker process as a debugger, or a device that does not answer, would."""
    pid = pod.workers()[which]
    os.kill(pid, signal.SIGSTOP)
    return pid


def proved(group: Cluster, steps: int) -> None:
    verify_ledger(group.artifact / "ledger.jsonl", ORDER, ROWS_PER_STEP, steps)


def test_a_worker_that_hangs_tells_its_stacks_and_is_started_again(
    tmp_path: Path, short_floor: None, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = make_storage(tmp_path)
    steps = 120
    with cluster(tmp_path, training_stage(KEY, dataset, steps=steps, checkpoint_steps=1000), max_nodes=1) as group:
        pod = group.start(0)
        wait_for(lambda: group.ledger.steps >= 30, what="steps were measured")
        first = freeze(pod)
        second = wait_for(lambda: next((pid for pid in pod.workers() if pid != first), None), what="it is started again")
        text = capfd.readouterr().err
        assert f"process {first} was in state T (stopped)" in text
        assert "most recent call first" in text
        assert "transfer_trainer/loop.py" in text
        # No checkpoint was made, so its steps are done again; hung before it is further than the first time, it is not worth a third.
        wait_for(lambda: 3 <= group.ledger.steps < 30, what="the new worker trains")
        os.kill(second, signal.SIGSTOP)
        assert pod.wait() == 1
        assert pod.message is not None
        assert re.search(r"hung for \d+ s in step \d+, which may take \d+ s: .*\(\w+\.py:\d+\)", pod.message.message)
        assert group.start(0).wait() == 0
        proved(group, steps)


def test_a_frozen_worker_of_another_pod_costs_seconds_not_the_collectives_time_out(tmp_path: Path, short_floor: None) -> None:
    dataset = make_storage(tmp_path)
    steps = 300
    with cluster(tmp_path, training_stage(KEY, dataset, steps=steps, checkpoint_steps=10), max_nodes=2) as group:
        first, second = group.start(0), group.start(1)
        wait_for(steps_at(group, 2, after=15), what="both train")
        done = max(line.step for line in group.ledger.lines)
        frozen, begun = freeze(second), time.monotonic()
        wait_for(lambda: max((line.step for line in group.ledger.lines), default=0) > done + 5, what="training goes on")
        assert time.monotonic() - begun < 55, "the collectives have 60 s"
        assert frozen not in first.workers()
        assert (first.wait(), second.wait()) == (0, 0)
        proved(group, steps)
