"""The report of an experiment: `report.html` (one file, no network), `report.md`, `report.tex` and `results.json`.

The page may run its own script, which sorts tables, and nothing else: its policy names the script's hash and allows no address.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transfer_api.progress import Score
from transfer_api.results import (
    RESULTS,
    CheckpointRecord,
    OverlapRecord,
    ReportedScore,
    Results,
    RetentionRecord,
    Sample,
    SampleAnswer,
    StageRecord,
)
from transfer_api.status import Cause, ConditionType
from transfer_evaluator.language import SCRIPTS
from transfer_evaluator.plots import checkpoint_plots, loss_plot, score_plots, validation_plot
from transfer_evaluator.summary import Checkpoint, Curve, ReportInput, StageFacts, StepPoint, ValidationPoint, collect
from transfer_evaluator.table import (
    NAMES,
    PERPLEXITY_NOTE,
    Row,
    columns,
    compared,
    effect_of,
    note,
    number,
    probability,
    remarks,
    render_table,
    score_line,
    title,
    verdict,
    with_parts,
)
from transfer_pod.artifact import storage_errors, write_atomically

__all__ = [
    "ReportInput", "StageFacts", "Checkpoint", "Curve", "StepPoint", "ValidationPoint", "Row",
    "collect", "write_report", "render_table", "verdict",
]  # fmt: skip

MARKDOWN = "report.md"
HTML = "report.html"
LATEX = "report.tex"
FACT_NAMES = {"steps": "steps", "tokens": "tokens", "lost_steps": "lost steps", "productive_seconds": "seconds", "seconds": "seconds"}
"""Numbers of a manifest that every training or evaluation has; others are shown after them under their own name."""


def write_report(folder: Path, report: ReportInput) -> list[Path]:
    """Writes the report into a folder, per-item scores beside it, and returns the files written.

    Raises:
        StorageError: the folder cannot be written.
    """
    page = _page(report)
    contents = {
        RESULTS: results(report).model_dump_json(by_alias=True, indent=1) + "\n",
        MARKDOWN: _render("report.md.j2", page),
        LATEX: _render("report.tex.j2", page),
        HTML: _render("report.html.j2", {**page, **_answers(report), **_script(), "plots": _plots(report)}),
    }
    written = [folder / name for name in contents]
    with storage_errors(folder, field="output"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
        for stage, items in report.items.items():
            shutil.copytree(items, folder / "items" / stage, dirs_exist_ok=True)
            written += [folder / "items" / stage / path.relative_to(items) for path in sorted(items.rglob("*")) if path.is_file()]
    return written


def results(report: ReportInput) -> Results:
    """`results.json`: every score with all its figures, null where there is none."""
    return Results(
        experiment=report.experiment,
        language=report.language,
        recipe=report.recipe,
        verdict=verdict(report.scores, report.language),
        retention=_retention(report.status),
        scores=_reported(report.scores),
        checkpoints=[CheckpointRecord(tokens=one.tokens, scores=_reported(one.scores)) for one in report.checkpoints],
        stages=[StageRecord(**{name: getattr(stage, name) for name in StageRecord.model_fields}) for stage in report.stages],
        contamination=[OverlapRecord(**overlap) for overlap in report.contamination],
        confusion=list(report.confusion),
        samples=list(report.samples),
    )


def _reported(scores: Sequence[Score]) -> list[ReportedScore]:
    return [ReportedScore(**score.model_dump(), effect=effect_of(score)) for score in scores]


def _retention(status: Mapping[str, Any]) -> RetentionRecord | None:
    """The gate on English, as the status has it."""
    kept = {"True": True, "False": False}
    return next(
        (
            RetentionRecord(kept=kept.get(condition["status"]), reason=condition["reason"], message=condition.get("message", ""))
            for condition in status.get("conditions") or ()
            if condition["type"] == ConditionType.ENGLISH_RETAINED
        ),
        None,
    )


def _answers(report: ReportInput) -> dict[str, Any]:
    """Sample answers by language and set of questions, cut where they leave it, and the table of languages asked in and answered in."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in report.samples:
        groups.setdefault((sample.language, sample.questions), []).append(sample)
    samples = [
        (
            language,
            f"{language}, {name}" if name else language,
            [(one, _marked(one.base, one) if one.base else None, _marked(one.adapted, one)) for one in rows],
        )
        for (language, name), rows in groups.items()
    ]
    found = {name for row in report.confusion for name in (*row.base, *row.adapted)}
    answered = [name for name in SCRIPTS if name in found] + sorted(found - set(SCRIPTS))
    return {
        "samples": samples,
        "sides": any(sample.base for sample in report.samples),
        "judged": any(sample.questions for sample in report.samples),
        "answered": answered,
        "confusion": [
            (row.asked, [(name, row.base.get(name, 0) if row.base else None, row.adapted.get(name, 0)) for name in answered])
            for row in report.confusion
        ],
    }


