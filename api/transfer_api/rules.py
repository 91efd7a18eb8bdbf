"""Rules across fields, each once: as CEL for the API server and as Python for `transfer validate`.

A rule stands at one or several places of the spec. Its CEL is written into the CRD there and sees the node as `self`; its
check gets the same node as a model. tests/api/test_rules_agree.py holds the two against each other. Where Python knows more
than CEL can (which language codes exist, what a file holds) there is no rule here: the models and preflight say it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

from transfer_api.amount import amount_cel, format_amount
from transfer_api.errors import SpecError
from transfer_api.gpu import is_gpu
from transfer_api.language import ASKED_LANGUAGES, primary
from transfer_api.spec import (
    CODE_SWITCHING,
    DECAY,
    GAOKAO_OPEN,
    Anomalies,
    AnomalyAction,
    CheckpointInterval,
    Ema,
    Evaluation,
    ExperimentSpec,
    Float8,
    Initialization,
    InstructionSource,
    InstructionTuning,
    JudgeSpending,
    Method,
    ModelSource,
    Optimization,
    Precision,
    Pretraining,
    QuestionSource,
    Schedule,
    Storage,
    TextSource,
    Toleration,
    TolerationOperator,
    Tracking,
    Vocabulary,
    When,
    Workers,
)


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What a rule found. `field` is relative to the rule's place; empty for the place itself."""

    field: str = ""
    value: object = None
    allowed: str | None = None
    next_step: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, in CEL, as a `check`, or both.

    `cel` sees `self` (and `oldSelf` in a rule about changes, which has no `check`: a file has no past).
    """

    name: str
    paths: tuple[str, ...]
    """Where it stands: `spec.pretraining`, `spec.pretraining.mixture[]` for every item."""
    cel: str | None
    """None where it would cost more than the API server lets an expression cost; then only `check` refuses."""
    message: str
    """One sentence without a full stop that follows the field's name."""
    check: Callable[[Any], Violation | None] | None = None


QUESTIONS = "spec.evaluation.questions[]"
INSTRUCTIONS = "spec.instructionTuning.data[]"
TEXTS = ("spec.vocabulary.corpus[]", "spec.pretraining.mixture[]", "spec.evaluation.texts[]")
MODELS = ("spec.model", "spec.evaluation.baselineModel")
SOURCES = (*TEXTS, INSTRUCTIONS, QUESTIONS)
SPENDING = ("spec.evaluation.judge.spending", "spec.evaluation.secondJudge.spending")
TRAINING = ("spec.pretraining", "spec.instructionTuning")
# Defaults, by which a rule sees that nobody has set a field.
WINDOW, LIMIT = Anomalies().window, Anomalies().limit
SPLIT = TextSource().split
# How the name of a data file ends, or of a glob that may mean such files.
OBJECT_FILE = "(?i)([.]jsonl([.]gz|[.]zst)?|[.]parquet|[]*?])$"
TEXT_FILE = "(?i)([.](jsonl|txt)([.]gz|[.]zst)?|[.]parquet|[]*?])$"


def check_rules(spec: ExperimentSpec, *, whole: bool = True) -> list[SpecError]:
    """Every rule that the spec breaks, in the order of `RULES`.

    Args:
        spec: of a file.
        whole: False where it lacks fields that could not be read (partial.py): rules that ask for those are passed over.
    """
    return [error for rule in RULES for error in _broken(rule, spec, whole)]


def _broken(rule: Rule, spec: ExperimentSpec, whole: bool) -> Iterator[SpecError]:
    if rule.check is None:
        return
    for path in rule.paths:
        for place, node in _nodes("spec", spec, path.split(".")[1:]):
            try:
                found = rule.check(node)
            except AttributeError:
                if whole:
                    raise
                continue
            if found is not None:
                field = f"{place}.{found.field}" if found.field else place
                yield SpecError(rule.message, field=field, value=found.value, allowed=found.allowed, next_step=found.next_step)


def _nodes(place: str, node: BaseModel, steps: list[str]) -> Iterator[tuple[str, Any]]:
    """The nodes at a rule's path, each with its place as a user would write it (`spec.pretraining.mixture[0]`)."""
    if not steps:
        yield place, node
        return
    name = steps[0].removesuffix("[]")
    child = getattr(node, to_snake(name), None)
    if child is None:  # left out, or unreadable
        return
    if steps[0].endswith("[]"):
        for index, item in enumerate(child):
            yield from _nodes(f"{place}.{name}[{index}]", item, steps[1:])
    else:
        yield from _nodes(f"{place}.{name}", child, steps[1:])


# What each check needs to know is in its rule below; here is only how it is found.


def _model_source(model: ModelSource) -> Violation | None:
    return _exactly_one(model, "name", "path")


def _model_revision(model: ModelSource) -> Violation | None:
    if model.name is None or model.revision is not None:
        return None
    return Violation(field="revision", allowed="40 hexadecimal digits", next_step=f"Copy the commit from the page of {model.name}")


