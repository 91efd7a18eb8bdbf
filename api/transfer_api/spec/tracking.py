"""Where the curves of trainings go besides the storage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from transfer_api.base import Contract
from transfer_api.spec.values import Label, Name, SecretKey, ServerAddress


class MLflow(Contract):
    """A tracking server of MLflow, told by its REST interface."""

    uri: ServerAddress = Field(description="Address of the server, such as https://mlflow.example; credentials go into credentialsSecret.")
    experiment: Label | None = Field(
        default=None, description="Experiment of the server that gets the runs; made where there is none. Default: the experiment's name."
    )
    credentials_secret: Name | None = Field(
        default=None,
        description="Secret with MLFLOW_TRACKING_TOKEN, or with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. `transfer run` "
        "takes them from its environment.",
    )


class WeightsAndBiases(Contract):
    """A project of Weights & Biases, told by its own client (extra `tracking`)."""

    project: Annotated[str, Field(pattern=r"^[^/\\#?%:\s]+$", max_length=128)] = Field(description="Project that gets the runs.")
    entity: Annotated[str, Field(pattern=r"^[^/\\#?%:\s]+$", max_length=128)] | None = Field(
        default=None, description="User or team that has the project. Default: that of the key."
    )
    url: ServerAddress | None = Field(default=None, description="Address of a server of one's own. Default: https://api.wandb.ai.")
    token_secret: SecretKey | None = Field(
        default=None,
        description="API key. `transfer run` takes it from WANDB_API_KEY; with WANDB_MODE=offline there it needs none. Default: none, and "
        "runs are written to the folder wandb/ of the storage alone, for `wandb sync`.",
    )


class Tracking(Contract):
    """Where the curves of trainings go besides the storage. A server that is down or slow neither fails nor slows a training."""

    mlflow: MLflow | None = Field(default=None, description="Runs of MLflow.")
    wandb: WeightsAndBiases | None = Field(default=None, description="Runs of Weights & Biases.")
