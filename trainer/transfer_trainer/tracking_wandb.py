"""Weights & Biases, by its own client: what its servers speak is documented nowhere else.

    <storage>/wandb/run-…-<run>/, offline-run-…-<run>/      what the client keeps of a run; `wandb sync` sends an offline one

Without a key in the environment nothing is sent: the run is written to that folder alone. The client hands everything to a process of
its own, so a call returns at once where no answer is needed. All that it would tell of the machine and of our code is turned off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer_api.spec import WeightsAndBiases
from transfer_api.task import WANDB_MODE, WANDB_TOKEN
from transfer_trainer.tracking import Ending, Point, Run

INIT_SECONDS = 30.0
_CODES = {Ending.COMPLETE: 0, Ending.LATER: 75, Ending.FAILED: 10}


class WandbTracker:
    """One run of a project.

    Args:
        wanted: which project.
        storage: where its folder is.
    """

    name = "W&B"

    def __init__(self, wanted: WeightsAndBiases, storage: Path) -> None:
        self._wanted, self._storage = wanted, storage
        self._run: Any = None
        self._first = 0
        """The first step that the run does not have."""

    def begin(self, run: Run) -> None:
        """Makes the run, or goes on with that of the name."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of the client's own errors, to its makers
        import wandb  # a second, and only where it is asked for

        chosen: dict[str, Any] = {} if self._wanted.url is None else {"base_url": self._wanted.url}
        settings = wandb.Settings(
            root_dir=str(self._storage), mode=os.environ.get(WANDB_MODE) or ("online" if os.environ.get(WANDB_TOKEN) else "offline"),
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, init_timeout=INIT_SECONDS,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, **chosen,
        )  # fmt: skip
        (self._storage / "wandb").mkdir(exist_ok=True)  # else the client falls back to a folder that goes with the pod
        self._run = wandb.init(
            project=self._wanted.project, entity=self._wanted.entity, id=run.name, resume="allow", name=run.title,
            group=run.experiment or None,
            config={"parameters": dict(run.parameters), **run.tags}, settings=settings,
        )  # fmt: skip
        self._first = int(self._run.step)

    def send(self, points: Sequence[Point]) -> None:
        """Hands the figures to the client, which drops what goes back."""
        for point in points:
            if point.step >= self._first:
                self._run.log(dict(point.figures), step=point.step)

    def end(self, ending: Ending) -> None:
        """Has the client send what it has; a run that another round goes on with counts as preempted until then."""
        if ending is Ending.LATER:
            self._run.mark_preempting()
        self._run.finish(exit_code=_CODES[ending])
