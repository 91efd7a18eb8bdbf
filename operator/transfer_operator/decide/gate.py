"""The gate on English along the way: a checkpoint that has lost too much ends the experiment, in the middle of its training.

Checkpoints are scored beside the training that goes on. Where stages run one at a time it saves and stands aside for each score that
may stop it: to train on and be told later costs the more the longer the rest of the run is.
"""

from __future__ import annotations

from transfer_api.retention import judge_retention
from transfer_api.stage import StageKind, StagePlan, artifact_path, snapshot_key
from transfer_api.status import StageState, StageStatus
from transfer_operator.decide.decision import Event, Refusal
from transfer_operator.decide.snapshot import Snapshot
from transfer_operator.decide.step import Step
from transfer_operator.decide.summary import gate_of, scored


def may_stop(snapshot: Snapshot) -> bool:
    """Whether a checkpoint may end the experiment."""
    gate = gate_of(snapshot)
    return gate is not None and gate.stop


def awaited_scores(snapshot: Snapshot, step: Step, others: list[StageStatus]) -> StagePlan | None:
    """The evaluation for which a training leaves the only slot, since it may stop it: one of a snapshot that is there."""
    if not step.status.snapshots or snapshot.settings.parallel_stages != 1 or not may_stop(snapshot):
        return None
    done = {step.plan.key} | {other.key for other in others if other.state is StageState.COMPLETE}
    elsewhere = {*snapshot.artifacts, *snapshot.makers, *done, *(other.key for other in others if other.state is StageState.RUNNING)}
    ready = (plan for plan in snapshot.plan if plan.snapshot in step.status.snapshots and set(plan.inputs.values()) <= done)
    return next((plan for plan in ready if plan.key not in elsewhere), None)


def judge_checkpoint(snapshot: Snapshot, step: Step, steps: list[Step]) -> Refusal | None:
    """Whether the checkpoint whose evaluation has just become complete has lost too much of English to go on; it is told in any case."""
    gate = gate_of(snapshot)
    known = next((record for record in snapshot.status.stages if record.key == step.plan.key), None)
    complete = step.status.state is StageState.COMPLETE and (known is None or known.state is not StageState.COMPLETE)
    if step.plan.snapshot is None or not complete or gate is None:
        return None
    result = scored(snapshot, step.status)
    if result is None:
        return None
    judged = judge_retention(gate, result.scores)
    if judged.kept or (judged.kept is None and not gate.stop):
        return None
    message = f"after {step.plan.snapshot:,} tokens: {judged.message}"
    if gate.stop and judged.kept is False:
        return Refusal(reason=judged.reason, message=f"{message} {_way_back(steps[:-1])}")
    step.events.append(Event(reason=judged.reason, message=message, warning=True))
    return None


def _way_back(before: list[Step]) -> str:
    """The last checkpoint that was scored before; had it lost too much, it would have been the end."""
    passed = [step.plan for step in before if step.plan.snapshot is not None and step.status.state is StageState.COMPLETE]
    if not passed:
        return "No earlier checkpoint was scored."
    last, tokens = passed[-1], passed[-1].snapshot or 0
    folder = artifact_path(StageKind.PRETRAINING, snapshot_key(last.inputs["model"], tokens))
    return f"The last one that passed, after {tokens:,} tokens, is {folder}/model."
