"""All of it, and the resource around it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from transfer_api.base import Contract
from transfer_api.spec.evaluation import Evaluation
from transfer_api.spec.sources import ModelSource, Storage
from transfer_api.spec.tracking import Tracking
from transfer_api.spec.training import InstructionTuning, Pretraining
from transfer_api.spec.values import NAME_PATTERN, Language, Name
from transfer_api.spec.vocabulary import Vocabulary
from transfer_api.spec.workers import Deadlines, Restarts, Scheduling, Workers

API_GROUP = "transfer-operator.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
NAME_LENGTH = 52  # child names add up to 11 characters, and a label value ends at 63


class ExperimentSpec(Contract):
    """One experiment. vocabulary, pretraining, instructionTuning and evaluation are optional; at least one must be there."""

    model: ModelSource = Field(description="The base model.")
    language: Language = Field(description="BCP 47 code of the language to learn; English is what must not be lost.")
    storage: Storage = Field(description="Where models, data and artifacts are.")
    data_secret: Name | None = Field(
        default=None,
        description="Secret with the credentials of s3:// addresses under the names AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL, as far as they are needed. `transfer run` takes them from its environment.",
    )
    vocabulary: Vocabulary | None = Field(default=None, description="Vocabulary extension.")
    pretraining: Pretraining | None = Field(default=None, description="Further pretraining.")
    instruction_tuning: InstructionTuning | None = Field(default=None, description="Instruction tuning.")
    evaluation: Evaluation | None = Field(default=None, description="Evaluation of the result and of the base model.")
    workers: Workers = Field(default_factory=Workers, description="Training pods.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="Where pods may run and when.")
    tracking: Tracking | None = Field(default=None, description="Runs of MLflow or Weights & Biases for each training. Default: none.")
    restarts: Restarts = Field(default_factory=Restarts, description="Restart budgets by cause.")
    deadlines: Deadlines = Field(default_factory=Deadlines, description="When something counts as stuck.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of data order, subsets and random initialisation.")
    suspend: bool = Field(default=False, description="Save, release the workers and wait; false goes on from there.")


class Metadata(Contract):
    """The part of Kubernetes' object metadata that is read here; the rest is the API server's."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
    namespace: Name = "default"
    uid: str = ""
    generation: int = 1
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TransferExperiment(Contract):
    """The resource as a user writes it; the status is a model of its own (`transfer_api.status`)."""

    api_version: Literal["transfer-operator.dev/v1alpha1"]
    kind: Literal["TransferExperiment"]
    metadata: Metadata
    spec: ExperimentSpec
