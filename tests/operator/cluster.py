"""A cluster that does what it likes: pods start, step, end and vanish, and the operator dies between any two writes.

`Cluster.look` is what the operator does, with everything that may go wrong in it; after each written status it checks what must
hold whatever happened. The cluster keeps its own count of incidents, by which the status is judged.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from tests.operator.builders import World, result
from transfer_api.progress import Progress, Score
from transfer_api.status import ExperimentStatus, Phase, StageState
from transfer_operator.decide import CreatePod, Decision, DeletePod, Pod, PodPhase, Role, Snapshot, decide
from transfer_operator.decide.snapshot import PodName

TOTAL_STEPS = 20
STATUS_BYTES = 100_000


@dataclass
class Cluster(World):
    """A world whose operator is unreliable and whose pods have a life of their own."""

    observed: dict[str, Pod] = field(default_factory=dict)
    """The pods as the last look that wrote a status saw them: what a cache may still show."""
    incidents: Counter[str] = field(default_factory=Counter)
    ever_created: set[str] = field(default_factory=set)
    ever_seen: set[str] = field(default_factory=set)

    @property
    def marks(self) -> list[int]:
        """Amounts of tokens whose snapshots the training makes, half-way."""
        return self.experiment.spec.pretraining.snapshot_tokens if self.experiment.spec.pretraining else []

    # The operator.

    def look(self, *, stale: bool = False, write_lost: bool = False, actions: int | None = None) -> Decision:
        """One look. `actions`: how many are carried out before the operator dies."""
        pods = dict(self.observed) if stale else dict(self.pods)
        snapshot = replace(self.snapshot(), pods=tuple(pods.values()))
        decision = decide(snapshot, self.now)
        assert decision == decide(snapshot, self.now), "it is a pure function"
        self.check_actions(decision)
        if write_lost:
            return decision
        check_successor(self.status, decision.status)
        check_form(decision.status)
        self.check_repetition(decision, snapshot)
        self.status, self.observed = decision.status, pods
        self.ever_seen |= set(pods)
        for action in decision.actions[:actions]:
            self.carry_out(action)
            self.check_one_pod_for_each_index()
        return decision

    def carry_out(self, action: CreatePod | DeletePod) -> Cluster:
        name = str(action.name)
        if isinstance(action, CreatePod) and name not in self.pods:
            assert name not in self.ever_created, f"{name} is made a second time"
            self.ever_created.add(name)
        super().carry_out(action)
        return self

    # What must always hold.

    def check_actions(self, decision: Decision) -> None:
        names = [str(action.name) for action in decision.actions]
        assert len(names) == len(set(names)), "one action for each pod"
        complete = {stage.key for stage in decision.status.stages if stage.state is not StageState.RUNNING}
        for action in decision.actions:
            if isinstance(action, CreatePod):
                assert not decision.status.phase.terminal
                assert action.name.stage not in complete, "only a stage that runs gets pods"
                assert not self.experiment.spec.suspend

    def check_repetition(self, decision: Decision, snapshot: Snapshot) -> None:
        again = decide(replace(snapshot, status=decision.status), self.now)
        assert again.status == decision.status, "the same look again changes nothing"
        assert set(map(str, again.actions)) <= set(map(str, decision.actions)), "and asks for nothing new"

    def check_one_pod_for_each_index(self) -> None:
        alive = Counter((pod.name.stage, pod.name.role, pod.name.index) for pod in self.pods.values() if pod.alive)
        assert not [key for key, count in alive.items() if count > 1], f"two pods live for one index: {sorted(self.pods)}"

    # The pods.

    def wanted(self) -> list[str]:
        """Live workers that the written status asks for, and that it has seen: their ends are incidents."""
        found = []
        for stage in self.status.stages:
            if stage.state is StageState.RUNNING:
                names = [
                    str(
                        PodName(
                            stage=stage.key,
                            kind=stage.kind.value,
                            attempt=stage.attempt,
                            index=record.index,
                            generation=record.generation,
                        )
                    )
                    for record in stage.workers
                    if record.seen and not record.retired
                ]
                found += [name for name in names if name in self.pods and self.pods[name].alive]
        return found

    def live(self) -> list[str]:
        return [name for name, pod in self.pods.items() if not pod.ended]

    def remove_deleted(self, *, seen_going: bool = False) -> None:
        """Pods that were told to go are gone, if the operator saw that they were there, or even that they were going."""
        for name, pod in list(self.pods.items()):
            seen = self.observed.get(name)
            if pod.terminating and (seen is not None and seen.terminating if seen_going else name in self.ever_seen):
                del self.pods[name]

    def work(self, name: str, steps: int) -> None:
        """A worker that runs does some steps; it may have gone back to its checkpoint before."""
        pod = self.pods[name]
        if pod.alive and pod.phase is PodPhase.RUNNING and pod.name.role is Role.WORKER:
            step = max(0, min(TOTAL_STEPS, (pod.progress.step if pod.progress else 0) + steps))
            told = Progress(
                step=step,
                total_steps=TOTAL_STEPS,
                loss=1.5,
                productive_seconds=step * 1.5,
                last_step_time=self.now.timestamp(),
                snapshots=self.marks if step >= TOTAL_STEPS // 2 else [],
            )
            self.change(name, progress=told)

    def complete(self, name: str, scores: list[Score] | None = None) -> None:
        """A worker commits the artifact and ends."""
        plan = next(plan for plan in self.plan if plan.key == self.pods[name].name.stage)
        self.artifacts[plan.key] = result(plan, scores)
        self.ends(name, 0, result=self.artifacts[plan.key])

    def calm(self, rounds: int = 150) -> None:
        """Nothing bad happens any more: the experiment comes to its end in so many looks."""
        self.edit(suspend=False, workers={"replicas": self.experiment.spec.workers.min})
        for _ in range(rounds):
            if self.status.phase.terminal:
                return
            decision = self.look()
            self.after(max(1.0, min(decision.look_again or 1.0, 90.0)))
            self.remove_deleted()
            self.runs()
            for name in list(self.pods):
                pod = self.pods[name]
                if pod.alive and pod.phase is PodPhase.RUNNING and pod.name.role is Role.WORKER:
                    if pod.progress is not None and pod.progress.step >= TOTAL_STEPS:
                        self.complete(name)
                    else:
                        self.work(name, 10)
        raise AssertionError(f"does not end: {self.status}")


def check_successor(old: ExperimentStatus, new: ExperimentStatus) -> None:
    """What one written status owes to the one before."""
    if old.phase.terminal:
        # But for the acknowledgement of an edit, of which nothing comes.
        assert new.model_copy(update={"observed_generation": old.observed_generation}) == old, "Complete and Failed are for ever"
        assert new.observed_generation >= old.observed_generation
    assert_grows(old.restarts.model_dump(), new.restarts.model_dump())
    for before in old.stages:
        after = next(stage for stage in new.stages if stage.key == before.key)
        assert_grows(before.restarts.model_dump(), after.restarts.model_dump())
        for name in ("attempt", "last_step", "out_of_memory", "productive_seconds", "lost_steps"):
            assert getattr(after, name) >= getattr(before, name), name
        assert set(before.snapshots) <= set(after.snapshots)
        if before.state in (StageState.COMPLETE, StageState.FAILED):
            assert after == before, "a finished stage stays as it is"
        if before.attempt == after.attempt and before.workers and after.workers:
            generations = {record.index: record.generation for record in after.workers}
            assert all(generations[record.index] >= record.generation for record in before.workers)
    if old.start_time is not None:
        assert new.start_time == old.start_time
    if new.phase is Phase.COMPLETE:
        assert all(stage.state is StageState.COMPLETE for stage in new.stages)
    assert (new.failure is not None) == (new.phase is Phase.FAILED)


def assert_grows(old: dict[str, int], new: dict[str, int]) -> None:
    assert all(new[name] >= count for name, count in old.items()), (old, new)


def check_form(status: ExperimentStatus) -> None:
    """The API server would take it: valid, bounded, without floats."""
    text = status.model_dump_json(by_alias=True)
    assert ExperimentStatus.model_validate_json(text) == status
    assert len(text) < STATUS_BYTES
    json.loads(text, parse_float=lambda number: _refuse(number))


def _refuse(number: str) -> Any:
    raise AssertionError(f"{number} is a float")
