"""What a run leaves for people: `status.yaml`, `results.json`, reports, per-item scores, `model/` with its card, `adapter/`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import BaseModel

from transfer_api.errors import ArtifactError, SpecError, StorageError
from transfer_api.progress import Score
from transfer_api.results import RESULTS
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StageKind, StagePlan
from transfer_api.status import ExperimentStatus
from transfer_cli.card import CARD, model_card
from transfer_pod.artifact import ArtifactStore, is_temporary, storage_errors, write_atomically

STATUS = "status.yaml"
LOCK = ".lock"
STAMP = ".written"
"""Marks an output folder as a run's, and records what it was given (`Written`)."""
COPYING = ".written.copying"
MODEL, ADAPTER = "model", "adapter"
_CARD = f"{MODEL}/{CARD}"
NAMES = (MODEL, ADAPTER, "items", "logs", "report.html", "report.md", "report.tex", RESULTS, STATUS, LOCK)
"""All that a run writes into its output folder, besides the stamp."""
MODEL_KINDS = (StageKind.VOCABULARY, StageKind.PRETRAINING, StageKind.INSTRUCTION_TUNING)
"""Stages that make a model."""


class Written(BaseModel):
    """What people were given."""

    experiment: str = ""
    """Whose outputs they are."""
    whole: bool = True
    """Whether all of it was written."""
    artifacts: dict[str, str] = {}
    """Digests by the stages' keys."""
    files: list[str] = []
    """Of report and model, relative to the output folder; where it is not whole, all that a run may have written."""

    @classmethod
    def read(cls, output: Path) -> Written | None:
        """What the stamp records; None where there is none or the outputs are not whole."""
        found = cls.recorded(output)
        return found if found.whole else None

    @classmethod
    def recorded(cls, output: Path) -> Written:
        """The same, whole or not; empty and not whole where there is none that can be read."""
        try:
            return cls.model_validate_json((output / STAMP).read_bytes())
        except (OSError, ValueError):
            return cls(whole=False)

    def write(self, output: Path) -> None:
        """Leaves it in the output folder."""
        write_atomically(output / STAMP, self.model_dump_json(indent=1))

    def missing(self, output: Path) -> list[str]:
        """Files that are not there any more. What people have changed in the others is theirs."""
        return [name for name in self.files if not (output / name).is_file()]


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """`storage_errors` of an output folder, which need not be on the disk of the storage, and may be removed while a run goes on."""
    with storage_errors(output, field="output", option="--output"):
        try:
            yield
        except FileNotFoundError as error:
            if output.is_dir():
                raise
            raise StorageError(
                "is gone", field="output", value=str(output),
                next_step="The same command makes it anew, and goes on from the last checkpoint, which is in the storage",
            ) from error  # fmt: skip


def check_output(output: Path, experiment: str, more: Iterable[str] = ()) -> None:
    """Whether a run may write into a folder: one of the same experiment's runs, or one that holds nothing of the names it writes.

    Args:
        output: the folder, which need not be there.
        experiment: its name.
        more: names beside those of every run.

    Raises:
        SpecError: it would replace what no run, or another experiment, has made.
    """
    if (owner := Written.recorded(output).experiment) not in ("", experiment):
        raise SpecError(
            f"holds what the experiment {owner} has made", field="output", value=str(output),
            next_step="Choose another folder with --output, or remove this one",
        )  # fmt: skip
    if _is_of_a_run(output):
        return
    if found := [name for name in (*NAMES, *more) if os.path.lexists(output / name)]:
        raise SpecError(
            f"holds what no run has made and a run would replace: {', '.join(found)}", field="output", value=str(output),
            next_step="Choose another folder with --output, or move that away",
        )  # fmt: skip


def claim(output: Path, experiment: str) -> None:
    """Marks a folder, before anything else is written, as one of an experiment's."""
    with output_errors(output):
        known = Written.recorded(output)
        if known.experiment != experiment:
            known.model_copy(update={"experiment": experiment}).write(output)


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
        written = Written.recorded(output)
        same = not again and written.whole and written.artifacts == artifacts
        if not same or written.missing(output):
            name, given = experiment.metadata.name, _given(store, plan)
            _sweep(output)
            Written(experiment=name, whole=False, files=sorted({*written.files, *given})).write(output)
            if not same:
                model = models(plan)[-1].key if models(plan) else ""
                stays = not again and written.whole and artifacts.get(model, "") == written.artifacts.get(model)
                if stays:
                    _remove(output / _CARD)
                else:
                    _clear(output, {*written.files, *given})
            files = [*_copy_model(experiment, store, plan, output), *_report(experiment, plan, status, storage, output)]
            Written(experiment=name, artifacts=artifacts, files=files).write(output)
    return scores_of_result(store, plan)


def _sweep(output: Path) -> None:
    """Removes what a run that was killed was writing at that moment."""
    for folder in (output, output / MODEL):
        for path in folder.glob(".*"):
            if is_temporary(path):
                path.unlink(missing_ok=True)


def write_report_alone(
    experiment: TransferExperiment, plan: tuple[StagePlan, ...], status: ExperimentStatus, *, storage: Path, output: Path
) -> None:
    """Writes the report of an experiment that ended before its result, without a model."""
    with output_errors(output):
        Written.recorded(output).model_copy(update={"whole": False}).write(output)
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

    Raises:
        ArtifactError: what is copied is damaged.
    """
    if not (made := models(plan)):
        return []
    given = _given(store, plan)
    missing = sorted(name for name in given - {_CARD} if not (output / name).is_file())
    artifact = store.open(made[-1].kind, made[-1].key, verify=bool(missing))
    for name in missing:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        # Whole or not there at all: what is there is not looked into again.
        shutil.copy2(artifact / name, output / COPYING)
        (output / COPYING).replace(output / name)
    if not (output / _CARD).is_file():
        write_atomically(output / _CARD, model_card(experiment, plan, store, scores_of_result(store, plan)))
    return sorted(given)


def _given(store: ArtifactStore, plan: Sequence[StagePlan]) -> set[str]:
    """Files of the last model that was made, below the output folder: with its card, and its adapter beside it."""
    if not (made := models(plan)):
        return set()
    files = store.manifest(made[-1].kind, made[-1].key)["files"]
    return {name for name in files if name.startswith((f"{MODEL}/", f"{ADAPTER}/"))} | {_CARD}


def _clear(output: Path, names: Iterable[str]) -> None:
    """Removes the files of a model and its adapter, and folders that are empty then; what others put there stays."""
    for top in (output / MODEL, output / ADAPTER):
        if top.is_symlink():
            top.unlink()
        for name in names:
            if (output / name).is_relative_to(top):
                _remove(output / name)
        folders = sorted((path for path in top.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
        for folder in [*folders, top]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
