"""Tokenises the texts of a mixture piece by piece, over any number of pods and processes, and packs the pieces into rows.

    <work>/inputs.json               the files that are read: size and time of each
    <work>/commits/commits.json      hub data sets that no revision holds still: the commit that every pod and attempt reads
    <work>/parts/<source>-<n>/       one piece: tokens, lengths, counts, digests where they are needed; there as a whole or not at all
    <work>/merge.json                who packs the pieces

A piece is cut from its file by rules that know nothing of pods (`documents.parts`), and the pieces are packed in order: so the rows
are the same however many make them. Nobody hands out work. Each process takes its share of the pieces, then what others have not
done yet, from the end: where two do the same piece, they do the same. So a pod that is lost, late or never scheduled only
costs time, and what was done before an interruption is not done again.

Memory does not grow with the corpus: a piece is a stream of batches, and rows are packed from files mapped into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_api.errors import ArtifactError, DataError
from transfer_api.spec import Deduplication, WeightedSource
from transfer_api.stage import DatasetParameters
from transfer_pod.artifact import ArtifactStore, storage_errors
from transfer_pod.context import PodContext
from transfer_pod.documents import PART_BYTES, Part, iter_part, no_document, parts, stamp
from transfer_pod.hub import newest_commit
from transfer_trainer import sieve
from transfer_trainer.packing import StreamPacker
from transfer_trainer.process import follow_parent
from transfer_trainer.sieve import Sieve
from transfer_trainer.store import TOKENS, RowWriter, SourceWriter
from transfer_trainer.tokenising import PIECE_CHARACTERS, Tokeniser

logger = logging.getLogger(__name__)

LENGTHS = np.dtype(("<u4", 2))
"""Tokens and UTF-8 bytes of a document."""
_BATCH_TEXTS = 1000
_POLL_SECONDS = 0.5
_BEAT_SECONDS = 5.0
_SILENCE_SECONDS = 60.0
"""A pod that packs and is not heard of for so long is taken to be gone."""
_BLOCK_TOKENS = 4_000_000  # packed at once: 60 MB with everything that is computed for them
Advance = Callable[[int, int], None]
"""Is told of documents and tokens that were done."""


@dataclass(frozen=True)
class Piece:
    """One part of one source, and where its tokens go."""

    source: WeightedSource
    field: str
    part: Part
    folder: Path

    @property
    def done(self) -> bool:
        """Whether somebody has made it."""
        return self.folder.is_dir()

    def facts(self) -> dict[str, Any]:
        """Counts and the digest of its documents."""
        facts: dict[str, Any] = json.loads((self.folder / "part.json").read_text(encoding="utf-8"))
        return facts


class Mixture:
    """The texts of one dataset stage.

    Args:
        context: this pod; its index says which pieces it takes first.
        parameters: of the stage.
        tokeniser: makes the tokens.
        advance: is told of progress.
    """

    def __init__(self, context: PodContext, parameters: DatasetParameters, tokeniser: Tokeniser, advance: Advance) -> None:
        self._context = context
        self._parameters = parameters
        self._tokeniser = tokeniser
        self._advance = advance
        self._work = ArtifactStore(context.storage).work(context.stage.kind, context.stage.key)
        self._pieces: list[list[Piece]] = []

    def tokenise(self, processes: int) -> None:
        """Has every piece made, by this pod or by others.

        Raises:
            DataError: a text cannot be used, or a source has none.
            ArtifactError: a file has changed since an earlier attempt read it.
            HubUnreachableError: the hub does not say which commit of a data set is the newest.
        """
        commits = self._commits()
        held = [
            source.model_copy(update={"revision": source.revision or commits.get(source.hub or "")}) for source in self._parameters.mixture
        ]
        self._pieces = [self._cut(number, source) for number, source in enumerate(held)]
        flat = [piece for pieces in self._pieces for piece in pieces]
        self._check_inputs(flat)
        with storage_errors(self._work):
            (self._work / "parts").mkdir(exist_ok=True)  # here alone: where it is gone later, another pod has sealed the artifact
        pods = max(1, self._context.max_nodes)
        processes = max(1, min(processes, len(flat)))
        if processes == 1:
            _make_all(flat, self._context.index, pods, self._tokeniser, self._advance)
        else:
            self._spread(flat, processes, pods)
        for source, pieces in zip(self._parameters.mixture, self._pieces, strict=True):
            if pieces:
                self._see_some(source, pieces)

    def pack(self, writer: RowWriter) -> dict[str, float]:
        """Packs the pieces into rows, in the order of the texts; returns what was dropped and why."""
        self._check_inputs([piece for pieces in self._pieces for piece in pieces])
        dropped: Counter[str] = Counter()
        for source, pieces in zip(self._parameters.mixture, self._pieces, strict=True):
            with writer.source(source_name(source), source.weight) as target:
                packer = StreamPacker(self._parameters.sequence_length, self._tokeniser.end)
                repeated, first = _repeated(pieces, dropped), 0
                for piece in pieces:
                    counts = piece.facts()["counts"]
                    last = first + counts["documents"]
                    _pack_piece(piece, packer, target, None if repeated is None else repeated[first:last])
                    dropped.update({name: count for name, count in counts.items() if name.startswith("dropped")})
                    first = last
                target.append_rows(*packer.finish())
        return {name: float(count) for name, count in dropped.items()}

    def _see_some(self, source: WeightedSource, pieces: list[Piece]) -> None:
        counts = sum((Counter(piece.facts()["counts"]) for piece in pieces), Counter[str]())
        if counts["documents"]:
            return
        dropped = {name.removeprefix("dropped_"): count for name, count in counts.items() if name.startswith("dropped")}
        if not dropped:
            raise no_document(source, self._context, pieces[0].field)
        raise DataError(
            "drops every document", field=f"{pieces[0].field}.filter", value=", ".join(f"{n} {why}" for why, n in dropped.items()),
            next_step="Loosen it, or remove the source",
        )  # fmt: skip

    def _commits(self) -> dict[str, str]:
        """Commits of the hub data sets without a revision: the newest ones when the first attempt looked.

        Pieces of two commits would be packed into one dataset otherwise, when a data set moves between attempts or pods.
        """
        loose = {
            source.hub: f"spec.pretraining.mixture[{number}].hub"
            for number, source in enumerate(self._parameters.mixture)
            if source.hub and source.revision is None and source.weight
        }
        folder = self._work / "commits"
        if loose and not folder.is_dir():
            found = {name: commit for name, field in loose.items() if (commit := newest_commit(name, field)) is not None}
            draft = folder.with_name(f".commits.{secrets.token_hex(8)}")
            if len(found) < len(loose):  # without a network nothing can move; a later attempt that has one asks
                return {}
            with storage_errors(draft):
                draft.mkdir()
                _write(draft / "commits.json", found)
                _publish(draft, folder)
        commits = (_read_json(folder / "commits.json") or {}) if loose else {}
        for name, commit in commits.items():
            logger.info("%s is read at revision %s", name, commit)
        return commits

    def _cut(self, number: int, source: WeightedSource) -> list[Piece]:
        if not source.weight:
            return []  # never drawn from, so there is nothing to prepare
        field = f"spec.pretraining.mixture[{number}]"
        found = enumerate(parts(source, self._context, field, PART_BYTES))
        return [Piece(source, field, part, self._work / "parts" / f"{number}-{n}") for n, part in found]

    def _spread(self, pieces: list[Piece], processes: int, pods: int) -> None:
        """Makes the pieces in several processes of this pod."""
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locks of libraries in whatever state they are
        counts = spawn.Value("q", 0), spawn.Value("q", 0)
        first, total = self._context.index * processes, pods * processes
        with ProcessPoolExecutor(processes, spawn, _begin_process, (os.getpid(), self._tokeniser, *counts)) as pool:
            running: set[Future[None]] = {pool.submit(_make_in_process, pieces, first + process, total) for process in range(processes)}
            told = [0, 0]
            while running:
                done, running = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                now = [int(count.value) for count in counts]
                if now != told:
                    self._advance(now[0] - told[0], now[1] - told[1])
                    told = now
                for future in done:
                    future.result()

    def _check_inputs(self, pieces: list[Piece]) -> None:
        """Sees that the files are those that the pieces done so far were read from.

        A file that only has a new time is read again, to compare what is in it. Another experiment, or another `transfer run`, that
        finds pieces of other files starts from nothing: its attempts have read none of them.
        """
        record = self._work / "inputs.json"
        files = _stamps(pieces)
        mine = {"lineage": self._context.lineage, "files": files}
        with storage_errors(self._work):
            known = _read_json(record)
            if known is None:
                _write(record, mine)
                return
            moved = sorted(name for name in known["files"].keys() | files.keys() if known["files"].get(name) != files.get(name))
            changed = next((name for name in moved if self._differs(name, pieces)), None)
            if changed is None:
                return
            if known["lineage"] == mine["lineage"]:
                raise ArtifactError(
                    "has changed while this experiment reads it", field=_field_of(changed, pieces), value=changed,
                    next_step=f"Put the old file back, or remove {self._work} to have the data set made from the new one",
                )  # fmt: skip
            shutil.rmtree(self._work / "parts", ignore_errors=True)
            _write(record, mine)

    def _differs(self, name: str, pieces: list[Piece]) -> bool:
        """Whether a piece that is done has other documents than its file has now."""
        mine = [piece for piece in pieces if piece.part.file == name]
        return not mine or any(piece.facts()["sha256"] != _digest(piece) for piece in mine if piece.done)


def source_name(source: WeightedSource) -> str:
    """The name under which a source is shown: its path, or data set and subset."""
    return source.path or "/".join(part for part in (source.hub, source.subset) if part)


@contextlib.contextmanager
def turn_to_pack(context: PodContext, beat: Callable[[], None]) -> Iterator[bool]:
    """Waits until this pod is to pack the pieces (True), or the artifact is there (False).

    The first to ask packs; another takes over when it is silent. Should both live, both pack the same rows, and the second
    artifact is dropped.
    """
    if context.max_nodes <= 1:
        yield True
        return
    store = ArtifactStore(context.storage)
    record = store.work_path(context.stage.kind, context.stage.key) / "merge.json"
    heard, since = None, time.monotonic()
    while True:
        if store.find(context.stage.kind, context.stage.key) is not None:
            yield False
            return
        said = _read_json(record)
        if said != heard:
            heard, since = said, time.monotonic()
        if time.monotonic() - since >= _SILENCE_SECONDS or (said is None and _claim(record)):
            break
        beat()
        time.sleep(_POLL_SECONDS)
    over = threading.Event()
    _write(record, {"pod": context.pod, "beat": 0})

    def speak() -> None:
        beats = itertools.count(1)
        while not over.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the folder goes with the commit
                _write(record, {"pod": context.pod, "beat": next(beats)})

    thread = threading.Thread(target=speak, name="packing", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()


def _claim(record: Path) -> bool:
    """Makes the record unless somebody has just done so."""
    try:
        record.open("x").close()
    except FileExistsError:
        return False
    return True


_process: tuple[Tokeniser, Advance]


def _begin_process(parent: int, tokeniser: Tokeniser, documents: Synchronized[int], tokens: Synchronized[int]) -> None:
    global _process
    follow_parent(parent)

    def advance(more_documents: int, more_tokens: int) -> None:
        with documents.get_lock(), tokens.get_lock():
            documents.value += more_documents
            tokens.value += more_tokens

    _process = tokeniser, advance


def _make_in_process(pieces: list[Piece], first: int, of: int) -> None:
    _make_all(pieces, first, of, *_process)


def _make_all(pieces: list[Piece], first: int, of: int, tokeniser: Tokeniser, advance: Advance) -> None:
    """Makes every piece that is not there: first this one's share, then the others' from the end."""
    share = pieces[first % of :: of]
    others = [piece for number, piece in enumerate(pieces) if number % of != first % of]
    for piece in [*share, *reversed(others)]:
        if not piece.done:
            make(piece, tokeniser, advance)


def make(piece: Piece, tokeniser: Tokeniser, advance: Advance) -> None:
    """Tokenises one piece. Where another process was first, its work stays: it is the same.

    Raises:
        FileNotFoundError: the folder of the pieces is gone, with the artifact sealed.
    """
    draft = piece.folder.with_name(f".{piece.folder.name}.{secrets.token_hex(8)}")
    digest = hashlib.sha256()
    counts = Counter({"documents": 0, "tokens": 0})
    with storage_errors(draft):
        draft.mkdir()
        with _Columns(draft, piece.source.deduplicate) as columns:
            read = _digested(iter_part(piece.source, piece.part, piece.field), digest.update)
            for batch in _batches(_kept(read, Sieve(piece.source.filter, f"{piece.field}.filter"), counts)):
                encoded = tokeniser.encode(batch)
                columns.write(batch, encoded)
                tokens = sum(map(len, encoded))
                counts.update(documents=len(batch), tokens=tokens)
                advance(len(batch), tokens)
        facts = {"sha256": digest.hexdigest(), "counts": dict(counts)}
        (draft / "part.json").write_text(json.dumps(facts), encoding="utf-8")
        _publish(draft, piece.folder)


class _Columns:
    """What is kept of each document of a piece: tokens, lengths, and what tells whether it was there before."""

    def __init__(self, folder: Path, deduplicate: Deduplication | None) -> None:
        names = ["tokens", "lengths"]
        names += ["digests"] if deduplicate else []
        names += ["signatures"] if deduplicate is Deduplication.NEAR else []
        self._files = {name: (folder / name).open("wb") for name in names}

    def __enter__(self) -> _Columns:
        return self

    def write(self, texts: list[str], encoded: list[npt.NDArray[np.uint32]]) -> None:
        """Adds documents with their tokens."""
        files = self._files
        files["tokens"].writelines(array.data for array in encoded)
        pairs = [(len(array), len(text.encode())) for array, text in zip(encoded, texts, strict=True)]
        files["lengths"].write(np.array(pairs, LENGTHS.base).tobytes())
        if "digests" in files:
            files["digests"].writelines(map(sieve.digest, texts))
        if "signatures" in files:
            files["signatures"].writelines(sieve.signature(text).data for text in texts)

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()


def _kept(texts: Iterable[str], wanted: Sieve, counts: Counter[str]) -> Iterator[str]:
    for text in texts:
        if (reason := wanted.reason(text)) is None:
            yield text
        else:
            counts[reason] += 1


def _digest(piece: Piece) -> str:
    digest = hashlib.sha256()
    for _ in _digested(iter_part(piece.source, piece.part, piece.field), digest.update):
        pass
    return digest.hexdigest()


def _digested(texts: Iterable[str], update: Callable[[bytes], None]) -> Iterator[str]:
    for text in texts:
        update(text.encode())
        update(b"\0")
        yield text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= PIECE_CHARACTERS or len(batch) >= _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _repeated(pieces: list[Piece], counts: Counter[str]) -> npt.NDArray[np.bool_] | None:
    """Which documents of a source were there before; None where nobody asked."""
    wanted = pieces[0].source.deduplicate if pieces else None
    if wanted is None:
        return None
    again = sieve.repeated(np.concatenate([_map(piece.folder / "digests", sieve.DIGEST) for piece in pieces]))
    counts["dropped_duplicates"] += int(again.sum())
    if wanted is Deduplication.NEAR:
        near = sieve.nearly_repeated([_map(piece.folder / "signatures", sieve.SIGNATURE) for piece in pieces]) & ~again
        counts["dropped_near_duplicates"] += int(near.sum())
        again |= near
    return again


def _pack_piece(piece: Piece, packer: StreamPacker, target: SourceWriter, dropped: npt.NDArray[np.bool_] | None) -> None:
    """Packs the documents of a piece but those that are dropped."""
    counts = piece.facts()["counts"]
    lengths = _map(piece.folder / "lengths", LENGTHS)
    tokens = _map(piece.folder / "tokens", TOKENS)
    ends = np.cumsum(lengths[:, 0], dtype=np.int64)
    if len(lengths) != counts["documents"] or len(tokens) != counts["tokens"] or (len(ends) and ends[-1] != len(tokens)):
        raise ArtifactError(f"{piece.folder} is not whole", next_step="Remove it to have it made again")
    first = 0
    while first < len(lengths):
        begin = ends[first] - lengths[first, 0]
        last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK_TOKENS, side="right")))
        block, sizes = tokens[begin : ends[last - 1]], lengths[first:last]
        if dropped is not None and dropped[first:last].any():
            kept = ~dropped[first:last]
            block, sizes = block[np.repeat(kept, sizes[:, 0])], sizes[kept]
        starts = np.cumsum(sizes[:, 0], dtype=np.int64) - sizes[:, 0]
        target.append_rows(packer.add(block, starts))
        target.count(documents=len(sizes), bytes=int(sizes[:, 1].sum(dtype=np.int64)))
        first = last


def _map(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _stamps(pieces: list[Piece]) -> dict[str, list[int]]:
    """Size and time of every file."""
    return {name: stamp(name) for name in sorted({piece.part.file for piece in pieces if piece.part.file})}


def _field_of(name: str, pieces: list[Piece]) -> str:
    return next((f"{piece.field}.path" for piece in pieces if piece.part.file == name), "spec.pretraining.mixture")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that other pods write too: process ids, which are the same in many pods, do not tell them apart."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def _publish(draft: Path, folder: Path) -> None:
    """Gives a folder its name; where another process was first, its folder stays."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(draft, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
