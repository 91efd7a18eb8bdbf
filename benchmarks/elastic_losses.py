"""Losses over 2 → 3 → 1 → 2 workers against one steady worker, float32, full training and LoRA.

    .venv/bin/python -m benchmarks.elastic_losses [--steps 60] [--plot docs/elastic-losses.svg]

Real processes on loopback with a tiny model: workers join, and one is killed with -9 beside the one that holds rank 0.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.pods import ORDER, ROWS_PER_STEP, Cluster, cluster, losses, make_storage, resize, steady_losses, training_stage
from transfer_trainer.ledger import verify_ledger

BAR = 1e-5
EQUAL = 1e-9
"""Where a difference of 0 is drawn on the logarithmic scale; two neighbouring float32 numbers differ by 6e-8 and more."""


@dataclass(frozen=True)
class Comparison:
    """A run over changing workers beside the same run of one worker, step by step."""

    name: str
    elastic: list[float]
    steady: list[float]
    workers: list[int]
    lost_steps: int

    @property
    def differences(self) -> list[float]:
        """Relative, of each step's loss."""
        return [abs(here / there - 1) for here, there in zip(self.elastic, self.steady, strict=True)]

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Workers, first step and last step of each stretch of one size."""
        found, step = [], 1
        for size, group in itertools.groupby(self.workers):
            length = len(list(group))
            found.append((size, step, step + length - 1))
            step += length
        return found


def compare(name: str, group: Cluster, folder: Path, steps: int) -> Comparison:
    """The finished run beside the steady one, once its ledger is proved."""
    summary = verify_ledger(group.artifact / "ledger.jsonl", ORDER, ROWS_PER_STEP, steps)
    sizes = [line.world_size for line in summary.lines]
    found = Comparison(name, losses(summary), steady_losses(folder, group.stage), sizes, summary.lost_steps)
    changes = " → ".join(str(size) for size, _, _ in found.spans)
    print(f"{name}: workers {changes}: largest difference {max(found.differences):.2e}, {found.lost_steps} steps done twice", flush=True)
    return found


def plot(path: Path, comparisons: list[Comparison]) -> None:
    """Draws losses and their differences, a column for each comparison, as SVG on white: it is shown as an image."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The same data give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "elastic-losses", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(10, 5), layout="constrained")
        FigureCanvasSVG(figure)
        rows = figure.subplots(2, len(comparisons), sharex=True, sharey="row", squeeze=False)
        for column, comparison in enumerate(comparisons):
            _draw(rows[0][column], rows[1][column], comparison)
        rows[0][0].set_ylabel("loss, nats per token")
        rows[1][0].set_ylabel("relative difference")
        rows[0][-1].legend(loc="upper right", fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _draw(above: Any, below: Any, comparison: Comparison) -> None:
    steps = range(1, len(comparison.elastic) + 1)
    above.set_title(comparison.name)
    above.plot(steps, comparison.steady, color="#c8ccd2", linewidth=6, label="1 worker, undisturbed")
    above.plot(steps, comparison.elastic, color="#3b82d6", linewidth=1.5, label="workers come and go")
    below.semilogy(steps, [max(value, EQUAL) for value in comparison.differences], ".", color="#3b82d6")
    below.axhline(BAR, color="#d5483f", linewidth=1)
    below.annotate("bar of the benchmark", (1, BAR), xytext=(0, 3), textcoords="offset points", fontsize=9, color="#d5483f")
    below.set_ylim(EQUAL / 2, 1e-4)
    below.set_xlabel("optimizer step")
    for axes in (above, below):
        for size, first, last in comparison.spans:
            axes.axvspan(first - 0.5, last + 0.5, color="#3b82d6", alpha=0.05 * size, linewidth=0)
    for size, first, last in comparison.spans:
        above.annotate(
            f"{size}", ((first + last) / 2, 0), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points", ha="center"
        )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw losses and differences into this file")
    return parser


def measure(wanted: argparse.Namespace) -> tuple[dict[str, float], dict[str, str]]:
    """Figures and notes for the table."""
    steps = wanted.steps
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the pods end too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    for name, lora in (("full training", False), ("LoRA", True)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with cluster(folder, training_stage("a" * 32, make_storage(folder), steps=steps, lora=lora), max_nodes=3) as group:
                resize(group)
                found.append(compare(name, group, folder, steps))
    if wanted.plot is not None:
        plot(wanted.plot, found)
    return {"elastic_loss_difference": max(value for one in found for value in one.differences)}, {}


if __name__ == "__main__":
    sys.exit(report("trainer", *measure(arguments().parse_args())))
