"""Stage `dataset`: tokenises texts or instructions once and leaves packed rows (`store.py`) for any number of epochs and workers.

What is read is a stream and what is written is appended, so memory does not grow with the corpus. Texts are tokenised by all workers
together (`mixture.py`). Instructions, of which there are few, are chosen, rendered and packed by one pod in one go.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from transfer_api.errors import DataError, ModelError, SpecError
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.stage import DatasetParameters
from transfer_pod.artifact import ArtifactStore, sha256
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.documents import Message, iter_instructions
from transfer_pod.model import model_folder, read_config
from transfer_pod.shard import Report, at_work, finished
from transfer_trainer.chat import ChatTemplate, prefix
from transfer_trainer.mixture import Mixture, turn_to_pack
from transfer_trainer.packing import Example, fit, pack_whole
from transfer_trainer.store import RowWriter, SourceIndex, SourceWriter
from transfer_trainer.tokenising import Tokeniser

_REPORT_SECONDS = 1.0


def run(context: PodContext, report: Report) -> ResultMessage:
    """Makes the rows of a `dataset` stage and seals them.

    Raises:
        SpecError: rows longer than the model's positions.
        ModelError: the tokenizer cannot be used.
        DataError: a source cannot be used, or has fewer examples than asked.
    """
    parameters = DatasetParameters.model_validate(context.stage.parameters)
    folder = model_folder(context)
    check_length(parameters, read_config(folder))
    tokenizer = load_tokenizer(folder)
    progress = _Progress(report)
    if parameters.instructions:
        instructions = _Instructions(context, parameters, tokenizer, progress)
        return _seal(context, parameters, folder, progress, instructions.write)
    mixture = Mixture(context, parameters, _tokeniser(tokenizer), progress.add)
    try:
        # Again, and once the work folder is there: while the tokenizer was loaded another pod may have sealed the artifact. One that
        # seals it from here on takes the folder away, and whoever works in it finds that.
        if finished(context) is None:
            mixture.tokenise(_cores())
            with turn_to_pack(context, progress.waiting) as mine:
                if mine:
                    return _seal(context, parameters, folder, progress, lambda writer: _packed(mixture, writer, progress))
    except FileNotFoundError:  # the work folder goes when another pod has sealed the artifact
        if finished(context) is None:
            raise
    result = finished(context)
    assert result is not None
    shutil.rmtree(ArtifactStore(context.storage).work_path(context.stage.kind, context.stage.key), ignore_errors=True)
    return result


def _seal(
    context: PodContext, parameters: DatasetParameters, folder: Path, progress: _Progress, write: Callable[[RowWriter], dict[str, float]]
) -> ResultMessage:
    """Writes the rows into a folder of this pod's own, and makes it the artifact."""
    store = ArtifactStore(context.storage)
    target = store.draft(context.stage, context.pod)
    writer = RowWriter(
        target / "rows", sequence_length=parameters.sequence_length, seed=parameters.seed, tokenizer=tokenizer_digest(folder)
    )
    dropped = write(writer)
    numbers = {**_totals(writer.finish(), parameters.sequence_length), **dropped}
    with progress.saving():
        check_contents(context)
        reference = store.commit(context.stage, target, numbers=numbers)
    tokens = int(numbers["tokens"])
    return ResultMessage(outcome=Outcome.COMPLETE, artifact=reference, numbers=numbers, step=progress.documents, tokens=tokens)


def _packed(mixture: Mixture, writer: RowWriter, progress: _Progress) -> dict[str, float]:
    with progress.saving():
        return mixture.pack(writer)


def _tokeniser(tokenizer: Any) -> Tokeniser:
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-text token", field="spec.model", next_step="Set eos_token in tokenizer_config.json")
    return Tokeniser(tokenizer.backend_tokenizer, prefix(tokenizer), tokenizer.eos_token_id)


def _cores() -> int:
    """Cores of this pod: what it was given, else what this machine has."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def check_length(parameters: DatasetParameters, config: dict[str, Any]) -> None:
    """Refuses rows that are longer than the model has positions.

    Raises:
        SpecError: names the field and the limit.
    """
    limit = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    if limit is not None and parameters.sequence_length > limit:
        section = "instructionTuning" if parameters.instructions else "pretraining"
        raise SpecError(
            "is longer than the model's positions", field=f"spec.{section}.sequenceLength", value=parameters.sequence_length,
            allowed=f"at most {limit} (max_position_embeddings)", next_step=f"Set it to {limit} or less",
        )  # fmt: skip


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        ModelError: it cannot be read, or has no Rust backend.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"its tokenizer cannot be read: {error}", field="spec.model", value=str(folder), next_step="Fetch the model again"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            "its tokenizer has no tokenizer.json", field="spec.model", value=str(folder), next_step="Convert it with a newer transformers"
        )
    return tokenizer


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of what defines the tokenizer: tokenizer.json, or tokenizer.model where a model has only that."""
    path = folder / "tokenizer.json"
    return sha256(path if path.is_file() else folder / "tokenizer.model")


