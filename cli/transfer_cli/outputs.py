"""What a run leaves for people: `status.yaml`, `results.json`, reports, per-item scores, `model/` with its card, `adapter/`."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import yaml

from transfer_api.errors import ArtifactError
from transfer_api.progress import Score
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StageKind, StagePlan
from transfer_api.status import ExperimentStatus
from transfer_cli.card import CARD, model_card
from transfer_pod.artifact import ArtifactStore, storage_errors

STATUS = "status.yaml"
STAMP = ".written"
MODEL, ADAPTER = "model", "adapter"
MODEL_KINDS = (StageKind.VOCABULARY, StageKind.PRETRAINING, StageKind.INSTRUCTION_TUNING)
"""Stages that make a model."""


def output_errors(output: Path) -> AbstractContextManager[None]:
    """`storage_errors` of an output folder, which need not be on the disk of the storage."""
    return storage_errors(output, field="output", option="--output")


def read_status(output: Path) -> ExperimentStatus | None:
    """The status that a run left in its output folder; None before the first.

    Raises:
        ArtifactError: the file is there but is not a status.
    """
    path = output / STATUS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        missing = ExperimentStatus().model_dump(by_alias=True, exclude_none=True).keys() - content.keys()
        if missing:
            raise ValueError("fields are missing")  # cut short, or something else: each of them would pass as its default
        return ExperimentStatus.model_validate(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ArtifactError(
            f"{path} is not a readable status", next_step=f"Remove it (rm {shlex.quote(str(path))}); artifacts are kept and found again"
        ) from error


def write_outputs(
    experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, *, storage: Path, output: Path
) -> list[Score]:
    """Writes everything that is not there yet for these very artifacts, and returns the scores of the result."""
    store = ArtifactStore(storage)
    stamp = json.dumps([[stage.key, stage.artifact.digest if stage.artifact else ""] for stage in status.stages])
    current = output / STAMP
    with output_errors(output):
        if not current.exists() or current.read_text() != stamp or not _there(plan, output):
            current.unlink(missing_ok=True)
            _copy_model(experiment, store, plan, output)
            _report(experiment, plan, status, storage, output)
            current.write_text(stamp)
    return scores_of_result(store, plan)


def write_report_alone(
    experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, *, storage: Path, output: Path
) -> None:
    """Writes the report of an experiment that ended before its result, without a model."""
    (output / STAMP).unlink(missing_ok=True)
    with output_errors(output):
        _report(experiment, plan, status, storage, output)


def scores_of_result(store: ArtifactStore, plan: tuple[StagePlan, ...]) -> list[Score]:
    """All scores of the last evaluation; none where nothing is evaluated."""
    last = next((stage for stage in reversed(plan) if stage.kind is StageKind.EVALUATION), None)
    if last is None:
        return []
    return [Score.model_validate(score) for score in store.manifest(last.kind, last.key).get("scores", [])]


def _there(plan: tuple[StagePlan, ...], output: Path) -> bool:
    return (output / "report.html").is_file() and ((output / MODEL / CARD).is_file() or not models(plan))


def models(plan: Sequence[StagePlan]) -> list[StagePlan]:
    """The stages that make a model."""
    return [stage for stage in plan if stage.kind in MODEL_KINDS]


def _report(experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, storage: Path, output: Path) -> None:
    from transfer_evaluator.report import collect, write_report  # plots: 1 s

    plain = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    name, language = experiment.metadata.name, experiment.spec.language
    write_report(output, collect(storage, plan, experiment=name, language=language, status=plain))


def _copy_model(experiment: TransferExperiment, store: ArtifactStore, plan: tuple[StagePlan, ...], output: Path) -> None:
    """Puts the last model that was made at `model/`, and its adapter beside it: copies, since people change what they are given."""
    if not (made := models(plan)):
        return
    artifact = store.open(made[-1].kind, made[-1].key, verify=False)
    for name in (MODEL, ADAPTER):
        shutil.rmtree(output / name, ignore_errors=True)
        if (artifact / name).is_dir():
            shutil.copytree(artifact / name, output / name)
    (output / MODEL / CARD).write_text(model_card(experiment, plan, store, scores_of_result(store, plan)), encoding="utf-8")