def _hub_only(source: ModelSource | TextSource | InstructionSource | QuestionSource) -> Violation | None:
    hub = source.name if isinstance(source, ModelSource) else source.hub
    if source.path is None or source.revision is None or hub is not None:
        return None
    return Violation(field="revision", value=source.revision, next_step="Remove it")


def _storage(storage: Storage) -> Violation | None:
    return _exactly_one(storage, "claim", "url")


def _credentials(storage: Storage) -> Violation | None:
    if storage.credentials_secret is None or storage.url is not None:
        return None
    return Violation(field="credentialsSecret", value=storage.credentials_secret, next_step="Remove it; a claim needs no credentials")


def _text_source(source: TextSource | InstructionSource | QuestionSource) -> Violation | None:
    return _exactly_one(source, "hub", "path")


def _object_file(source: InstructionSource | QuestionSource) -> Violation | None:
    return _file_of(source.path, OBJECT_FILE, ".jsonl, .jsonl.gz, .jsonl.zst or .parquet")


def _text_file(source: TextSource) -> Violation | None:
    return _file_of(source.path, TEXT_FILE, ".jsonl or .txt, also as .gz or .zst, or .parquet")


def _file_of(path: str | None, pattern: str, endings: str) -> Violation | None:
    if path is None or re.search(pattern, path):
        return None
    return Violation(
        field="path", value=path, allowed=f"a file or glob that ends in {endings}",
        next_step="Convert it (a JSON list: jq -c '.[]' data.json > data.jsonl), or write which files of a folder: texts/*.jsonl",
    )  # fmt: skip


def _some_stage(spec: ExperimentSpec) -> Violation | None:
    if spec.vocabulary or spec.pretraining or spec.instruction_tuning or spec.evaluation:
        return None
    return Violation(
        allowed="at least one of vocabulary, pretraining, instructionTuning, evaluation", next_step="Add the stage that is wanted"
    )


def _one_budget(training: Pretraining) -> Violation | None:
    return _exactly_one(training, "tokens", "steps", "epochs")


def _at_most_one_budget(tuning: InstructionTuning) -> Violation | None:
    if tuning.epochs is None or tuning.steps is None:
        return None
    return Violation(
        value={"epochs": tuning.epochs, "steps": tuning.steps},
        allowed="at most one of epochs, steps",
        next_step="Choose one, remove the other",
    )


def _weights(training: Pretraining) -> Violation | None:
    weights = [source.weight for source in training.mixture]
    if any(weights):
        return None
    return Violation(
        field="mixture", value=weights, allowed="at least one weight above 0", next_step="Set weight of the sources to be read"
    )


def _row_fits_batch(training: Optimization) -> Violation | None:
    if training.global_batch_tokens >= training.sequence_length:
        return None
    return Violation(
        field="globalBatchTokens", value=training.global_batch_tokens, allowed=f"at least sequenceLength ({training.sequence_length})",
        next_step="Raise globalBatchTokens or lower sequenceLength",
    )  # fmt: skip


def _batch_fits_budget(training: Pretraining) -> Violation | None:
    if training.tokens is None or training.tokens >= training.global_batch_tokens:
        return None
    return Violation(
        field="tokens", value=training.tokens, allowed=f"at least globalBatchTokens ({format_amount(training.global_batch_tokens)})",
        next_step="Raise tokens or set a smaller globalBatchTokens",
    )  # fmt: skip


def _snapshots(training: Pretraining) -> Violation | None:
    marks = training.snapshot_tokens
    for index, (before, mark) in enumerate(itertools.pairwise(marks), 1):
        if mark <= before:
            return Violation(
                field=f"snapshotTokens[{index}]", value=mark, allowed=f"more than the one before it ({format_amount(before)})",
                next_step="Write them in increasing order, each once",
            )  # fmt: skip
    budget, field = training.tokens, "tokens"
    if training.steps is not None:
        budget, field = training.steps * training.global_batch_tokens, "steps"
    if budget is None or not marks or marks[-1] <= budget:
        return None
    return Violation(
        field=f"snapshotTokens[{len(marks) - 1}]", value=marks[-1], allowed=f"at most the budget ({budget} tokens)",
        next_step=f"Remove it, or raise {field}",
    )  # fmt: skip


def _warmup(training: Optimization) -> Violation | None:
    return None if float(training.warmup) <= 1 else _share("warmup", training.warmup, "0.05 for a twentieth of the steps")


def _decay(training: Optimization) -> Violation | None:
    if training.schedule is not Schedule.WSD or float(training.warmup) + float(training.decay or DECAY) <= 1:
        return None
    return Violation(
        field="decay", value=training.decay, allowed="at most 1 together with warmup", next_step='Write it such as "0.2", the last fifth'
    )


def _checkpoint_interval(training: Optimization) -> Violation | None:
    if training.checkpoint_interval is not CheckpointInterval.AUTO or training.checkpoint_steps is None:
        return None
    return Violation(
        field="checkpointSteps", value=training.checkpoint_steps, allowed="only with checkpointInterval: Steps",
        next_step="Remove it, or remove checkpointInterval: Auto",
    )  # fmt: skip


