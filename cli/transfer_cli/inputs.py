"""What an experiment reads, as this machine sees it: where each input is, how large, what it contains (by digest).

`plan` and `run` must agree on the keys of stages, so both ask here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_api.cost import ModelSize, declared_size
from transfer_api.errors import DataError, TransferError
from transfer_api.spec import ExperimentSpec, TextSource, TransferExperiment
from transfer_api.stage import input_paths, is_address, models_of
from transfer_pod.contents import Digests
from transfer_pod.context import expand, find_input
from transfer_pod.documents import BROKEN
from transfer_pod.documents import count_rows as rows_of
from transfer_pod.model import read_config, safetensors_header, weight_files

PACKED = (".gz", ".zst", ".parquet")
PACKED_FACTOR = 3  # text packs to about a third


@dataclass(frozen=True)
class Source:
    """One source of texts or instructions with its place in the file."""

    field: str
    path: str | None
    text_field: str | None
    """Field that holds the text; None for instructions."""


def sources(spec: ExperimentSpec) -> Iterator[Source]:
    """Every source of the experiment, in the order of the file."""
    for index, text in enumerate(spec.vocabulary.corpus if spec.vocabulary else []):
        yield _text(f"spec.vocabulary.corpus[{index}]", text)
    for index, text in enumerate(spec.pretraining.mixture if spec.pretraining else []):
        yield _text(f"spec.pretraining.mixture[{index}]", text)
    for index, data in enumerate(spec.instruction_tuning.data if spec.instruction_tuning else []):
        yield Source(f"spec.instructionTuning.data[{index}]", data.path, None)
    for index, text in enumerate(spec.evaluation.texts if spec.evaluation else []):
        yield _text(f"spec.evaluation.texts[{index}]", text)
    for index, questions in enumerate(spec.evaluation.questions if spec.evaluation else []):
        yield Source(f"spec.evaluation.questions[{index}]", questions.path, questions.question_field)


def _text(field: str, source: TextSource) -> Source:
    return Source(field, source.path, source.field)


def fingerprints(experiment: TransferExperiment, *, storage: Path, search: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of the content behind every input path, for the keys of stages.

    A path that is not there is left out: `preflight.check` says so, and a plan can be made without it.
    """
    cache = Digests(storage)
    found, models = {}, [model.path for model in models_of(experiment.spec).values()]
    for path in input_paths(experiment.spec):
        with contextlib.suppress(DataError):
            place = find_input(path, (storage, *search))
            found[path] = cache.of_input(place, model=path in models)
    cache.save()
    return found


def text_bytes(paths: Iterable[str | None], storage: Path, search: Sequence[Path]) -> int | None:
    """Bytes of text behind the paths, unpacked; None when one is on a hub or not there."""
    total = 0
    for path in paths:
        if path is None:
            return None
        try:
            files = expand(find_input(path, (storage, *search)))
        except DataError:
            return None
        total += sum(file.stat().st_size * (PACKED_FACTOR if file.suffix in PACKED else 1) for file in files if file.is_file())
    return total


def count_rows(paths: Iterable[str | None], storage: Path, search: Sequence[Path]) -> int:
    """Objects behind paths that `text_bytes` could see; broken files count as far as they can be read."""
    files = (file for path in paths if path is not None for file in expand(find_input(path, (storage, *search))))
    return sum(rows_of(file) for file in files)


def exact_rows(paths: Iterable[str | None], storage: Path, search: Sequence[Path]) -> int | None:
    """Objects behind paths; None where one is on a hub or elsewhere, not there, or broken."""
    total = 0
    for path in paths:
        if path is None or is_address(path):
            return None
        try:
            total += sum(rows_of(file, strict=True) for file in expand(find_input(path, (storage, *search))))
        except (DataError, *BROKEN):
            return None
    return total


def model_size(spec: ExperimentSpec, storage: Path, search: Sequence[Path]) -> ModelSize | None:
    """Size of the base model: counted in its safetensors headers where the folder is there, else as declared."""
    if spec.model.path is not None:
        with contextlib.suppress(TransferError):
            folder = find_input(spec.model.path, (storage, *search))
            headers = [safetensors_header(path) for path in weight_files(folder)]
            count = sum(_elements(entry["shape"]) for header in headers for entry in header.values())
            if count:
                return ModelSize.from_config(count, "counted in its safetensors", read_config(folder))
    return declared_size(spec.model)


def _elements(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
