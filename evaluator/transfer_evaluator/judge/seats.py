"""The judges of a stage with their tokens and what they have said before."""

from __future__ import annotations

import os
from pathlib import Path

from transfer_api.spec import JudgePace
from transfer_api.stage import EvaluationParameters, StagePlan
from transfer_api.task import JUDGE_TOKENS
from transfer_evaluator.judge.panel import Seat
from transfer_evaluator.judge.store import ReplyStore

PLACES = ("spec.evaluation.judge", "spec.evaluation.secondJudge")


def take_seats(stage: StagePlan, storage: Path, pod: str) -> list[Seat]:
    """A seat for each judge of an evaluation.

    Args:
        stage: the evaluation.
        storage: root of the storage, where replies are kept.
        pod: name of who asks.

    Raises:
        StorageError: replies cannot be kept.
    """
    parameters = stage.typed_parameters()
    assert isinstance(parameters, EvaluationParameters)
    given = (parameters.judge, parameters.second_judge)
    paces = (stage.execution.judge_pace, stage.execution.second_judge_pace)
    return [
        Seat(
            place=place, judge=judge, pace=pace or JudgePace(), token=os.environ.get(token) or None,
            store=ReplyStore(storage, judge, stage.key, pod),
        )
        for place, judge, pace, token in zip(PLACES, given, paces, JUDGE_TOKENS, strict=True)
        if judge is not None
    ]  # fmt: skip
