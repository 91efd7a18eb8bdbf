"""Real processes on loopback: whatever happens to the pods, the ledger is exact and the losses are those of a steady run."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.experiment import wait_for
from tests.support.pods import (
    LENGTH,
    ORDER,
    ROWS_PER_STEP,
    STEADY,
    Cluster,
    cluster,
    losses,
    make_storage,
    resize,
    steady_losses,
    steps_at,
    training_stage,
)
from transfer_api.progress import Outcome
from transfer_api.spec import ActivationCheckpointing, Ema, Schedule, Sharding
from transfer_trainer.ledger import Summary, verify_ledger

STEPS = 60
KEY = "a" * 32


@pytest.fixture
def storage(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, make_storage(tmp_path)


def assert_as_steady(group: Cluster, storage: Path) -> Summary:
    summary = verify_ledger(group.artifact / "ledger.jsonl", ORDER, ROWS_PER_STEP, STEPS)
    for step, (here, steady) in enumerate(zip(losses(summary), steady_losses(storage, group.stage), strict=True), 1):
        assert math.isclose(here, steady, rel_tol=1e-5), f"step {step}: {here} instead of {steady}"
    return summary


def assert_same_models(here: Path, steady: Path, *, snapshots: int) -> None:
    """Averages over changing workers, the last and those on the way: each tensor to 1e-6 of its norm; 8e-8 was measured."""
    models = sorted(steady.parent.glob(f"{steady.name}*/model/model.safetensors"))
    assert len(models) == 1 + snapshots
    for model in models:
        there = model.parents[1].name.replace(steady.name, here.name)
        found, expected = load_file(here.with_name(there) / "model" / model.name), load_file(model)
        for name, weight in expected.items():
            assert (found[name] - weight).norm() <= 1e-6 * weight.norm(), f"{model}: {name}"


@pytest.mark.parametrize(
    ("lora", "sharding"), [(False, Sharding.FULL), (True, Sharding.FULL), (False, Sharding.NONE)], ids=["full", "lora", "replicas"]
)
def test_two_three_one_two_workers_give_the_losses_of_one_steady_worker(storage: tuple[Path, str], lora: bool, sharding: Sharding) -> None:
    folder, dataset = storage
    # The first half trains embeddings alone, so that the sizes change in both halves and between them.
    stage = training_stage(
        KEY, dataset, steps=STEPS, lora=lora, embeddings_first="0.5", schedule=Schedule.WSD, z_loss="1e-3", ema=Ema(decay="0.9"),
        snapshot_tokens=[20 * ROWS_PER_STEP * LENGTH, 45 * ROWS_PER_STEP * LENGTH],
        activation_checkpointing=ActivationCheckpointing.ALWAYS if lora else ActivationCheckpointing.NEVER, sharding=sharding,
    )  # fmt: skip
    with cluster(folder, stage, max_nodes=3) as group:
        *_, fourth = resize(group)
        summary = assert_as_steady(group, folder)
        assert summary.lost_steps <= 2 * group.stage.execution.checkpoint_steps
        assert fourth.message is not None
        assert (fourth.message.outcome, fourth.message.step) == (Outcome.COMPLETE, STEPS)
        assert not group.work.exists()
        assert_same_models(group.artifact, group.artifact.with_name(STEADY), snapshots=2)


def test_a_pod_asked_to_leave_saves_and_the_other_goes_on_from_that_very_step(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, training_stage(KEY, dataset, steps=STEPS, checkpoint_steps=1000), max_nodes=2) as group:
        first, second = group.start(0), group.start(1)
        wait_for(steps_at(group, 2), what="two workers train")
        first.ask()
        assert first.wait() == 75
        assert first.message is not None
        assert first.message.outcome is Outcome.SAVED
        left_at = first.message.step
        wait_for(steps_at(group, 1, after=left_at), what="the other goes on alone")
        second.ask()
        assert second.wait() == 75
        again = group.start(1)
        group.start(0)
        assert again.wait() == 0
        assert assert_as_steady(group, folder).lost_steps == 0
    with cluster(folder, group.stage, max_nodes=1) as later:
        pod = later.start(0)
        assert pod.wait() == 0
        assert pod.message is not None
        assert pod.message.reused


def test_killing_everything_costs_only_the_steps_after_the_last_checkpoint(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, training_stage(KEY, dataset, steps=STEPS, checkpoint_steps=10), max_nodes=1) as group:
        pod = group.start(0)
        checkpoints = group.work / "checkpoints"
        wait_for(lambda: list(checkpoints.glob("step-*")) and group.ledger.steps % 10, what="a checkpoint is complete and passed")
        pod.kill()
        done = group.ledger.steps
        saved = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
        assert group.start(0).wait() == 0
        summary = assert_as_steady(group, folder)
        assert summary.lost_steps == done - saved <= 20
        assert pod.process.returncode == -signal.SIGKILL


def test_the_processes_of_one_pod_train_together_and_one_that_is_killed_costs_a_round(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, training_stage(KEY, dataset, steps=STEPS), max_nodes=1) as group:
        pod = group.start(0, processes=2)
        wait_for(steps_at(group, 2, after=5), what="both processes train")
        os.kill(pod.workers()[-1], signal.SIGKILL)
        assert pod.wait() == 0
        summary = assert_as_steady(group, folder)
        assert {line.world_size for line in summary.lines} == {2}
        assert summary.lines[-1].round == 1


def test_a_crashing_worker_is_started_again_and_twice_without_a_step_ends_the_pod(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, training_stage(KEY, dataset, steps=2000, checkpoint_steps=5), max_nodes=1) as group:
        pod = group.start(0)
        wait_for(lambda: group.ledger.steps >= 5, what="a checkpoint is there")
        before = pod.workers()
        os.kill(before[0], signal.SIGKILL)
        after = wait_for(lambda: [pid for pid in pod.workers() if pid not in before], what="the worker is started again")
        os.kill(after[0], signal.SIGKILL)
        assert pod.wait() == 1
        assert pod.message is not None
        assert "SIGKILL" in pod.message.message


def test_what_cannot_work_ends_the_pod_with_its_code_and_the_workers_message(storage: tuple[Path, str]) -> None:
    folder, dataset = storage
    with cluster(folder, training_stage(KEY, dataset, steps=5, max_epochs=1, tokens=None, learning_rate="1e30"), max_nodes=1) as group:
        pod = group.start(0)
        assert pod.wait() == 10
        assert pod.message is not None
        assert pod.message.reason == "SpecError"
        assert "spec.pretraining.learningRate" in pod.message.message
