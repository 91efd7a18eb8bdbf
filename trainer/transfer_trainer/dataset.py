"""Stage `dataset`: tokenises texts or instructions once and leaves packed rows (`store.py`) for any number of epochs and workers.

What is read is a stream and what is written is appended, so memory does not grow with the corpus. A half-written folder of a
killed run is dropped: tokenising is cheap beside training, and a row store that was resumed could not be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transfer_api.errors import DataError, ModelError, SpecError
from transfer_api.progress import Activity, Outcome, Progress, ResultMessage
from transfer_api.spec import WeightedSource
from transfer_api.stage import DatasetParameters
from transfer_pod.artifact import ArtifactStore, sha256
from transfer_pod.context import PodContext
from transfer_pod.documents import Message, iter_documents, iter_instructions
from transfer_pod.model import model_folder, read_config
from transfer_pod.shard import Report, at_work
from transfer_trainer.chat import ChatTemplate, prefix
from transfer_trainer.packing import Example, fit, pack_stream, pack_whole
from transfer_trainer.store import RowWriter, SourceIndex, SourceWriter

_BATCH_CHARACTERS = 1_000_000  # the tokenizer needs about 100 bytes of memory for each token of a batch
_BATCH_TEXTS = 1000
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
    store = ArtifactStore(context.storage)
    target = store.draft(context.stage, context.pod)
    writer = RowWriter(
        target / "rows", sequence_length=parameters.sequence_length, seed=parameters.seed, tokenizer=tokenizer_digest(folder)
    )
    progress = _Progress(report)
    if parameters.instructions:
        dropped = _Instructions(context, parameters, tokenizer, progress).write(writer)
    else:
        dropped = {}
        _write_mixture(context, parameters, tokenizer, writer, progress)
    numbers = {**_totals(writer.finish(), parameters.sequence_length), **dropped}
    with progress.saving():
        reference = store.commit(context.stage, target, numbers=numbers)
    tokens = int(numbers["tokens"])
    return ResultMessage(outcome=Outcome.COMPLETE, artifact=reference, numbers=numbers, step=progress.documents, tokens=tokens)


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
        self.read = 0

    def reading(self) -> None:
        """A conversation was read that may not be chosen: all are read before the first is written."""
        self.read += 1
        if time.monotonic() - self._last >= _REPORT_SECONDS:
            self._last = time.monotonic()
            self._report(Progress(activity=Activity.LOADING, step=self.read))

    def saving(self) -> contextlib.AbstractContextManager[None]:
        return at_work(self._report, Progress(activity=Activity.SAVING, step=self.documents))

    def add(self, documents: int, tokens: int) -> None:
        self.documents += documents
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS or self.documents == documents:
            self._last = now
            rate = tokens / max(now - self._begun, 1e-9)
            self._report(Progress(activity=Activity.RUNNING, step=self.documents, tokens=tokens, tokens_per_second=rate))


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


# Pretraining: texts laid end to end.


def _write_mixture(context: PodContext, parameters: DatasetParameters, tokenizer: Any, writer: RowWriter, progress: _Progress) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-text token", field="spec.model", next_step="Set eos_token in tokenizer_config.json")
    for number, source in enumerate(parameters.mixture):
        with writer.source(source_name(source), source.weight) as target:
            if not source.weight:
                continue  # never drawn from, so there is nothing to prepare
            texts = iter_documents(source, context, f"spec.pretraining.mixture[{number}]")
            documents = _tokenised(texts, tokenizer, target, progress)
            for row in pack_stream(documents, parameters.sequence_length, tokenizer.eos_token_id):
                target.append(row)


def source_name(source: WeightedSource) -> str:
    """The name under which a source is shown: its path, or data set and subset."""
    return source.path or "/".join(part for part in (source.hub, source.subset) if part)


def _tokenised(texts: Iterable[str], tokenizer: Any, target: SourceWriter, progress: _Progress) -> Iterator[list[int]]:
    """Each document's tokens: begin-of-text where the model has one, the text, end-of-text."""
    begin, end = prefix(tokenizer), [tokenizer.eos_token_id]
    backend = tokenizer.backend_tokenizer
    for batch in _batches(texts):
        pieces = [_pieces(text) for text in batch]
        encodings = iter(backend.encode_batch_fast([piece for parts in pieces for piece in parts], add_special_tokens=False))
        for text, parts in zip(batch, pieces, strict=True):
            tokens = [token for _ in parts for token in next(encodings).ids]
            target.count(documents=1, bytes=len(text.encode()))
            yield [*begin, *tokens, *end]
        progress.add(len(batch), target.index.tokens)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> list[str]:
    """A text in pieces of at most `_BATCH_CHARACTERS`, parted before a space or line where there is one.

    A whole library in one document would need a hundred times its size in memory; one cut in a million characters moves at
    most a few token borders.
    """
    pieces, start = [], 0
    while len(text) - start > _BATCH_CHARACTERS:
        limit = start + _BATCH_CHARACTERS
        cut = max(text.rfind("\n", start + 1, limit), text.rfind(" ", start + 1, limit))
        cut = cut if cut > start else limit
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]]


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
            self._progress.add(1, target.index.tokens)
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
