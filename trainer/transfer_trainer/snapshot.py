"""Snapshots: the model as it was after so many tokens, each an artifact of its own that is there while training goes on.

    artifacts/<kind>/<key>-at-<tokens>/model/        what plain transformers loads; complete or not there at all
    work/<kind>/<key>/snapshot.<tokens>.<token>/     one that is being written

One is made once, by the first round that comes past its amount, before that step can be in a checkpoint. So a run that is resumed
either has it or comes past again, and finds it there where the step was done before and lost. It is committed as every artifact is, when
the fence says that this round is the newest.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from transfer_api.errors import ArtifactError, SpecError
from transfer_api.stage import StagePlan, TrainingParameters, snapshot_key
from transfer_pod.artifact import ArtifactStore, storage_errors
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
        store: where they go.
        stage: whose they are.
        steps: what `snapshot_steps` gave.
        team: the round's processes.
        fence: the round's right to write; rank 0's.
    """

    def __init__(self, store: ArtifactStore, stage: StagePlan, steps: dict[int, int], team: Team, fence: Fence | None) -> None:
        self.steps = steps
        self._store, self._stage, self._team, self._fence = store, stage, team, fence
        self._work = store.work_path(stage.kind, stage.key)

    def check(self, step: int) -> None:
        """Looks whether those that were made before step `step` are there, and removes what dying rounds left; rank 0's.

        Raises:
            ArtifactError: one is not. It cannot be made any more.
        """
        for left in self._work.glob("snapshot.*"):
            shutil.rmtree(left, ignore_errors=True)
        for tokens in self.made(step):
            if not self._there(tokens):
                raise ArtifactError(
                    f"{self._store.path(self._stage.kind, self._key(tokens))} is missing, though the checkpoint is of a later step",
                    next_step=f"Remove {self._work} to start again",
                )

    def made(self, step: int) -> list[int]:
        """Amounts whose snapshots are there once step `step` is done and `due` asks for no more."""
        return [tokens for tokens, at in self.steps.items() if at <= step]

    def due(self, step: int) -> list[int]:
        """Amounts whose snapshots are to be made after step `step`; all processes take part and get the same."""
        wanted = [tokens for tokens, at in self.steps.items() if at == step]
        there = self._team.tell(*(int(self._there(tokens)) for tokens in wanted)) if wanted else []
        return [tokens for tokens, made in zip(wanted, there, strict=True) if not made]

    def write(self, tokens: int, save: Callable[[Path], None]) -> None:
        """Has `save` fill a folder with the model, and commits it; rank 0 only.

        Raises:
            FencedError, Superseded: a newer round, or others, have taken over.
            StorageError: the disk is full or read-only.
        """
        assert self._fence is not None
        part = self._work / f"snapshot.{tokens}.{self._fence.token}"
        try:
            with storage_errors(part):
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                save(part / "model")
                self._fence.check()
                snapshot = self._stage.model_copy(update={"key": self._key(tokens)})
                self._store.commit(snapshot, part, numbers={"tokens": tokens, "step": self.steps[tokens]})
        except FileNotFoundError:
            self._fence.check()  # a newer round has removed it, or others have finished the stage
            raise

    def _key(self, tokens: int) -> str:
        return snapshot_key(self._stage.key, tokens)

    def _there(self, tokens: int) -> bool:
        return self._store.find(self._stage.kind, self._key(tokens)) is not None
