"""Stages: what an experiment is cut into, and the key that lets two experiments share one.

A stage is a plan: its kind, the parameters that decide its result, and which earlier stages it reads. Its key is the
SHA-256 of all that and of the version of the code contract. What does not change the result (number of workers, size of a
micro-batch, sharding, checkpoint interval, texts measured on along the way) is in `Execution`, which the key leaves out; so a finished
artifact is found again after a resize, and by a study that shares a stage between cells.

A hub data set counts by its name and the revision that the experiment writes. Without one the pods read what is newest when
they run, and the key cannot tell: to resolve a branch needs the network, which planning, validating and the operator do
without. So a stage that was made is found again although its data set has moved on; a pinned revision says what was read.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.alias_generators import to_camel

from transfer_api.base import Observed
from transfer_api.language import primary
from transfer_api.spec import (
    DECAY,
    GAOKAO_OPEN,
    LANGUAGE_SUITES,
    LLM_EVAL,
    ActivationCheckpointing,
    Anomalies,
    CheckpointInterval,
    Compilation,
    Distillation,
    Ema,
    Evaluation,
    ExperimentSpec,
    Float8,
    Initialization,
    InstructionSource,
    InstructionTuning,
    Judge,
    JudgePace,
    Lora,
    Method,
    ModelSource,
    NamedText,
    Optimizer,
    Precision,
    Pretraining,
    QuestionSource,
    Schedule,
    Sharding,
    TextSource,
    Tracking,
    WeightedSource,
    When,
    is_harness_suite,
    is_judged,
)

KEY_LENGTH = 32  # hexadecimal digits: 128 bits, and short enough for a Kubernetes label


class StageKind(enum.StrEnum):
    """What a stage does."""

    VOCABULARY = "vocabulary"
    DATASET = "dataset"
    PRETRAINING = "pretraining"
    INSTRUCTION_TUNING = "instruction-tuning"
    EVALUATION = "evaluation"

    @property
    def elastic(self) -> bool:
        """Whether its pods are the workers of a rendezvous, rather than independent shards."""
        return self in (StageKind.PRETRAINING, StageKind.INSTRUCTION_TUNING)


# Raise a number when the same parameters would give another artifact: everything of that kind is then computed again.
CONTRACT_VERSION: Mapping[StageKind, int] = {
    StageKind.VOCABULARY: 1,
    StageKind.DATASET: 2,
    StageKind.PRETRAINING: 2,
    StageKind.INSTRUCTION_TUNING: 2,
    StageKind.EVALUATION: 5,
}


class VocabularyParameters(Observed):
    """Artifact: `model/` (resized model and tokenizer), `vocabulary.json` (counts, fertility before and after)."""

    model: ModelSource
    added_tokens: int
    initialization: Initialization
    distillation: Distillation | None = Field(default=None, exclude_if=lambda value: value is None)
    pad_to_multiple_of: int | None = None
    corpus: list[TextSource]
    seed: int


class DatasetParameters(Observed):
    """Artifact: packed rows, one folder for each source; see `transfer_trainer.store`.

    Exactly one of `mixture` (pretraining) and `instructions` is filled. `model` gives the tokenizer, unless the stage has
    an input `model`.
    """

    model: ModelSource
    sequence_length: int
    mixture: list[WeightedSource] = []
    instructions: list[InstructionSource] = []
    examples: int | None = None
    template: str = "Model"
    seed: int


class TrainingParameters(Observed):
    """Artifact: `model/` (plain safetensors and tokenizer), `ledger.jsonl`, `training.json`; each snapshot is one of its own.

    Inputs: `dataset`, and `model` unless training starts from the base model. Exactly one of `tokens`, `steps` and
    `epochs` is set. A row is `sequence_length` tokens, a step is `rows_per_step` rows.
    """

    model: ModelSource
    method: Method
    lora: Lora | None
    optimizer: Optimizer = Field(default=Optimizer.ADAMW, exclude_if=lambda value: value is Optimizer.ADAMW)
    sequence_length: int
    rows_per_step: int
    tokens: int | None
    steps: int | None
    epochs: int | None
    snapshot_tokens: list[int] = Field(
        default=[], exclude_if=lambda value: not value, description="They are made on the way, so with others it is another run."
    )
    learning_rate: str
    embedding_learning_rate: str
    schedule: Schedule
    warmup: str
    decay: str = DECAY
    embeddings_first: str = "0"
    z_loss: str = "0"
    weight_decay: str
    gradient_clipping: str
    ema: Ema | None = Field(default=None, exclude_if=lambda value: value is None)
    anomalies: Anomalies | None = Field(
        default=None, exclude_if=lambda value: value is None, description="None, which no key holds: stop where the loss is not finite."
    )
    precision: Precision
    float8: Float8 = Field(default=Float8.NONE, exclude_if=lambda value: value is Float8.NONE)
    seed: int


class EvaluationParameters(Observed):
    """Artifact: `results.json`, `items/<suite>.<task>.jsonl`; with the suite llm-eval `items/llm-eval/` too.

    Inputs: `model` unless the base model is scored, `baseline` (an evaluation) where items are to be compared, and
    `pretraining_rows` and `instruction_rows` (data sets) where the overlap with them is to be counted.
    """

    model: ModelSource
    suites: list[str]
    texts: list[NamedText]
    task_folders: list[str]
    mirror: str | None = Field(default=None, exclude_if=lambda value: value is None)
    questions: list[QuestionSource] = []
    answer_tokens: int | None = None
    judge: Judge | None = None
    second_judge: Judge | None = None
    shots: int | None
    limit: int | None
    precision: Precision
    contamination: bool = Field(default=False, exclude_if=lambda value: not value)
    snapshot: int | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Tokens of the snapshot of the input that is scored."
    )
    seed: int

    @model_serializer(mode="wrap")
    def _without_unused(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields of a suite that is not asked for are no part of the stage, nor of its key."""
        unused = [name for name in ("questions", "answer_tokens", "judge", "second_judge") if not getattr(self, name)]
        return {name: value for name, value in plain(self).items() if name not in {*unused, *map(to_camel, unused)}}


