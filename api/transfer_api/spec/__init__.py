"""`TransferExperiment.spec`: what a user writes.

Each field carries its description, unit and default; `crds/` and docs/reference.md are generated from here. Rules across
fields are in `transfer_api.rules`, once as CEL for the API server and once as Python for `transfer validate`.

values.py       names, addresses, quantities: what several parts are written with
sources.py      models, texts, instructions and questions; the storage
vocabulary.py   the stage `vocabulary`
training.py     the stages `pretraining` and `instructionTuning`
evaluation.py   the stage `evaluation`, and which suites there are
judge.py        models that score answers
workers.py      how many pods, where, and how long and how often what goes wrong is borne
tracking.py     where the curves of trainings go besides the storage
experiment.py   all of it, and the resource around it
"""

from transfer_api.spec.evaluation import (
    CODE_SWITCHING,
    GAOKAO_OPEN,
    JUDGED_SUITES,
    LANGUAGE_IDENTITY,
    LANGUAGE_SUITES,
    LLM_EVAL,
    OWN_SUITES,
    PERPLEXITY,
    Evaluation,
    Retention,
    When,
    is_harness_suite,
    is_judged,
)
from transfer_api.spec.experiment import API_GROUP, API_VERSION, NAME_LENGTH, ExperimentSpec, Metadata, TransferExperiment
from transfer_api.spec.judge import Judge, JudgePace, JudgeSpending, ReplyFormat
from transfer_api.spec.sources import (
    Deduplication,
    InstructionSource,
    ModelSource,
    NamedText,
    QuestionSource,
    Storage,
    TextFilter,
    TextSource,
    WeightedSource,
)
from transfer_api.spec.tracking import MLflow, Tracking, WeightsAndBiases
from transfer_api.spec.training import (
    DECAY,
    MOST_EPOCHS,
    ActivationCheckpointing,
    Anomalies,
    AnomalyAction,
    CheckpointInterval,
    Compilation,
    Ema,
    Float8,
    InstructionTuning,
    Lora,
    Method,
    Optimization,
    Optimizer,
    Pretraining,
    Schedule,
    Sharding,
)
from transfer_api.spec.values import (
    NAME_PATTERN,
    QUANTITY_PATTERN,
    HubName,
    InterfaceName,
    Label,
    LabelKey,
    LabelValue,
    Language,
    Name,
    ObjectName,
    Path,
    Precision,
    Quantity,
    Revision,
    SecretKey,
    ServerAddress,
    Suite,
)
from transfer_api.spec.vocabulary import Distillation, Initialization, Vocabulary
from transfer_api.spec.workers import Deadlines, Effect, Resources, Restarts, Scheduling, Toleration, TolerationOperator, Workers

__all__ = [
    "NAME_PATTERN", "Name", "Language", "Path", "Revision", "HubName", "Label", "Suite", "ServerAddress", "ObjectName", "LabelValue",
    "LabelKey", "InterfaceName", "QUANTITY_PATTERN", "Quantity", "Precision", "SecretKey",
    "ModelSource", "Storage", "TextSource", "Deduplication", "TextFilter", "WeightedSource", "NamedText", "InstructionSource",
    "QuestionSource",
    "Initialization", "Distillation", "Vocabulary",
    "MOST_EPOCHS", "Method", "Optimizer", "CheckpointInterval", "Schedule", "AnomalyAction", "ActivationCheckpointing", "Sharding",
    "Float8", "Compilation", "Lora", "Anomalies", "Ema", "DECAY", "Optimization", "Pretraining", "InstructionTuning",
    "PERPLEXITY", "CODE_SWITCHING", "LANGUAGE_IDENTITY", "LLM_EVAL", "GAOKAO_OPEN", "JUDGED_SUITES", "LANGUAGE_SUITES", "OWN_SUITES",
    "is_judged", "is_harness_suite", "When", "Retention", "Evaluation",
    "ReplyFormat", "JudgeSpending", "JudgePace", "Judge",
    "Resources", "Workers", "Effect", "TolerationOperator", "Toleration", "Scheduling", "Restarts", "Deadlines",
    "MLflow", "WeightsAndBiases", "Tracking",
    "API_GROUP", "API_VERSION", "NAME_LENGTH", "ExperimentSpec", "Metadata", "TransferExperiment",
]  # fmt: skip
