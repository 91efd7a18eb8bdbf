"""The stage `evaluation`: a model folder and suites in, a table of scores and every item behind it out."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transfer_api.errors import SpecError
from transfer_api.progress import UNJUDGED, Activity, Outcome, Progress, ResultMessage, Score
from transfer_api.spec import PERPLEXITY, is_harness_suite, is_judged
from transfer_api.stage import EvaluationParameters, StageKind
from transfer_evaluator import contamination, perplexity, switching
from transfer_evaluator.blocks import Blocks, Done, FinishedElsewhereError
from transfer_evaluator.mirror import FIELD as MIRROR
from transfer_evaluator.mirror import Mirror
from transfer_evaluator.model import LoadedModel, load_model
from transfer_evaluator.score import RESULTS, Item, TaskResult, read_items, score_tasks, write_items
from transfer_evaluator.scorer import TokenScorer
from transfer_evaluator.suites import check_languages
from transfer_pod.artifact import ArtifactStore, storage_errors, write_atomically
from transfer_pod.contents import check_contents
from transfer_pod.context import PodContext
from transfer_pod.documents import iter_documents
from transfer_pod.model import model_folder
from transfer_pod.shard import Report

logger = logging.getLogger(__name__)
REPORT_SECONDS = 0.5
"""Least time between two progress reports."""


def run(context: PodContext, report: Report) -> ResultMessage:
    """Scores the model of the stage, or a share of what is to be scored, and seals the artifact, unless another pod does it.

    Raises:
        SpecError: a suite does not exist, perplexity has no texts, or a judge is not asked as it wants to be.
        DataError: a text or the data of a task cannot be read, or is other than the task wants.
        ModelError: the model cannot be loaded.
        ArtifactError: the baseline or the model's artifact is damaged.
    """
    started = time.monotonic()
    parameters = context.stage.typed_parameters()
    assert isinstance(parameters, EvaluationParameters)
    suites = _Suites(context, parameters)
    folder = model_folder(context)
    model = load_model(folder, parameters.precision)
    meter = Meter(report)
    try:
        blocks = Blocks(context)
        results = suites.score(model, TokenScorer(model.model, blocks=blocks), meter)
        with blocks.turn_to_finish():
            return _finish(context, suites, [*results, *suites.judge(meter)], model, meter, started)
    except FinishedElsewhereError:
        found = ArtifactStore(context.storage).result(context.stage.kind, context.stage.key)
        assert found is not None
        meter.show(Activity.DONE)
        return found.model_copy(update={"reused": False})


def _finish(
    context: PodContext, suites: _Suites, results: list[TaskResult], model: LoadedModel, meter: Meter, started: float
) -> ResultMessage:
    """Makes the table and the artifact of what was scored."""
    parameters = suites.parameters
    baseline = _baseline(context)
    scores = score_tasks(results, baseline, parameters.seed)
    contaminated = _contamination(context, results, model, meter) if parameters.contamination else []

    seconds = time.monotonic() - started
    numbers = {"items": float(sum(len(result.items) for result in results)), "tokens": float(meter.tokens), "seconds": round(seconds, 3)}
    if unjudged := (suites.llm_eval.unjudged if suites.llm_eval else 0) + _unjudged_of_baseline(context):
        numbers[UNJUDGED] = float(unjudged)
    numbers |= {"contaminated_items": float(sum(overlap.contaminated for overlap in contaminated))} if parameters.contamination else {}
    meter.show(Activity.SAVING)
    store = ArtifactStore(context.storage)
    artifact = store.draft(context.stage, context.pod)
    with storage_errors(artifact):
        _write(artifact, context, results, scores, _settings(context, model, numbers), contaminated)
        for name, content in (suites.llm_eval.files(baseline) if suites.llm_eval else {}).items():
            (artifact / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(artifact / name, content)
    check_contents(context)
    reference = store.commit(
        context.stage, artifact, scores=[score.model_dump(mode="json", by_alias=True) for score in scores], numbers=numbers
    )
    meter.show(Activity.DONE)
    return ResultMessage(
        outcome=Outcome.COMPLETE, message=suites.llm_eval.why if suites.llm_eval else "", artifact=reference, scores=scores,
        step=meter.step, tokens=meter.tokens, productive_seconds=round(seconds, 3), numbers=numbers,
    )  # fmt: skip


class _Suites:
    """The suites of a stage. Whatever is wrong with them shows before a model is loaded."""

    def __init__(self, context: PodContext, parameters: EvaluationParameters) -> None:
        self.parameters = parameters
        check_languages(parameters.suites)
        self.tasks = list(dict.fromkeys(filter(is_harness_suite, parameters.suites)))
        self.asked = list(dict.fromkeys(filter(switching.is_ours, parameters.suites)))
        self.texts: list[perplexity.Text] = []
        if PERPLEXITY in parameters.suites:
            if not parameters.texts:
                raise SpecError(
                    "the suite perplexity has no texts", field="spec.evaluation.texts", value=[],
                    next_step="Name at least one held-out text, or leave perplexity out of spec.evaluation.suites",
                )  # fmt: skip
            self.texts = perplexity.read_texts(parameters.texts, lambda text, field: iter_documents(text, context, field), parameters.limit)
        self.llm_eval: Any = None
        if is_judged(parameters.suites):
            # The client of the judges takes two seconds to import.
            from transfer_evaluator.judge.suite import LlmEval

            self.llm_eval = LlmEval(context, parameters)
        self.library: Any = None
        if self.tasks:
            # lm_eval takes seconds to import: not for perplexity alone.
            from transfer_evaluator.tasks import TaskLibrary, quiet

            quiet()
            folders = [context.find(folder, "spec.evaluation.taskFolders") for folder in parameters.task_folders]
            mirror = Mirror(context.find(parameters.mirror, MIRROR)) if parameters.mirror is not None else None
            self.library = TaskLibrary(folders, mirror)
            self.library.check(self.tasks)
            self.library.prepare(self.tasks)

    def score(self, model: LoadedModel, scorer: TokenScorer, meter: Meter) -> list[TaskResult]:
        """Everything that is asked of the model, answers for the judges included; pods share it by the blocks of the scorer."""
        results: list[TaskResult] = []
        if self.texts:
            with _timed(PERPLEXITY):
                results += perplexity.score_texts(model, scorer, self.texts, meter.begin)
        if self.asked:
            with _timed(" and ".join(self.asked)):
                results += switching.score_suites(model, self.asked, self.parameters.limit, meter.begin, scorer)
        if self.library is not None:
            from transfer_evaluator.harness import HarnessModel

            harness = HarnessModel(model, scorer, meter.begin)
            for suite in self.tasks:
                with _timed(suite):
                    results += self.library.run(
                        suite, harness, shots=self.parameters.shots, limit=self.parameters.limit, seed=self.parameters.seed
                    )
        if self.llm_eval is not None:
            with _timed("answers to open questions"):
                self.llm_eval.answer(model, scorer, meter.begin)
        return results

    def judge(self, meter: Meter) -> list[TaskResult]:
        """What the judges say of the answers. One pod asks them."""
        if self.llm_eval is None:
            return []
        with _timed("judges"):
            found: list[TaskResult] = self.llm_eval.judge(meter.begin)
        return found


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    """Logs how long it took."""
    began = time.monotonic()
    yield
    logger.info("%s: %.1f s", what, time.monotonic() - began)


class Meter:
    """Turns forward passes into progress; steps are requests (windows of text, options of questions)."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = self.total = self.tokens = 0
        self._report = report
        self._clock = clock
        self._began = clock()
        self._shown = float("-inf")

    def begin(self, requests: int) -> Done:
        """Adds a batch of requests to the total."""
        self.total += requests
        self.show(Activity.RUNNING)
        return self._done

    def _done(self, finished: int, tokens: int) -> None:
        self.step += finished
        self.tokens += tokens
        self.beat()

    def beat(self) -> None:
        """Work goes on: reports if the last report is old enough."""
        if self._clock() - self._shown >= REPORT_SECONDS:
            self.show(Activity.RUNNING)

    def show(self, activity: Activity) -> None:
        """Reports now."""
        self._shown = self._clock()
        seconds = self._shown - self._began
        remaining = seconds * (self.total - self.step) / self.step if self.step else None
        progress = Progress(
            activity=activity, step=self.step, total_steps=self.total, tokens=self.tokens, world_size=1,
            tokens_per_second=self.tokens / seconds if seconds > 0 else 0.0, remaining_seconds=remaining,
            last_step_time=time.time() if self.step else None, productive_seconds=seconds,
        )  # fmt: skip
        self._report(progress)


