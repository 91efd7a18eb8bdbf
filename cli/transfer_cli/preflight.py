"""Asks, before anything runs, every question whose answer would end the run later: exit code 2 with all problems at once.

Only first lines and headers are read, no tensor and no model library is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from transfer_api.cost import StageCost, stage_cost
from transfer_api.errors import DataError, SpecError, StorageError, TransferError
from transfer_api.load import SpecErrors
from transfer_api.spec import Compilation, ExperimentSpec, Method, ModelSource, TransferExperiment, is_judged
from transfer_api.stage import StageKind, StagePlan, asked_suites, models_of, plan_stages
from transfer_api.task import JUDGE_TOKENS, WANDB_MODE, WANDB_TOKEN
from transfer_cli.enough import too_little_data, too_little_made
from transfer_cli.gpus import usable_gpus, worker_share
from transfer_cli.inputs import fingerprints, model_size, sources
from transfer_cli.outputs import NAMES, check_output, models
from transfer_evaluator.mirror import FIELD as MIRROR
from transfer_evaluator.suites import check_suites
from transfer_pod.artifact import ArtifactStore, storage_errors
from transfer_pod.context import NOT_THERE, find_input
from transfer_pod.documents import check_source, find_data
from transfer_pod.model import check_lora, check_model_folder, linear_sides, read_config
from transfer_pod.toolchain import check_toolchain

__all__ = ["check", "fingerprints", "input_problems"]

EXAMPLE_INPUTS = {"models", "texts", "tasks", "instructions"}
"""Where `make inputs` puts what the examples read, below the storage."""


def check(
    experiment: TransferExperiment,
    *,
    storage: Path,
    output: Path,
    search: Sequence[Path],
    metrics_port: int | None = None,
    kept: Iterable[str] = (),
) -> tuple[StagePlan, ...]:
    """Checks model, data, folders, disk, port and GPUs; returns the stages, with the digests of their inputs in the keys.

    Args:
        experiment: what `load_experiment` gave.
        storage: root of the storage; created when it is not there.
        output: folder for report and model; created when it is not there.
        search: further folders in which relative paths are looked up.
        metrics_port: port that is to be listened on, if any.
        kept: names of what goes into the output folder beside the files of every run.

    Raises:
        SpecErrors: with every problem that was found.
    """
    spec = experiment.spec
    plan: tuple[StagePlan, ...] = ()
    made = [*_absent(storage), *_absent(output)]
    errors = input_problems(spec, (storage, *search))
    errors += _ask(
        [
            lambda: _writable(storage, "storage", "--storage"),
            lambda: _writable(output, "output", "--output"),
            lambda: check_output(output, experiment.metadata.name, kept),
            lambda: _apart(storage, output),
            lambda: _port(metrics_port),
            lambda: _gpus(spec),
            lambda: _compilers(spec),
            lambda: _judge_tokens(spec),
            lambda: _tracking(spec),
        ]
    )
    errors += too_little_data(spec, (storage, *search), errors)
    if not errors:
        plan = plan_stages(spec, fingerprints(experiment, storage=storage, search=search))
        errors += too_little_made(plan, storage)
        errors += _ask([*_disk(spec, plan, storage, output, search)])
    if not errors:
        errors += _ask([lambda: _judges(plan, storage)])  # last: only these are asked over a network, and may cost a cent
    if errors:
        _remove(made)
        raise SpecErrors(experiment.metadata.name, errors)
    return plan


def input_problems(spec: ExperimentSpec, roots: tuple[Path, ...]) -> list[TransferError]:
    """What is missing or broken of model, data and tasks, with the way out of each.

    Args:
        spec: what the experiment reads.
        roots: folders in which relative paths are looked up, the storage first.
    """
    folders = spec.evaluation.task_folders if spec.evaluation else []
    errors = _ask(
        [
            *(_model_question(place, model, roots) for place, model in models_of(spec).items()),
            *(_source_question(field, path, text_field, roots) for field, path, text_field in _sources(spec)),
            *(_folder_question(index, folder, roots) for index, folder in enumerate(folders)),
            lambda: _suites(spec, roots),
            lambda: _mirror(spec, roots),
        ]
    )
    return [*map(_with_make_inputs, errors), *_sequence_lengths(spec, roots), *_adapters(spec, roots)]


def _compilers(spec: ExperimentSpec) -> None:
    for section, training in (("spec.pretraining", spec.pretraining), ("spec.instructionTuning", spec.instruction_tuning)):
        if training is not None and training.compile is Compilation.LAYERS:
            check_toolchain(section, gpu=bool(usable_gpus()))


def _judge_tokens(spec: ExperimentSpec) -> None:
    """Judges are asked last: a token that is not there would show after the training."""
    evaluation = spec.evaluation
    if evaluation is None or not is_judged(evaluation.suites):
        return
    for variable, field, judge in zip(JUDGE_TOKENS, ("judge", "secondJudge"), (evaluation.judge, evaluation.second_judge), strict=True):
        if judge is not None and judge.token_secret is not None and not os.environ.get(variable):
            raise SpecError(
                "Secrets are a cluster's, and there is no token of the judge here", field=f"spec.evaluation.{field}.tokenSecret",
                value=judge.token_secret.name, next_step=f"Put it into the variable {variable}",
            )  # fmt: skip


def _tracking(spec: ExperimentSpec) -> None:
    """A tracker that fails stops no training, so what can be told of it is told before."""
    wanted = spec.tracking.wandb if spec.tracking else None
    if wanted is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise SpecError(
            "needs W&B's client, which is not installed", field="spec.tracking.wandb",
            next_step="pip install 'transfer-operator[tracking]', or remove spec.tracking.wandb",
        )  # fmt: skip
    if wanted.token_secret is not None and not os.environ.get(WANDB_TOKEN) and os.environ.get(WANDB_MODE, "online") == "online":
        raise SpecError(
            "Secrets are a cluster's, and there is no key of W&B here", field="spec.tracking.wandb.tokenSecret",
            value=wanted.token_secret.name, next_step=f"Put it into the variable {WANDB_TOKEN}, or set {WANDB_MODE}=offline",
        )  # fmt: skip


def _judges(plan: Sequence[StagePlan], storage: Path) -> None:
    """Judges are asked last: one that wants another token or model name would tell so after the training."""
    stages = [stage for stage in plan if stage.kind is StageKind.EVALUATION and stage.parameters.get("judge")]
    if not stages or ArtifactStore(storage).find(stages[-1].kind, stages[-1].key) is not None:
        return
    from transfer_evaluator.judge.panel import greet
    from transfer_evaluator.judge.seats import take_seats

    greet(take_seats(stages[-1], storage, "preflight"))


def _ask(questions: Sequence[Callable[[], None]]) -> list[TransferError]:
    errors: list[TransferError] = []
    for question in questions:
        try:
            question()
        except TransferError as error:
            errors.append(error)
    return errors


def _with_make_inputs(error: TransferError) -> TransferError:
    """The same error with the command that brings what the examples read."""
    if not isinstance(error, DataError) or error.problem != NOT_THERE or Path(str(error.value)).parts[0] not in EXAMPLE_INPUTS:
        return error
    step = f"{error.next_step}; `make inputs` fetches what the examples read into runs/.storage"
    return DataError(error.problem, field=error.field, value=error.value, allowed=error.allowed, next_step=step)


def _absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there yet, the lowest first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove(folders: Sequence[Path]) -> None:
    """A refused run leaves nothing behind: removes the folders that it made, as far as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sources(spec: ExperimentSpec) -> Iterator[tuple[str, str, str | None]]:
    for source in sources(spec):
        if source.path is not None:
            yield source.field, source.path, source.text_field


