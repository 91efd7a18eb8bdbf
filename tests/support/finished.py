"""The artifacts of an experiment as its stages would leave them, made in milliseconds: `transfer run` then finds all of them done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.documents import EVALUATION, TUNING, VOCABULARY, document
from tests.support.folders import write_experiment, write_model
from transfer_api.load import load_experiment
from transfer_api.progress import Score
from transfer_api.stage import StageKind, StagePlan, plan_stages
from transfer_cli.inputs import fingerprints
from transfer_cli.outputs import ADAPTER, MODEL, MODEL_KINDS
from transfer_pod.artifact import ArtifactStore

ALL = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION)
Numbers = Mapping[StageKind, Mapping[str, float]]


def finished(
    folder: Path, wanted: dict[str, Any] | None = None, *, numbers: Numbers | None = None, scores: Sequence[Score] = ()
) -> tuple[StagePlan, ...]:
    """Writes an experiment and what its stages have made: `experiment.yaml` and `storage/` in the folder.

    Args:
        folder: where.
        wanted: the experiment; one with every kind of stage unless given.
        numbers: figures for the manifests.
        scores: of the last evaluation.
    """
    experiment, store = load_experiment(write_experiment(folder, wanted or ALL)), ArtifactStore(folder / "storage")
    plan = plan_stages(experiment.spec, fingerprints(experiment, storage=store.root, search=(folder,)))
    for stage in plan:
        draft = store.work(stage.kind, stage.key) / "artifact"
        last = [score.model_dump(mode="json", by_alias=True) for score in scores] if stage is plan[-1] else []
        _fill(draft, stage.kind, last)
        store.commit(stage, draft, numbers=(numbers or {}).get(stage.kind, {}), scores=last)
    return plan


def _fill(draft: Path, kind: StageKind, scores: list[dict[str, Any]]) -> None:
    draft.mkdir()
    (draft / "file").write_text("x")
    if kind in MODEL_KINDS:
        write_model(draft / MODEL)
    if kind.elastic:
        (draft / "training.json").write_text(json.dumps({"steps": [], "validation": []}))
    if kind is StageKind.INSTRUCTION_TUNING:
        (draft / ADAPTER).mkdir()
        (draft / ADAPTER / "adapter_config.json").write_text("{}")
    if kind is StageKind.EVALUATION:
        (draft / "items").mkdir()
        (draft / "items" / "held-out.jsonl").write_text("")
        (draft / "results.json").write_text(json.dumps({"scores": scores}))