def _baseline(context: PodContext) -> Callable[[TaskResult], list[Item] | None]:
    key = context.stage.inputs.get("baseline")
    if key is None:
        return lambda result: None
    folder = ArtifactStore(context.storage).open(StageKind.EVALUATION, key)
    return lambda result: read_items(folder, result)


def _unjudged_of_baseline(context: PodContext) -> int:
    """Its answers that no judge has scored: once they have scores, this table is made again too."""
    key = context.stage.inputs.get("baseline")
    result = ArtifactStore(context.storage).result(StageKind.EVALUATION, key) if key is not None else None
    return result.unjudged if result is not None else 0


def _contamination(context: PodContext, results: list[TaskResult], model: LoadedModel, meter: Meter) -> list[contamination.Overlap]:
    """Overlap of each task with the rows that the model was trained on; nothing where it was not trained."""
    keys = [key for role, key in sorted(context.stage.inputs.items()) if role.endswith("_rows")]
    tasks = {(result.suite, result.task): result.texts for result in results if result.texts}
    if not keys:
        return []
    store = ArtifactStore(context.storage)
    folders = [store.open(StageKind.DATASET, key) / "rows" for key in keys]
    training = (text for folder in folders for text in contamination.training_text(folder, model.tokenizer))
    return contamination.overlaps(tasks, training, meter.beat)


def _settings(context: PodContext, model: LoadedModel, numbers: dict[str, float]) -> dict[str, Any]:
    parameters = {name: value for name, value in context.stage.parameters.items() if name != "model"}
    measured = {"device": str(model.device), "positions": model.positions, "vocabulary": len(model.tokenizer)}
    return {**parameters, **measured, **numbers}


def _write(
    folder: Path,
    context: PodContext,
    results: list[TaskResult],
    scores: list[Score],
    settings: dict[str, Any],
    contaminated: list[contamination.Overlap],
) -> None:
    folder.mkdir(parents=True)
    for result in results:
        write_items(folder, result)
    content = {
        "model": {**context.stage.parameters["model"], "artifact": context.stage.inputs.get("model")},
        "harness": sorted({score.harness for score in scores}),
        "scores": [score.model_dump(mode="json", by_alias=True) for score in scores],
        "settings": settings,
        **({"contamination": [overlap.plain() for overlap in contaminated]} if contaminated else {}),
    }
    write_atomically(folder / RESULTS, json.dumps(content, indent=1, ensure_ascii=False))