def _marked(answer: SampleAnswer, sample: Sample) -> dict[str, Any]:
    """An answer as pieces of text, each with the language that it is a switch to, or none, and what is known of it in words."""
    pieces: list[tuple[str, str]] = []
    at = 0
    for switch in sorted(answer.switches, key=lambda switch: (switch.start, -switch.end)):
        if switch.start >= at:  # words of a line that is marked as a whole are inside it
            pieces += [(answer.text[at : switch.start], ""), (answer.text[switch.start : switch.end], switch.language)]
            at = switch.end
    pieces.append((answer.text[at:], ""))
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in answer.scores.items())
    known = answer.detected or scores or ("not judged" if sample.questions else "")
    return {"pieces": [piece for piece in pieces if piece[0]], "known": known}


def _script() -> dict[str, str]:
    """The page's script and the hash by which its policy allows it."""
    script = (files("transfer_evaluator") / "templates" / "report.js").read_text(encoding="utf-8")
    return {"script": script, "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}


def _page(report: ReportInput) -> dict[str, Any]:
    scores = with_parts(report.scores)
    return {
        "experiment": report.experiment,
        "language": report.language,
        "phase": report.status.get("phase", ""),
        "verdict": verdict(report.scores, report.language),
        "title": title(scores),
        "names": len(NAMES),
        "columns": columns(scores, full=True),
        "rows": render_table(scores, full=True),
        "compared": compared(scores),
        "scores_and_rows": list(zip(scores, render_table(scores, full=True), strict=True)),
        "note": note(scores),
        "perplexity_note": PERPLEXITY_NOTE,
        "checkpoint_columns": (*NAMES, "base", *(f"{one.tokens:,}" for one in report.checkpoints), "result"),
        "checkpoints": _checkpoint_rows(report) if report.checkpoints else [],
        "contamination_columns": ("suite", "task", "items of 13 words or more", "in the training rows", "share", "shorter items"),
        "contamination": [_contamination_row(overlap) for overlap in report.contamination],
        "stage_columns": ("stage", "seed", "steps", "tokens", "processes", "lost steps", "seconds", "more", "key"),
        "stages": [_stage_row(stage, report.curves) for stage in report.stages],
        "restarts": _restarts(report.status),
        "digests": [(stage.name, stage.key, stage.digest) for stage in report.stages if stage.complete],
        "remarks": remarks(scores),
        "harnesses": sorted({score.harness for score in report.scores if score.harness}),
        "retention": _retention(report.status),
        "failure": (report.status.get("failure") or {}).get("message", ""),
    }


def _checkpoint_rows(report: ReportInput) -> list[tuple[str, ...]]:
    """A line for each whole text or task and metric, with its score at each checkpoint."""
    by_line = [{score_line(score): score for score in scores} for scores in (*(one.scores for one in report.checkpoints), report.scores)]
    lines = list(dict.fromkeys(score_line(score) for scores in by_line for score in scores.values() if not score.part_of))
    rows = []
    for line in lines:
        found = [scores.get(line) for scores in by_line]
        base = next((score.baseline for score in found if score is not None and score.baseline is not None), None)
        rows.append((*line, number(base), *(number(score.value if score else None) for score in found)))
    return rows


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
    told = status.get("restarts") or {}
    return ", ".join(f"{told[cause]} × {cause}" for cause in Cause if told.get(cause)) or "none"


def _plots(report: ReportInput) -> list[tuple[str, str]]:
    """Title and SVG of every plot that has data: scores first, then the course of training."""
    plots = [*score_plots(report.scores), *checkpoint_plots(report.checkpoints)]
    for curve in report.curves:
        plots.append(
            (
                f"Bits per byte of held-out texts along {curve.stage}, cut into its rows",
                validation_plot(curve, report.text_languages),
            )
        )
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
    environment.filters |= {"latex": latex, "number": number, "signed": lambda value: number(value, sign=True), "p": probability}
    return environment.get_template(template).render(values)


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "<": "$<$", ">": "$>$", "–": "--",
    "\n": " ", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def latex(text: object) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub(r"[\\~^−<>–\n&%$#_{}]", lambda found: _LATEX[found[0]], str(text))
