"""`results.json` of a report: every figure of it for programs. Its JSON schema is docs/results.schema.json, generated from here."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from transfer_api.base import Observed
from transfer_api.progress import Score

RESULTS = "results.json"
"""Name of the file among a run's outputs."""
EFFECTS = Literal["better", "worse", "equal", "alone"]


class ReportedScore(Score):
    """One line of the table."""

    effect: EFFECTS = Field(
        description="better or worse where the interval excludes 0 and Holm's p-value is at most 0.05; alone without a baseline."
    )


class StageRecord(Observed):
    """What is known of one stage."""

    name: str
    kind: str
    key: str
    digest: str = Field(description="sha256:<hex> of its manifest; empty where it is not done.")
    complete: bool
    seed: int | None
    numbers: dict[str, float]


class Switch(Observed):
    """A stretch of an answer in another language."""

    start: int = Field(ge=0, description="Place of its first character, counted in Unicode code points.")
    end: int = Field(ge=0, description="Place after its last character.")
    language: str = Field(description="BCP 47 code, or the name of a script.")


class SampleAnswer(Observed):
    """What one model answered."""

    text: str
    detected: str = Field(default="", description="Language that it is in; none where it is too short to tell, empty where nobody looked.")
    switches: list[Switch] = []
    scores: dict[str, float] = Field(default={}, description="What the judges gave it, each from 0 to 3; empty where none did.")


class Sample(Observed):
    """One prompt and what the base and the adapted model answered."""

    language: str = Field(description="BCP 47 code of the language it was asked in.")
    questions: str = Field(default="", description="The set of open questions that it is of; empty for a prompt of our own.")
    category: str = Field(default="", description="Of the question; empty where there is none.")
    prompt: str
    reference: str = Field(default="", description="A right answer; empty where there is none.")
    base: SampleAnswer | None = Field(description="Null where the base model was not asked.")
    adapted: SampleAnswer


class Confusion(Observed):
    """Number of answers by the language they are in, for the prompts of one language."""

    asked: str
    base: dict[str, int] = Field(description="Empty where the base model was not asked.")
    adapted: dict[str, int]


class RetentionRecord(Observed):
    """What the gate of evaluation.retention says."""

    kept: bool | None = Field(description="Null where it cannot be told.")
    reason: str
    message: str


class CheckpointRecord(Observed):
    """Scores of the model on its way, with evaluation.when: EachCheckpoint."""

    tokens: int = Field(description="Tokens of pretraining until then.")
    scores: list[ReportedScore]


class OverlapRecord(Observed):
    """How many items of a task stand in the training rows."""

    suite: str
    task: str
    items: int = Field(description="Items that are long enough to be judged.")
    contaminated: int = Field(description="Those of which 13 consecutive words, or characters, stand in the rows.")
    share: float = Field(description="contaminated over items.")
    short: int = Field(description="Items that are too short to be judged.")


class Results(Observed):
    """The whole file."""

    experiment: str
    language: str = Field(description="BCP 47 code of the target language.")
    recipe: str = Field(
        default="", description="SHA-256 of what its stages are to do without their seed, by which runs are known that differ in it alone."
    )
    verdict: str
    retention: RetentionRecord | None = Field(default=None, description="Null without evaluation.retention.")
    scores: list[ReportedScore]
    checkpoints: list[CheckpointRecord] = Field(default=[], description="By tokens.")
    stages: list[StageRecord]
    contamination: list[OverlapRecord] = Field(default=[], description="Overlap with the training rows, with evaluation.contamination.")
    confusion: list[Confusion] = []
    samples: list[Sample] = Field(
        default=[],
        description="The first 20 of each language, and 20 of each set of open questions, chosen by the hash of the question; all answers "
        "are in items/.",
    )


def results_schema() -> str:
    """The JSON schema of `results.json`, as the text of a file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Results.model_json_schema(by_alias=True, mode="serialization")}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
