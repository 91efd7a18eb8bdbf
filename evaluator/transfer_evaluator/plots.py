"""The plots of the report as inline SVG: transparent, with text in the page's own colour so that light and dark both read.

pyplot is not imported (no display, no global state); text stays text (`svg.fonttype: none`).
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transfer_api.progress import Score
from transfer_evaluator.summary import Checkpoint, Curve
from transfer_evaluator.table import effect_of

INK = "#010203"
"""Stands for the page's text colour and is replaced by `currentColor`."""
COLOURS = ("#3b82d6", "#d97b1f", "#2f9e73", "#c2519b", "#8a6fd1", "#9a8c1d")
"""Readable on white and on near black: contrast at least 3 : 1 with both."""
STYLES = ("-", "--", ":")
"""For the lines after those that have a colour of their own."""
GREY = "#8a8f98"
EFFECT_COLOURS = {"better": "#2f9e73", "worse": "#d5483f", "equal": GREY, "alone": COLOURS[0]}
TITLES = {
    "bits_per_byte": "Bits per byte (lower is better)",
    "acc": "Accuracy (higher is better)",
    "line_pass_rate": "Answers without a line in another language (higher is better)",
    "word_pass_rate": "Answers without a word of another language (higher is better)",
    "code_switched": "Answers that switch between languages (lower is better)",
    "in_language": "Answers in the language they were asked in (higher is better)",
}
"""Metrics that are drawn."""
MOST_POINTS = 1500
MOST_ROWS = 24
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def loss_plot(curve: Curve) -> str:
    """Loss at each step, with a mark where the number of processes changed; empty without losses."""
    points = [(point.step, point.loss) for point in curve.steps if point.loss is not None]
    if not points:
        return ""

    def draw(axes: Any) -> None:
        thin = points[:: max(1, len(points) // MOST_POINTS)]
        axes.plot(*zip(*thin, strict=True), color=COLOURS[0], linewidth=1.6, marker="." if len(thin) < 60 else None)
        _mark_world_sizes(axes, curve)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, nats per token")

    return _svg(f"loss-{curve.stage}", f"Loss along {curve.stage}", draw, height=2.9)


def _mark_world_sizes(axes: Any, curve: Curve) -> None:
    changes = curve.world_sizes
    for (_, before), (step, after) in itertools.pairwise(changes):
        axes.axvline(step, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(f"{before}→{after}", (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                      va="top", fontsize=9)  # fmt: skip


def validation_plot(curve: Curve, languages: Mapping[str, str]) -> str:
    """Bits per byte of each held-out text along training; empty where none were measured."""
    names = list(dict.fromkeys(name for point in curve.validation for name in point.bits_per_byte))
    if not names or len(curve.validation) < 2:
        return ""

    def draw(axes: Any) -> None:
        for place, name in enumerate(names):
            line = [(point.step, point.bits_per_byte[name]) for point in curve.validation if name in point.bits_per_byte]
            label = f"{name} ({languages[name]})" if name in languages else name
            axes.plot(*zip(*line, strict=True), color=COLOURS[place % len(COLOURS)], marker="o", markersize=4, linewidth=1.6, label=label)
        _mark_world_sizes(axes, curve)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("bits per byte")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)

    return _svg(f"bits-{curve.stage}", f"Bits per byte of held-out texts along {curve.stage}", draw, height=2.9)


def score_plots(scores: Sequence[Score]) -> list[tuple[str, str]]:
    """One plot for each metric of interest: (title, SVG)."""
    plots = []
    for metric, title in TITLES.items():
        rows = [score for score in scores if score.metric == metric][:MOST_ROWS]
        if rows:
            plots.append((title, _score_plot(metric, title, rows)))
    return plots


def checkpoint_plots(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, str]]:
    """One plot for each metric of interest, over tokens of pretraining: (title, SVG)."""
    plots = []
    for metric, title in TITLES.items():
        lines: dict[str, list[tuple[int, Score]]] = {}
        for checkpoint in checkpoints:
            for score in checkpoint.scores:
                if score.metric == metric and not score.part_of:
                    lines.setdefault(f"{score.task} ({score.language})", []).append((checkpoint.tokens, score))
        if lines:
            plots.append((f"{title} by tokens of pretraining", _checkpoint_plot(metric, title, lines)))
    return plots


def _checkpoint_plot(metric: str, title: str, lines: Mapping[str, Sequence[tuple[int, Score]]]) -> str:
    """The base model stands at 0 tokens; the band is the interval of the difference, laid at the baseline."""

    def draw(axes: Any) -> None:
        for place, (label, points) in enumerate(lines.items()):
            colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
            start = next((score.baseline for _, score in points if score.baseline is not None), None)
            values = [(0, start)] if start is not None else []
            values += [(tokens, score.value) for tokens, score in points]
            axes.plot(*zip(*values, strict=True), color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.6, label=label)
            for tokens, score in points:
                if ends := _band(score):
                    axes.plot([tokens, tokens], ends, color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens of pretraining; bar: 95 % interval")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)

    return _svg(f"checkpoints-{metric}", title, draw, height=3 + 0.2 * math.ceil(len(lines) / 2))


def _score_plot(metric: str, title: str, scores: Sequence[Score]) -> str:
    """Baseline as a ring, result as a dot; the bar is the interval of the difference, laid at the baseline."""

    def draw(axes: Any) -> None:
        for place, score in enumerate(scores):
            colour = EFFECT_COLOURS[effect_of(score)]
            if ends := _band(score):
                axes.plot(ends, [place, place], color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt")
            if score.baseline is not None:
                axes.plot([score.baseline, score.value], [place, place], color=colour, linewidth=1.2)
                axes.plot(score.baseline, place, "o", markersize=7, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.3)
            axes.plot(score.value, place, "o", markersize=7, color=colour)
        axes.set_yticks(range(len(scores)), [f"{score.task} ({score.language})" for score in scores])
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)
        axes.set_xlabel("○ baseline, ● result, bar: 95 % interval")

    return _svg(f"scores-{metric}", title, draw, height=0.9 + 0.36 * len(scores))


def _band(score: Score) -> list[float]:
    """Ends of the interval, that of a difference laid at the baseline; empty where there is none."""
    start = score.baseline if score.baseline is not None and score.difference is not None else 0.0
    return [start + end for end in score.interval or ()]


def _svg(name: str, label: str, draw: Callable[[Any], None], *, height: float, width: float = 5.8) -> str:
    """Draws on one pair of axes and returns an `<svg>` element without width and height, so that the page sizes it."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes ids of clip paths different between plots of a page and the same between runs.
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"(<svg)", rf'\1 role="img" aria-label="{label}"', svg, count=1)
    # Text without a colour of its own is black in SVG, whatever the page says.
    return re.sub(r"(<text )", r'\1fill="currentColor" ', svg.replace(INK, "currentColor"))