def _embeddings_first(training: Optimization) -> Violation | None:
    if float(training.embeddings_first) > 1:
        return _share("embeddingsFirst", training.embeddings_first, "0.1 for the first tenth of the steps")
    if float(training.embeddings_first) > 0 and not training.trains_embeddings:
        return Violation(
            field="embeddingsFirst", value=training.embeddings_first, allowed="0 where embeddings are not trained",
            next_step="Set lora.trainEmbeddings: true, or remove embeddingsFirst",
        )  # fmt: skip
    return None


def _float8(training: Optimization) -> Violation | None:
    if training.float8 is Float8.NONE:
        return None
    if training.precision is not Precision.BFLOAT16:
        return Violation(
            field="precision", value=training.precision.value, allowed="BFloat16 with float8",
            next_step="Set precision: BFloat16, or remove float8",
        )  # fmt: skip
    if training.method is Method.QLORA:
        return Violation(
            field="method", value=training.method.value, allowed="Full or LoRA with float8", next_step="Set method: LoRA, or remove float8"
        )
    return None


def _z_loss(training: Optimization) -> Violation | None:
    return (
        None if float(training.z_loss) <= 1 else Violation(field="zLoss", value=training.z_loss, allowed="at most 1", next_step="Try 1e-4")
    )


def _learning_rate(training: Optimization) -> Violation | None:
    for field, value in (("learningRate", training.learning_rate), ("embeddingLearningRate", training.embedding_learning_rate)):
        if value is not None and not 0 < float(value) <= 1:
            return Violation(field=field, value=value, allowed="more than 0, at most 1", next_step='Write it such as "2e-5"')
    return None


def _distillation_rate(vocabulary: Vocabulary) -> Violation | None:
    rate = vocabulary.distillation.learning_rate if vocabulary.distillation else None
    if rate is None or 0 < float(rate) <= 1:
        return None
    return Violation(field="distillation.learningRate", value=rate, allowed="more than 0, at most 1", next_step='Write it such as "1e-4"')


def _share(field: str, value: str, example: str) -> Violation:
    return Violation(field=field, value=value, allowed="0 to 1", next_step=f"Write {example}")


def _perplexity_texts(evaluation: Evaluation) -> Violation | None:
    if "perplexity" not in evaluation.suites or evaluation.texts:
        return None
    return Violation(
        field="texts", value=[], allowed="at least one held-out text",
        next_step="Add texts, or name suites that do not need them (suites: [mmlu])",
    )  # fmt: skip


