"""What an experiment reads, as this machine sees it: where each input is, how large, what it contains (by digest).

`plan` and `run` must agree on the keys of stages, so both ask here. Digests are kept in `<storage>/.fingerprints.json` beside
size, time and inode of each file: a second run reads no content again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_api.cost import ModelSize, declared_size
from transfer_api.errors import DataError, TransferError
from transfer_api.spec import ExperimentSpec, TextSource, TransferExperiment
from transfer_api.stage import input_paths, models_of
from transfer_pod.artifact import sha256, write_atomically
from transfer_pod.context import expand, find_input
from transfer_pod.documents import count_rows as rows_of
from transfer_pod.model import read_config, safetensors_header, weight_files

CACHE = ".fingerprints.json"
# Of a model folder only what decides how it is loaded: a README does not make it another model.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
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
    cache = _Cache(storage / CACHE)
    found, models = {}, [model.path for model in models_of(experiment.spec).values()]
    for path in input_paths(experiment.spec):
        with contextlib.suppress(DataError):
            place = find_input(path, (storage, *search))
            found[path] = _digest(place, cache, model=path in models)
    cache.save()
    return found


def _digest(place: Path, cache: _Cache, *, model: bool) -> str:
    total = hashlib.sha256()
    for name, file in _files(place, model=model):
        total.update(f"{name}\0{cache.digest(file)}\n".encode())
    return total.hexdigest()


def _files(place: Path, *, model: bool) -> Iterable[tuple[str, Path]]:
    """The files behind a path, each with its name below it."""
    if not place.is_dir():
        return [(file.name, file) for file in expand(place)]
    if model:
        return sorted({file.name: file for pattern in MODEL_FILES for file in place.glob(pattern) if file.is_file()}.items())
    return sorted((str(file.relative_to(place)), file) for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


class _Cache:
    """Digests of files that have not changed since they were read. A cache that cannot be read or written only costs time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        self.entries: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(path.read_text(encoding="utf-8"))
            self.entries = loaded if isinstance(loaded, dict) else {}

    def digest(self, file: Path) -> str:
        """SHA-256 of a file."""
        try:
            state = file.stat()
            mark = [state.st_size, state.st_mtime_ns, state.st_ino]
            name = str(file.resolve())
            known = self.entries.get(name)
            if isinstance(known, dict) and known.get("mark") == mark and isinstance(known.get("sha256"), str):
                return str(known["sha256"])
            digest = sha256(file)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", value=str(file), next_step="Let this user read it") from error
        self.entries[name] = {"mark": mark, "sha256": digest}
        self.changed = True
        return digest

    def save(self) -> None:
        """Writes the cache when it has changed and the storage is there."""
        if self.changed and self.path.parent.is_dir():
            with contextlib.suppress(OSError):
                write_atomically(self.path, json.dumps(self.entries, indent=0, sort_keys=True))


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
