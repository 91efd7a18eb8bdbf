"""What a report is made of, as plain data, and how it is read from the artifacts of an experiment."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_api.errors import ArtifactError
from transfer_api.progress import Score
from transfer_api.results import Confusion, Sample, SampleAnswer, Switch
from transfer_api.stage import StageKind, StagePlan
from transfer_evaluator.language import confusion_of
from transfer_evaluator.score import RESULTS, Item, json_lines
from transfer_pod.artifact import ArtifactStore

SAMPLES = 20
"""Most sample answers of one language."""
JUDGED = Path("llm-eval", "samples.jsonl")
"""Below the items of an evaluation: answers to open questions, chosen and put side by side by the suite."""
TRAINING = "training.json"


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """One optimizer step."""

    step: int
    tokens: int
    loss: float | None
    world_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationPoint:
    """Bits per byte of held-out texts after a step."""

    step: int
    bits_per_byte: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The course of one training stage."""

    stage: str
    steps: Sequence[StepPoint]
    validation: Sequence[ValidationPoint] = ()

    @property
    def world_sizes(self) -> list[tuple[int, int]]:
        """Step and number of processes, where it changed; the first entry is the start."""
        changes: list[tuple[int, int]] = []
        for point in self.steps:
            if point.world_size and (not changes or changes[-1][1] != point.world_size):
                changes.append((point.step, point.world_size))
        return changes


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What is known of one stage."""

    name: str
    kind: str
    key: str
    complete: bool
    digest: str = ""
    seed: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Scores of the model after so many tokens of pretraining."""

    tokens: int
    scores: Sequence[Score]


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything in a report."""

    experiment: str
    language: str
    """BCP 47 code of the target language."""
    recipe: str = ""
    """SHA-256 of what the stages are to do, without their seeds."""
    scores: Sequence[Score] = ()
    checkpoints: Sequence[Checkpoint] = ()
    stages: Sequence[StageFacts] = ()
    curves: Sequence[Curve] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    """The experiment's status, as in `status.yaml`."""
    items: Mapping[str, Path] = field(default_factory=dict)
    """Folders of per-item scores by name of the stage."""
    text_languages: Mapping[str, str] = field(default_factory=dict)
    """Language of each held-out text, by its name."""
    contamination: Sequence[Mapping[str, Any]] = ()
    """Overlap of each task with the training rows, where it was counted."""
    samples: Sequence[Sample] = ()
    """At most `SAMPLES` of each language, and of each set of open questions."""
    confusion: Sequence[Confusion] = ()


def collect(
    storage: Path, plan: Sequence[StagePlan], *, experiment: str, language: str, status: Mapping[str, Any] | None = None
) -> ReportInput:
    """Reads what the stages of an experiment have left; a stage without artifact is shown as missing.

    Raises:
        ArtifactError: a manifest, results.json or training.json is damaged.
    """
    store = ArtifactStore(storage)
    facts: list[StageFacts] = []
    curves: list[Curve] = []
    scores: list[Score] = []
    checkpoints: list[Checkpoint] = []
    items: dict[str, Path] = {}
    contamination: list[dict[str, Any]] = []
    languages: dict[str, str] = {}
    for stage in plan:
        reference = store.find(stage.kind, stage.key)
        manifest = store.manifest(stage.kind, stage.key) if reference else {}
        others = _other_texts(stage, manifest["stage"].get("execution", {})) if manifest else set()
        numbers = {name: value for name, value in manifest.get("numbers", {}).items() if name.removeprefix("bits_per_byte/") not in others}
        facts.append(_facts(stage, reference.digest if reference else "", numbers))
        languages |= _text_languages(stage)
        if reference is None:
            continue
        folder = store.path(stage.kind, stage.key)
        if stage.kind is StageKind.EVALUATION:
            items[stage.name] = folder / "items"
            # The evaluation stands last in a plan; its scores carry the baseline's beside them.
            content = _json(folder / RESULTS)
            found = [Score.model_validate(score) for score in content["scores"]]
            if stage.snapshot is not None:
                checkpoints.append(Checkpoint(tokens=stage.snapshot, scores=found))
                continue
            scores = found
            contamination = content.get("contamination", [])
        elif stage.kind.elastic:
            curves.append(read_curve(stage.name, folder / TRAINING, without=others))
    samples, confusion = read_answers(items.get("baseline"), items.get("evaluation"))
    return ReportInput(
        experiment=experiment, language=language, recipe=_recipe(plan), scores=scores, checkpoints=checkpoints, stages=facts, curves=curves,
        status=status or {}, items=items, text_languages=languages, contamination=contamination,
        samples=samples, confusion=confusion,
    )  # fmt: skip


