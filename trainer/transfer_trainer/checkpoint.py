"""Checkpoints that any number of processes can read back, and that are complete or not there.

    checkpoints/step-00000040/       __<rank>_*.distcp, .metadata (torch.distributed.checkpoint), manifest.json
    checkpoints/.step-00000050.<token>/   one that is being written

Every process writes its shards and their SHA-256 into the hidden folder; rank 0 then writes the manifest and renames the
folder. Loading checks every file against the manifest and goes back to the one before when something is cut short.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import logging
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from transfer_api.errors import ArtifactError
from transfer_pod.artifact import sha256, storage_errors, write_atomically
from transfer_trainer.fence import Fence
from transfer_trainer.parallel import Team

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT = 2
_NONE = -1


class Checkpoints:
    """The checkpoints of one stage, seen by one process of a round.

    Args:
        folder: `checkpoints/` in the stage's work folder.
        key: the stage's key; a checkpoint of another key is refused.
        team: the round's processes; every method is called by all of them together.
        trainable_only: save only what is trained (adapters).
    """

    def __init__(self, folder: Path, key: str, team: Team, *, trainable_only: bool = False) -> None:
        self.folder = folder
        self.key = key
        self.team = team
        # strict=False: with adapters the frozen weights are not in the checkpoint.
        self.options = StateDictOptions(ignore_frozen_params=trainable_only, strict=not trainable_only)
        self.last_step: int | None = None
        self.last_time: float | None = None

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, fence: Fence | None) -> None:
        """Saves after `step` finished steps; returns when the checkpoint is complete. `fence` is rank 0's.

        Raises:
            FencedError, Superseded: a newer round, or others, have taken over (rank 0).
            StorageError: the disk is full or read-only.
        """
        final = self.folder / f"step-{step:08d}"
        part = self.folder / f".{final.name}.{self.team.tell(int(fence.token[:15], 16) if fence else 0)[0]:x}"
        with storage_errors(self.folder), _unwrapped(self.folder):
            if fence:
                fence.check()
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
            self.team.wait()
            model_state, optimizer_state = get_state_dict(model, optimizer, options=self.options)
            writer = FileSystemWriter(part, single_file_per_rank=True, sync_files=True)
            state = {"model": model_state, "optimizer": optimizer_state}
            state_dict_saver.save(state, storage_writer=writer, no_dist=self.team.world_size == 1)
            self._write_sums(part)
            self.team.wait()
            if fence:
                self._commit(part, final, step, fence)
            self.team.wait()
        self.last_step, self.last_time = step, time.time()

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest checkpoint that is whole; returns its step, or 0 when there is none.

        Raises:
            ArtifactError: there are checkpoints, but of another stage, or none of them is whole.
        """
        found = self._newest_first()
        for step in found:
            folder = self.folder / f"step-{step:08d}"
            broken = self._broken(folder)
            if broken:
                logger.warning("%s: %s; going back to the checkpoint before", folder, broken)
                continue
            model_state, optimizer_state = get_state_dict(model, optimizer, options=self.options)
            state = {"model": model_state, "optimizer": optimizer_state}
            state_dict_loader.load(state, storage_reader=_Reader(folder), no_dist=self.team.world_size == 1)
            set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state, options=self.options)
            self.last_step, self.last_time = step, folder.stat().st_mtime
            return step
        if found:
            raise ArtifactError(
                f"none of the {len(found)} checkpoints in {self.folder} can be read", next_step=f"Remove {self.folder} to start again"
            )
        return 0

    def _write_sums(self, part: Path) -> None:
        """Size and SHA-256 of this process's files, taken while they are in the page cache."""
        own = [path for path in part.glob(f"__{self.team.rank}_*") if path.is_file()]
        sums = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in own}
        write_atomically(part / f"sums-{self.team.rank}.json", json.dumps(sums))

    def _commit(self, part: Path, final: Path, step: int, fence: Fence) -> None:
        files: dict[str, Any] = {".metadata": {"size": (part / ".metadata").stat().st_size, "sha256": sha256(part / ".metadata")}}
        for sums in sorted(part.glob("sums-*.json")):
            files |= json.loads(sums.read_text())
            sums.unlink()
        manifest = {"key": self.key, "step": step, "world_size": self.team.world_size, "round": self.team.round, "files": files}
        write_atomically(part / MANIFEST, json.dumps(manifest, indent=1))
        fence.check()
        if final.exists():  # the torn one that loading went past
            shutil.rmtree(final)
        part.rename(final)
        for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self.folder.glob(".step-*"):  # of a round that died while saving
            shutil.rmtree(left, ignore_errors=True)

    def _newest_first(self) -> list[int]:
        """Steps of the checkpoints as rank 0 sees them: a shared folder may look different elsewhere for a moment."""
        steps: list[int] = []
        if self.team.rank == 0 and self.folder.is_dir():
            steps = sorted((int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")), reverse=True)[: 2 * KEPT]
        told = self.team.tell(*(steps + [_NONE] * 2 * KEPT)[: 2 * KEPT])
        return [step for step in told if step != _NONE]

    def _broken(self, folder: Path) -> str:
        """What is wrong with a checkpoint, or nothing; every process checks its share of the files, all come to one answer.

        Raises:
            ArtifactError: it is of another stage.
        """
        problem, foreign = "", ""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            foreign = "" if manifest["key"] == self.key else str(manifest["key"])
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


@contextlib.contextmanager
def _unwrapped(folder: Path) -> Iterator[None]:
    """Brings the disk errors inside torch's out, so that a full disk is told as one."""
    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
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
