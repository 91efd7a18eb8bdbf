"""Who runs out of memory says how much is needed and what to set, whether torch found none or the kernel killed it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.support.pods import make_storage, training_stage
from transfer_pod.context import PodContext
from transfer_pod.memory import OutOfMemory
from transfer_trainer.launcher import Launcher, WorkerCrashError
from transfer_trainer.oom import memory_advice
from transfer_trainer.worker import out_of_memory


@pytest.fixture
def context(tmp_path: Path) -> PodContext:
    return PodContext(stage=training_stage("a" * 32, make_storage(tmp_path), steps=3), storage=tmp_path, pod="pod")


def test_the_model_is_counted_and_the_pass_is_that_of_the_file(context: PodContext) -> None:
    # 28,832 parameters of 16 bytes, and 6,912 bytes for a token (2 layers, 32 wide, float32; 320 logits): 221 KB for a row.
    told = memory_advice(context, processes=1, available=2**40, gpu=False)
    assert "for 64 tokens at once" in told
    assert "pretraining.microBatchTokens: 32" in told
    tight = memory_advice(context, processes=1, available=500_000, gpu=False)
    # There the layers are computed again: 4,992 bytes for a token, 160 KB for a row.
    assert "at least 2 workers instead of 1" in tight


def test_a_model_that_cannot_be_read_costs_only_the_numbers(context: PodContext) -> None:
    (context.storage / "model" / "config.json").unlink()
    assert "microBatchTokens: 32" in memory_advice(context, processes=1, available=2**40, gpu=True)


def test_what_torch_says_without_memory_is_known_and_nothing_else_is(context: PodContext) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    told = out_of_memory(raised.value, context, {"WORLD_SIZE": "2"})
    assert told is not None
    assert told.startswith("out of memory: ")
    assert "microBatchTokens" in told
    assert out_of_memory(RuntimeError("a peer is gone"), context) is None
    assert out_of_memory(MemoryError(), context) is None


def test_a_kill_that_the_kernel_counted_ends_with_advice_and_another_without(context: PodContext, tmp_path: Path) -> None:
    count = tmp_path / "kernel" / "proc" / "vmstat"
    count.parent.mkdir(parents=True)
    for rises in (True, False):
        count.write_text("oom_kill 3\n")
        (tmp_path / str(rises)).mkdir()
        launcher = Launcher(context, tmp_path / str(rises), OutOfMemory(tmp_path / "kernel"))
        count.write_text(f"oom_kill {3 + rises}\n")
        launcher._judge(-signal.SIGKILL)
        with pytest.raises(WorkerCrashError) as raised:
            launcher._judge(-signal.SIGKILL)
        assert ("for want of memory: " in str(raised.value)) is rises
        assert ("microBatchTokens" in str(raised.value)) is rises
        assert "SIGKILL" in str(raised.value)
