"""Runs of MLflow and Weights & Biases: the curves of events.py, told to a server while they are drawn.

    loop ── add ──> queue ──> thread ── begin, send, send, …, end ──> server          a queue and a thread for each tracker
    work/<kind>/<key>/tracking.json     name of the run, made by the first round; whoever goes on with the stage goes on with the run

A server may be down, slow, or refuse. Training does not notice: the loop appends to a queue and goes on, the thread tries again after
2, 4, 8, … 60 s. A queue that is full loses its oldest points; how many is said in the log. Rank 0 alone tells.

What the server has is what counts. A tracker knows the last step of its run there and leaves out all until then. So a step that is done
again is told once (it is the same, docs/exactness.md), and each round begins by telling what the ledger has: what a kill took from
the queue, and what was trained while the server was down, is made up for, without the figures that the ledger lacks.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transfer_api.spec import Tracking
from transfer_api.task import MLFLOW_CREDENTIALS, WANDB_TOKEN
from transfer_pod.artifact import write_atomically
from transfer_pod.context import PodContext
from transfer_pod.remote import without_credentials
from transfer_trainer.events import KEY_DIGITS
from transfer_trainer.ledger import Summary

logger = logging.getLogger(__name__)

NAME = "tracking.json"
"""Of the stage's work folder."""
TOKENS = "training/tokens"
"""Tokens so far, as a curve: an axis for runs whose batches differ."""
MOST_POINTS = 10_000
"""That wait for a server: some hours of steps, 5 MB."""
PIECE = 100
"""Most points of one call: of ten figures each, as many as MLflow takes."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between two calls, and after many that failed."""


class Ending(enum.Enum):
    """Why a round tells no more."""

    COMPLETE = "complete"
    LATER = "later"
    """Another round goes on with the run."""
    FAILED = "failed"

    @property
    def seconds(self) -> float:
        """Longest wait for what is still to be told: short where others wait for this round to end."""
        return 10.0 if self is Ending.COMPLETE else 2.0


@dataclass(frozen=True)
class Run:
    """What is tracked."""

    name: str
    """As the tracker finds it again."""
    title: str
    """For people."""
    experiment: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """Figures after a step."""

    step: int
    figures: Mapping[str, float]
    time: float = field(default_factory=time.time)


class Tracker(Protocol):
    """A client; all of it runs in one thread, may take long, and may raise anything."""

    name: str

    def begin(self, run: Run) -> None:
        """Makes the run or goes on with it; called again after an error."""

    def send(self, points: Sequence[Point]) -> None:
        """Tells of points but for those that the run has already."""

    def end(self, ending: Ending) -> None:
        """Tells that this round sends no more."""


class Tracks:
    """The trackers of one round.

    Args:
        run: what is tracked.
        trackers: whom it is told to.
        past: what is known of the steps before this round.
        pause: seconds between two calls.
    """

    def __init__(self, run: Run, trackers: Sequence[Tracker], past: Sequence[Point] = (), pause: float = PAUSE_SECONDS) -> None:
        self._feeders = [_Feeder(tracker, run, past, pause) for tracker in trackers]

    @classmethod
    def begin(cls, wanted: Tracking, context: PodContext, work: Path, past: Summary) -> Tracks:
        """What the experiment asks for. The run's name is kept in the stage's work folder."""
        from transfer_trainer.tracking_mlflow import MlflowTracker  # only where it is asked for
        from transfer_trainer.tracking_wandb import WandbTracker

        stage, trackers = context.stage, list[Tracker]()
        if wanted.mlflow is not None:
            trackers.append(MlflowTracker(wanted.mlflow.uri, wanted.mlflow.experiment or context.experiment or "transfer"))
        if wanted.wandb is not None:
            trackers.append(WandbTracker(wanted.wandb, context.storage))
        tags = {"experiment": context.experiment, "namespace": context.namespace, "stage": stage.name, "key": stage.key}
        title = f"{context.experiment}/{stage.name}-{stage.key[:KEY_DIGITS]}"
        run = Run(run_name(work), title, context.experiment, flat(stage.parameters), tags)
        return cls(run, trackers, points(past))

    def add(self, step: int, tokens: int, figures: Mapping[str, float | None]) -> None:
        """Tells of figures after a step; those that are not known are left out."""
        known = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
        for feeder in self._feeders:
            feeder.add(Point(step, {**known, TOKENS: float(tokens)}))

    def close(self, ending: Ending) -> None:
        """Waits for what is still to be told, as long as `ending` says; the rest is counted in the log."""
        for feeder in self._feeders:
            feeder.end(ending)
        until = time.monotonic() + ending.seconds
        for feeder in self._feeders:
            feeder.leave(until)
        self._feeders = []


