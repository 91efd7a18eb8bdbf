"""What the administrator of a cluster decides: environment variables `TRANSFER_OPERATOR_*`, set by the chart.

Every field is one variable: `lease_seconds` is `TRANSFER_OPERATOR_LEASE_SECONDS`. Lists are written as JSON or with commas.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from transfer_api.errors import SpecError

PREFIX = "TRANSFER_OPERATOR_"
TRUST = 0.7
"""Share of `lease_seconds` after which a leader that could not renew gives up: a renewal under way may still be late."""


class OperatorSettings(BaseModel):
    """Settings of one operator process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: str = Field(default="default", description="Namespace of the operator itself: its Lease lives there.")
    identity: str = Field(default_factory=socket.gethostname, description="Name of this replica, as the Lease shows it.")
    watch_namespaces: tuple[str, ...] = Field(default=(), description="Namespaces whose experiments are run. Empty: all of the cluster.")
    lease_name: str = Field(default="transfer-operator", description="Name of the Lease of leader election.")
    lease_seconds: float = Field(default=10, gt=0, le=600, description="A leader that was silent for so long is replaced.")
    renew_seconds: float = Field(
        default=2, gt=0, le=60, description="Time between two renewals, or two looks of a standby; at most 0.35 of the Lease's seconds."
    )
    leader_election: bool = Field(default=True, description="Off: this process always leads. Only for one replica.")
    resync_seconds: float = Field(default=30, gt=0, le=3600, description="Time between two full lists, which find what watches missed.")
    progress_seconds: float = Field(default=5, gt=0, le=600, description="Time between two questions to the pods that run.")
    status_seconds: int = Field(
        default=10, ge=0, le=3600, description="Shortest time between two status writes that only tell of progress."
    )
    grace_seconds: int = Field(default=120, ge=1, le=3600, description="Time a pod gets to save before it is killed.")
    parallel_stages: int | None = Field(default=None, ge=1, description="Stages of one experiment that may run at once. Empty: all ready.")
    concurrency: int = Field(default=20, ge=1, le=200, description="API requests, and reconciles, that may be under way at once.")
    request_seconds: float = Field(default=20, gt=0, le=300, description="Longest time that one API request may take.")
    lag_seconds: float = Field(default=10, gt=0, le=300, description="Event-loop lag from which the process counts as hung.")
    trainer_image: str = Field(default="transfer-trainer:latest", description="Image of vocabulary, dataset and training pods.")
    evaluator_image: str = Field(default="transfer-evaluator:latest", description="Image of evaluation pods.")
    image_pull_policy: str = Field(default="IfNotPresent", pattern="^(Always|IfNotPresent|Never)$", description="As in a pod.")
    image_pull_secrets: tuple[str, ...] = Field(default=(), description="Names of pull secrets in the experiments' namespaces.")
    pod_user: int = Field(default=65532, ge=1, description="User and group that experiment pods run as.")
    unreachable_seconds: int = Field(default=5, ge=0, le=3600, description="How long a pod stays bound to a node that does not answer.")
    http_port: int = Field(default=8080, ge=0, le=65535, description="Port of /metrics, /healthz and /readyz.")
    pod_port: int = Field(default=9090, ge=1, le=65535, description="Port of /metrics and /progress of experiment pods.")
    rendezvous_port: int = Field(default=29400, ge=1, le=65535, description="Port of the rendezvous store.")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged.")

    @field_validator("watch_namespaces", "image_pull_secrets", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(json.loads(value)) if value.startswith("[") else tuple(part.strip() for part in value.split(",") if part.strip())

    @model_validator(mode="after")
    def _renews_in_time(self) -> Self:
        """Two renewals must fit in before a leader gives up, or a single one that fails costs the lead."""
        most = TRUST * self.lease_seconds / 2
        if self.leader_election and self.renew_seconds > most + 1e-9:
            raise SpecError(
                f"is too long for a Lease of {PREFIX}LEASE_SECONDS={self.lease_seconds:g}: its leader gives up after {2 * most:g} s, "
                "and two renewals have to fit in",
                field=f"{PREFIX}RENEW_SECONDS", value=self.renew_seconds, allowed=f"at most {most:g}",
                next_step=f"Lower it, or raise {PREFIX}LEASE_SECONDS",
            )  # fmt: skip
        return self

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> OperatorSettings:
        """Reads the settings; a variable that is set but empty counts as not set.

        Raises:
            SpecError: a variable has no field, or a value that its field does not take.
        """
        given = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items() if name.startswith(PREFIX) and text}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise SpecError(first["msg"], field=name, value=first["input"], next_step="See docs/operator.md for every setting") from error
