"""Whether the data are as much as an experiment asks for, as far as that can be told before anything is tokenised.

A token is a byte or more, and an example fills a row at most: what goes beyond that can never be. What is nearer shows once the data
set was made, which is counted here where it is in the storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from transfer_api.amount import count_of
from transfer_api.errors import ArtifactError, DataError, TransferError
from transfer_api.spec import MOST_EPOCHS, ExperimentSpec, InstructionTuning, Pretraining, WeightedSource
from transfer_api.stage import StageKind, StagePlan, TrainingParameters, is_address
from transfer_cli.inputs import PACKED, exact_rows
from transfer_pod.artifact import ArtifactStore
from transfer_pod.context import expand, find_input


def too_little_data(spec: ExperimentSpec, roots: tuple[Path, ...], errors: Sequence[TransferError]) -> list[TransferError]:
    """Refuses what no tokenizer could fill: budgets, batches of more than all epochs have, and more examples than there are.

    Args:
        spec: what the experiment reads.
        roots: folders in which relative paths are looked up.
        errors: what was found before; the size of a source that cannot be read means nothing.
    """
    found: list[TransferError] = []
    if spec.pretraining is not None:
        found += _too_little_text(spec.pretraining, roots, errors)
    if spec.instruction_tuning is not None:
        found += _too_few_examples(spec.instruction_tuning, roots, errors)
    return found


def too_little_made(plan: Sequence[StagePlan], storage: Path) -> list[TransferError]:
    """The same of trainings whose data set is in the storage: its rows are counted, and the stage would refuse them."""
    from transfer_trainer.rows import total_steps
    from transfer_trainer.store import RowStore

    store, found = ArtifactStore(storage), list[TransferError]()
    for stage in plan:
        parameters = stage.typed_parameters()
        if not isinstance(parameters, TrainingParameters) or store.find(stage.kind, stage.key) is not None:
            continue
        if store.find(StageKind.DATASET, stage.inputs["dataset"]) is None:
            continue
        section = "spec.pretraining" if stage.kind is StageKind.PRETRAINING else "spec.instructionTuning"
        try:
            rows = RowStore.open(store.path(StageKind.DATASET, stage.inputs["dataset"]) / "rows")
            total_steps(parameters, rows.sources, stage.execution.max_epochs, section)
        except ArtifactError:
            continue  # damaged: whoever reads it says so
        except TransferError as error:
            found.append(error)
    return found


def in_an_epoch(sizes: Sequence[int | None], weights: Sequence[int]) -> int | None:
    """What one pass over the source that lasts longest at its weight reads of all sources; None where one that is drawn is not known."""
    drawn = [(size, weight) for size, weight in zip(sizes, weights, strict=True) if weight]
    known = [size * sum(weights) // weight for size, weight in drawn if size is not None]
    return max(known, default=0) if len(known) == len(drawn) else None


def _too_little_text(training: Pretraining, roots: tuple[Path, ...], errors: Sequence[TransferError]) -> Iterator[TransferError]:
    sizes = [
        None if _refused(f"spec.pretraining.mixture[{number}]", errors) else _plain_bytes(source, roots)
        for number, source in enumerate(training.mixture)
    ]
    weights = sum(source.weight for source in training.mixture)
    if training.epochs is not None:
        rows = [None if size is None else math.ceil(size / training.sequence_length) for size in sizes]
        most = in_an_epoch(rows, [source.weight for source in training.mixture])
        if most is not None:
            yield from _too_large_batch("spec.pretraining", training, most, training.epochs)
        return
    wanted = training.tokens or (training.steps or 0) * training.global_batch_tokens
    for number, (source, size) in enumerate(zip(training.mixture, sizes, strict=True)):
        share = wanted * source.weight // max(1, weights)
        if not size or share <= training.max_epochs * size:
            continue
        epochs = -(-share // size)
        more = f", or set maxEpochs: {epochs} or more" if epochs <= MOST_EPOCHS else ""
        yield DataError(
            f"has {size:,} bytes, and so no more tokens; the budget asks for {share:,} of it: at least {count_of(epochs, 'epoch')}, "
            f"where maxEpochs allows {count_of(training.max_epochs, 'epoch')}",
            field=f"spec.pretraining.mixture[{number}].path", value=source.path, next_step=f"Add text, or ask for less{more}",
        )  # fmt: skip


def _too_few_examples(tuning: InstructionTuning, roots: tuple[Path, ...], errors: Sequence[TransferError]) -> Iterator[TransferError]:
    if _refused("spec.instructionTuning.data", errors):
        return
    there = exact_rows([data.path for data in tuning.data], roots[0], roots[1:])
    if there is not None and tuning.examples is not None and there < tuning.examples:
        yield DataError(
            f"asks for more examples than there are: {there}", field="spec.instructionTuning.examples", value=tuning.examples,
            allowed=f"at most {there}", next_step=f"Set examples: {there}, leave it out to take all, or add data",
        )  # fmt: skip
    if there is not None and tuning.steps is None:  # fewer examples than a batch has rows are refused by a rule
        yield from _too_large_batch("spec.instructionTuning", tuning, there, tuning.epochs or 1)


def _too_large_batch(section: str, training: Pretraining | InstructionTuning, rows: int, epochs: int) -> Iterator[TransferError]:
    """Of a training by epochs; `rows` are the most that one of them can have."""
    per_step = training.global_batch_tokens // training.sequence_length
    if 0 < rows * epochs < per_step:
        from transfer_trainer.rows import too_large_batch

        yield too_large_batch(section, per_step=per_step, length=training.sequence_length, rows=rows, epochs=epochs, at_most=True)


def _refused(field: str, errors: Sequence[TransferError]) -> bool:
    return any((error.field or "").startswith((f"{field}.", f"{field}[")) or error.field == field for error in errors)


def _plain_bytes(source: WeightedSource, roots: tuple[Path, ...]) -> int | None:
    """Size of a source's files; None where they are elsewhere, or packed."""
    if source.path is None or is_address(source.path):
        return None
    files = expand(find_input(source.path, roots))
    return None if any(file.suffix in PACKED for file in files) else sum(file.stat().st_size for file in files)
