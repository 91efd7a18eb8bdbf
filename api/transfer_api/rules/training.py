"""Rules of the stages `pretraining` and `instructionTuning`."""

from __future__ import annotations

import itertools
import math

from transfer_api.amount import amount_cel, format_amount
from transfer_api.rules.rule import Violation, exactly_one, rule, share
from transfer_api.spec import (
    DECAY,
    MOST_EPOCHS,
    Anomalies,
    AnomalyAction,
    CheckpointInterval,
    Ema,
    Float8,
    InstructionTuning,
    Method,
    Optimization,
    Precision,
    Pretraining,
    Schedule,
)

TRAINING = ("spec.pretraining", "spec.instructionTuning")
ANOMALIES = tuple(f"{place}.anomalies" for place in TRAINING)
EMA = tuple(f"{place}.ema" for place in TRAINING)
TRAINS_EMBEDDINGS = "(self.method == 'Full' || (has(self.lora) && self.lora.trainEmbeddings))"
# Defaults, by which a rule sees that nobody has set a field.
WINDOW, LIMIT = Anomalies().window, Anomalies().limit


@rule(
    "spec.pretraining",
    cel="(has(self.tokens) ? 1 : 0) + (has(self.steps) ? 1 : 0) + (has(self.epochs) ? 1 : 0) == 1",
    message="needs exactly one budget of tokens, steps and epochs",
)
def _one_budget(training: Pretraining) -> Violation | None:
    return exactly_one(training, "tokens", "steps", "epochs")


@rule("spec.instructionTuning", cel="!(has(self.epochs) && has(self.steps))", message="has two budgets, epochs and steps")
def _at_most_one_budget(tuning: InstructionTuning) -> Violation | None:
    if tuning.epochs is None or tuning.steps is None:
        return None
    return Violation(
        value={"epochs": tuning.epochs, "steps": tuning.steps},
        allowed="at most one of epochs, steps",
        next_step="Choose one, remove the other",
    )


@rule(
    "spec.pretraining",
    cel="self.mixture.exists(source, source.weight > 0)",
    message="mixture has only weights of 0, so there is nothing to draw",
)
def _some_weight(training: Pretraining) -> Violation | None:
    weights = [source.weight for source in training.mixture]
    if any(weights):
        return None
    return Violation(
        field="mixture", value=weights, allowed="at least one weight above 0", next_step="Set weight of the sources to be read"
    )


@rule(
    *TRAINING,
    cel=f"{amount_cel('self.globalBatchTokens')} >= double(self.sequenceLength)",
    message="globalBatchTokens is less than one row of sequenceLength tokens",
)
def _row_fits_batch(training: Optimization) -> Violation | None:
    if training.global_batch_tokens >= training.sequence_length:
        return None
    return Violation(
        field="globalBatchTokens", value=training.global_batch_tokens, allowed=f"at least sequenceLength ({training.sequence_length})",
        next_step="Raise globalBatchTokens or lower sequenceLength",
    )  # fmt: skip


@rule(
    "spec.pretraining",
    cel=f"!has(self.tokens) || {amount_cel('self.tokens')} >= {amount_cel('self.globalBatchTokens')}",
    message="tokens is less than one optimizer step of globalBatchTokens",
)
def _batch_fits_budget(training: Pretraining) -> Violation | None:
    if training.tokens is None or training.tokens >= training.global_batch_tokens:
        return None
    return Violation(
        field="tokens", value=training.tokens, allowed=f"at least globalBatchTokens ({format_amount(training.global_batch_tokens)})",
        next_step="Raise tokens or set a smaller globalBatchTokens",
    )  # fmt: skip


