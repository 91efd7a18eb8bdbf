"""Checkpoints that any number of processes can read back, and that are complete or not there.

    checkpoints/step-00000040/       __<rank>_*.distcp, .metadata (torch.distributed.checkpoint), manifest.json
    checkpoints/.step-00000050.<token>/   one that is being written

Saving goes on beside training (torch's `async_save`). The state is copied while the next step computes gradients, which changes
neither weights nor moments; before it would, `settle` waits for the copy. A thread then writes it, with a process group of its own,
so that its messages and those of training never meet. Every process writes its shards into the hidden folder and tells rank 0 their
SHA-256; only when all have, rank 0 writes the manifest, asks the fence and renames the folder. So what is killed whenever leaves
a hidden folder at most. Of replicas each copies and writes a part of the tensors, so that their checkpoint costs them, and is, what
that of shards does. Loading checks every file against the manifest and goes back to the one before when something is amiss.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import enum
import errno
import json
import logging
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.storage import WriteResult

from transfer_api.errors import ArtifactError, TransferError
from transfer_pod.artifact import file_entry, sha256, storage_errors, write_atomically
from transfer_trainer.ema import Ema
from transfer_trainer.fence import Fence, FencedError
from transfer_trainer.parallel import Team

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
POLL_SECONDS = 0.05
_NAME = re.compile(r"step-(\d{8,})")

Files = dict[str, dict[str, Any]]
"""Of a manifest: size in bytes and SHA-256 by name."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    step: int
    time: float
    """Unix time."""
    seconds: float = 0.0
    """From the end of the step to the commit; 0 where it was loaded."""
    stall: float = 0.0
    """Seconds of these in which training stood still."""


@dataclass
class _Save:
    """A checkpoint that is being written."""

    step: int
    begun: float
    staged: concurrent.futures.Future[None]
    written: concurrent.futures.Future[Any]
    ended: float = 0.0
    stall: float = 0.0