Parameters = VocabularyParameters | DatasetParameters | TrainingParameters | EvaluationParameters

PARAMETERS: Mapping[StageKind, type[Observed]] = {
    StageKind.VOCABULARY: VocabularyParameters,
    StageKind.DATASET: DatasetParameters,
    StageKind.PRETRAINING: TrainingParameters,
    StageKind.INSTRUCTION_TUNING: TrainingParameters,
    StageKind.EVALUATION: EvaluationParameters,
}


class Execution(Observed):
    """How a stage is run, without any say in its result."""

    micro_batch_tokens: int | None = None
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.AUTO
    sharding: Sharding = Sharding.FULL
    compile: Compilation = Compilation.NONE
    checkpoint_steps: int | None = None
    checkpoint_interval: CheckpointInterval = CheckpointInterval.STEPS
    checkpoints_kept: int = 2
    max_epochs: int | None = Field(default=None, description="Refuses a budget that reads a source more often; it changes no row.")
    validation_steps: int | None = None
    validation_texts: list[NamedText] = Field(default=[], description="Measured on along the way, never learned from.")
    validation_files: dict[str, str] = Field(default={}, description="Digests of their paths, where the planner sees the files.")
    shards: int = Field(default=1, description="Pods that share an evaluation.")
    tracking: Tracking | None = Field(default=None, description="Without the names of Secrets.")
    judge_pace: JudgePace | None = None
    second_judge_pace: JudgePace | None = None


class StagePlan(Observed):
    """One stage of an experiment, complete enough to run it."""

    name: str = Field(description="Unique in the experiment: pretraining-dataset, baseline, …")
    kind: StageKind
    key: str
    parameters: dict[str, Any]
    inputs: dict[str, str] = {}
    files: dict[str, str] = Field(
        default={}, description="Digest of each input path, where the planner sees the files; they are in the key."
    )
    execution: Execution = Execution()

    @property
    def shared(self) -> bool:
        """Whether several pods make it together: training, tokenising the texts of a mixture, and an evaluation in shards."""
        return self._of_workers or self.execution.shards > 1

    @property
    def snapshot(self) -> int | None:
        """Tokens of the checkpoint that an evaluation on the way scores; None for every other stage."""
        return self.parameters.get("snapshot")

    def pods(self, workers: int) -> int:
        """Pods that make it, besides a rendezvous, where so many workers are wanted."""
        return workers if self._of_workers else self.execution.shards

    @property
    def _of_workers(self) -> bool:
        return self.kind.elastic or (self.kind is StageKind.DATASET and bool(self.parameters.get("mixture")))

    def typed_parameters(self) -> Parameters:
        """The parameters as the model of the stage's kind."""
        return PARAMETERS[self.kind].model_validate(self.parameters)  # type: ignore[return-value]


