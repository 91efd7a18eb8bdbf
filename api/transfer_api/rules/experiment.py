"""Rules between the parts of an experiment."""

from __future__ import annotations

from transfer_api.gpu import is_gpu
from transfer_api.language import ASKED_LANGUAGES, ENGLISH, primary
from transfer_api.rules.evaluation import TOLD_BY_THE_FILE, told_by_the_file
from transfer_api.rules.rule import Violation, rule
from transfer_api.rules.training import TRAINS_EMBEDDINGS
from transfer_api.spec import CODE_SWITCHING, PERPLEXITY, ExperimentSpec, Method, When

IS_ENGLISH = f"'(?i)^{ENGLISH}(-|$)'"


@rule(
    "spec",
    cel="has(self.vocabulary) || has(self.pretraining) || has(self.instructionTuning) || has(self.evaluation)",
    message="has nothing to do",
)
def _some_stage(spec: ExperimentSpec) -> Violation | None:
    if spec.vocabulary or spec.pretraining or spec.instruction_tuning or spec.evaluation:
        return None
    return Violation(
        allowed="at least one of vocabulary, pretraining, instructionTuning, evaluation", next_step="Add the stage that is wanted"
    )


@rule(
    "spec",
    cel="!has(self.evaluation) || !('code-switching' in self.evaluation.suites) || "
    f"self.language.matches('(?i)^({'|'.join(ASKED_LANGUAGES)})(-|$)')",
    message="the suite code-switching has no questions in this language",
)
def _switching_knows_the_language(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or CODE_SWITCHING not in spec.evaluation.suites or primary(spec.language) in ASKED_LANGUAGES:
        return None
    return Violation(
        field="language", value=spec.language, allowed=", ".join(ASKED_LANGUAGES),
        next_step="Remove code-switching from evaluation.suites, or name one of these languages there, such as code-switching_id",
    )  # fmt: skip


@rule(
    "spec",
    cel="!has(self.evaluation) || self.evaluation.when != 'EachCheckpoint' || "
    "(has(self.pretraining) && self.pretraining.snapshotTokens.size() > 0)",
    message="evaluation.when: EachCheckpoint scores the models of pretraining.snapshotTokens, and there are none",
)
def _checkpoints_are_made(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or spec.evaluation.when is not When.EACH_CHECKPOINT:
        return None
    if spec.pretraining is not None and spec.pretraining.snapshot_tokens:
        return None
    return Violation(
        field="evaluation.when", value=spec.evaluation.when.value, allowed="only with pretraining.snapshotTokens",
        next_step="Add pretraining.snapshotTokens, such as [10M, 50M], or remove when",
    )  # fmt: skip


@rule(
    "spec",
    cel="!has(self.evaluation) || !has(self.evaluation.retention) || self.evaluation.retention.tasks.size() > 0 || "
    f"!{TOLD_BY_THE_FILE.replace('self.', 'self.evaluation.')} || "
    f"('{PERPLEXITY}' in self.evaluation.suites && self.evaluation.texts.exists(text, has(text.language) ? "
    f"text.language.matches({IS_ENGLISH}) : self.language.matches({IS_ENGLISH}))) || "
    f"('{CODE_SWITCHING}' in self.evaluation.suites && self.language.matches({IS_ENGLISH})) || "
    f"'{CODE_SWITCHING}_{ENGLISH}' in self.evaluation.suites",
    message="evaluation.retention judges scores in English, and nothing gives any",
)
def _retention_sees_english(spec: ExperimentSpec) -> Violation | None:
    evaluation = spec.evaluation
    if evaluation is None or evaluation.retention is None or evaluation.retention.tasks or not told_by_the_file(evaluation):
        return None
    texts = [text.language or spec.language for text in evaluation.texts] if PERPLEXITY in evaluation.suites else []
    if any(primary(language) == ENGLISH for language in texts) or any(_answers_in_english(suite, spec) for suite in evaluation.suites):
        return None
    return Violation(
        field="evaluation.retention", allowed="only where a text or a task is in English",
        next_step="Add an English text to evaluation.texts (language: en), name tasks to judge by in retention.tasks, or remove retention",
    )  # fmt: skip


def _answers_in_english(suite: str, spec: ExperimentSpec) -> bool:
    name, _, language = suite.partition("_")
    return name == CODE_SWITCHING and (language == ENGLISH if language else primary(spec.language) == ENGLISH)


@rule(
    "spec",
    cel="!has(self.pretraining) || !has(self.pretraining.validationSteps) || (has(self.evaluation) && self.evaluation.texts.size() > 0)",
    message="pretraining.validationSteps measures on evaluation.texts, and there are none",
)
def _validation_needs_texts(spec: ExperimentSpec) -> Violation | None:
    training = spec.pretraining
    if training is None or training.validation_steps is None or (spec.evaluation and spec.evaluation.texts):
        return None
    return Violation(
        field="pretraining.validationSteps", value=training.validation_steps, allowed="only with evaluation.texts",
        next_step="Add held-out texts to evaluation.texts, or remove validationSteps",
    )  # fmt: skip


@rule(
    "spec",
    cel="!has(self.vocabulary) || (!has(self.pretraining) && !has(self.instructionTuning)) || "
    + " || ".join(
        f"(has(self.{stage}) && {TRAINS_EMBEDDINGS.replace('self.', f'self.{stage}.')})" for stage in ("pretraining", "instructionTuning")
    ),
    message="the added tokens would never be trained: every stage is LoRA or QLoRA without its embeddings "
    "(set pretraining.lora.trainEmbeddings: true or method: Full)",
)
def _new_rows_train(spec: ExperimentSpec) -> Violation | None:
    stages = [(name, stage) for name, stage in (("pretraining", spec.pretraining), ("instructionTuning", spec.instruction_tuning)) if stage]
    if spec.vocabulary is None or not stages or any(stage.trains_embeddings for _, stage in stages):
        return None
    name, _ = stages[0]
    return Violation(
        field=f"{name}.lora.trainEmbeddings", value=False, allowed="true where no stage is Full",
        next_step=f"Set {name}.lora.trainEmbeddings: true, or {name}.method: Full",
    )  # fmt: skip


@rule(
    "spec",
    cel="!((has(self.pretraining) && self.pretraining.method == 'QLoRA') || "
    "(has(self.instructionTuning) && self.instructionTuning.method == 'QLoRA')) || (self.workers.replicas == 1 && "
    "self.workers.resources.limits.all(name, !name.endsWith('/gpu') || string(self.workers.resources.limits[name]) in ['0', '1']))",
    message="QLoRA trains in one process: one worker with at most one GPU",
)
def _one_process(spec: ExperimentSpec) -> Violation | None:
    if all(stage is None or stage.method is not Method.QLORA for stage in (spec.pretraining, spec.instruction_tuning)):
        return None
    if spec.workers.replicas != 1:
        return Violation(
            field="workers.replicas", value=spec.workers.replicas, allowed="1 where a method is QLoRA",
            next_step="Set workers.replicas: 1, or method: LoRA",
        )  # fmt: skip
    many = {name: value for name, value in spec.workers.resources.limits.items() if is_gpu(name) and str(value) not in ("0", "1")}
    if not many:
        return None
    return Violation(
        field="workers.resources.limits", value=many, allowed="at most one GPU where a method is QLoRA",
        next_step="Ask for one GPU, or set method: LoRA",
    )  # fmt: skip


@rule(
    "spec",
    cel="!has(self.evaluation) || !self.evaluation.contamination || has(self.pretraining) || has(self.instructionTuning)",
    message="evaluation.contamination looks into training rows, and nothing is trained",
)
def _contamination_by_training(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or not spec.evaluation.contamination or spec.pretraining or spec.instruction_tuning:
        return None
    return Violation(
        field="evaluation.contamination", value=True, allowed="only with pretraining or instructionTuning", next_step="Remove contamination"
    )