# Each example fills a row at most: n of them are too few where the batch has room for n + 1 rows.
@rule(
    "spec.instructionTuning",
    cel=f"!has(self.examples) || has(self.steps) || ({amount_cel('self.examples')} * (has(self.epochs) ? double(self.epochs) : 1.0) + 1.0) "
    f"* double(self.sequenceLength) > {amount_cel('self.globalBatchTokens')}",
    message="globalBatchTokens is more than the examples of all epochs",
)
def _batch_fits_examples(tuning: InstructionTuning) -> Violation | None:
    if tuning.examples is None or tuning.steps is not None:
        return None
    read, rows = tuning.examples * (tuning.epochs or 1), tuning.global_batch_tokens // tuning.sequence_length
    if read >= rows:
        return None
    epochs = math.ceil(rows / tuning.examples)
    return Violation(
        field="globalBatchTokens", value=tuning.global_batch_tokens,
        allowed=f"at most {read * tuning.sequence_length}, a row of sequenceLength ({tuning.sequence_length}) for each example",
        next_step="Lower it" + (f", or set epochs: {epochs} or more" if epochs <= MOST_EPOCHS else ""),
    )  # fmt: skip


@rule("spec.pretraining", cel=None, message="snapshotTokens are increasing amounts within the budget")
def _snapshots_within_budget(training: Pretraining) -> Violation | None:
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


@rule(*TRAINING, cel="double(self.warmup) <= 1.0", message="warmup is a share of the steps, at most 1")
def _warmup_is_a_share(training: Optimization) -> Violation | None:
    return None if float(training.warmup) <= 1 else share("warmup", training.warmup, "0.05 for a twentieth of the steps")


@rule(
    *TRAINING,
    cel=f"self.schedule != 'WSD' || double(self.warmup) + double(has(self.decay) ? self.decay : '{DECAY}') <= 1.0",
    message="warmup and decay are shares of the same steps, together at most 1",
)
def _decay_follows_warmup(training: Optimization) -> Violation | None:
    if training.schedule is not Schedule.WSD or float(training.warmup) + float(training.decay or DECAY) <= 1:
        return None
    return Violation(
        field="decay",
        value=training.decay or DECAY,
        allowed="at most 1 together with warmup",
        next_step='Write it such as "0.2", the last fifth',
    )


@rule(
    *TRAINING,
    cel=f"double(self.embeddingsFirst) <= 1.0 && (double(self.embeddingsFirst) == 0.0 || {TRAINS_EMBEDDINGS})",
    message="embeddingsFirst is a share of the steps, at most 1, and needs embeddings that are trained",
)
def _embeddings_first(training: Optimization) -> Violation | None:
    if float(training.embeddings_first) > 1:
        return share("embeddingsFirst", training.embeddings_first, "0.1 for the first tenth of the steps")
    if float(training.embeddings_first) > 0 and not training.trains_embeddings:
        return Violation(
            field="embeddingsFirst", value=training.embeddings_first, allowed="0 where embeddings are not trained",
            next_step="Set lora.trainEmbeddings: true, or remove embeddingsFirst",
        )  # fmt: skip
    return None


@rule(
    *TRAINING,
    cel="self.checkpointInterval != 'Auto' || !has(self.checkpointSteps)",
    message="checkpointInterval: Auto chooses when to save, so there are no checkpointSteps",
)
def _checkpoint_interval(training: Optimization) -> Violation | None:
    if training.checkpoint_interval is not CheckpointInterval.AUTO or training.checkpoint_steps is None:
        return None
    return Violation(
        field="checkpointSteps", value=training.checkpoint_steps, allowed="only with checkpointInterval: Steps",
        next_step="Remove it, or remove checkpointInterval: Auto",
    )  # fmt: skip


@rule(
    *TRAINING,
    cel="self.float8 == 'None' || (self.precision == 'BFloat16' && self.method != 'QLoRA')",
    message="float8 is for precision BFloat16, and for weights that are not in 4 bits",
)
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


@rule(*TRAINING, cel="double(self.zLoss) <= 1.0", message="zLoss is a weight, at most 1")
def _z_loss(training: Optimization) -> Violation | None:
    if float(training.z_loss) <= 1:
        return None
    return Violation(field="zLoss", value=training.z_loss, allowed="at most 1", next_step="Try 1e-4")


@rule(
    *TRAINING,
    cel="double(self.learningRate) > 0.0 && double(self.learningRate) <= 1.0 && (!has(self.embeddingLearningRate) || "
    "(double(self.embeddingLearningRate) > 0.0 && double(self.embeddingLearningRate) <= 1.0))",
    message="a learning rate is more than 0 and at most 1",
)
def _learning_rate(training: Optimization) -> Violation | None:
    for field, value in (("learningRate", training.learning_rate), ("embeddingLearningRate", training.embedding_learning_rate)):
        if value is not None and not 0 < float(value) <= 1:
            return Violation(field=field, value=value, allowed="more than 0, at most 1", next_step='Write it such as "2e-5"')
    return None