class _Progress:
    """Counts documents, and reports at most once a second: each report is a file written to disk."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._begun = self._last = time.monotonic()
        self.documents = 0
        self.tokens = 0
        self.read = 0

    def reading(self) -> None:
        """A conversation was read that may not be chosen: all are read before the first is written."""
        self.read += 1
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            self._report(Progress(activity=Activity.LOADING, step=self.read))

    def waiting(self) -> None:
        """Another pod packs; this one has nothing to tell but that it lives."""
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            self._report(Progress(activity=Activity.SAVING, step=self.documents, tokens=self.tokens))

    def saving(self) -> contextlib.AbstractContextManager[None]:
        return at_work(self._report, Progress(activity=Activity.SAVING, step=self.documents))

    def add(self, documents: int, tokens: int) -> None:
        """Adds what was done."""
        self.documents += documents
        self.tokens += tokens
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS or self.documents == documents:
            self._last = now
            rate = self.tokens / max(now - self._begun, 1e-9)
            self._report(Progress(activity=Activity.RUNNING, step=self.documents, tokens=self.tokens, tokens_per_second=rate))


def _totals(sources: list[SourceIndex], length: int) -> dict[str, float]:
    rows, tokens = sum(source.rows for source in sources), sum(source.tokens for source in sources)
    return {
        "rows": rows,
        "tokens": tokens,
        "targets": sum(source.targets for source in sources),
        "documents": sum(source.documents for source in sources),
        "bytes": sum(source.bytes for source in sources),
        "filled": tokens / max(1, rows * length),
    }


# Instruction tuning: whole conversations.


class _Instructions:
    """Chooses, renders and packs the examples of all instruction sources, which become one source of the store."""

    def __init__(self, context: PodContext, parameters: DatasetParameters, tokenizer: Any, progress: _Progress) -> None:
        self._context = context
        self._parameters = parameters
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, parameters.template)
        self._progress = progress
        self._dropped = Counter({"dropped_empty": 0, "dropped_duplicates": 0, "dropped_too_long": 0, "cut_answers": 0})

    def write(self, writer: RowWriter) -> dict[str, float]:
        """Writes the one source and returns how many examples were dropped and why."""
        parameters = self._parameters
        with writer.source("instructions", 1) as target:
            chosen = subset(self._unique(), parameters.examples, parameters.seed)
            for row in pack_whole(self._encoded(chosen, target), parameters.sequence_length, self._tokenizer.eos_token_id):
                target.append(row)
        if not target.index.rows:
            raise DataError(
                "no example fits a row: every one is blank, or its prompt alone is too long", field="spec.instructionTuning.sequenceLength",
                value=parameters.sequence_length, next_step="Raise it, or shorten the prompts",
            )  # fmt: skip
        return dict(self._dropped)

    def _unique(self) -> Iterator[list[Message]]:
        """The conversations that have an answer, each exactly once."""
        seen: set[bytes] = set()
        for number, source in enumerate(self._parameters.instructions):
            for messages in iter_instructions(source, self._context, f"spec.instructionTuning.data[{number}]"):
                self._progress.reading()
                if not any(message.role == "assistant" and message.content.strip() for message in messages):
                    self._dropped["dropped_empty"] += 1
                    continue
                plain = json.dumps([[message.role, message.content] for message in messages])
                digest = hashlib.blake2b(plain.encode(), digest_size=16).digest()
                if digest in seen:
                    self._dropped["dropped_duplicates"] += 1
                    continue
                seen.add(digest)
                yield messages

    def _encoded(self, conversations: Iterable[list[Message]], target: SourceWriter) -> Iterator[Example]:
        for messages in conversations:
            whole = self._template.encode(messages)
            example = fit(whole, self._parameters.sequence_length)
            self._progress.add(1, len(example.tokens) if example is not None else 0)
            if example is None:
                self._dropped["dropped_too_long"] += 1
                continue
            self._dropped["cut_answers"] += len(example.tokens) < len(whole.tokens)
            target.count(documents=1, bytes=sum(len(message.content.encode()) for message in messages))
            yield example


def subset(conversations: Iterable[list[Message]], examples: int | None, seed: int) -> Iterator[list[Message]]:
    """The `examples` conversations whose numbers have the smallest seeded hashes, in order of hash; all in their order for None.

    The hash of a number does not depend on how many are asked for, so a larger subset contains every smaller one. No more
    than `examples` conversations are in memory.

    Raises:
        DataError: there are fewer.
    """
    if examples is None:
        yield from conversations
        return
    total = 0

    def ranked() -> Iterator[tuple[bytes, int, list[Message]]]:
        nonlocal total
        for number, messages in enumerate(conversations):
            total = number + 1
            yield hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=16).digest(), number, messages

    chosen = heapq.nsmallest(examples, ranked(), key=lambda entry: entry[:2])
    if total < examples:
        raise DataError(
            f"asks for more examples than there are: {total} different ones", field="spec.instructionTuning.examples", value=examples,
            allowed=f"at most {total}", next_step=f"Set examples: {total}, leave it out to take all, or add data",
        )  # fmt: skip
    for _, _, messages in chosen:
        yield messages