def _source_question(field: str, path: str, text_field: str | None, roots: tuple[Path, ...]) -> Callable[[], None]:
    return lambda: check_source(find_data(path, roots, f"{field}.path"), text_field, field)


def _folder_question(index: int, folder: str, roots: tuple[Path, ...]) -> Callable[[], None]:
    def ask() -> None:
        field = f"spec.evaluation.taskFolders[{index}]"
        found = find_input(folder, roots, field)
        if not _has_tasks(found):
            raise SpecError(
                "has no task files", field=field, value=str(found), allowed="a folder with *.yaml of lm-evaluation-harness",
                next_step="Name the folder that holds them",
            )  # fmt: skip

    return ask


def _has_tasks(folder: Path) -> bool:
    return folder.is_dir() and any(file.is_file() for pattern in ("*.yaml", "*/*.yaml") for file in folder.glob(pattern))


def _suites(spec: ExperimentSpec, roots: tuple[Path, ...]) -> None:
    """Only where every task folder is there: what is missing was said, and its tasks would be said to be missing too."""
    if spec.evaluation is None:
        return
    try:
        folders = [find_input(folder, roots) for folder in spec.evaluation.task_folders]
    except DataError:
        return
    if all(map(_has_tasks, folders)):
        check_suites(asked_suites(spec.evaluation, spec.language), folders)