@rule(*TRAINING, cel="!has(self.lora) || self.method != 'Full'", message="lora are adapters, and method: Full trains every weight instead")
def _adapters_of_their_methods(training: Optimization) -> Violation | None:
    if training.lora is None or training.method.adapters:
        return None
    return Violation(
        field="lora", allowed="only with method: LoRA or method: QLoRA", next_step="Add method: LoRA or method: QLoRA, or remove lora"
    )


@rule(*TRAINING, cel="!has(self.decay) || self.schedule == 'WSD'", message="decay is of the schedule WSD; every other has its own end")
def _decay_of_its_schedule(training: Optimization) -> Violation | None:
    if training.decay is None or training.schedule is Schedule.WSD:
        return None
    return Violation(field="decay", value=training.decay, allowed="only with schedule: WSD", next_step="Add schedule: WSD, or remove decay")


@rule(
    *TRAINING,
    cel=f"!has(self.embeddingLearningRate) || {TRAINS_EMBEDDINGS}",
    message="embeddingLearningRate is of embeddings and head, which adapters leave as they are",
)
def _embedding_rate_is_used(training: Optimization) -> Violation | None:
    if training.embedding_learning_rate is None or training.trains_embeddings:
        return None
    return Violation(
        field="embeddingLearningRate", value=training.embedding_learning_rate, allowed="only where embeddings are trained",
        next_step="Set lora.trainEmbeddings: true, or remove embeddingLearningRate",
    )  # fmt: skip


@rule(
    "spec.pretraining",
    cel="!has(self.epochs) || self.maxEpochs == 1",
    message="maxEpochs bounds tokens and steps; epochs says how often by itself",
)
def _most_epochs_of_a_budget(training: Pretraining) -> Violation | None:
    if training.epochs is None or training.max_epochs == 1:
        return None
    return Violation(
        field="maxEpochs", value=training.max_epochs, allowed="only with tokens or steps",
        next_step="Remove it, or set tokens or steps instead of epochs",
    )  # fmt: skip


@rule(
    *ANOMALIES,
    cel="!has(self.spikeFactor) || double(self.spikeFactor) > 1.0",
    message="spikeFactor is a multiple of the median, more than 1",
)
def _spike_factor(anomalies: Anomalies) -> Violation | None:
    if anomalies.spike_factor is None or float(anomalies.spike_factor) > 1:
        return None
    return Violation(
        field="spikeFactor", value=anomalies.spike_factor, allowed="more than 1", next_step='Write how many times the median, such as "2"'
    )


@rule(*ANOMALIES, cel=f"self.window == {WINDOW} || has(self.spikeFactor)", message="window is where the median of spikeFactor is taken")
def _window_of_spikes(anomalies: Anomalies) -> Violation | None:
    if anomalies.window == WINDOW or anomalies.spike_factor is not None:
        return None
    return Violation(field="window", value=anomalies.window, allowed="only with spikeFactor", next_step="Add spikeFactor, or remove window")


@rule(*ANOMALIES, cel=f"self.limit == {LIMIT} || self.action != 'Stop'", message="limit is how many steps Skip and RollBack let pass")
def _limit_of_skipped_steps(anomalies: Anomalies) -> Violation | None:
    if anomalies.limit == LIMIT or anomalies.action is not AnomalyAction.STOP:
        return None
    return Violation(
        field="limit", value=anomalies.limit, allowed="only with action: Skip or action: RollBack",
        next_step="Set action: Skip or RollBack, or remove limit: the first anomalous step ends the stage",
    )  # fmt: skip


@rule(*EMA, cel="double(self.decay) > 0.0 && double(self.decay) < 1.0", message="decay is a share, more than 0 and less than 1")
def _ema_decay(ema: Ema) -> Violation | None:
    if 0 < float(ema.decay) < 1:
        return None
    return Violation(
        field="decay",
        value=ema.decay,
        allowed="more than 0, less than 1",
        next_step='Write "0.999" for the last 1,000 steps, or remove ema',
    )
