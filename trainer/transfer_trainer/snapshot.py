"""Snapshots: the model as it was after so many tokens, kept in the stage's artifact as folders that plain transformers loads.

    work/<kind>/<key>/snapshots/<tokens>/            complete or not there at all; linked into the artifact at the end
    work/<kind>/<key>/snapshots/.<tokens>.<token>/   one that is being written

One is made once, by the first round that comes past its amount, before that step can be in a checkpoint. So a run that is resumed
either has it or comes past again, and finds it there where the step was done before and lost. A folder is written hidden and renamed
when its files are on the disk and the fence says that this round is the newest; what a kill leaves is hidden.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transfer_api.errors import ArtifactError, SpecError
from transfer_api.stage import TrainingParameters
from transfer_pod.artifact import storage_errors, sync
from transfer_pod.model import SNAPSHOTS
from transfer_trainer.fence import Fence
from transfer_trainer.parallel import Team


def snapshot_steps(parameters: TrainingParameters, total_steps: int, section: str) -> dict[int, int]:
    """Amount of tokens to the step, from 1, after which its snapshot is made: the first that reaches it, or the last of the run.

    Raises:
        SpecError: the run, whose length in epochs is known only now, ends before.
    """
    per_step = parameters.rows_per_step * parameters.sequence_length
    steps = {tokens: math.ceil(tokens / per_step) for tokens in parameters.snapshot_tokens}
    if parameters.epochs is not None and steps and max(steps.values()) > total_steps:
        raise SpecError(
            "is more than the epochs have", field=f"{section}.snapshotTokens", value=max(steps),
            allowed=f"at most {total_steps * per_step}", next_step="Remove it, or raise epochs",
        )  # fmt: skip
    return {tokens: min(step, total_steps) for tokens, step in steps.items()}


class Snapshots:
    """The snapshots of one stage, seen by one process of a round.

    Args:
        work: the stage's work folder.
        steps: what `snapshot_steps` gave.
        team: the round's processes.
        fence: the round's right to write; rank 0's.
    """

    def __init__(self, work: Path, steps: dict[int, int], team: Team, fence: Fence | None) -> None:
        self.folder = work / SNAPSHOTS
        self.steps = steps
        self._team, self._fence = team, fence

    def check(self, step: int) -> None:
        """Looks whether those that were made before step `step` are there, and removes what dying rounds left; rank 0's.

        Raises:
            ArtifactError: one is not. It cannot be made any more.
        """
        for left in self.folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        for tokens, at in self.steps.items():
            if at <= step and not self._path(tokens).is_dir():
                raise ArtifactError(
                    f"{self._path(tokens)} is missing, though the checkpoint is of a later step",
                    next_step=f"Remove {self.folder.parent} to start again",
                )

    def due(self, step: int) -> list[int]:
        """Amounts whose snapshots are to be made after step `step`; all processes take part and get the same."""
        wanted = [tokens for tokens, at in self.steps.items() if at == step]
        there = self._team.tell(*(int(self._path(tokens).is_dir()) for tokens in wanted)) if wanted else []
        return [tokens for tokens, made in zip(wanted, there, strict=True) if not made]

    def write(self, tokens: int, save: Callable[[Path], None]) -> None:
        """Has `save` fill a folder, and puts it in place; rank 0 only.

        Raises:
            FencedError, Superseded: a newer round, or others, have taken over.
            StorageError: the disk is full or read-only.
        """
        assert self._fence is not None
        part = self.folder / f".{tokens}.{self._fence.token}"
        try:
            with storage_errors(part):
                self.folder.mkdir(exist_ok=True)
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                save(part)
                sync(part)
                self._fence.check()
                part.rename(self._path(tokens))
        except FileNotFoundError:
            self._fence.check()  # a newer round has removed it, or others have finished the stage
            raise

    def link(self, artifact: Path) -> None:
        """Puts them into the folder of the artifact; rank 0 only. They stay here too, in case the commit does not come about."""
        if self.steps:
            shutil.copytree(self.folder, artifact / SNAPSHOTS, ignore=shutil.ignore_patterns(".*"), copy_function=_link)

    def _path(self, tokens: int) -> Path:
        return self.folder / str(tokens)


def _link(source: str, target: str) -> None:
    """A second name of the file; a copy where the file system has no such thing."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
