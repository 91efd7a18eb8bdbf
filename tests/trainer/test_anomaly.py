"""Steps that are not finite or spike: judged by one rule, left out as the file says, the same however the run was interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.experiment import wait_for
from tests.support.pods import LENGTH, ORDER, ROWS_PER_STEP, SOURCES, cluster, losses, make_dataset, resize, training_stage
from tests.support.tiny import SENTENCES, save_tiny_model
from transfer_api.errors import ArtifactError, SpecError
from transfer_api.progress import Progress
from transfer_api.spec import Anomalies, AnomalyAction, NamedText, Schedule, Sharding
from transfer_api.stage import StagePlan
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer.anomaly import AnomalyWatch
from transfer_trainer.ledger import LEDGER, Summary, verify_ledger
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team

NAN, INF = math.nan, math.inf
SKIP = Anomalies(action=AnomalyAction.SKIP, spike_factor="1.2", window=4)
ROLL_BACK = SKIP.model_copy(update={"action": AnomalyAction.ROLL_BACK})
POISON = 7
"""A token whose embedding is no number: rows that have it have no loss."""


@pytest.mark.parametrize(
    ("before", "loss", "norm", "anomalous"),
    [
        pytest.param([2.0] * 4, 2.4, 1.0, False, id="a loss of just the multiple is none"),
        pytest.param([2.0] * 4, 2.41, 1.0, True, id="a loss above it is a spike"),
        pytest.param([2.0] * 3, 100.0, 1.0, False, id="too few steps before it to tell"),
        pytest.param([9.0, 2.0, 2.0, 2.0, 2.0], 2.41, 1.0, True, id="what left the window has no say"),
        pytest.param([2.0, 2.0, 2.0, 90.0], 2.41, 1.0, True, id="one high loss does not move the median"),
        pytest.param([], NAN, 1.0, True, id="a loss that is no number, at the first step"),
        pytest.param([2.0] * 4, -INF, 1.0, True, id="an infinite loss"),
        pytest.param([2.0] * 4, 2.0, INF, True, id="an infinite gradient"),
        pytest.param([2.0] * 4, 0.1, 1e9, False, id="a large gradient is clipped, not skipped"),
    ],
)
def test_a_step_is_judged_by_its_loss_against_the_median_before_it(before: list[float], loss: float, norm: float, anomalous: bool) -> None:
    assert (AnomalyWatch(SKIP, before).judge(9, loss, norm) is not None) is anomalous


def test_without_a_policy_only_what_is_not_finite_stops() -> None:
    watch = AnomalyWatch(None, [2.0] * 64)
    assert watch.judge(65, 1e9, 1.0) is None
    anomaly = watch.judge(65, NAN, 1.0)
    assert anomaly is not None
    with pytest.raises(SpecError, match=r"spec\.pretraining\.learningRate: .* at step 65"):
        watch.pass_by(anomaly, "spec.pretraining", "2e-5")


def test_a_spike_that_is_to_stop_says_which_field_decides() -> None:
    watch = AnomalyWatch(SKIP.model_copy(update={"action": AnomalyAction.STOP}), [2.0] * 4)
    anomaly = watch.judge(5, 3.0, 1.0)
    assert anomaly is not None
    with pytest.raises(SpecError, match=r"spec\.pretraining\.anomalies\.spikeFactor: step 5 has loss 3.*median 2"):
        watch.pass_by(anomaly, "spec.pretraining", "2e-5")


@given(
    curve=st.lists(st.sampled_from([1.0, 1.1, 1.3, 2.0, 5.0, NAN, INF]), max_size=60), cuts=st.sets(st.integers(0, 60)),
    back=st.integers(0, 9),
)  # fmt: skip
def test_a_run_that_is_resumed_anywhere_decides_as_one_that_was_not(curve: list[float], cuts: set[int], back: int) -> None:
    policy = SKIP.model_copy(update={"limit": 1000})

    def run(cuts: set[int]) -> tuple[list[int], set[int]]:
        accepted: list[tuple[int, float]] = []
        decided: set[int] = set()
        watch, step = AnomalyWatch(policy), 0
        while step < len(curve):
            if step in cuts:  # lost with all of its memory; goes on from a checkpoint some steps before, by what the ledger says
                cuts = cuts - {step}
                step = max(0, step - back)
                accepted = [line for line in accepted if line[0] <= step]
                watch = AnomalyWatch(policy, [loss for _, loss in accepted], decided)
            step, loss = step + 1, curve[step]
            if step in watch.decided:
                continue
            if (anomaly := watch.judge(step, loss, 1.0)) is not None:
                watch.pass_by(anomaly, "", "")
                decided.add(step)
                continue
            watch.accept(loss)
            accepted.append((step, loss))
        return [step for step, _ in accepted], decided

    assert run(cuts) == run(set())


# Real training from here on. Some rows of the data have a token that the model has no number for, and others are hard.


def make(folder: Path, steps: int, spikes: Collection[int], poisoned: Collection[int] = ()) -> str:
    """A storage whose rows are easy to learn, except those that the named steps (from 1) read: random, or with the poison.

    Returns the key of its dataset. No two of so many steps may read one row.
    """
    tokens = {number: np.tile(20 + np.arange(LENGTH) % 5, (rows, 1)) for number, (_, rows) in enumerate(SOURCES.values())}
    random = np.random.default_rng(1)
    for step in range(1, steps + 1):
        ids = ORDER.step(step - 1, ROWS_PER_STEP)
        for source, row in zip(ids.sources, ids.rows, strict=True):
            if step in spikes:
                tokens[int(source)][row] = random.integers(30, 300, LENGTH)
            if step in poisoned:
                tokens[int(source)][row, 3] = POISON
    save_tiny_model(folder / "model", tied=False)
    weights = load_file(folder / "model" / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = NAN
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return make_dataset(folder, labels=1.0, tokens_of=tokens)


def train(
    folder: Path, stage: StagePlan, asked: Callable[[], bool] = lambda: False, look: Callable[[Training], None] = lambda training: None
) -> tuple[Training, list[Progress]]:
    reports: list[Progress] = []
    training = Training(PodContext(stage=stage, storage=folder, pod="pod"), Team(), asked, reports.append)
    look(training)
    training.run()
    return training, reports


def ledger(folder: Path, stage: StagePlan, policy: Anomalies | None, steps: int) -> Summary:
    return verify_ledger(ArtifactStore(folder).path(stage.kind, stage.key) / LEDGER, ORDER, ROWS_PER_STEP, steps, policy)


STEPS = 8
"""56 rows: nearly all that there are, each once."""


def stage(key: str, dataset: str, policy: Anomalies | None, **changes: Any) -> StagePlan:
    how = {"learning_rate": "2e-2", "embedding_learning_rate": "2e-2", "schedule": Schedule.CONSTANT, "warmup": "0", "weight_decay": "0"}
    return training_stage(key * 32, dataset, steps=STEPS, anomalies=policy, **(how | changes))


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(tmp_path: Path) -> None:
    dataset = make(tmp_path, STEPS, spikes={6}, poisoned={3})
    states: dict[int, list[torch.Tensor]] = {}

    def keep(training: Training) -> None:
        def look() -> bool:
            weights = [value.clone() for value in training.model.state_dict().values()]
            moments = [value.clone() for state in training.optimizer.state.values() for value in state.values()]
            states[training.step] = weights + moments
            return False

        training.asked = look

    wanted = stage("a", dataset, SKIP)
    _, reports = train(tmp_path, wanted, look=keep)
    summary = ledger(tmp_path, wanted, SKIP, STEPS)
    assert [(line.step, line.finite) for line in summary.anomalies] == [(3, False), (6, True)]
    assert [line.step for line in summary.skipped] == [3, 6]
    assert [line.step for line in summary.lines] == [1, 2, 4, 5, 7, 8]
    assert reports[-1].skipped_steps == 2
    for step in range(1, STEPS):
        same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(states[step - 1], states[step], strict=True))
        assert same is (step in (3, 6)), f"step {step}"


@pytest.mark.parametrize("checkpoint_steps", [2, 100], ids=["to a checkpoint", "to the start"])
def test_rolling_back_ends_as_skipping_does(tmp_path: Path, checkpoint_steps: int) -> None:
    dataset = make(tmp_path, STEPS, spikes={6}, poisoned={4})
    skipping, back = stage("a", dataset, SKIP), stage("b", dataset, ROLL_BACK, checkpoint_steps=checkpoint_steps)
    train(tmp_path, skipping)
    _, reports = train(tmp_path, back)
    one, other = ledger(tmp_path, skipping, SKIP, STEPS), ledger(tmp_path, back, ROLL_BACK, STEPS)
    assert losses(other) == losses(one)
    assert [line.step for line in other.skipped] == [line.step for line in one.skipped] == [4, 6]
    assert {line.action for line in other.anomalies} == {"RollBack"}
    assert other.lost_steps == (1 + 1 if checkpoint_steps == 2 else 3 + 4)
    assert (reports[-1].skipped_steps, reports[-1].lost_steps) == (2, other.lost_steps)


def test_what_is_measured_along_the_way_is_measured_once_where_training_rolls_back(tmp_path: Path) -> None:
    dataset = make(tmp_path, STEPS, spikes={6}, poisoned={2})
    (tmp_path / "held.txt").write_text("\n\n".join(SENTENCES))
    texts = [NamedText(path="held.txt", name="held")]
    wanted = stage("a", dataset, ROLL_BACK, checkpoint_steps=2, validation_steps=2, validation_texts=texts)
    train(tmp_path, wanted)
    assert [point["step"] for point in ledger(tmp_path, wanted, ROLL_BACK, STEPS).validation] == [0, 2, 4, 6, 8]


def test_weights_that_were_damaged_come_back_only_by_rolling_back(tmp_path: Path) -> None:
    dataset = make(tmp_path, STEPS, spikes=set())

    def damage(training: Training) -> None:
        hit = iter([False] * 4 + [True] + [False] * 100)

        def once() -> bool:
            if next(hit):
                with torch.no_grad():
                    training.model.get_input_embeddings().weight[20:25] *= NAN  # type: ignore[operator,union-attr,index]
            return False

        training.asked = once

    healed = stage("a", dataset, ROLL_BACK, checkpoint_steps=3)
    train(tmp_path, healed, look=damage)
    assert [line.step for line in ledger(tmp_path, healed, ROLL_BACK, STEPS).skipped] == [5]
    with pytest.raises(SpecError, match=r"spec\.pretraining\.anomalies\.limit"):
        train(tmp_path, stage("b", dataset, SKIP.model_copy(update={"limit": 2})), look=damage)


@pytest.mark.parametrize("policy", [SKIP, ROLL_BACK], ids=["skip", "roll back"])
def test_a_run_stopped_at_any_step_decides_the_same(tmp_path: Path, policy: Anomalies) -> None:
    dataset = make(tmp_path, STEPS, spikes={6, 7}, poisoned={3})
    steady = stage("a", dataset, policy)
    train(tmp_path, steady)
    broken = stage("b", dataset, policy, checkpoint_steps=100)
    for budget in (2, 1, 3):
        left = iter([False] * budget + [True])
        train(tmp_path, broken, lambda left=left: next(left))  # type: ignore[misc]
    train(tmp_path, broken)
    one, other = ledger(tmp_path, steady, policy, STEPS), ledger(tmp_path, broken, policy, STEPS)
    assert losses(other) == losses(one)
    assert [line.step for line in other.skipped] == [line.step for line in one.skipped] == [3, 6, 7]


def test_a_learning_rate_that_cannot_work_ends_at_the_limit(tmp_path: Path) -> None:
    dataset = make(tmp_path, STEPS, spikes=set())
    for key, policy in (("a", SKIP), ("b", ROLL_BACK)):
        with pytest.raises(SpecError, match=r"spec\.pretraining\.anomalies\.limit: .*\(got 3\).*Lower learningRate"):
            train(tmp_path, stage(key, dataset, policy.model_copy(update={"limit": 3}), learning_rate="1e30"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda line: None if line["kind"] == "anomaly" else line, "nothing says why", id="no reason"),
        pytest.param(lambda line: {**line, "loss": 0.01, "finite": True} if line["kind"] == "anomaly" else line, "no spike", id="no spike"),
        pytest.param(lambda line: None if line["kind"] == "skipped" else line, "has step", id="a skipped step is not there"),
        pytest.param(lambda line: {**line, "digest": "0"} if line["kind"] == "skipped" else line, "has digest", id="other rows skipped"),
        pytest.param(lambda line: {**line, "loss": 99.0} if line["kind"] == "step" and line["step"] == 7 else line, "anomalous", id="kept"),
    ],
)
def test_a_ledger_that_skips_without_reason_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None], says: str
) -> None:
    dataset = make(tmp_path, STEPS, spikes={6})
    wanted = stage("a", dataset, SKIP)
    train(tmp_path, wanted)
    path = ArtifactStore(tmp_path).path(wanted.kind, wanted.key) / LEDGER
    lines = [change(json.loads(text)) for text in path.read_text().splitlines()]
    (tmp_path / "forged").write_text("".join(json.dumps(line) + "\n" for line in lines if line))
    with pytest.raises(ArtifactError, match=says):
        verify_ledger(tmp_path / "forged", ORDER, ROWS_PER_STEP, STEPS, SKIP)
    with pytest.raises(ArtifactError, match="more than the experiment lets pass"):
        verify_ledger(path, ORDER, ROWS_PER_STEP, STEPS)


@pytest.mark.parametrize(
    ("action", "sharding"),
    [(AnomalyAction.SKIP, Sharding.NONE), (AnomalyAction.ROLL_BACK, Sharding.FULL)],  # how the model is spread does not matter to either
    ids=["skip, replicas", "roll back, shards"],
)
def test_two_three_one_two_workers_leave_out_the_same_steps_as_one(tmp_path: Path, action: AnomalyAction, sharding: Sharding) -> None:
    # Seven of 57 rows stay hard: the steps that read some of them, in every pass over the data, are spikes among those that read none.
    dataset = make(tmp_path, STEPS, spikes={6})
    policy = Anomalies(action=action, spike_factor="1.2", window=8, limit=1000)
    wanted = training_stage("a" * 32, dataset, steps=60, anomalies=policy, sharding=sharding)
    alone = replace_key(wanted)
    train(tmp_path, alone)
    steady = ledger(tmp_path, alone, policy, 60)
    assert len(steady.skipped) >= 3, "there is something to decide"
    with cluster(tmp_path, wanted, max_nodes=3) as group:
        resize(group)
        wait_for(lambda: group.artifact.is_dir(), what="the artifact")
        summary = verify_ledger(group.artifact / LEDGER, ORDER, ROWS_PER_STEP, 60, policy)
    assert {line.world_size for line in summary.lines} == {1, 2, 3}
    assert [line.step for line in summary.skipped] == [line.step for line in steady.skipped]
    assert losses(summary) == pytest.approx(losses(steady), rel=1e-5)


def replace_key(wanted: StagePlan) -> StagePlan:
    return wanted.model_copy(update={"key": "e" * 32})