def _mirror(spec: ExperimentSpec, roots: tuple[Path, ...]) -> None:
    mirror = spec.evaluation.mirror if spec.evaluation else None
    if mirror is not None and not find_input(mirror, roots, MIRROR).is_dir():
        raise DataError(
            "is not a folder", field=MIRROR, value=mirror, next_step="Name the folder that `transfer evaluate fetch` has filled"
        )


def _model_question(place: str, model: ModelSource, roots: tuple[Path, ...]) -> Callable[[], None]:
    def ask() -> None:
        if model.path is not None:
            check_model_folder(find_input(model.path, roots, f"{place}.path"), f"{place}.path")

    return ask


def _sequence_lengths(spec: ExperimentSpec, roots: tuple[Path, ...]) -> list[TransferError]:
    """Rows longer than the model has positions."""
    if spec.model.path is None:
        return []
    try:
        positions = read_config(find_input(spec.model.path, roots)).get("max_position_embeddings")
    except TransferError:
        return []  # `_model_question` has said it
    if not isinstance(positions, int):
        return []
    return [
        SpecError(
            "is longer than the model has positions", field=f"spec.{name}.sequenceLength", value=training.sequence_length,
            allowed=f"at most {positions} (max_position_embeddings in config.json)", next_step=f"Write sequenceLength: {positions} or less",
        )
        for name, training in (("pretraining", spec.pretraining), ("instructionTuning", spec.instruction_tuning))
        if training is not None and training.sequence_length > positions
    ]  # fmt: skip


def _adapters(spec: ExperimentSpec, roots: tuple[Path, ...]) -> list[TransferError]:
    """Adapters that the model has no place for."""
    stages = [("pretraining", spec.pretraining), ("instructionTuning", spec.instruction_tuning)]
    wanted = [(f"spec.{name}.lora", training.adapters) for name, training in stages if training and training.adapters]
    if spec.model.path is None or not wanted:
        return []
    try:
        sides = linear_sides(check_model_folder(find_input(spec.model.path, roots)))
    except TransferError:
        return []  # `_model_question` has said it
    return _ask([functools.partial(check_lora, sides, lora, field) for field, lora in wanted])


def _apart(storage: Path, output: Path) -> None:
    """All experiments share the storage, so what one of them is given cannot lie in it; nor the storage in what is replaced."""
    kept, given = storage.resolve(), output.resolve()
    if given.is_relative_to(kept):
        raise SpecError(
            "is the storage" if given == kept else "lies in the storage", field="output", value=str(output),
            allowed=f"a folder outside of {storage}", next_step="Choose another one with --output",
        )  # fmt: skip
    if replaced := next((name for name in NAMES if kept.is_relative_to(given / name)), None):
        raise SpecError(
            f"lies in {replaced} of the output folder, which a run replaces", field="storage", value=str(storage),
            next_step="Choose another one with --storage, or another output folder with --output",
        )  # fmt: skip


