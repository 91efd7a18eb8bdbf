"""The report of an experiment: `report.md`, `report.html` (one file, no network) and `results.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_evaluator.plots import loss_plot, score_plots, validation_plot
from transfer_evaluator.summary import Curve, ReportInput, StageFacts, StepPoint, ValidationPoint, collect
from transfer_evaluator.table import PERPLEXITY_NOTE, Row, columns, effect_of, note, number, render_table, title, verdict
from transfer_pod.artifact import storage_errors, write_atomically

__all__ = [
    "ReportInput", "StageFacts", "Curve", "StepPoint", "ValidationPoint", "Row",
    "collect", "write_report", "render_table", "verdict",
]  # fmt: skip

MARKDOWN = "report.md"
HTML = "report.html"
RESULTS = "results.json"
FACT_NAMES = {"steps": "steps", "tokens": "tokens", "lost_steps": "lost steps", "productive_seconds": "seconds", "seconds": "seconds"}
"""Numbers of a manifest that every training or evaluation has; others are shown after them under their own name."""


def write_report(folder: Path, report: ReportInput) -> list[Path]:
    """Writes the report into a folder, per-item scores beside it, and returns the files written.

    Raises:
        StorageError: the folder cannot be written.
    """
    page = _page(report)
    contents = {
        RESULTS: json.dumps(results(report), indent=1, ensure_ascii=False) + "\n",
        MARKDOWN: _render("report.md.j2", page),
        HTML: _render("report.html.j2", {**page, "plots": _plots(report)}),
    }
    with storage_errors(folder, field="output"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
        for stage, items in report.items.items():
            shutil.copytree(items, folder / "items" / stage, dirs_exist_ok=True)
    return [folder / name for name in contents]


def results(report: ReportInput) -> dict[str, Any]:
    """`results.json`: every score with all its figures, null where there is none."""
    return {
        "experiment": report.experiment,
        "language": report.language,
        "verdict": verdict(report.scores, report.language),
        "scores": [{**score.model_dump(mode="json", by_alias=True), "effect": effect_of(score)} for score in report.scores],
        "stages": [
            {
                "name": s.name,
                "kind": s.kind,
                "key": s.key,
                "digest": s.digest,
                "complete": s.complete,
                "seed": s.seed,
                "numbers": dict(s.numbers),
            }
            for s in report.stages
        ],
        **({"contamination": list(report.contamination)} if report.contamination else {}),
    }


def _page(report: ReportInput) -> dict[str, Any]:
    return {
        "experiment": report.experiment,
        "language": report.language,
        "phase": report.status.get("phase", ""),
        "verdict": verdict(report.scores, report.language),
        "title": title(report.scores),
        "columns": columns(report.scores),
        "rows": render_table(report.scores),
        "note": note(report.scores),
        "perplexity_note": PERPLEXITY_NOTE,
        "contamination_columns": ("suite", "task", "items of 13 words or more", "in the training rows", "share", "shorter items"),
        "contamination": [_contamination_row(overlap) for overlap in report.contamination],
        "stage_columns": ("stage", "seed", "steps", "tokens", "processes", "lost steps", "seconds", "more", "key"),
        "stages": [_stage_row(stage, report.curves) for stage in report.stages],
        "restarts": _restarts(report.status),
        "digests": [(stage.name, stage.key, stage.digest) for stage in report.stages if stage.complete],
        "harnesses": sorted({score.harness for score in report.scores if score.harness}),
        "failure": (report.status.get("failure") or {}).get("message", ""),
    }


def _contamination_row(overlap: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{overlap['items']:,}", f"{overlap['contaminated']:,}", f"{100 * overlap['share']:.1f} %", f"{overlap['short']:,}")
    return (overlap["suite"], overlap["task"], *counts)


def _stage_row(stage: StageFacts, curves: Sequence[Curve]) -> tuple[str, ...]:
    numbers = dict(stage.numbers)
    curve = next((curve for curve in curves if curve.stage == stage.name), None)
    steps = numbers.get("steps", float(curve.steps[-1].step) if curve and curve.steps else None)
    tokens = numbers.get("tokens", float(curve.steps[-1].tokens) if curve and curve.steps else None)
    seconds = numbers.get("productive_seconds", numbers.get("seconds"))
    more = ", ".join(f"{name.replace('_', ' ')} {_count(value)}" for name, value in numbers.items() if name not in FACT_NAMES)
    return (
        stage.name if stage.complete else f"{stage.name} (not done)",
        "–" if stage.seed is None else str(stage.seed),
        _count(steps), _count(tokens), _world_sizes(curve), _count(numbers.get("lost_steps")), number(seconds), more or "–", stage.key[:12],
    )  # fmt: skip


def _world_sizes(curve: Curve | None) -> str:
    changes = curve.world_sizes if curve else []
    return " → ".join(str(size) for _, size in changes) or "–"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def _restarts(status: Mapping[str, Any]) -> str:
    counts = {cause: count for cause, count in (status.get("restarts") or {}).items() if count}
    return ", ".join(f"{count} × {cause}" for cause, count in counts.items()) or "none"


def _plots(report: ReportInput) -> list[tuple[str, str]]:
    """Title and SVG of every plot that has data: scores first, then the course of training."""
    plots = list(score_plots(report.scores))
    for curve in report.curves:
        plots.append((f"Bits per byte of held-out texts along {curve.stage}", validation_plot(curve, report.text_languages)))
        plots.append((f"Loss along {curve.stage}", loss_plot(curve)))
    return [(title, svg) for title, svg in plots if svg]


def _render(template: str, values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    escape = select_autoescape(enabled_extensions=("html.j2",))
    environment = Environment(
        loader=PackageLoader("transfer_evaluator"),
        autoescape=escape,  # noqa: S701 - by the template's ending: HTML is escaped, Markdown is not
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(values)