def _recipe(plan: Sequence[StagePlan]) -> str:
    stages = [[stage.name, {name: value for name, value in stage.parameters.items() if name != "seed"}] for stage in plan]
    return hashlib.sha256(json.dumps(stages, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_answers(base: Path | None, adapted: Path | None) -> tuple[list[Sample], list[Confusion]]:
    """Sample answers of both models side by side, and how many answers are in which language, from the items of both.

    An item with the texts `prompt` and `answer` is a sample; answers that were judged have been chosen already, and come after the others.
    Without items of an adapted model those of the base model stand in its place.
    """
    if adapted is None:
        base, adapted = None, base
    ours, theirs = _answers(adapted), _answers(base)
    samples, taken = [], Counter[str]()
    for (language, prompt), item in ours.items():
        taken[language] += 1
        if taken[language] <= SAMPLES:
            other = theirs.get((language, prompt))
            samples.append(Sample(language=language, prompt=prompt, base=_answer(other) if other else None, adapted=_answer(item)))
    counted, before = _languages(ours), _languages(theirs)
    confusion = [Confusion(asked=language, base=before.get(language, {}), adapted=counts) for language, counts in counted.items()]
    return samples + _judged(adapted), confusion


def _judged(folder: Path | None) -> list[Sample]:
    path = folder / JUDGED if folder is not None else None
    return [_judged_sample(line) for line in json_lines(path)] if path is not None and path.is_file() else []


def _judged_sample(line: Mapping[str, Any]) -> Sample:
    sides = [SampleAnswer(text=side["text"], scores=side["scores"]) if side else None for side in (line.get("base"), _own(line))]
    base, adapted = sides
    assert adapted is not None
    return Sample(
        language=line["language"], questions=line["set"], category=line["category"], prompt=line["question"], reference=line["reference"],
        base=base, adapted=adapted,
    )  # fmt: skip


def _own(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer of the model itself, which has no side where nothing stands beside it."""
    own: Mapping[str, Any] = line.get("adapted") or line["answer"]
    return own


def _answers(folder: Path | None) -> dict[tuple[str, str], Item]:
    """Items with an answer by language and prompt, each prompt once although two suites ask it."""
    found: dict[tuple[str, str], Item] = {}
    for path in sorted(folder.glob("*.jsonl")) if folder is not None else ():
        for item in json_lines(path):
            if isinstance(item.get("prompt"), str) and isinstance(item.get("answer"), str):
                found.setdefault((str(item.get("language", "und")), item["prompt"]), item)
    return found


def _answer(item: Item) -> SampleAnswer:
    switches = [Switch(start=start, end=end, language=language) for start, end, language in item.get("switches", [])]
    return SampleAnswer(text=item["answer"], detected=str(item.get("detected", "")), switches=switches)


def _languages(answers: Mapping[tuple[str, str], Item]) -> dict[str, dict[str, int]]:
    return confusion_of(item for item in answers.values() if "detected" in item)


def _facts(stage: StagePlan, digest: str, numbers: Mapping[str, float]) -> StageFacts:
    return StageFacts(
        name=stage.name, kind=stage.kind.value, key=stage.key, complete=bool(digest),
        digest=digest, seed=stage.parameters.get("seed"), numbers=numbers,
    )  # fmt: skip


def _text_languages(stage: StagePlan) -> dict[str, str]:
    texts = stage.parameters.get("texts", []) if stage.kind is StageKind.EVALUATION else []
    return {text["name"]: text["language"] for text in texts if text.get("language")}


def _other_texts(stage: StagePlan, made: Mapping[str, Any]) -> set[str]:
    """Held-out texts that were others, or were read otherwise, when the stage was made: what it measured is not of those of today."""
    now = stage.execution.model_dump(mode="json", by_alias=True)
    then = {text["name"]: text for text in made.get("validationTexts", [])}
    today = {text["name"]: text for text in now["validationTexts"]}
    files = [digests.get("validationFiles", {}) for digests in (made, now)]

    def same(name: str) -> bool:
        path = today[name]["path"]
        digests = {known[path] for known in files if path in known}
        return then[name] == today[name] and len(digests) < 2

    return {name for name in then if name in today and not same(name)}


def read_curve(stage: str, path: Path, *, without: Container[str] = ()) -> Curve:
    """Reads training.json.

    Args:
        stage: its name.
        path: of the file.
        without: held-out texts that are left out.

    Raises:
        ArtifactError: it is not one.
    """
    content = _json(path)
    try:
        steps = [
            StepPoint(step=row["step"], tokens=row["tokens"], loss=row["loss"], world_size=row["worldSize"]) for row in content["steps"]
        ]
        validation = [
            ValidationPoint(
                step=row["step"], bits_per_byte={name: bits for name, bits in row["bitsPerByte"].items() if name not in without}
            )
            for row in content["validation"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not the course of a training: {error!r}") from error
    return Curve(stage=stage, steps=steps, validation=validation)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", next_step=f"Remove {path.parent} to have it made again") from error
    return content