def _writable(folder: Path, field: str, option: str) -> None:
    """Creates the folder and writes a byte: permissions alone do not tell (read-only mounts, full disks, root)."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with storage_errors(folder, field=field, option=option):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"\0")
            finally:
                probe.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError("is not a folder", field=field, value=str(folder), next_step=f"Choose another one with {option}") from error
    except OSError as error:
        raise StorageError(
            f"cannot be used: {error.strerror}", field=field, value=str(folder), next_step=f"Choose another one with {option}"
        ) from error


def _port(port: int | None) -> None:
    if port is None:
        return
    if not 0 <= port <= 65535:
        raise SpecError(
            "is not a port",
            field="--metrics-port",
            value=port,
            allowed="1 to 65535, or 0 for any that is free",
            next_step="Choose another one",
        )
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        raise SpecError(
            "is in use" if in_use else f"cannot be listened on: {error.strerror}", field="--metrics-port", value=port,
            allowed="a free port", next_step="Choose another one, or stop what listens there",
        ) from error  # fmt: skip


def _gpus(spec: ExperimentSpec) -> None:
    if spec.pretraining or spec.instruction_tuning:
        share = worker_share(spec.workers.replicas, 0)
        for name, training in (("pretraining", spec.pretraining), ("instructionTuning", spec.instruction_tuning)):
            if training is not None and training.method is Method.QLORA and len(share) > 1:
                raise SpecError(
                    f"trains in one process, and this machine has {len(share)} GPUs, each with one", field=f"spec.{name}.method",
                    value=training.method.value, next_step="Run it with CUDA_VISIBLE_DEVICES=0, or set method: LoRA",
                )  # fmt: skip


def _disk(
    spec: ExperimentSpec, plan: Sequence[StagePlan], storage: Path, output: Path, search: Sequence[Path]
) -> Iterator[Callable[[], None]]:
    """Free space against what is still to be written: into the storage, into the output folder, or into both on one disk."""
    kept, copied = disk_needed(spec, plan, storage, search), copy_needed(spec, plan, storage, output, search)
    if _one_disk(storage, output):
        yield lambda: _room(storage, "storage", kept + copied, "the experiment with the copy of its model" if copied else "the experiment")
        return
    yield lambda: _room(storage, "storage", kept, "the experiment")
    yield lambda: _room(output, "output", copied, "the copy of its model")


def _one_disk(storage: Path, output: Path) -> bool:
    return storage.stat().st_dev == output.stat().st_dev


def _room(folder: Path, field: str, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"has {free / 1e9:.1f} GB free and {what} needs about {needed / 1e9:.1f} GB", field=field, value=str(folder),
            next_step=f"Free space there, or choose another folder with --{field}",
        )  # fmt: skip


def disk_needed(spec: ExperimentSpec, plan: Sequence[StagePlan], storage: Path, search: Sequence[Path]) -> int:
    """Bytes still to be written into the storage: artifacts of the stages to come, and the checkpoints of the largest of them.

    Less what a run that was stopped has left of them: it goes on from there, on a disk that is as full as it made it.
    """
    store = ArtifactStore(storage)
    to_come = [(stage, cost) for stage, cost in _costs(spec, plan, storage, search) if store.find(stage.kind, stage.key) is None]
    needed = sum(cost.artifact_bytes for _, cost in to_come) + max((cost.work_bytes for _, cost in to_come), default=0)
    return max(0, needed - sum(_bytes_below(store.work_path(stage.kind, stage.key)) for stage, _ in to_come))


def _bytes_below(folder: Path) -> int:
    """Of all files; one that goes while it is looked at counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def copy_needed(spec: ExperimentSpec, plan: Sequence[StagePlan], storage: Path, output: Path, search: Sequence[Path]) -> int:
    """Bytes of the last model, which is copied into the output folder; one that lies there gives its place to it."""
    made = models(plan)
    if not made or (output / "model").exists():
        return 0
    return next(cost.artifact_bytes for stage, cost in _costs(spec, plan, storage, search) if stage.key == made[-1].key)


def _costs(spec: ExperimentSpec, plan: Sequence[StagePlan], storage: Path, search: Sequence[Path]) -> Iterator[tuple[StagePlan, StageCost]]:
    """The stages with their costs, each from the model that it starts from."""
    size = model_size(spec, storage, search)
    for stage in plan:
        yield stage, stage_cost(stage, size, None)
        if size is not None and stage.kind is StageKind.VOCABULARY and spec.vocabulary:
            size = size.with_added_tokens(spec.vocabulary.added_tokens)
