"""Rules of workers, of where they may run, and of where their curves go."""

from __future__ import annotations

from transfer_api.rules.rule import Violation, rule
from transfer_api.spec import Toleration, TolerationOperator, Tracking, Workers


@rule("spec.workers", cel="self.min <= self.replicas", message="min is larger than replicas")
def _min_workers(workers: Workers) -> Violation | None:
    if workers.min <= workers.replicas:
        return None
    return Violation(
        field="min", value=workers.min, allowed=f"at most replicas ({workers.replicas})", next_step="Lower min or raise replicas"
    )


@rule("spec.workers", cel="!has(self.max) || self.replicas <= self.max", message="replicas is larger than max")
def _max_workers(workers: Workers) -> Violation | None:
    if workers.max is None or workers.replicas <= workers.max:
        return None
    return Violation(
        field="replicas", value=workers.replicas, allowed=f"at most max ({workers.max})", next_step="Lower replicas or raise max"
    )


@rule(
    "spec.scheduling.tolerations[]",
    cel="self.operator == 'Exists' ? !has(self.value) : has(self.key)",
    message="a toleration has a value only with operator Equal, which needs a key",
)
def _toleration(toleration: Toleration) -> Violation | None:
    exists = toleration.operator is TolerationOperator.EXISTS
    if toleration.value is not None if exists else toleration.key is None:
        field, way = ("value", "Remove value, or set operator: Equal") if exists else ("key", "Add key, or set operator: Exists")
        return Violation(field=field, value=toleration.value if exists else None, next_step=way)
    return None


@rule("spec.tracking", cel="has(self.mlflow) || has(self.wandb)", message="names neither mlflow nor wandb")
def _some_tracker(tracking: Tracking) -> Violation | None:
    if tracking.mlflow is not None or tracking.wandb is not None:
        return None
    return Violation(allowed="mlflow, wandb or both", next_step="Add mlflow or wandb, or remove tracking")