class Checkpoints:
    """The checkpoints of one stage, seen by one process of a round.

    Args:
        folder: `checkpoints/` in the stage's work folder.
        key: the stage's key; a checkpoint of another key is refused.
        team: the round's processes; every method is called by all of them together.
        fence: the round's right to write; rank 0's.
        trainable_only: save only what is trained (adapters).
        kept: complete checkpoints that are kept.
        ema: the average of the weights, where there is one.
        replicated: every process has all of the model and its optimizer, rather than a shard.
    """

    def __init__(
        self, folder: Path, key: str, team: Team, fence: Fence | None, *, trainable_only: bool = False, kept: int = KEPT,
        ema: Ema | None = None, replicated: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.key = key
        self.team = team
        self.kept = kept
        self.ema = ema
        self.replicated = replicated
        # strict=False: with adapters the frozen weights are not in the checkpoint.
        self.options = StateDictOptions(ignore_frozen_params=trainable_only, strict=not trainable_only)
        self.last: Saved | None = None
        self.stall_seconds = 0.0
        self._fence = fence
        self._token = team.tell(int(fence.token[:15], 16) if fence else 0)[0]
        gpu = team.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(gpu, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=gpu))
        self._save: _Save | None = None
        self.torn: list[int] = []
        """Steps of those that loading went past, for they cannot be read."""

    # -- saving

    @property
    def running(self) -> bool:
        """Whether a save has begun that `finish` has not yet seen complete."""
        return self._save is not None

    @property
    def done(self) -> bool:
        """Whether this process has written its part of the running save, or failed together with the others.

        Raises:
            Exception: what this process alone failed with: the others wait for it until they miss it.
        """
        if self._save is None or not self._save.written.done():
            return False
        failure = self._save.written.exception()
        if failure is not None and not isinstance(failure, CheckpointException):
            raise failure
        return True

    def begin(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, before_commit: Callable[[], None] | None = None) -> None:
        """Begins to save what is there after `step` finished steps. Gradients may be computed at once, weights changed after `settle`.

        Args:
            step: finished steps.
            model: as trained.
            optimizer: its optimizer.
            before_commit: brings to the disk what the checkpoint relies on; called in another thread, on rank 0.
        """
        assert self._save is None, "one save at a time"
        begun = time.monotonic()
        if self.team.device.type == "cuda":
            torch.cuda.synchronize()  # the copy goes over a stream of its own, which would not wait for the last step

        def commit(part: Path, files: Files) -> None:
            if before_commit is not None:
                before_commit()
            self._commit(part, step, files)

        state = self._state(model, optimizer)
        response = state_dict_saver.async_save(
            _share(state, self.team) if self.replicated else state,
            storage_writer=_Writer(self.folder / f".{_name(step)}.{self._token:x}", commit),
            async_stager=self._stager,
            process_group=self.team.background,
            no_dist=self.team.world_size == 1,
        )
        assert not isinstance(response, concurrent.futures.Future), "the stager copies in a thread of its own"
        save = self._save = _Save(step, begun, response.staging_completion, response.upload_completion)
        save.written.add_done_callback(lambda _: setattr(save, "ended", time.monotonic()))
        self._stood_still(begun)

    def settle(self) -> None:
        """Returns when weights and moments may change: their copy is complete."""
        if self._save is not None and not self._save.staged.done():
            begin = time.monotonic()
            self._save.staged.result()
            self._stood_still(begin)

    def finish(self) -> Saved:
        """Waits until the running save is complete on every process.

        A peer that is lost meanwhile is noticed by training's own process group, as in a step.

        Raises:
            FencedError, Superseded: a newer round, or others, have taken over.
            StorageError: the disk is full or read-only.
        """
        assert self._save is not None, "nothing is being saved"
        begin, ended = time.monotonic(), 0.0
        while ended < self.team.world_size:
            concurrent.futures.wait([self._save.written], POLL_SECONDS)
            (ended,) = self.team.sum(self.done)
        self._stood_still(begin)
        save, self._save = self._save, None
        with storage_errors(self.folder), _unwrapped(self.folder):
            save.written.result()
        at = save.ended or time.monotonic()  # a future is done a moment before it calls back
        self.last = Saved(save.step, time.time() - (time.monotonic() - at), at - save.begun, save.stall)
        return self.last

    def close(self) -> None:
        """Gives the memory of the copies back; nothing can be saved afterwards."""
        self._stager.close()
        del self._stager

    def _stood_still(self, begin: float) -> None:
        assert self._save is not None
        seconds = time.monotonic() - begin
        self._save.stall += seconds
        self.stall_seconds += seconds

    def _commit(self, part: Path, step: int, files: Files) -> None:
        """Makes a checkpoint of which every file is written complete; rank 0 only."""
        assert self._fence is not None
        index = part / ".metadata"
        files[index.name] = file_entry(index)
        manifest = {"key": self.key, "step": step, "world_size": self.team.world_size, "round": self.team.round, "files": files}
        write_atomically(part / MANIFEST, json.dumps(manifest, indent=1))
        self._fence.check()
        final = self.folder / _name(step)
        if final.exists():  # the torn one that loading went past
            shutil.rmtree(final)
        part.rename(final)
        self._prune({*self.torn} - {step})

    def _prune(self, torn: set[int]) -> None:
        """Removes what is older than the kept ones, what loading found torn, and what dying rounds left half written."""
        found = self._found()
        kept = [step for step in found if step not in torn][: self.kept]
        for step in set(found) - set(kept):
            shutil.rmtree(self.folder / _name(step), ignore_errors=True)
        for left in self.folder.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)

    # -- loading

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest checkpoint that is whole; returns its step, or 0 when there is none.

        Raises:
            ArtifactError: there are checkpoints, but of another stage, or none of them is whole.
        """
        found = self._newest_first()
        broken = ""
        for step in found:
            folder = self.folder / _name(step)
            broken = self._broken(folder)
            if broken:
                logger.warning("checkpoint %s is passed over: %s", folder, broken)
                self.torn.append(step)
                continue
            state = self._state(model, optimizer)
            state_dict_loader.load(state, storage_reader=_Reader(folder), no_dist=self.team.world_size == 1)
            set_state_dict(
                model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=self.options
            )  # fmt: skip
            self.last = Saved(step, folder.stat().st_mtime)
            if self.torn:
                logger.warning("going on from step %d, the newest checkpoint that is whole; passed over: %s", step, self.torn)
            return step
        if found:
            raise ArtifactError(
                f"none of the {len(found)} checkpoints in {self.folder} can be read (step {step}: {broken})",
                next_step=f"Put its files back, or remove {self.folder} to start again",
            )
        return 0

    def _state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What a checkpoint holds. The average's tensors are its own: loading fills them."""
        model_state, optimizer_state = get_state_dict(model, optimizer, options=self.options)
        average = {"ema": self.ema.state()} if self.ema is not None else {}
        return {"model": model_state, "optimizer": optimizer_state, **average}

    def _found(self) -> list[int]:
        """Steps of the checkpoints that are there, newest first."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def _newest_first(self) -> list[int]:
        """Steps of the checkpoints as rank 0 sees them: a shared folder may look different elsewhere for a moment."""
        found = self._found() if self.team.rank == 0 else []
        (count,) = self.team.tell(len(found))
        return self.team.tell(*(found or [0] * count)) if count else []

    def _broken(self, folder: Path) -> str:
        """What is wrong with a checkpoint, or nothing; every process checks its share of the files, all come to one answer.

        Raises:
            ArtifactError: it is of another stage.
        """
        problem, foreign = "", ""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            foreign = "" if manifest["key"] == self.key else str(manifest["key"])
            if ".metadata" not in manifest["files"]:
                problem = "its manifest does not name the index"
            for name, entry in sorted(manifest["files"].items())[self.team.rank :: self.team.world_size]:
                path = folder / name
                if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
                    problem = f"{name} is not the file that was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"its manifest or a file cannot be read ({error})"
        bad, other = self.team.sum(bool(problem), bool(foreign))
        if other:
            raise ArtifactError(
                f"{folder} is a checkpoint of another stage ({foreign}, this is {self.key})",
                next_step=f"Remove {self.folder} to start again",
            )
        return problem or ("another process could not read its share" if bad else "")


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _share(state: dict[str, Any], team: Team) -> dict[str, Any]:
    """What one of the replicas saves: every tensor is in the share of one of them, what is no tensor in all. Shares have about one size."""
    sizes = [0] * team.world_size

    def shared(values: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                owner = sizes.index(min(sizes))
                sizes[owner] += value.nbytes
                if owner != team.rank:
                    continue
            kept[name] = shared(value) if isinstance(value, dict) else value
        return kept

    return shared(state)


@dataclass(frozen=True)
class _Hashes:
    """What a process tells beside torch's own results."""

    files: Files


