"""What the processes of `transfer run` are told of themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.operator.builders import experiment
from transfer_api.stage import plan_stages
from transfer_cli.local import LocalBackend
from transfer_operator.decide import CreatePod
from transfer_operator.decide.snapshot import PodName
from transfer_pod.context import PodContext


def test_pods_of_one_run_know_which_of_them_is_newer_and_runs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[PodContext] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, *, env, **_: started.append(PodContext.read(env)))
    wanted = experiment(workers={"min": 1, "replicas": 1, "max": 1})
    stage = next(plan for plan in plan_stages(wanted.spec) if plan.kind.elastic)
    for _ in range(2):
        backend = LocalBackend(experiment=wanted, storage=tmp_path, search=(), logs=tmp_path)
        for attempt, generation in ((1, 1), (1, 2), (2, 1)):
            name = PodName(stage=stage.key, kind=stage.kind.value, attempt=attempt, generation=generation)
            backend.create(CreatePod(name=name, stage=stage))
        for lock in backend._locks.values():
            lock.release()
    assert [(pod.attempt_number, pod.generation) for pod in started] == [(1, 1), (1, 2), (2, 1)] * 2
    assert [len({pod.lineage for pod in run}) for run in (started[:3], started[3:])] == [1, 1]
    assert started[0].lineage != started[3].lineage
    assert all(pod.lineage for pod in started)