def _switching_language(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or CODE_SWITCHING not in spec.evaluation.suites or primary(spec.language) in ASKED_LANGUAGES:
        return None
    return Violation(
        field="language", value=spec.language, allowed=", ".join(ASKED_LANGUAGES),
        next_step="Remove code-switching from evaluation.suites, or name one of these languages there, such as code-switching_id",
    )  # fmt: skip


def _retention(evaluation: Evaluation) -> Violation | None:
    if evaluation.retention is None:
        return None
    if not evaluation.baseline:
        return Violation(
            field="retention", allowed="only with baseline: true", next_step="Set baseline: true, or remove retention: nothing is compared"
        )
    if float(evaluation.retention.max_loss) > 1:
        return _share("retention.maxLoss", evaluation.retention.max_loss, "0.05 for a twentieth of the base model's score")
    return None


def _checkpoints(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or spec.evaluation.when is not When.EACH_CHECKPOINT:
        return None
    if spec.pretraining is not None and spec.pretraining.snapshot_tokens:
        return None
    return Violation(
        field="evaluation.when", value=spec.evaluation.when.value, allowed="only with pretraining.snapshotTokens",
        next_step="Add pretraining.snapshotTokens, such as [10M, 50M], or remove when",
    )  # fmt: skip


def _stop(evaluation: Evaluation) -> Violation | None:
    if evaluation.retention is None or not evaluation.retention.stop or evaluation.when is When.EACH_CHECKPOINT:
        return None
    return Violation(
        field="retention.stop", value=True, allowed="only with when: EachCheckpoint",
        next_step="Set when: EachCheckpoint, or remove stop: at the end there is nothing left to stop",
    )  # fmt: skip


def _validation_texts(spec: ExperimentSpec) -> Violation | None:
    training = spec.pretraining
    if training is None or training.validation_steps is None or (spec.evaluation and spec.evaluation.texts):
        return None
    return Violation(
        field="pretraining.validationSteps", value=training.validation_steps, allowed="only with evaluation.texts",
        next_step="Add held-out texts to evaluation.texts, or remove validationSteps",
    )  # fmt: skip


def _spike_factor(anomalies: Anomalies) -> Violation | None:
    if anomalies.spike_factor is None or float(anomalies.spike_factor) > 1:
        return None
    return Violation(
        field="spikeFactor", value=anomalies.spike_factor, allowed="more than 1", next_step='Write how many times the median, such as "2"'
    )


def _ema_decay(ema: Ema) -> Violation | None:
    if 0 < float(ema.decay) < 1:
        return None
    return Violation(
        field="decay",
        value=ema.decay,
        allowed="more than 0, less than 1",
        next_step='Write "0.999" for the last 1,000 steps, or remove ema',
    )


def _llm_eval(evaluation: Evaluation) -> Violation | None:
    if "llm-eval" not in evaluation.suites or (evaluation.judge is not None and evaluation.questions):
        return None
    lacking = "questions" if evaluation.judge is not None else "judge"
    return Violation(
        field=lacking, allowed="at least one set of questions, and a judge",
        next_step=f"Add evaluation.{lacking}, or leave llm-eval out of suites",
    )  # fmt: skip


def _exam_judge(evaluation: Evaluation) -> Violation | None:
    if GAOKAO_OPEN not in evaluation.suites or evaluation.judge is not None:
        return None
    return Violation(field="judge", allowed="a judge", next_step=f"Add evaluation.judge, or leave {GAOKAO_OPEN} out of suites")


def _second_judge(evaluation: Evaluation) -> Violation | None:
    first, second = evaluation.judge, evaluation.second_judge
    if second is None or (first is not None and (first.url, first.model) != (second.url, second.model)):
        return None
    step = "Name another model; to ask one judge again, set judge.repeats" if first is not None else "Rename it to judge"
    return Violation(field="secondJudge", value=second.model, allowed="a judge beside, and other than, judge", next_step=step)


def _questions_revision(source: QuestionSource) -> Violation | None:
    if source.hub is None or source.revision is not None:
        return None
    return Violation(field="revision", allowed="40 hexadecimal digits", next_step=f"Copy the commit from the page of {source.hub}")


def _unique_questions(evaluation: Evaluation) -> Violation | None:
    return _unique("questions", [source.name for source in evaluation.questions])


def _prices(spending: JudgeSpending) -> Violation | None:
    if spending.money is None or (spending.input_price is not None and spending.output_price is not None):
        return None
    lacking = "inputPrice" if spending.input_price is None else "outputPrice"
    return Violation(field=lacking, allowed="the price of a million tokens", next_step=f"Add {lacking}, or limit tokens instead of money")


def _some_limit(spending: JudgeSpending) -> Violation | None:
    if spending.tokens is not None or spending.money is not None:
        return None
    return Violation(allowed="tokens, money or both", next_step="Add tokens or money, or remove spending")


def _baseline_model(evaluation: Evaluation) -> Violation | None:
    if evaluation.baseline_model is None or evaluation.baseline:
        return None
    return Violation(field="baseline", value=False, allowed="true with baselineModel", next_step="Remove baseline, or remove baselineModel")


def _unique_texts(evaluation: Evaluation) -> Violation | None:
    return _unique("texts", [text.name for text in evaluation.texts])


def _unique_suites(evaluation: Evaluation) -> Violation | None:
    return _unique("suites", list(evaluation.suites))


def _unique(field: str, names: list[str]) -> Violation | None:
    twice = sorted({name for name in names if names.count(name) > 1})
    return Violation(field=field, value=twice, allowed="each name once", next_step="Rename or remove the others") if twice else None


def _some_tracker(tracking: Tracking) -> Violation | None:
    if tracking.mlflow is not None or tracking.wandb is not None:
        return None
    return Violation(allowed="mlflow, wandb or both", next_step="Add mlflow or wandb, or remove tracking")


def _min_workers(workers: Workers) -> Violation | None:
    if workers.min <= workers.replicas:
        return None
    return Violation(
        field="min", value=workers.min, allowed=f"at most replicas ({workers.replicas})", next_step="Lower min or raise replicas"
    )


def _max_workers(workers: Workers) -> Violation | None:
    if workers.max is None or workers.replicas <= workers.max:
        return None
    return Violation(
        field="replicas", value=workers.replicas, allowed=f"at most max ({workers.max})", next_step="Lower replicas or raise max"
    )


def _toleration(toleration: Toleration) -> Violation | None:
    exists = toleration.operator is TolerationOperator.EXISTS
    if toleration.value is not None if exists else toleration.key is None:
        field, way = ("value", "Remove value, or set operator: Equal") if exists else ("key", "Add key, or set operator: Exists")
        return Violation(field=field, value=toleration.value if exists else None, next_step=way)
    return None


def _new_rows_train(spec: ExperimentSpec) -> Violation | None:
    stages = [(name, stage) for name, stage in (("pretraining", spec.pretraining), ("instructionTuning", spec.instruction_tuning)) if stage]
    if spec.vocabulary is None or not stages or any(stage.trains_embeddings for _, stage in stages):
        return None
    name, _ = stages[0]
    return Violation(
        field=f"{name}.lora.trainEmbeddings", value=False, allowed="true where no stage is Full",
        next_step=f"Set {name}.lora.trainEmbeddings: true, or {name}.method: Full",
    )  # fmt: skip


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


# Settings that nothing would read, because another one stands in their way: who wrote one wants it to be read. Texts, questions and judges
# of suites that are not asked for are none of these: suites choose among what is there.


def _adapters_of_full(training: Optimization) -> Violation | None:
    if training.lora is None or training.method.adapters:
        return None
    return Violation(
        field="lora", allowed="only with method: LoRA or method: QLoRA", next_step="Add method: LoRA or method: QLoRA, or remove lora"
    )


def _decay_of_wsd(training: Optimization) -> Violation | None:
    if training.decay is None or training.schedule is Schedule.WSD:
        return None
    return Violation(field="decay", value=training.decay, allowed="only with schedule: WSD", next_step="Add schedule: WSD, or remove decay")


def _embedding_rate(training: Optimization) -> Violation | None:
    if training.embedding_learning_rate is None or training.trains_embeddings:
        return None
    return Violation(
        field="embeddingLearningRate", value=training.embedding_learning_rate, allowed="only where embeddings are trained",
        next_step="Set lora.trainEmbeddings: true, or remove embeddingLearningRate",
    )  # fmt: skip


def _window(anomalies: Anomalies) -> Violation | None:
    if anomalies.window == WINDOW or anomalies.spike_factor is not None:
        return None
    return Violation(field="window", value=anomalies.window, allowed="only with spikeFactor", next_step="Add spikeFactor, or remove window")


def _limit(anomalies: Anomalies) -> Violation | None:
    if anomalies.limit == LIMIT or anomalies.action is not AnomalyAction.STOP:
        return None
    return Violation(
        field="limit", value=anomalies.limit, allowed="only with action: Skip or action: RollBack",
        next_step="Set action: Skip or RollBack, or remove limit: the first anomalous step ends the stage",
    )  # fmt: skip


def _max_epochs(training: Pretraining) -> Violation | None:
    if training.epochs is None or training.max_epochs == 1:
        return None
    return Violation(
        field="maxEpochs", value=training.max_epochs, allowed="only with tokens or steps",
        next_step="Remove it, or set tokens or steps instead of epochs",
    )  # fmt: skip


def _distillation_budget(vocabulary: Vocabulary) -> Violation | None:
    if vocabulary.distillation is None or vocabulary.initialization is Initialization.DISTILLATION:
        return None
    return Violation(
        field="distillation", allowed="only with initialization: Distillation",
        next_step="Set initialization: Distillation, or remove distillation",
    )  # fmt: skip


def _subset_of_hub(source: TextSource | InstructionSource | QuestionSource) -> Violation | None:
    if source.path is None or (source.subset is None and source.split == SPLIT):
        return None
    field, value = ("subset", source.subset) if source.subset is not None else ("split", source.split)
    return Violation(field=field, value=value, allowed="only with hub", next_step="Remove it; of files, name those that are wanted")


def _token_of_hub(model: ModelSource) -> Violation | None:
    if model.path is None or model.token_secret is None:
        return None
    return Violation(field="tokenSecret", value=model.token_secret.name, allowed="only with name", next_step="Remove it")


def _training_rows(spec: ExperimentSpec) -> Violation | None:
    if spec.evaluation is None or not spec.evaluation.contamination or spec.pretraining or spec.instruction_tuning:
        return None
    return Violation(
        field="evaluation.contamination", value=True, allowed="only with pretraining or instructionTuning", next_step="Remove contamination"
    )


def _exactly_one(node: BaseModel, *fields: str) -> Violation | None:
    given = {field: value for field in fields if (value := getattr(node, field)) is not None}
    if len(given) == 1:
        return None
    allowed = f"exactly one of {', '.join(fields)}"
    if not given:
        return Violation(allowed=allowed, next_step=f"Add {' or '.join(fields)}")
    return Violation(value=given, allowed=allowed, next_step=f"Choose one, remove the other{'s' if len(given) > 2 else ''}")


def _count_of(*fields: str) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)


def _unchanged(field: str, optional: bool) -> Rule:
    same = f"self.{field} == oldSelf.{field}"
    if optional:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    return Rule(
        name=f"{to_snake(field).replace('_', '-')}-unchanged", paths=("spec",), cel=same,
        message=f"{field} cannot be changed: a finished stage would no longer be of this experiment; create another one",
    )  # fmt: skip


IMMUTABLE = ("model", "language", "storage", "vocabulary", "pretraining", "instructionTuning", "evaluation", "seed")
_OPTIONAL_STAGES = ("vocabulary", "pretraining", "instructionTuning", "evaluation")

_WARMUP_CEL = "double(self.warmup) <= 1.0"
_DECAY_CEL = f"self.schedule != 'WSD' || double(self.warmup) + double(has(self.decay) ? self.decay : '{DECAY}') <= 1.0"
_TRAINS_EMBEDDINGS_CEL = "(self.method == 'Full' || (has(self.lora) && self.lora.trainEmbeddings))"
_EMBEDDINGS_FIRST_CEL = f"double(self.embeddingsFirst) <= 1.0 && (double(self.embeddingsFirst) == 0.0 || {_TRAINS_EMBEDDINGS_CEL})"
_RATE_CEL = (
    "double(self.learningRate) > 0.0 && double(self.learningRate) <= 1.0 && (!has(self.embeddingLearningRate) || "
    "(double(self.embeddingLearningRate) > 0.0 && double(self.embeddingLearningRate) <= 1.0))"
)
_SWITCHING_CEL = (
    "!has(self.evaluation) || !('code-switching' in self.evaluation.suites) || "
    f"self.language.matches('(?i)^({'|'.join(ASKED_LANGUAGES)})(-|$)')"
)
_NEW_ROWS_CEL = "!has(self.vocabulary) || (!has(self.pretraining) && !has(self.instructionTuning)) || " + " || ".join(
    f"(has(self.{stage}) && {_TRAINS_EMBEDDINGS_CEL.replace('self.', f'self.{stage}.')})" for stage in ("pretraining", "instructionTuning")
)
_ONE_PROCESS_CEL = (
    "!((has(self.pretraining) && self.pretraining.method == 'QLoRA') || "
    "(has(self.instructionTuning) && self.instructionTuning.method == 'QLoRA')) || (self.workers.replicas == 1 && "
    "self.workers.resources.limits.all(name, !name.endsWith('/gpu') || string(self.workers.resources.limits[name]) in ['0', '1']))"
)

RULES: tuple[Rule, ...] = (
    Rule(
        name="one-model-source", paths=MODELS, cel="has(self.name) != has(self.path)",
        message="needs exactly one of name (on a hub) and path (a folder)", check=_model_source,
    ),
    Rule(
        name="model-revision", paths=MODELS, cel="!has(self.name) || has(self.revision)",
        message="revision is required with name, because a branch moves", check=_model_revision,
    ),
    Rule(
        name="revision-only-of-hub", paths=(*MODELS, *SOURCES), cel="!has(self.path) || !has(self.revision)",
        message="revision is of a hub repository; a path has none", check=_hub_only,
    ),
    Rule(
        name="one-storage", paths=("spec.storage",), cel="has(self.claim) != has(self.url)",
        message="needs exactly one of claim and url", check=_storage,
    ),
    Rule(
        name="credentials-with-url", paths=("spec.storage",), cel="!has(self.credentialsSecret) || has(self.url)",
        message="credentialsSecret goes only with url", check=_credentials,
    ),
    Rule(
        name="one-text-source", paths=SOURCES, cel="has(self.hub) != has(self.path)",
        message="needs exactly one of hub (a data set) and path (files)", check=_text_source,
    ),
    Rule(
        name="text-file", paths=TEXTS, cel=f"!has(self.path) || self.path.matches('{TEXT_FILE}')",
        message="is of a format that is not read as texts", check=_text_file,
    ),
    Rule(
        name="object-file", paths=(INSTRUCTIONS, QUESTIONS), cel=f"!has(self.path) || self.path.matches('{OBJECT_FILE}')",
        message="is of a format that is not read as objects", check=_object_file,
    ),
    Rule(
        name="some-stage", paths=("spec",),
        cel="has(self.vocabulary) || has(self.pretraining) || has(self.instructionTuning) || has(self.evaluation)",
        message="has nothing to do", check=_some_stage,
    ),
    Rule(
        name="one-budget", paths=("spec.pretraining",), cel=f"{_count_of('tokens', 'steps', 'epochs')} == 1",
        message="needs exactly one budget of tokens, steps and epochs", check=_one_budget,
    ),
    Rule(
        name="at-most-one-budget", paths=("spec.instructionTuning",), cel="!(has(self.epochs) && has(self.steps))",
        message="has two budgets, epochs and steps", check=_at_most_one_budget,
    ),
    Rule(
        name="some-weight", paths=("spec.pretraining",), cel="self.mixture.exists(source, source.weight > 0)",
        message="mixture has only weights of 0, so there is nothing to draw", check=_weights,
    ),
    Rule(
        name="row-fits-batch", paths=TRAINING, cel=f"{amount_cel('self.globalBatchTokens')} >= double(self.sequenceLength)",
        message="globalBatchTokens is less than one row of sequenceLength tokens", check=_row_fits_batch,
    ),
    Rule(
        name="batch-fits-budget", paths=("spec.pretraining",),
        cel=f"!has(self.tokens) || {amount_cel('self.tokens')} >= {amount_cel('self.globalBatchTokens')}",
        message="tokens is less than one optimizer step of globalBatchTokens", check=_batch_fits_budget,
    ),
    Rule(
        name="snapshots-within-budget", paths=("spec.pretraining",), cel=None,
        message="snapshotTokens are increasing amounts within the budget", check=_snapshots,
    ),
    Rule(
        name="warmup-is-a-share", paths=TRAINING, cel=_WARMUP_CEL,
        message="warmup is a share of the steps, at most 1", check=_warmup,
    ),
    Rule(
        name="decay-follows-warmup", paths=TRAINING, cel=_DECAY_CEL,
        message="warmup and decay are shares of the same steps, together at most 1", check=_decay,
    ),
    Rule(
        name="embeddings-first", paths=TRAINING, cel=_EMBEDDINGS_FIRST_CEL,
        message="embeddingsFirst is a share of the steps, at most 1, and needs embeddings that are trained", check=_embeddings_first,
    ),
    Rule(
        name="checkpoint-interval", paths=TRAINING, cel="self.checkpointInterval != 'Auto' || !has(self.checkpointSteps)",
        message="checkpointInterval: Auto chooses when to save, so there are no checkpointSteps", check=_checkpoint_interval,
    ),
    Rule(
        name="float8", paths=TRAINING, cel="self.float8 == 'None' || (self.precision == 'BFloat16' && self.method != 'QLoRA')",
        message="float8 is for precision BFloat16, and for weights that are not in 4 bits", check=_float8,
    ),
    Rule(name="z-loss", paths=TRAINING, cel="double(self.zLoss) <= 1.0", message="zLoss is a weight, at most 1", check=_z_loss),
    Rule(
        name="learning-rate", paths=TRAINING, cel=_RATE_CEL,
        message="a learning rate is more than 0 and at most 1", check=_learning_rate,
    ),
    Rule(
        name="distillation-rate", paths=("spec.vocabulary",),
        cel="!has(self.distillation) || (double(self.distillation.learningRate) > 0.0 && double(self.distillation.learningRate) <= 1.0)",
        message="a learning rate is more than 0 and at most 1", check=_distillation_rate,
    ),
    Rule(
        name="spike-factor", paths=tuple(f"{place}.anomalies" for place in TRAINING),
        cel="!has(self.spikeFactor) || double(self.spikeFactor) > 1.0",
        message="spikeFactor is a multiple of the median, more than 1", check=_spike_factor,
    ),
    Rule(
        name="ema-decay", paths=tuple(f"{place}.ema" for place in TRAINING),
        cel="double(self.decay) > 0.0 && double(self.decay) < 1.0",
        message="decay is a share, more than 0 and less than 1", check=_ema_decay,
    ),
    Rule(
        name="perplexity-needs-texts", paths=("spec.evaluation",), cel="!('perplexity' in self.suites) || self.texts.size() > 0",
        message="the suite perplexity needs texts", check=_perplexity_texts,
    ),
    Rule(
        name="switching-knows-the-language", paths=("spec",), cel=_SWITCHING_CEL,
        message="the suite code-switching has no questions in this language", check=_switching_language,
    ),
    Rule(
        name="llm-eval-needs-judge", paths=("spec.evaluation",),
        cel="!('llm-eval' in self.suites) || (has(self.judge) && self.questions.size() > 0)",
        message="the suite llm-eval needs questions and a judge", check=_llm_eval,
    ),
    Rule(
        name="exam-needs-judge", paths=("spec.evaluation",),
        cel="!('gaokao-bench_open' in self.suites) || has(self.judge)",
        message="the suite gaokao-bench_open needs a judge", check=_exam_judge,
    ),
    Rule(
        name="second-judge", paths=("spec.evaluation",),
        cel="!has(self.secondJudge) || (has(self.judge) && "
        "(self.judge.url != self.secondJudge.url || self.judge.model != self.secondJudge.model))",
        message="secondJudge stands beside judge and is another model", check=_second_judge,
    ),
    Rule(
        name="questions-revision", paths=(QUESTIONS,), cel="!has(self.hub) || has(self.revision)",
        message="revision is required with hub, because a branch moves", check=_questions_revision,
    ),
    Rule(
        name="unique-questions", paths=("spec.evaluation",),
        cel="self.questions.all(one, self.questions.exists_one(other, other.name == one.name))",
        message="questions has a name twice", check=_unique_questions,
    ),
    Rule(
        name="money-needs-prices", paths=SPENDING, cel="!has(self.money) || (has(self.inputPrice) && has(self.outputPrice))",
        message="money is counted with inputPrice and outputPrice", check=_prices,
    ),
    Rule(
        name="some-limit", paths=SPENDING, cel="has(self.tokens) || has(self.money)",
        message="limits neither tokens nor money", check=_some_limit,
    ),
    Rule(
        name="baseline-model-is-scored", paths=("spec.evaluation",), cel="!has(self.baselineModel) || self.baseline",
        message="baselineModel is scored only as a baseline", check=_baseline_model,
    ),
    Rule(
        name="retention-compares", paths=("spec.evaluation",),
        cel="!has(self.retention) || (self.baseline && double(self.retention.maxLoss) <= 1.0)",
        message="retention needs a baseline, and a maxLoss of at most 1", check=_retention,
    ),
    Rule(
        name="checkpoints-are-made", paths=("spec",),
        cel="!has(self.evaluation) || self.evaluation.when != 'EachCheckpoint' || "
        "(has(self.pretraining) && self.pretraining.snapshotTokens.size() > 0)",
        message="evaluation.when: EachCheckpoint scores the models of pretraining.snapshotTokens, and there are none", check=_checkpoints,
    ),
    Rule(
        name="stop-needs-checkpoints", paths=("spec.evaluation",),
        cel="!has(self.retention) || !self.retention.stop || self.when == 'EachCheckpoint'",
        message="retention.stop needs when: EachCheckpoint", check=_stop,
    ),
    Rule(
        name="validation-needs-texts", paths=("spec",),
        cel="!has(self.pretraining) || !has(self.pretraining.validationSteps) || "
        "(has(self.evaluation) && self.evaluation.texts.size() > 0)",
        message="pretraining.validationSteps measures on evaluation.texts, and there are none", check=_validation_texts,
    ),
    Rule(
        name="unique-texts", paths=("spec.evaluation",),
        cel="self.texts.all(text, self.texts.exists_one(other, other.name == text.name))",
        message="texts has a name twice", check=_unique_texts,
    ),
    Rule(
        name="unique-suites", paths=("spec.evaluation",),
        cel="self.suites.all(suite, self.suites.exists_one(other, other == suite))",
        message="suites has a name twice", check=_unique_suites,
    ),
    Rule(
        name="some-tracker", paths=("spec.tracking",), cel="has(self.mlflow) || has(self.wandb)",
        message="names neither mlflow nor wandb", check=_some_tracker,
    ),
    Rule(
        name="min-workers", paths=("spec.workers",), cel="self.min <= self.replicas",
        message="min is larger than replicas", check=_min_workers,
    ),
    Rule(
        name="max-workers", paths=("spec.workers",), cel="!has(self.max) || self.replicas <= self.max",
        message="replicas is larger than max", check=_max_workers,
    ),
    Rule(
        name="toleration", paths=("spec.scheduling.tolerations[]",),
        cel="self.operator == 'Exists' ? !has(self.value) : has(self.key)",
        message="a toleration has a value only with operator Equal, which needs a key", check=_toleration,
    ),
    Rule(
        name="new-rows-train", paths=("spec",), cel=_NEW_ROWS_CEL,
        message="the added tokens would never be trained: every stage is LoRA or QLoRA without its embeddings "
        "(set pretraining.lora.trainEmbeddings: true or method: Full)", check=_new_rows_train,
    ),
    Rule(
        name="one-process", paths=("spec",), cel=_ONE_PROCESS_CEL,
        message="QLoRA trains in one process: one worker with at most one GPU", check=_one_process,
    ),
    Rule(
        name="adapters-of-their-methods", paths=TRAINING, cel="!has(self.lora) || self.method != 'Full'",
        message="lora are adapters, and method: Full trains every weight instead", check=_adapters_of_full,
    ),
    Rule(
        name="decay-of-its-schedule", paths=TRAINING, cel="!has(self.decay) || self.schedule == 'WSD'",
        message="decay is of the schedule WSD; every other has its own end", check=_decay_of_wsd,
    ),
    Rule(
        name="embedding-rate-is-used", paths=TRAINING, cel=f"!has(self.embeddingLearningRate) || {_TRAINS_EMBEDDINGS_CEL}",
        message="embeddingLearningRate is of embeddings and head, which adapters leave as they are", check=_embedding_rate,
    ),
    Rule(
        name="window-of-spikes", paths=tuple(f"{place}.anomalies" for place in TRAINING),
        cel=f"self.window == {WINDOW} || has(self.spikeFactor)",
        message="window is where the median of spikeFactor is taken", check=_window,
    ),
    Rule(
        name="limit-of-skipped-steps", paths=tuple(f"{place}.anomalies" for place in TRAINING),
        cel=f"self.limit == {LIMIT} || self.action != 'Stop'",
        message="limit is how many steps Skip and RollBack let pass", check=_limit,
    ),
    Rule(
        name="most-epochs-of-a-budget", paths=("spec.pretraining",), cel="!has(self.epochs) || self.maxEpochs == 1",
        message="maxEpochs bounds tokens and steps; epochs says how often by itself", check=_max_epochs,
    ),
    Rule(
        name="distillation-of-its-initialization", paths=("spec.vocabulary",),
        cel="!has(self.distillation) || self.initialization == 'Distillation'",
        message="distillation is the budget of initialization: Distillation", check=_distillation_budget,
    ),
    Rule(
        name="subset-only-of-hub", paths=SOURCES, cel=f"!has(self.path) || (!has(self.subset) && self.split == '{SPLIT}')",
        message="subset and split are of a hub data set; a path has none", check=_subset_of_hub,
    ),
    Rule(
        name="token-only-of-hub", paths=MODELS, cel="!has(self.path) || !has(self.tokenSecret)",
        message="tokenSecret is of a hub; a path needs none", check=_token_of_hub,
    ),
    Rule(
        name="contamination-by-training", paths=("spec",),
        cel="!has(self.evaluation) || !self.evaluation.contamination || has(self.pretraining) || has(self.instructionTuning)",
        message="evaluation.contamination looks into training rows, and nothing is trained", check=_training_rows,
    ),
    *(_unchanged(field, field in _OPTIONAL_STAGES) for field in IMMUTABLE),
)  # fmt: skip


def rules_at(path: str) -> list[Rule]:
    """The rules that the API server knows at a place of the schema, such as `spec.pretraining.mixture[]`."""
    return [rule for rule in RULES if path in rule.paths and rule.cel is not None]


def is_transition(rule: Rule) -> bool:
    """Whether the rule compares with the object as it was before the change."""
    return rule.cel is not None and re.search(r"\boldSelf\b", rule.cel) is not None
