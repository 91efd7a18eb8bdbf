"""When a stage saves: Daly's interval loses the least, and `Auto` finds it from what it sees."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pods import losses, make_storage, steady_losses, training_stage
from transfer_api.progress import Progress
from transfer_api.spec import CheckpointInterval
from transfer_api.stage import StageKind
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import PodContext
from transfer_trainer import interval
from transfer_trainer.interval import CEILING_SECONDS, FLOOR_SECONDS, PRIOR_SECONDS, Auto, EverySteps, daly
from transfer_trainer.ledger import LEDGER, Ledger, StepLine, read_ledger
from transfer_trainer.loop import Training
from transfer_trainer.parallel import Team


def time_of(training: float, cost: float, mtbf: float) -> float:
    """Wall time of a second of training, with exponential failures (Daly 2006, equation 20, without the time of a restart)."""
    return mtbf * (math.exp((training + cost) / mtbf) - 1) / training


@pytest.mark.parametrize(("cost", "mtbf"), [(0.1, 14400), (5, 3600), (60, 600), (300, 600)])
def test_no_other_interval_loses_noticeably_less(cost: float, mtbf: float) -> None:
    chosen = daly(cost, mtbf)
    best = min(time_of(chosen * factor / 100, cost, mtbf) for factor in range(20, 500))
    assert time_of(chosen, cost, mtbf) <= best * 1.002


def test_where_saving_costs_more_than_failing_the_interval_is_the_time_between_failures() -> None:
    assert daly(100, 40) == 40


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(auto: Auto, clock: Clock, *, usual: float, beside: float, stall: float, saves: int) -> None:
    """Steps of `usual` seconds; each save lasts for two steps, which take `beside` seconds each."""
    done = 0
    while done < saves:
        clock.now += usual
        if auto.due(1):
            auto.begun()
            for _ in range(2):
                clock.now += beside
                assert not auto.due(1), "one at a time"
            auto.saved(2 * beside, stall)
            done += 1


def test_the_interval_begins_short_and_becomes_what_cost_and_failures_say() -> None:
    clock = Clock()
    auto = Auto(failures=0, trained=0.0, clock=clock)
    assert auto.seconds == FLOOR_SECONDS
    drive(auto, clock, usual=1.0, beside=1.5, stall=0.1, saves=6)
    assert auto.mtbf == PRIOR_SECONDS + clock.now
    assert auto.seconds == pytest.approx(daly(1.0, auto.mtbf), rel=1e-3)


@pytest.mark.parametrize(("failures", "trained"), [(0, 0.0), (3, 3600.0), (40, 7200.0)])
def test_failures_shorten_the_interval(failures: int, trained: float) -> None:
    clock = Clock()
    auto = Auto(failures, trained, clock)
    drive(auto, clock, usual=1.0, beside=1.5, stall=0.1, saves=6)
    assert auto.mtbf == pytest.approx((PRIOR_SECONDS + trained + clock.now) / (1 + failures))
    assert auto.seconds == pytest.approx(max(FLOOR_SECONDS, daly(1.0, auto.mtbf)), rel=1e-3)


def test_the_interval_stays_between_floor_and_ceiling_and_above_the_time_of_a_save() -> None:
    clock = Clock()
    auto = Auto(0, 0.0, clock)
    auto.saved(0.01, 0.0001)
    assert auto.seconds == FLOOR_SECONDS
    auto.saved(200.0, 0.0)
    assert auto.seconds == 400.0
    auto.saved(10_000.0, 9_000.0)
    assert auto.seconds == CEILING_SECONDS


def test_steps_between_saves_are_counted_from_the_first() -> None:
    every = EverySteps(4)
    assert [step for step in range(1, 13) if every.due(step)] == [4, 8, 12]
    assert every.seconds is None


LINE = StepLine(
    step=1,
    first_row=0,
    rows=1,
    digest="",
    world_size=1,
    round=0,
    loss=1.0,
    tokens=1,
    seconds=1.0,
    learning_rate=0.1,
    gradient_norm=1.0,
    time=0,
)


def test_a_failure_is_what_cost_steps(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    for done, kept in ((3, 3), (6, 4), (5, 4), (9, 9)):  # a save on request, two failures, another save on request
        ledger = Ledger(path, read_ledger(path).steps)
        for step in range(read_ledger(path).steps + 1, done + 1):
            ledger.step(replace(LINE, step=step))
        ledger.close()
        Ledger(path, kept).close()
    summary = read_ledger(path)
    assert (summary.steps, summary.lost_steps, summary.failures) == (9, 3, 2)


def test_a_stage_that_chooses_its_interval_says_it_and_gives_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "FLOOR_SECONDS", 0.2)
    stage = training_stage("a" * 32, make_storage(tmp_path), steps=40, checkpoint_interval=CheckpointInterval.AUTO, checkpoints_kept=3)
    stage = stage.model_copy(update={"execution": stage.execution.model_copy(update={"checkpoint_steps": None})})
    context = PodContext(stage=stage, storage=tmp_path, pod="pod")
    reports: list[Progress] = []
    first = Training(context, Team(), lambda: reports[-1].step >= 30, reports.append)
    assert not first.run()
    saved = {report.checkpoint_step for report in reports} - {None}
    assert len(saved) >= 2, "it saved on its own, not only when it was asked to end"
    assert max(saved) == reports[-1].step, "what was asked for is complete"
    assert Training(context, Team(), lambda: False, reports.append).run()
    assert reports[-1].checkpoint_interval_seconds is not None
    assert 0.2 <= reports[-1].checkpoint_interval_seconds <= CEILING_SECONDS
    assert reports[-1].checkpoint_stall_seconds is not None
    summary = read_ledger(ArtifactStore(tmp_path).path(StageKind.PRETRAINING, stage.key) / LEDGER)
    assert (summary.lost_steps, summary.failures) == (0, 0)
    assert losses(summary) == pytest.approx(steady_losses(tmp_path, stage), rel=1e-5)
