"""The stage `evaluation`, and which suites there are."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from pydantic import Field

from transfer_api.amount import DecimalString
from transfer_api.base import Contract
from transfer_api.spec.judge import Judge
from transfer_api.spec.sources import ModelSource, NamedText, QuestionSource
from transfer_api.spec.values import Path, Precision, Suite

PERPLEXITY = "perplexity"
"""Held-out texts; like the next four no task of lm-evaluation-harness but ours."""
CODE_SWITCHING = "code-switching"
"""Answers in the experiment's language; `code-switching_hi` names another."""
LANGUAGE_IDENTITY = "language-identity"
"""Answers in each of `ASKED_LANGUAGES`."""
LLM_EVAL = "llm-eval"
"""Answers to open questions, scored by a judge."""
GAOKAO_OPEN = "gaokao-bench_open"
"""The open-ended questions of GAOKAO-Bench, scored by a judge."""
JUDGED_SUITES = (LLM_EVAL, GAOKAO_OPEN)
LANGUAGE_SUITES = (CODE_SWITCHING, "belebele", "global-mmlu", "xcopa")
"""Exist in several languages: alone in the experiment's, with `_hi` in another."""
OWN_SUITES = (PERPLEXITY, CODE_SWITCHING, LANGUAGE_IDENTITY, *JUDGED_SUITES)


def is_judged(suites: Iterable[str]) -> bool:
    """Whether a judge is asked."""
    return any(suite in JUDGED_SUITES for suite in suites)


def is_harness_suite(suite: str) -> bool:
    """Whether a suite is a task, group or tag of lm-evaluation-harness or of a task folder."""
    return suite not in OWN_SUITES and suite.partition("_")[0] != CODE_SWITCHING


class When(enum.StrEnum):
    """What is scored."""

    END = "End"
    EACH_CHECKPOINT = "EachCheckpoint"


class Retention(Contract):
    """The gate on English: the condition EnglishRetained says whether it was kept."""

    max_loss: DecimalString = Field(
        default="0.05",
        description="Most that an English score may get worse, as a share of the base model's; the whole 95 % interval must lie within.",
    )
    tasks: list[Suite] = Field(
        default=[], max_length=32, description="Texts or tasks to judge by. Default: every text and task in English that has a baseline."
    )
    stop: bool = Field(
        default=False, exclude_if=lambda value: not value,
        description="Ends the experiment as Failed where a checkpoint has lost more, in the middle of pretraining too; later "
        "stages wait for its scores. Needs when: EachCheckpoint.",
    )  # fmt: skip


class Evaluation(Contract):
    """Scores the result, and the untouched base model beside it."""

    suites: list[Suite] = Field(
        default=[PERPLEXITY], min_length=1, max_length=32,
        description="perplexity, code-switching, language-identity, llm-eval, a suite of docs/evaluation.md (mmlu, c-eval, cmmlu, agieval, "
        "gaokao-bench and its _fill-in and _open, global-mmlu, belebele, xcopa), or a task or group of the harness or of taskFolders.",
    )  # fmt: skip
    when: When = Field(
        default=When.END, exclude_if=lambda value: value is When.END,
        description="End: the result. EachCheckpoint: also the model after each of pretraining.snapshotTokens, for curves over tokens.",
    )  # fmt: skip
    baseline: bool = Field(default=True, description="Score the base model too and compare item by item.")
    baseline_model: ModelSource | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Another model to compare with. Default: the base model, where a stage makes a new one of it.",
    )  # fmt: skip
    texts: list[NamedText] = Field(default=[], max_length=64, description="Held-out texts of the suite perplexity.")
    task_folders: list[Path] = Field(
        default=[], max_length=8, description="Folders with task files of lm-evaluation-harness, relative to the storage."
    )
    mirror: Path | None = Field(
        default=None, exclude_if=lambda value: value is None,
        description="Folder with the data sets of the tasks, relative to the storage, filled by `transfer evaluate fetch`. "
        "Default: the hub.",
    )  # fmt: skip
    questions: list[QuestionSource] = Field(default=[], max_length=32, description="Open questions of the suite llm-eval.")
    answer_tokens: int = Field(default=512, ge=1, le=32_768, description="Most tokens of an answer that is judged.")
    judge: Judge | None = Field(default=None, description="Scores the answers of the suites llm-eval and gaokao-bench_open.")
    second_judge: Judge | None = Field(default=None, description="Scores them too; the agreement of the two is shown.")
    shots: int | None = Field(default=None, ge=0, le=64, description="Examples before each question. Default: what the task says.")
    limit: int | None = Field(default=None, ge=1, le=1_000_000, description="Most items of one task or text. Default: all.")
    precision: Precision = Field(default=Precision.FLOAT32, description="Number format of the forward pass.")
    shards: int = Field(
        default=1, ge=1, le=256, exclude_if=lambda value: value == 1,
        description="Pods that share the work, each with the model, the resources of a worker and one GPU; scores do not depend on it.",
    )  # fmt: skip
    contamination: bool = Field(
        default=False, exclude_if=lambda value: not value,
        description="Counts the items of each task of which 13 consecutive words stand in the training rows, for the report.",
    )  # fmt: skip
    retention: Retention | None = Field(default=None, description="Gate on what may be lost of English. Default: none.")
