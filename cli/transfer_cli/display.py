"""What `transfer run` shows: a live panel on a terminal, plain lines elsewhere, and the table at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from transfer_api.progress import Progress, Score
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan
from transfer_api.status import ExperimentStatus, StageState, StageStatus
from transfer_cli.stdout import give_up
from transfer_evaluator.table import columns, remarks, render_table, title, verdict
from transfer_operator.decide import Event

PLAIN_LINE_EVERY_S = 10.0
SCREEN_LINES = 40
"""Longest table that is printed with the tasks and categories of a mean below it."""
BITS_PER_BYTE = "bits_per_byte/"
MARKS = {
    StageState.WAITING: "·",
    StageState.RUNNING: "▶",
    StageState.SUSPENDED: "‖",
    StageState.COMPLETE: "✓",
    StageState.FAILED: "✗",
}


class Display:
    """Lines that stay, and (on a terminal) a panel that changes."""

    def __init__(self, console: Console, language: str, live: Live | None) -> None:
        self.console = console
        self.language = language
        self.live = live
        self.started = time.monotonic()
        self._states: dict[str, StageState] = {}
        self._began: dict[str, float] = {}
        self._measured: dict[str, float] = {}
        self._described = ""
        self._last_line = 0.0
        self._failure_told = False

    def update(self, status: ExperimentStatus, progress: Progress | None, events: Sequence[Event]) -> None:
        """Shows what has changed."""
        for event in events:
            told_below = status.failure is not None and event.message == status.failure.message
            if event.reason not in ("StageComplete", "StageReused", "Complete", "Suspended", "Resumed") and not told_below:
                self.line(f"{event.reason}: {event.message}", style="yellow" if event.warning else None)
        for stage in status.stages:
            if self._states.get(stage.name) != stage.state:
                self._states[stage.name] = stage.state
                self._stage_line(stage)
        self._failure(status)
        if progress is not None:
            self._measurements(status.stage, progress)
        if self.live is not None:
            self.live.update(_panel(status, progress))
        elif progress is not None and progress.total_steps and time.monotonic() - self._last_line > PLAIN_LINE_EVERY_S:
            described = f"  {status.stage}: {describe(progress)}"
            if described != self._described:
                self._last_line, self._described = time.monotonic(), described
                self.line(described)

    def line(self, text: str, style: str | None = None) -> None:
        """A line that stays; nowhere once nobody reads them any more, for a closed terminal or a full disk is no reason to stop."""
        self._show(Text(text, style=style or ""))

    def _show(self, what: RenderableType) -> None:
        try:
            self.console.print(what, soft_wrap=isinstance(what, Text))
            self.console.file.flush()
        except OSError as error:
            self.console.quiet = True
            give_up(error)

    def finish(self, status: ExperimentStatus, scores: list[Score], output: Path) -> None:
        """The table, and where everything lies."""
        if self.live is not None:
            self.live.update(Text(""))
        if scores:
            self._show(score_table(scores))
            for remark in remarks(scores):
                self.line(f"Unusual: {remark}", style="yellow")
            self.line(verdict(scores, self.language))
        for stage in status.stages:
            if stage.artifact is not None and stage.artifact.provisional:
                self.line(f"{stage.name}: {stage.message}. The same command does.", style="yellow")
        shown = _from_here(output)
        report = f"Report: {shown}/report.html"
        model = f"   Model: {shown}/model" if (output / "model").is_dir() else ""
        self.line(f"Complete. {report}{model}")

    def failed(self, status: ExperimentStatus, output: Path) -> None:
        """Why it failed unless that was told, and where to read more."""
        self._failure(status)
        if status.failure is not None and status.failure.pod:
            self.line(f"Log: {output / 'logs' / status.failure.pod}.log")

    def _failure(self, status: ExperimentStatus) -> None:
        """Told once, as soon as it is known: the other pods may still be saving."""
        failure = status.failure
        if failure is not None and not self._failure_told:
            self._failure_told = True
            where = f" in {failure.stage}" if failure.stage else ""
            self.line(f"Failed ({failure.reason}){where}: {failure.message}", style="red")

    def _measurements(self, stage: str, progress: Progress) -> None:
        """Bits per byte along training, whenever they were measured anew."""
        values = {name.removeprefix(BITS_PER_BYTE): value for name, value in progress.metrics.items() if name.startswith(BITS_PER_BYTE)}
        if values and values != self._measured:
            self._measured = values
            words = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.line(f"  {stage}: bits per byte: {words}")

    def _stage_line(self, stage: StageStatus) -> None:
        if stage.state is StageState.WAITING:
            return
        reused = stage.artifact is not None and stage.artifact.reused
        words = "already there" if reused else stage.state.value.lower()
        took, now = "", time.monotonic()
        if stage.state is StageState.RUNNING:
            self._began[stage.name] = now
        elif stage.state is StageState.COMPLETE and stage.name in self._began:
            took = f" in {now - self._began[stage.name]:.0f} s"  # of this run: who stopped it does not want the night counted
        elapsed = int(now - self.started)
        self.line(f"[{elapsed // 60:02d}:{elapsed % 60:02d}] {MARKS[stage.state]} {stage.name}: {words}{took}")


class _Screen(Console):
    """rich ends the process when nobody reads any more; a run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        give_up(BrokenPipeError())


