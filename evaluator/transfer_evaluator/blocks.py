"""The forward passes of an evaluation, shared among its pods block by block.

    <work>/blocks/<digest>.json         what a block of requests came to; there as a whole or not at all
    <work>/blocks/<digest>.lock         held by the pod that computes it

What is asked of a model is cut into blocks by rules that know nothing of pods, and each block is computed alone: so the figures are the
same to the last bit, however many pods compute them. Nobody hands out work. Each pod takes its share of the blocks, then what others have
not begun, from the end; every pod then has all results and goes on alike, to the next request or to the table. A pod that is lost costs
the block it was at: the kernel lets go of its lock, and another pod, or the one that replaces it, takes the block. One pod alone does the
same, so that it too goes on where it was killed.

Where a file system knows no locks, two pods may compute the same block, and find the same.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_pod.artifact import ArtifactStore, storage_errors, write_atomically
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.lock import FileLock

POLL_SECONDS = 0.5
Done = Callable[[int, int], None]
"""Told of requests that are finished, and of tokens that were computed for them."""
Compute = Callable[[Sequence[int], Done], list[Any]]
"""Gives what JSON can hold for each of the requests at some places, and tells of them."""


class FinishedElsewhereError(Exception):
    """Another pod has left the artifact of this stage."""


@dataclass(frozen=True)
class Block:
    """Requests that are computed together."""

    indices: tuple[int, ...]
    """Places among all that is asked for at once."""
    digest: str
    """Of everything that decides its results, within one stage."""


class Blocks:
    """The blocks of one stage, as one of its pods sees them.

    Args:
        context: this pod; its index says which blocks it takes first.
    """

    def __init__(self, context: PodContext) -> None:
        self._context = context
        self._store = ArtifactStore(context.storage)
        self._folder = self._store.work(context.stage.kind, context.stage.key) / "blocks"
        self._before = self._found()
        self.computed = 0
        """Blocks that this pod computed itself."""

    def share(self, blocks: Sequence[Block], compute: Compute, done: Done) -> list[Any]:
        """The results of all requests, in their order.

        Args:
            blocks: of all requests, each in one block.
            compute: computes the requests at some places.
            done: is told of every request once, and of the tokens that somebody has computed for it.

        Raises:
            FinishedElsewhereError: the stage is done.
            StorageError: a block cannot be written.
        """
        own = self._compute_missing(blocks, compute, done)
        found: dict[int, Any] = {}
        for block in blocks:
            content = self._read(block)
            found |= dict(zip(block.indices, content["results"], strict=True))
            if block not in own:
                done(len(block.indices), content["tokens"])
        return [found[place] for place in range(len(found))]

    @contextlib.contextmanager
    def turn_to_finish(self) -> Iterator[None]:
        """Holds the right to make the artifact: what is left to do is done by one pod, such as asking a judge.

        Raises:
            FinishedElsewhereError: another pod has made it.
        """
        stage = self._context.stage
        # Beside the work folder, not in it: that goes when the stage is done.
        lock = FileLock(self._context.storage / "work" / stage.kind.value / f"{stage.key}.turn.lock")
        try:
            while not lock.take():
                time.sleep(POLL_SECONDS)
            self._unless_finished()
            yield
        finally:
            lock.release()

    def _compute_missing(self, blocks: Sequence[Block], compute: Compute, done: Done) -> set[Block]:
        pods = max(1, self._context.max_nodes)
        first = self._context.index % pods
        others = [block for number, block in enumerate(blocks) if number % pods != first]
        waiting, own = [*blocks[first::pods], *reversed(others)], set[Block]()
        while waiting := [block for block in waiting if not self._path(block).is_file()]:
            own_before = len(own)
            for block in waiting:
                self._unless_finished()
                if self._compute(block, compute, done):
                    own.add(block)
            if len(own) == own_before:
                # Nothing is told meanwhile: a pod that waits must not hide that the one it waits for hangs.
                time.sleep(POLL_SECONDS)
        return own

    def _compute(self, block: Block, compute: Compute, done: Done) -> bool:
        """Computes a block unless it is there or somebody is at it."""
        with self._held(block) as mine:
            if not mine or self._path(block).is_file():
                return False
            tokens = 0

            def tell(finished: int, computed: int) -> None:
                nonlocal tokens
                tokens += computed
                done(finished, computed)

            results = compute(block.indices, tell)
            check_contents(self._context)  # what is kept is found by the next try, whose files are others perhaps
            self._write(self._path(block), {"results": results, "tokens": tokens})
            self.computed += 1
            return True

    @contextlib.contextmanager
    def _held(self, block: Block) -> Iterator[bool]:
        lock = FileLock(self._path(block).with_suffix(".lock"))
        try:
            yield lock.take()
        finally:
            lock.release()

    def _read(self, block: Block) -> dict[str, Any]:
        self._unless_finished()
        try:
            content: dict[str, Any] = json.loads(self._path(block).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._unless_finished()
            raise
        return content

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, ensure_ascii=False))

    def _path(self, block: Block) -> Path:
        return self._folder / f"{block.digest}.json"

    def _found(self) -> str | None:
        reference = self._store.find(self._context.stage.kind, self._context.stage.key)
        return reference.digest if reference else None

    def _unless_finished(self) -> None:
        if self._found() != self._before:
            raise FinishedElsewhereError
