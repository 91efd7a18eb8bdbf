"""What a pod is to do, as a backend tells it: the environment is the whole interface between the two.

`PodTask.environment` and `PodTask.read` are its two ends, so a process of `transfer run` and a pod of the cluster cannot drift apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from transfer_api.errors import SpecError
from transfer_api.stage import StageKind, StagePlan

ADDRESS_VARIABLE = "TRANSFER_ADDRESS"
JUDGE_TOKENS = ("JUDGE_TOKEN", "SECOND_JUDGE_TOKEN")
"""Variables with the tokens of the judges, filled from Secrets: a task itself has none."""

MLFLOW_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys of `spec.tracking.mlflow.credentialsSecret`, by the names under which every MLflow client looks for them."""
WANDB_TOKEN, WANDB_MODE = "WANDB_API_KEY", "WANDB_MODE"
"""Of W&B's own client, likewise."""


def program(kind: StageKind, *, rendezvous: bool = False) -> str:
    """Module that a pod of a stage runs with `python -m`."""
    if rendezvous:
        return "transfer_trainer.rendezvous"
    return "transfer_evaluator" if kind is StageKind.EVALUATION else "transfer_trainer"


@dataclass(frozen=True, kw_only=True)
class PodTask:
    """The task of one pod and its place in the attempt."""

    stage: StagePlan
    experiment: str = ""
    """Name and namespace of the experiment: labels of the pod's series."""
    namespace: str = ""
    storage: Path
    """Root of the storage as this pod sees it."""
    pod: str
    """Name of the pod."""
    attempt: str = ""
    """Name of the attempt, which is also the rendezvous id."""
    lineage: str = ""
    """Who counts the attempts: UID of the experiment, or a name of this one `transfer run`."""
    attempt_number: int = 0
    generation: int = 0
    """The later attempt is the newer one, and of a worker the later generation, among pods of one lineage."""
    index: int = 0
    """Worker or shard index."""
    search: tuple[Path, ...] = ()
    """Folders besides the storage in which a relative input path is looked up (`transfer run`: the experiment file's)."""
    address: str = "127.0.0.1"
    """The pod's own IP."""
    port: int = 9090
    """Port of /metrics, /progress and /healthz."""
    rendezvous: str = ""
    """host:port of the rendezvous store; empty where the pod meets no other."""
    min_nodes: int = 1
    max_nodes: int = 1
    processes: int = 1
    """Worker processes of this pod, one per GPU."""
    termination_log: Path = field(default=Path("/dev/termination-log"))

    def environment(self) -> dict[str, str]:
        """The variables from which `read` gives this task back."""
        return {
            "TRANSFER_STAGE": self.stage.model_dump_json(by_alias=True),
            "TRANSFER_STORAGE": str(self.storage),
            "TRANSFER_POD": self.pod,
            "TRANSFER_ATTEMPT": self.attempt,
            "TRANSFER_LINEAGE": self.lineage,
            "TRANSFER_ATTEMPT_NUMBER": str(self.attempt_number),
            "TRANSFER_GENERATION": str(self.generation),
            "TRANSFER_INDEX": str(self.index),
            "TRANSFER_SEARCH": json.dumps([str(folder) for folder in self.search]),
            ADDRESS_VARIABLE: self.address,
            "TRANSFER_PORT": str(self.port),
            "TRANSFER_RENDEZVOUS": self.rendezvous,
            "TRANSFER_NODES": f"{self.min_nodes}:{self.max_nodes}",
            "TRANSFER_PROCESSES": str(self.processes),
            "TRANSFER_TERMINATION_LOG": str(self.termination_log),
            **({"TRANSFER_EXPERIMENT": self.experiment} if self.experiment else {}),
            **({"TRANSFER_NAMESPACE": self.namespace} if self.namespace else {}),
        }

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the task.

        Raises:
            SpecError: TRANSFER_STAGE or TRANSFER_STORAGE is missing or malformed.
        """
        try:
            stage = StagePlan.model_validate_json(environment["TRANSFER_STAGE"])
            storage = Path(environment["TRANSFER_STORAGE"])
            low, _, high = environment.get("TRANSFER_NODES", "1:1").partition(":")
            return cls(
                stage=stage,
                experiment=environment.get("TRANSFER_EXPERIMENT", ""),
                namespace=environment.get("TRANSFER_NAMESPACE", ""),
                storage=storage,
                pod=environment.get("TRANSFER_POD", "pod"),
                attempt=environment.get("TRANSFER_ATTEMPT", ""),
                lineage=environment.get("TRANSFER_LINEAGE", ""),
                attempt_number=int(environment.get("TRANSFER_ATTEMPT_NUMBER", "0")),
                generation=int(environment.get("TRANSFER_GENERATION", "0")),
                index=int(environment.get("TRANSFER_INDEX", "0")),
                search=tuple(Path(folder) for folder in json.loads(environment.get("TRANSFER_SEARCH", "[]"))),
                address=environment.get(ADDRESS_VARIABLE, "127.0.0.1"),
                port=int(environment.get("TRANSFER_PORT", "9090")),
                rendezvous=environment.get("TRANSFER_RENDEZVOUS", ""),
                min_nodes=int(low),
                max_nodes=int(high or low),
                processes=int(environment.get("TRANSFER_PROCESSES", "1")),
                termination_log=Path(environment.get("TRANSFER_TERMINATION_LOG", "/dev/termination-log")),
            )
        except (KeyError, ValueError) as error:
            raise SpecError(
                f"the pod's environment is incomplete: {error}",
                next_step="Pods are started by the operator or by `transfer run`, not by hand",
            ) from error