def stage_key(kind: StageKind, parameters: Mapping[str, Any], inputs: Mapping[str, str], fingerprints: Mapping[str, str]) -> str:
    """SHA-256 over everything that decides the artifact, as `KEY_LENGTH` hexadecimal digits.

    Args:
        kind: the stage's kind; its contract version goes in too.
        parameters: JSON-ready parameters.
        inputs: role to key of the stage that is read.
        fingerprints: `path` to content digest, where the caller can see the files (`transfer run` does, the operator
            cannot); only paths that the parameters name are used.
    """
    content = {
        "kind": kind.value,
        "contract": CONTRACT_VERSION[kind],
        "parameters": parameters,
        "inputs": dict(inputs),
        "files": files_of(parameters, fingerprints),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def files_of(parameters: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Digests of the paths that a stage's parameters name, as far as they are known."""
    return {path: fingerprints[path] for path in sorted(_paths(parameters)) if path in fingerprints}


def snapshot_key(key: str, tokens: int) -> str:
    """Key of the artifact that holds, as `model/`, what a pretraining was after so many tokens; there before that is complete."""
    return f"{key}-at-{tokens}"


def artifact_path(kind: StageKind, key: str) -> str:
    """Folder of an artifact, relative to the storage."""
    return f"artifacts/{kind.value}/{key}"


def input_paths(spec: ExperimentSpec) -> list[str]:
    """Every `path` and task folder that the experiment reads, in order of appearance and once each."""
    return list(dict.fromkeys(_paths(spec.model_dump(mode="json"))))


def needs_hub(spec: ExperimentSpec) -> bool:
    """Whether anything is fetched from a hub: the model, a data set, an exam, or a task that is in no folder of the experiment's."""
    wanted = spec.evaluation
    exam = wanted is not None and not wanted.mirror and GAOKAO_OPEN in wanted.suites
    tasks = exam or (wanted is not None and not (wanted.task_folders or wanted.mirror) and any(map(is_harness_suite, wanted.suites)))
    return any(model.name is not None for model in models_of(spec).values()) or tasks or names_hub(spec.model_dump(mode="json"))


def asked_suites(evaluation: Evaluation, language: str) -> list[str]:
    """The suites, those that exist in several languages in the experiment's where none is named."""
    own = primary(language)
    return list(dict.fromkeys(f"{suite}_{own}" if suite in LANGUAGE_SUITES else suite for suite in evaluation.suites))


def models_of(spec: ExperimentSpec) -> dict[str, ModelSource]:
    """The models that an experiment starts from, by their place in the file."""
    found = {"spec.model": spec.model}
    if spec.evaluation and spec.evaluation.baseline_model:
        found["spec.evaluation.baselineModel"] = spec.evaluation.baseline_model
    return found


def is_address(path: str) -> bool:
    """Whether a path of the experiment is an address rather than a file of the storage."""
    return "://" in path


def reads_addresses(stage: StagePlan) -> bool:
    """Whether a stage reads data by address."""
    return any(map(is_address, [*_paths(stage.parameters), *_paths(stage.execution.model_dump(mode="json"))]))


def names_hub(value: Any) -> bool:
    """Whether anything in a model's plain form is fetched from a hub."""
    if isinstance(value, Mapping):
        return value.get("hub") is not None or any(names_hub(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(names_hub(item) for item in value)


def _paths(value: Any) -> list[str]:
    found: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "path" and isinstance(item, str):
                found.append(item)
            elif key in ("task_folders", "taskFolders"):
                found.extend(item)
            else:
                found.extend(_paths(item))
    elif isinstance(value, (list, tuple)):
        for item in value:
            found.extend(_paths(item))
    return found


def plan_stages(spec: ExperimentSpec, fingerprints: Mapping[str, str] | None = None) -> tuple[StagePlan, ...]:
    """Cuts an experiment into stages, each after the stages it reads.

    The same spec and fingerprints always give the same keys. The baseline stands first among what needs no training, so
    that a cluster with room runs it beside the training and a single machine before it.
    """
    planner = _Planner(spec, fingerprints or {})
    return planner.plan()


class _Planner:
    def __init__(self, spec: ExperimentSpec, fingerprints: Mapping[str, str]) -> None:
        self.spec = spec
        self.fingerprints = fingerprints
        self.model = _bare(spec.model)
        self.stages: list[StagePlan] = []

    def plan(self) -> tuple[StagePlan, ...]:
        spec = self.spec
        trained: str | None = None
        baseline: str | None = None
        has_training = spec.vocabulary or spec.pretraining or spec.instruction_tuning
        if spec.evaluation and spec.evaluation.baseline and (has_training or spec.evaluation.baseline_model):
            baseline = self._evaluation("baseline", spec.evaluation, None, None, source=spec.evaluation.baseline_model)
        if spec.vocabulary:
            trained = self._add("vocabulary", StageKind.VOCABULARY, self._vocabulary(), {})
        if spec.pretraining:
            dataset = self._add("pretraining-dataset", StageKind.DATASET, self._mixture(spec.pretraining), _roles(model=trained))
            trained = self._train("pretraining", StageKind.PRETRAINING, spec.pretraining, dataset, trained)
            if spec.evaluation and spec.evaluation.when is When.EACH_CHECKPOINT:
                for tokens in spec.pretraining.snapshot_tokens:
                    self._evaluation(f"evaluation-at-{tokens}", spec.evaluation, trained, baseline, snapshot=tokens)
        if spec.instruction_tuning:
            # The tokenizer is that of the vocabulary stage or of the base model: training does not change it.
            tokenizer = next((s.key for s in self.stages if s.kind is StageKind.VOCABULARY), None)
            instructions = self._instructions(spec.instruction_tuning)
            dataset = self._add("instruction-dataset", StageKind.DATASET, instructions, _roles(model=tokenizer))
            trained = self._train("instruction-tuning", StageKind.INSTRUCTION_TUNING, spec.instruction_tuning, dataset, trained)
        if spec.evaluation:
            rows = {s.name.replace("-dataset", "_rows"): s.key for s in self.stages if s.kind is StageKind.DATASET}
            self._evaluation("evaluation", spec.evaluation, trained, baseline, rows if spec.evaluation.contamination else {})
        return tuple(self.stages)

    def _add(self, name: str, kind: StageKind, parameters: Parameters, inputs: dict[str, str], execution: Execution | None = None) -> str:
        plain = parameters.model_dump(mode="json", by_alias=True)
        key = stage_key(kind, plain, inputs, self.fingerprints)
        files = files_of(plain, self.fingerprints)
        stage = StagePlan(name=name, kind=kind, key=key, parameters=plain, inputs=inputs, files=files, execution=execution or Execution())
        self.stages.append(stage)
        return key

    def _vocabulary(self) -> VocabularyParameters:
        assert self.spec.vocabulary
        wanted = self.spec.vocabulary
        return VocabularyParameters(
            model=self.model, added_tokens=wanted.added_tokens, initialization=wanted.initialization,
            distillation=(wanted.distillation or Distillation()) if wanted.initialization is Initialization.DISTILLATION else None,
            pad_to_multiple_of=wanted.pad_to_multiple_of,
            corpus=[source.model_copy(update={"language": None}) for source in wanted.corpus], seed=self.spec.seed,
        )  # fmt: skip

    def _mixture(self, wanted: Pretraining) -> DatasetParameters:
        # 6:2 is 3:1, and a language says how a text is shown, not which tokens it has.
        shares = [source.weight for source in wanted.mixture]
        divisor = math.gcd(*shares) or 1
        mixture = [source.model_copy(update={"weight": source.weight // divisor, "language": None}) for source in wanted.mixture]
        return DatasetParameters(model=self.model, sequence_length=wanted.sequence_length, mixture=mixture, seed=self.spec.seed)

    def _instructions(self, wanted: InstructionTuning) -> DatasetParameters:
        return DatasetParameters(
            model=self.model, sequence_length=wanted.sequence_length, instructions=wanted.data,
            examples=wanted.examples, template=wanted.template, seed=self.spec.seed,
        )  # fmt: skip

    def _train(self, name: str, kind: StageKind, wanted: Pretraining | InstructionTuning, dataset: str, model: str | None) -> str:
        pretraining = wanted if isinstance(wanted, Pretraining) else None
        epochs = wanted.epochs
        if pretraining is None and wanted.epochs is None and wanted.steps is None:
            epochs = 1
        parameters = TrainingParameters(
            model=self.model, method=wanted.method, lora=wanted.adapters,
            optimizer=wanted.optimizer,
            sequence_length=wanted.sequence_length, rows_per_step=wanted.global_batch_tokens // wanted.sequence_length,
            tokens=pretraining.tokens if pretraining else None, steps=wanted.steps, epochs=epochs,
            snapshot_tokens=pretraining.snapshot_tokens if pretraining else [],
            learning_rate=wanted.learning_rate,
            embedding_learning_rate=wanted.embedding_learning_rate or wanted.learning_rate,
            schedule=wanted.schedule, warmup=wanted.warmup,
            # Fields that the rest makes meaningless do not part stages that are the same.
            decay=(wanted.decay or DECAY) if wanted.schedule is Schedule.WSD else "0",
            embeddings_first=wanted.embeddings_first, z_loss=wanted.z_loss, weight_decay=wanted.weight_decay,
            gradient_clipping=wanted.gradient_clipping, ema=wanted.ema,
            anomalies=wanted.anomalies if wanted.anomalies != Anomalies() else None, precision=wanted.precision, float8=wanted.float8,
            seed=self.spec.seed,
        )  # fmt: skip
        validation_steps = pretraining.validation_steps if pretraining else None
        texts = self.spec.evaluation.texts if self.spec.evaluation and validation_steps else []
        execution = Execution(
            micro_batch_tokens=wanted.micro_batch_tokens, activation_checkpointing=wanted.activation_checkpointing,
            sharding=wanted.sharding, compile=wanted.compile, checkpoint_steps=wanted.checkpoint_steps,
            checkpoint_interval=wanted.checkpoint_interval, checkpoints_kept=wanted.checkpoints_kept,
            max_epochs=pretraining.max_epochs if pretraining else None, validation_steps=validation_steps,
            validation_texts=texts, validation_files=files_of({"texts": [text.model_dump() for text in texts]}, self.fingerprints),
            tracking=_open(self.spec.tracking),
        )  # fmt: skip
        return self._add(name, kind, parameters, _roles(dataset=dataset, model=model), execution)

    def _evaluation(
        self,
        name: str,
        wanted: Evaluation,
        model: str | None,
        baseline: str | None,
        rows: Mapping[str, str] | None = None,
        source: ModelSource | None = None,
        snapshot: int | None = None,
    ) -> str:
        texts = [text.model_copy(update={"language": text.language or self.spec.language}) for text in wanted.texts]
        judged, asked = is_judged(wanted.suites), LLM_EVAL in wanted.suites
        first, second = (wanted.judge, wanted.second_judge) if judged else (None, None)
        parameters = EvaluationParameters(
            model=_bare(source) if source else self.model, suites=asked_suites(wanted, self.spec.language), texts=texts,
            task_folders=wanted.task_folders, mirror=wanted.mirror,
            questions=[one.model_copy(update={"language": one.language or self.spec.language}) for one in wanted.questions if asked],
            answer_tokens=wanted.answer_tokens if judged else None, judge=_settings(first), second_judge=_settings(second),
            shots=wanted.shots, limit=wanted.limit, precision=wanted.precision, seed=self.spec.seed,
            contamination=bool(rows), snapshot=snapshot,
        )  # fmt: skip
        execution = Execution(
            shards=wanted.shards, judge_pace=first.pace if first else None, second_judge_pace=second.pace if second else None
        )
        return self._add(name, StageKind.EVALUATION, parameters, _roles(model=model, baseline=baseline, **(rows or {})), execution)


def _bare(model: ModelSource) -> ModelSource:
    """Neither the hub token nor the size hint changes a result."""
    return model.model_copy(update={"token_secret": None, "parameters": None})


def _settings(judge: Judge | None) -> Judge | None:
    """What of a judge decides its scores: neither its token nor how fast it is asked."""
    return judge and judge.model_copy(update={"token_secret": None, "pace": None})


def _open(tracking: Tracking | None) -> Tracking | None:
    """Where curves go; with which credentials is between backend and pod."""
    return tracking and tracking.model_copy(
        update={
            "mlflow": tracking.mlflow and tracking.mlflow.model_copy(update={"credentials_secret": None}),
            "wandb": tracking.wandb and tracking.wandb.model_copy(update={"token_secret": None}),
        }
    )


def _roles(**keys: str | None) -> dict[str, str]:
    return {role: key for role, key in keys.items() if key is not None}