def run_name(work: Path) -> str:
    """The name of the stage's run; a new one where it has none."""
    file = work / NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(file.read_text())["run"])
    name = secrets.token_hex(8)
    write_atomically(file, json.dumps({"run": name}))
    return name


def points(past: Summary) -> list[Point]:
    """What a ledger knows of its steps."""
    found = [
        Point(
            line.step,
            {
                "training/loss": line.loss, "training/learning_rate": line.learning_rate, "training/gradient_norm": line.gradient_norm,
                TOKENS: float(line.tokens),
            },
            line.time,
        )
        for line in past.lines
    ]  # fmt: skip
    times = {line.step: line.time for line in past.lines}
    found += [
        Point(one["step"], {f"bits_per_byte/{name}": value for name, value in one["bits_per_byte"].items()}, times.get(one["step"], 0.0))
        for one in past.validation
    ]
    return sorted(found, key=lambda point: point.step)


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters by dotted name; those that say nothing are left out."""
    found: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            found[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return found


class _Feeder:
    """The queue and the thread of one tracker."""

    def __init__(self, tracker: Tracker, run: Run, past: Sequence[Point], pause: float) -> None:
        self._tracker, self._run, self._pause = tracker, run, pause
        self._changed = threading.Condition()
        self._points = collections.deque(past[-MOST_POINTS:])
        self._dropped, self._sending, self._failures, self._begun = 0, 0, 0, False
        self._ending: Ending | None = None
        self._thread = threading.Thread(target=self._feed, name=f"tracking-{tracker.name}", daemon=True)
        self._thread.start()

    def add(self, point: Point) -> None:
        with self._changed:
            self._points.append(point)
            self._bound()
            self._changed.notify()

    def end(self, ending: Ending) -> None:
        """Has the thread tell what it can, and end."""
        with self._changed:
            self._ending = ending
            self._changed.notify()

    def leave(self, until: float) -> None:
        """Waits for the thread until then, and tells what it has not told."""
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            left = self._dropped + self._sending + len(self._points)
        if left:
            logger.warning("%d points of the curves were not told to %s in this round", left, self._tracker.name)

    def _bound(self) -> None:
        while len(self._points) > MOST_POINTS:
            self._points.popleft()
            self._dropped += 1

    def _feed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._points or self._ending is not None or not self._begun)
                ending = self._ending
                piece = [self._points.popleft() for _ in range(min(PIECE, len(self._points)))]
                self._sending = len(piece)
            done = self._told(piece, ending)
            with self._changed:
                self._sending = 0
                if not done:
                    self._points.extendleft(reversed(piece))
                    self._bound()
                if ending is not None and (not done or not self._points):
                    break
                if not done or not self._points:  # else it catches up
                    pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2 ** min(self._failures, 10))
                    self._changed.wait_for(lambda: self._ending is not None, pause)

    def _told(self, piece: list[Point], ending: Ending | None) -> bool:
        """Whether the tracker took the points. It may raise what it likes: that is told once, until it takes some again."""
        try:
            if not self._begun:
                self._tracker.begin(self._run)
                self._begun = True
            if piece:
                self._tracker.send(piece)
            if ending is not None and not self._points:
                self._tracker.end(ending)
        except Exception as error:
            self._begun, self._failures = False, self._failures + 1
            if self._failures == 1:
                said = without_credentials(f"{type(error).__name__}: {error}", (*MLFLOW_CREDENTIALS, WANDB_TOKEN))
                logger.warning("%s takes no curves (%s); training goes on, and it is asked again", self._tracker.name, said[:500])
            return False
        if self._failures:
            logger.warning("%s takes the curves again; %d points were dropped", self._tracker.name, self._dropped)
            self._failures = 0
        return True


def credentials(*names: str) -> list[str]:
    """Values of variables; empty for those that are not set."""
    return [os.environ.get(name, "") for name in names]