class _Writer(FileSystemWriter):
    """torch's writer, which tells rank 0 the hash of each file, and there calls `commit` when all are written.

    Both happen within torch's own exchange, so whatever fails on any process fails the save on all.
    """

    def __init__(self, part: Path, commit: Callable[[Path, Files], None]) -> None:
        super().__init__(part, single_file_per_rank=True, sync_files=True)
        self._part, self._commit = part, commit

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Makes the folder, but not that of a stage which others have finished meanwhile."""
        try:
            self._part.parent.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise FencedError(f"{self._part.parent.parent} is gone") from error
        return super().prepare_local_plan(plan)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Writes this process's files, and reads them again while they are in the page cache."""
        results: list[Any] = super().write_data(plan, planner).wait()
        paths = {name: self._part / name for name in sorted({result.storage_data.relative_path for result in results})}
        hashes = _Hashes({name: file_entry(path) for name, path in paths.items()})
        told: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        told.set_result([*results, cast(WriteResult, hashes)])
        return told

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Writes the index, and commits; rank 0 only."""
        told = [entry for of_process in results for entry in of_process]
        super().finish(metadata, [[entry for entry in told if isinstance(entry, WriteResult)]])
        files: Files = {}
        for entry in told:
            if isinstance(entry, _Hashes):
                files |= entry.files
        self._commit(self._part, files)


@contextlib.contextmanager
def _unwrapped(folder: Path) -> Iterator[None]:
    """Brings the errors inside torch's out, so that a full disk is told as one, and a fence that others hold."""
    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, (OSError, FencedError, TransferError)):
                raise failure from error
        if shutil.disk_usage(folder).free < 2**20:  # torch's zip writer says only that it failed
            raise OSError(errno.ENOSPC, "no space left") from error
        # torch's own message begins with a traceback of every rank, and whoever shortens it cuts the reason away.
        reasons = {f"{type(failure).__name__}: {failure}" for failure, _ in error.failures.values()}
        raise RuntimeError(f"checkpoint in {folder.name}: {'; '.join(sorted(reasons))}") from error


_SAFE = {
    ("pathlib", "PosixPath"), ("pathlib", "Path"), ("pathlib", "PurePosixPath"), ("torch", "Size"), ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("collections", "OrderedDict"),
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Reads torch's index of a checkpoint, which is a pickle, without letting it run anything."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        # A dotted name would reach through a module into what it imports.
        is_metadata = module == "torch.distributed.checkpoint.metadata" and "." not in name
        if (module, name) in _SAFE or is_metadata or is_dtype:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _member(kind: Any, name: str) -> enum.Enum:
    """A member of an enumeration, which Python 3.11.0 to 3.11.3 (Debian 12) pickles as `getattr`; nothing else of that is let through."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise pickle.UnpicklingError(f"builtins.getattr of {kind!r} has no place in a checkpoint")
    return kind[name]


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = cast(Metadata, _Unpickler(file).load())
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata
