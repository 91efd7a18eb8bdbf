"""The ledger: a line for each step, from which anyone can prove that no row was lost and none was read twice.

JSON Lines, flushed at each line. Kinds of line:

    step         a step of the result: rows [first_row, first_row + rows), the digest of their ids, who did it, the loss
    skipped      a step of the result that changed nothing, because it was anomalous; its rows were left out
    anomaly      why a step is skipped; never taken back, so that a resumed run skips it too
    lost         a step that was done, then lost with a worker and done again; kept so that nothing is hidden
    validation   bits per byte of the held-out texts after a step

A resumed run rewrites the file under a new inode, so a process of an older round that still holds the old one appends
to a file nobody reads.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from transfer_api.errors import ArtifactError
from transfer_api.spec import Anomalies, AnomalyAction
from transfer_pod.artifact import write_atomically
from transfer_trainer.anomaly import AnomalyWatch, is_spike
from transfer_trainer.rows import RowOrder, digest

LEDGER = "ledger.jsonl"
STAGE = "stage.json"
"""The stage that a ledger beside it is of, as long as it is unfinished: a finished one is in the manifest of its artifact."""


@dataclass(frozen=True, kw_only=True)
class ReadLine:
    """A step whose rows were read: which, and by how many. `step` counts from 1."""

    step: int
    first_row: int
    rows: int
    digest: str
    world_size: int
    round: int
    time: float


@dataclass(frozen=True, kw_only=True)
class StepLine(ReadLine):
    """One finished step; `seconds` is its wall time on rank 0."""

    loss: float
    tokens: int
    seconds: float
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True, kw_only=True)
class SkippedLine(ReadLine):
    """A step that was left out."""


@dataclass(frozen=True, kw_only=True)
class AnomalyLine:
    """The decision to leave a step out. Numbers that are not finite are None, which JSON can hold; `finite` tells them from others."""

    step: int
    action: str
    finite: bool
    loss: float | None
    gradient_norm: float | None
    median: float | None
    world_size: int
    round: int
    time: float


@dataclass(frozen=True)
class Summary:
    """What a ledger adds up to. `steps` and `lines` are those that were trained, without the skipped ones."""

    steps: int = 0
    lost_steps: int = 0
    productive_seconds: float = 0.0
    highest_step: int = 0
    failures: int = 0
    """How often steps were lost."""
    lines: list[StepLine] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[SkippedLine] = field(default_factory=list)
    anomalies: list[AnomalyLine] = field(default_factory=list)


_LINES: dict[str, type[StepLine | SkippedLine | AnomalyLine]] = {
    "step": StepLine, "lost": StepLine, "skipped": SkippedLine, "anomaly": AnomalyLine,
}  # fmt: skip


def read_ledger(path: Path) -> Summary:
    """Reads a ledger; an absent file is an empty one, and a last line cut short by a kill is left out.

    `productive_seconds` counts each step the first time it was done. Lines stand in the order in which they were written, so each
    failure shows as `lost` lines after which the steps begin again, or which are the last.

    Raises:
        ArtifactError: another line is not JSON.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in (*_LINES, "validation")}
    seconds: dict[int, float] = {}
    failures, after, at_end = 0, 0, False
    for entry in _entries(path):
        try:
            kind = entry.pop("kind")
            line = entry if kind == "validation" else _LINES[kind](**entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} has a line that is none of a ledger: {str(entry)[:200]}") from error
        found[kind].append(line)
        if isinstance(line, StepLine):
            seconds.setdefault(line.step, line.seconds)
            failures += line.step <= after
            after, at_end = line.step, kind == "lost"
    return Summary(
        len(found["step"]), len(found["lost"]), sum(seconds.values()), max(seconds, default=0), failures + at_end,
        found["step"], found["validation"], found["skipped"], found["anomaly"],
    )  # fmt: skip


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(raw, 1):
        if not line:
            continue
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number == len(raw):  # no newline after it: the write was cut short
                break
            raise ArtifactError(f"{path} line {number} is not readable: {error}") from error
    return entries


class Ledger:
    """The ledger of a running stage; only rank 0 has one.

    Args:
        path: the file, rewritten at once so that it ends at `step`: later steps become `lost` lines.
        step: the step of the checkpoint from which the run goes on.

    Raises:
        ArtifactError: the file has no line for a step before the checkpoint.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        entries = []
        for entry in _entries(path):
            if entry["kind"] == "validation" and (entry["step"] > step or step == 0):
                continue
            if entry["kind"] == "skipped" and entry["step"] > step:
                continue
            if entry["kind"] == "step" and entry["step"] > step:
                entry["kind"] = "lost"
            entries.append(entry)
        done = [entry["step"] for entry in entries if entry["kind"] in ("step", "skipped")]
        if done != list(range(1, step + 1)):
            raise ArtifactError(
                f"{path} does not hold the {step} steps of the checkpoint", next_step=f"Remove {path.parent} to start again"
            )
        self.validated = {int(entry["step"]) for entry in entries if entry["kind"] == "validation"}
        """Steps after which the held-out texts were measured, of those that still count."""
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def step(self, line: StepLine) -> None:
        """Appends a finished step."""
        self._write({"kind": "step", **asdict(line)})

    def skipped(self, line: SkippedLine) -> None:
        """Appends a step that was left out."""
        self._write({"kind": "skipped", **asdict(line)})

    def anomaly(self, line: AnomalyLine) -> None:
        """Appends a decision to leave a step out, and brings it to the disk."""
        self._write({"kind": "anomaly", **asdict(line)})
        self.sync()

    def validation(self, step: int, bits_per_byte: dict[str, float]) -> None:
        """Appends a measurement on the held-out texts."""
        self._write({"kind": "validation", "step": step, "bits_per_byte": bits_per_byte})

    def sync(self) -> None:
        """Brings the lines to the disk: before the checkpoint that relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def verify_ledger(path: Path, order: RowOrder, rows_per_step: int, steps: int | None = None, policy: Anomalies | None = None) -> Summary:
    """Proves a ledger: every step once, contiguous from the first, over the rows that `order` gives.

    A step that was skipped needs its decision, and no more may have been skipped than the policy lets pass. A step that was trained
    must not break the rule for spikes, nor may one that does not break it have been skipped; losses that were measured
    twice, before and after a loss of workers, may differ in their last digits, and so much is left to the rule.

    Args:
        path: the ledger.
        order: the run's reading order (`rows.row_order`).
        rows_per_step: G.
        steps: how many steps the run has; None for as many as there are.
        policy: what the experiment asks for where a step is anomalous.

    Raises:
        ArtifactError: names the first line that is wrong and why.
    """
    summary = read_ledger(path)
    done: list[StepLine | SkippedLine] = sorted([*summary.lines, *summary.skipped], key=lambda line: line.step)
    if [line.step for line in summary.lines] != sorted(line.step for line in summary.lines):
        raise ArtifactError(f"{path}: its steps are out of order")
    for expected, line in enumerate(done, 1):
        wanted = {
            "step": expected,
            "first_row": (expected - 1) * rows_per_step,
            "rows": rows_per_step,
            "digest": digest(order.step(expected - 1, rows_per_step).checksum()),
        }
        for name, value in wanted.items():
            if getattr(line, name) != value:
                raise ArtifactError(f"{path}: step line {expected} has {name} {getattr(line, name)}, not {value}")
    if steps is not None and len(done) != steps:
        raise ArtifactError(f"{path} has {len(done)} steps, not {steps}")
    _verify_skipped(path, done, {line.step: line for line in summary.anomalies}, policy or Anomalies())
    return summary


_ROUNDING = 1e-4
"""Relative; ten times what losses of one step may differ by."""


def _verify_skipped(path: Path, done: list[StepLine | SkippedLine], decisions: dict[int, AnomalyLine], policy: Anomalies) -> None:
    skipped = [line for line in done if isinstance(line, SkippedLine)]
    if len(skipped) > (0 if policy.action is AnomalyAction.STOP else policy.limit):
        raise ArtifactError(f"{path}: {len(skipped)} steps are skipped, more than the experiment lets pass")
    watch = AnomalyWatch(policy)
    for line in done:
        if isinstance(line, StepLine):
            if not math.isfinite(line.loss) or is_spike(policy, line.loss * (1 - _ROUNDING), watch.median):
                raise ArtifactError(f"{path}: step {line.step} was trained with loss {line.loss}, which is anomalous")
            watch.accept(line.loss)
            continue
        decision = decisions.get(line.step)
        if decision is None:
            raise ArtifactError(f"{path}: step {line.step} is skipped, and nothing says why")
        if decision.finite and not (decision.loss and is_spike(policy, decision.loss * (1 + _ROUNDING), watch.median)):
            raise ArtifactError(f"{path}: step {line.step} is skipped for a loss of {decision.loss}, which is no spike")
