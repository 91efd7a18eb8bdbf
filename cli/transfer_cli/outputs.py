"""What a run leaves for people: `status.yaml`, `results.json`, reports, per-item scores, `model/` with its card, `adapter/`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import yaml
from pydantic import BaseModel

from transfer_api.errors import ArtifactError, SpecError
from transfer_api.progress import Score
from transfer_api.results import RESULTS
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StageKind, StagePlan
from transfer_api.status import ExperimentStatus
from transfer_cli.card import CARD, model_card
from transfer_pod.artifact import ArtifactStore, storage_errors, write_atomically

STATUS = "status.yaml"
LOCK = ".lock"
STAMP = ".written"
"""Marks an output folder as a run's, and records what it was given (`Written`); empty while that is not whole."""
COPYING = ".written.copying"
MODEL, ADAPTER = "model", "adapter"
NAMES = (MODEL, ADAPTER, "items", "logs", "report.html", "report.md", "report.tex", RESULTS, STATUS, LOCK)
"""All that a run writes into its output folder, besides the stamp."""
MODEL_KINDS = (StageKind.VOCABULARY, StageKind.PRETRAINING, StageKind.INSTRUCTION_TUNING)
"""Stages that make a model."""


class Written(BaseModel):
    """What people were given, once all of it was written."""

    artifacts: dict[str, str]
    """Digests by the stages' keys."""
    files: list[str]
    """Of report and model, relative to the output folder."""

    @classmethod
    def read(cls, output: Path) -> Written | None:
        """What the stamp records; None where there is none or the outputs are not whole."""
        try:
            return cls.model_validate_json((output / STAMP).read_bytes())
        except (OSError, ValueError):
            return None

    def missing(self, output: Path) -> list[str]:
        """Files that are not there any more. What people have changed in the others is theirs."""
        return [name for name in self.files if not (output / name).is_file()]


def output_errors(output: Path) -> AbstractContextManager[None]:
    """`storage_errors` of an output folder, which need not be on the disk of the storage."""
    return storage_errors(output, field="output", option="--output")


def check_output(output: Path, more: Iterable[str] = ()) -> None:
    """Whether a run may write into a folder: a run's, or one that holds nothing of the names it writes.

    Args:
        output: the folder, which need not be there.
        more: names beside those of every run.

    Raises:
        SpecError: it would replace what no run has made.
    """
    if _is_of_a_run(output):
        return
    if found := [name for name in (*NAMES, *more) if os.path.lexists(output / name)]:
        raise SpecError(
            f"holds what no run has made and a run would replace: {', '.join(found)}", field="output", value=str(output),
            next_step="Choose another folder with --output, or move that away",
        )  # fmt: skip


def claim(output: Path) -> None:
    """Marks a folder, before anything else is written, as a run's."""
    with output_errors(output):
        (output / STAMP).touch()


def _is_of_a_run(output: Path) -> bool:
    if (output / STAMP).is_file():
        return True
    try:
        return read_status(output) is not None  # copied without its hidden files
    except ArtifactError:
        return False


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
            f"{path} is not a readable status",
            next_step="`transfer run` of the same file moves it aside and finds again all that was finished",
        ) from error


def write_status(output: Path, status: ExperimentStatus) -> None:
    """Leaves the status in the output folder."""
    content = yaml.safe_dump(status.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)
    with output_errors(output):
        write_atomically(output / STATUS, content)


def set_status_aside(output: Path) -> Path:
    """Makes way for a new status where the old one cannot be read; returns where that is now."""
    aside = output / f"{STATUS}.unreadable"
    with output_errors(output):
        _remove(aside)
        (output / STATUS).rename(aside)
    return aside


def write_outputs(
    experiment: TransferExperiment,
    plan: tuple[StagePlan, ...],
    status: ExperimentStatus,
    *,
    storage: Path,
    output: Path,
    again: bool = False,
) -> list[Score]:
    """Gives people what the artifacts hold, as far as it is not there, and returns the scores of the result.

    Args:
        experiment: what ran.
        plan: its stages.
        status: what they came to.
        storage: where the artifacts are.
        output: folder for report and model.
        again: write also what is there, whatever was changed in it.

    Raises:
        ArtifactError: an artifact is damaged.
    """
    store = ArtifactStore(storage)
    artifacts = {stage.key: stage.artifact.digest if stage.artifact else "" for stage in status.stages}
    with output_errors(output):
        written = Written.read(output)
        same = not again and written is not None and written.artifacts == artifacts
        if not same:
            (output / STAMP).write_bytes(b"")
            for name in (MODEL, ADAPTER):
                _remove(output / name)
        if not same or (written and written.missing(output)):
            files = [*_copy_model(experiment, store, plan, output), *_report(experiment, plan, status, storage, output)]
            write_atomically(output / STAMP, Written(artifacts=artifacts, files=files).model_dump_json(indent=1))
    return scores_of_result(store, plan)


def write_report_alone(
    experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, *, storage: Path, output: Path
) -> None:
    """Writes the report of an experiment that ended before its result, without a model."""
    with output_errors(output):
        (output / STAMP).write_bytes(b"")
        _report(experiment, plan, status, storage, output)


def scores_of_result(store: ArtifactStore, plan: tuple[StagePlan, ...]) -> list[Score]:
    """All scores of the last evaluation; none where nothing is evaluated."""
    last = next((stage for stage in reversed(plan) if stage.kind is StageKind.EVALUATION), None)
    if last is None:
        return []
    return [Score.model_validate(score) for score in store.manifest(last.kind, last.key).get("scores", [])]


def models(plan: Sequence[StagePlan]) -> list[StagePlan]:
    """The stages that make a model."""
    return [stage for stage in plan if stage.kind in MODEL_KINDS]


def _report(
    experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, storage: Path, output: Path
) -> list[str]:
    """Writes the report and returns the names of its files."""
    from transfer_evaluator.report import collect, write_report  # plots: 1 s

    plain = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    name, language = experiment.metadata.name, experiment.spec.language
    files = write_report(output, collect(storage, plan, experiment=name, language=language, status=plain))
    return [str(file.relative_to(output)) for file in files]


def _copy_model(experiment: TransferExperiment, store: ArtifactStore, plan: tuple[StagePlan, ...], output: Path) -> list[str]:
    """Puts the last model that was made at `model/`, with its card, and its adapter beside it; returns the names of all their files.

    They are copies, since people change what they are given; what is there already stays.
    """
    if not (made := models(plan)):
        return []
    kind, key, card = made[-1].kind, made[-1].key, f"{MODEL}/{CARD}"
    artifact = store.open(kind, key, verify=False)
    given = {name for name in store.manifest(kind, key)["files"] if name.startswith((f"{MODEL}/", f"{ADAPTER}/"))} - {card}
    for name in sorted(given):
        if not (output / name).is_file():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            # Whole or not there at all: what is there is not looked into again.
            shutil.copy2(artifact / name, output / COPYING)
            (output / COPYING).replace(output / name)
    if not (output / card).is_file():
        write_atomically(output / card, model_card(experiment, plan, store, scores_of_result(store, plan)))
    return [*sorted(given), card]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