def open_console() -> Console:
    """Standard output. Redirected it has no width of its own, and 80 columns would break the table."""
    return _Screen(width=None if sys.stdout.isatty() else 140, highlight=False)


@contextmanager
def open_display(experiment: TransferExperiment, plan: tuple[StagePlan, ...]) -> Iterator[Display]:
    """A display for as long as the run lasts."""
    console = open_console()
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    display = Display(console, experiment.spec.language, live)
    count = f"{len(plan)} stage{'s' if len(plan) != 1 else ''}"
    display.line(f"{experiment.metadata.name}: {count} ({', '.join(stage.name for stage in plan)})")
    with live or nullcontext():
        yield display


def describe(progress: Progress) -> str:
    """One line of progress: activity, step, tokens/s, MFU where it is known, loss, time left, workers."""
    parts = [f"{progress.step}/{progress.total_steps}"]
    if progress.activity != "Running":
        parts.insert(0, progress.activity.value)
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.mfu is not None:
        parts.append(f"MFU {progress.mfu:.0%}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.world_size > 1:
        parts.append(f"{progress.world_size} workers")
    if progress.remaining_seconds is not None and progress.remaining_seconds < 1e7:
        parts.append(f"{int(progress.remaining_seconds) // 60}:{int(progress.remaining_seconds) % 60:02d} left")
    return ", ".join(parts)


def _panel(status: ExperimentStatus, progress: Progress | None) -> Group | Text:
    if progress is None or not status.stage:
        return Text(f"{status.stage or status.phase.value} …")
    total = max(progress.total_steps, 1)
    bar = ProgressBar(total=total, completed=min(progress.step, total), width=40)
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(status.stage, style="bold"), bar, Text(describe(progress)))
    return Group(row)


def score_table(scores: list[Score]) -> Table:
    """The table of the report; where that is longer than a screen, its means without their parts."""
    whole = [score for score in scores if not score.part_of]
    left_out = len(scores) - len(whole) if len(scores) > SCREEN_LINES else 0
    if left_out:
        scores = whole
    caption = f"The {left_out:,} lines of single tasks and categories are in the report." if left_out else None
    table = Table(title=title(scores), title_justify="left", caption=caption, caption_justify="left")
    for number, heading in enumerate(columns(scores)):
        table.add_column(heading, justify="left" if number < 4 else "right", no_wrap=number >= 4)
    for row in render_table(scores):
        table.add_row(*row.cells, style={"better": "green", "worse": "red"}.get(row.effect, ""))
    return table


def _from_here(path: Path) -> Path:
    """A path as people read it: from the current folder, where it lies there and that folder is still there."""
    with contextlib.suppress(OSError, ValueError):
        return path.relative_to(Path.cwd())
    return path
