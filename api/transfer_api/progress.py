"""What a pod says while it works (`GET /progress`) and when it ends (its termination message)."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Any

from pydantic import Field, ValidationError

from transfer_api.base import Observed
from transfer_api.language import ENGLISH, primary
from transfer_api.problems import faults

TERMINATION_MESSAGE_BYTES = 4096  # the kubelet cuts there
# What a pod says is untrusted, and goes into the experiment's status: what that cannot hold would keep all of it from being written.
LATEST_UNIX_TIME = 1e11  # beyond the year 5138, and what is infinite, is no time
LARGEST_COUNT = 2**53  # exact in every JSON reader, and sums over the stages still fit into 64 bits
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
MetricName = Annotated[str, Field(max_length=128)]  # whole in the status, whose list has each name once


class Activity(enum.StrEnum):
    """What a pod is doing now."""

    STARTING = "Starting"
    RENDEZVOUS = "Rendezvous"
    LOADING = "Loading"
    RUNNING = "Running"
    SAVING = "Saving"
    VALIDATING = "Validating"
    DONE = "Done"


class Progress(Observed):
    """Answer of `/progress`. Steps are optimizer steps in training, documents or items elsewhere."""

    pod: str = ""
    stage: str = ""
    activity: Activity = Activity.STARTING
    step: Count = 0
    total_steps: Count = 0
    tokens: Count = Field(default=0, description="Tokens done by the whole stage.")
    tokens_per_second: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    mfu: float | None = Field(
        default=None, ge=0, description="Model FLOPs of the last steps over the peak of the round's GPUs; None where that is unknown."
    )
    padding_ratio: float | None = Field(default=None, ge=0, le=1, description="Share of the rows' tokens that are padding.")
    world_size: Count = Field(default=0, description="Processes in the current round of the rendezvous.")
    round: Count = Field(default=0, description="Round of the rendezvous: grows with every change of membership.")
    remaining_seconds: float | None = None
    checkpoint_step: Count | None = None
    checkpoint_time: float | None = Field(default=None, ge=0, le=LATEST_UNIX_TIME, description="Unix time of the last complete checkpoint.")
    checkpoint_seconds: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME, description="Time that it took, from the end of its step until it was complete."
    )
    checkpoint_stall_seconds: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME, description="Time in which training stood still for checkpoints, in this round."
    )
    checkpoint_interval_seconds: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME, description="Time between two checkpoints, where the trainer chooses it."
    )
    data_wait_seconds: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME, description="Time in which this pod waited for rows instead of training."
    )
    compute_seconds: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME,
        description="Time of a step in which this pod's slowest process computed by itself: rows and forward pass.",
    )  # fmt: skip
    straggler_ratio: float | None = Field(default=None, ge=0, description="That time over the median of all processes.")
    snapshots: list[Count] = Field(default=[], max_length=32, description="Amounts of tokens whose snapshots are in the storage.")
    lost_steps: Count = Field(default=0, description="Steps done again after a restart.")
    passed_over: list[Count] = Field(default=[], max_length=64, description="Steps of damaged checkpoints that this round went past.")
    skipped_steps: Count = Field(default=0, description="Steps left out as anomalous.")
    productive_seconds: float = Field(
        default=0.0, ge=0, le=LATEST_UNIX_TIME, description="Time in which steps were done for the first time."
    )
    last_step_time: float | None = Field(
        default=None, ge=0, le=LATEST_UNIX_TIME, description="Unix time of the last finished step, or of other work that went on."
    )
    metrics: dict[MetricName, float] = Field(
        default={}, max_length=1024, description="Latest values by name, such as bits_per_byte/udhr-id."
    )


class ArtifactReference(Observed):
    """An artifact in the storage."""

    key: str
    path: str = Field(max_length=512, description="Relative to the storage.")
    digest: str = Field(max_length=80, description="sha256:<hex> of its manifest.")


class Score(Observed):
    """One line of the table. Everything is computed from per-item scores; nothing is typed in."""

    suite: str
    task: str
    language: str
    metric: str
    value: float
    baseline: float | None = None
    difference: float | None = Field(default=None, description="value - baseline, over the items that both have.")
    interval: tuple[float, float] | None = Field(
        default=None, description="95 % bootstrap interval of difference, or of value without a baseline."
    )
    items: Count = Field(description="Number of items (documents or questions).")
    resampled: str = Field(
        default="", description="What the bootstrap draws: item, or what items share and are not independent within: document, subject."
    )
    clusters: Count | None = Field(default=None, description="Number of what is drawn, where it is not the items.")
    p_value: float | None = Field(default=None, description="Two-sided, of no difference to the baseline.")
    test: str = Field(default="", description="What pValue is of: exact McNemar, or paired randomization of what is resampled.")
    adjusted_p_value: float | None = Field(default=None, description="pValue adjusted by Holm over the lines of the suite beside this one.")
    minimum_detectable: float | None = Field(
        default=None, description="Smallest true difference to the baseline that would be found at 5 % with a power of 80 %."
    )
    part_of: str = Field(default="", description="The group whose mean counts this task.")
    parts: Count = Field(default=0, description="Number of tasks that this is the mean of; each has a line of its own.")
    languages: list[str] = Field(
        default=[], description="Languages that this is the mean over, each with the same weight and a line of its own."
    )
    notes: list[str] = Field(
        default=[], description="What is unusual about the items: cut from the left, with an empty answer, there twice, without scores."
    )
    higher_is_better: bool = True
    harness: str = Field(default="", description="What produced it: name, version, shots, scoring mode.")


SCORE_DETAILS = ("resampled", "clusters", "p_value", "test", "adjusted_p_value", "minimum_detectable", "notes")
"""Left out of a termination message before any score is: results.json in the artifact has them."""


def judged_as_english(score: Score) -> bool:
    """Whether the gate on English counts a score where it names no tasks.

    Not perplexity, which is of the same text as bits per byte, and its exponent exaggerates.
    """
    return score.metric != "perplexity" and primary(score.language) == ENGLISH and not score.part_of and score.baseline is not None


class Outcome(enum.StrEnum):
    """How a pod ended."""

    COMPLETE = "Complete"
    SAVED = "Saved"
    FAILED = "Failed"


UNJUDGED = "unjudged"
"""Number of an evaluation: answers without scores because a judge did not answer."""


class ResultMessage(Observed):
    """Termination message of a pod: at most 4 KiB of JSON; the long form is in the artifact."""

    outcome: Outcome
    reason: str = Field(default="", description="CamelCase class of the error, such as DataError.")
    message: str = ""
    artifact: ArtifactReference | None = None
    reused: bool = Field(default=False, description="The artifact was there already; nothing was computed.")
    scores: list[Score] = []
    scores_left_out: Count = Field(default=0, description="Scores that did not fit; results.json in the artifact has all.")
    step: Count = 0
    tokens: Count = 0
    lost_steps: Count = 0
    productive_seconds: float = Field(default=0.0, ge=0, le=LATEST_UNIX_TIME)
    numbers: dict[str, float] = Field(default={}, description="A few more figures by name, such as added_tokens.")

    @property
    def provisional(self) -> bool:
        """Whether the artifact is to be made again: a judge was down, and all but its scores is kept."""
        return self.unjudged > 0

    @property
    def unjudged(self) -> int:
        """Answers without scores because a judge did not answer, those of the baseline included."""
        return int(self.numbers.get(UNJUDGED, 0))

    def encode(self) -> str:
        """JSON of at most `TERMINATION_MESSAGE_BYTES` bytes. Details of scores go first, then scores from the end, then words.

        The first score, which people see, and those of English, by which the gate judges, go after all others.
        """
        message = self
        while len(text := message._json().encode()) > TERMINATION_MESSAGE_BYTES:
            if any(score.resampled or score.p_value is not None or score.notes for score in message.scores):
                bare = {name: Score.model_fields[name].default for name in SCORE_DETAILS}
                message = message.model_copy(update={"scores": [score.model_copy(update=bare) for score in message.scores]})
            elif message.scores:
                wanted = [place == 0 or judged_as_english(score) for place, score in enumerate(message.scores)]
                last = max((place for place, keep in enumerate(wanted) if not keep), default=len(wanted) - 1)
                kept = [score for place, score in enumerate(message.scores) if place != last]
                message = message.model_copy(update={"scores": kept, "scores_left_out": message.scores_left_out + 1})
            elif message.message:
                excess = len(text) - TERMINATION_MESSAGE_BYTES
                keep = max(0, len(message.message) - max(excess // 4, 16))
                message = message.model_copy(update={"message": message.message[:keep]})
            else:
                counted = {name: value for name, value in message.numbers.items() if name == UNJUDGED}
                message = message.model_copy(update={"numbers": counted, "reason": message.reason[:64]})
        return text.decode()

    def _json(self) -> str:
        def compact(value: Any) -> Any:
            if isinstance(value, float):
                return float(f"{value:.6g}")
            if isinstance(value, dict):
                return {k: compact(v) for k, v in value.items()}
            if isinstance(value, list):
                return [compact(v) for v in value]
            return value

        plain = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json.dumps(compact(plain), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def read(cls, text: str) -> ResultMessage:
        """Reads a termination message. What a pod writes is untrusted.

        Raises:
            ValueError: it is none; says why.
        """
        if (size := len(text.encode())) > 2 * TERMINATION_MESSAGE_BYTES:
            raise ValueError(f"it has {size} bytes, more than {2 * TERMINATION_MESSAGE_BYTES}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(faults(error)) from error

    @classmethod
    def decode(cls, text: str) -> ResultMessage | None:
        """A termination message; None for anything that is not one."""
        try:
            return cls.read(text)
        except ValueError:
            return None
