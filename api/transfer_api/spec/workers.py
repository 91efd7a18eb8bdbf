"""How many pods, where, and how long and how often what goes wrong is borne."""

from __future__ import annotations

import enum

from pydantic import Field

from transfer_api.base import Contract
from transfer_api.spec.values import InterfaceName, LabelKey, LabelValue, Name, ObjectName, Quantity


class Resources(Contract):
    """Compute resources of a worker, as in a pod."""

    limits: dict[str, Quantity] = Field(
        default={}, max_length=16, description="Limits, such as nvidia.com/gpu: 8. One process is started per GPU."
    )
    requests: dict[str, Quantity] = Field(default={}, max_length=16, description="Requests; default: the limits.")


class Workers(Contract):
    """How many training pods; may be changed while training."""

    min: int = Field(default=1, ge=1, le=1024, description="Training goes on while at least this many run.")
    replicas: int = Field(default=1, ge=1, le=1024, description="Workers wanted.")
    max: int | None = Field(default=None, ge=1, le=1024, description="Most workers that replicas may be set to. Default: replicas.")
    resources: Resources = Field(default_factory=Resources, description="Compute resources of each worker.")
    shared_memory: Quantity | None = Field(
        default=None,
        description="Size of /dev/shm, part of the pod's memory. Default: all of it. Not used by `transfer run`.",
    )
    network_interface: InterfaceName | None = Field(
        default=None,
        description="Network interface of NCCL and Gloo, such as eth0. Default: the one they choose. Not used by `transfer run`.",
    )


class Effect(enum.StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class TolerationOperator(enum.StrEnum):
    """How a toleration matches a taint."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class Toleration(Contract):
    """Lets pods run on nodes with a taint, as in a pod."""

    key: LabelKey | None = Field(default=None, description="Key of the taint. Default, with operator Exists: every key.")
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Equal: key and value are the taint's; Exists: whatever its value."
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint; only with operator Equal.")
    effect: Effect | None = Field(default=None, description="Effect of the taint. Default: every effect.")


class Scheduling(Contract):
    """Where pods may run and when. Changes hold for pods that are made later; `transfer run` ignores it all."""

    queue_name: Name | None = Field(default=None, description="LocalQueue of Kueue that admits the pods, one by one.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods.")
    node_selector: dict[str, LabelValue] = Field(default={}, max_length=16, description="Labels of the nodes on which the pods may run.")
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=16,
        description="Taints that the pods tolerate. Nodes that do not answer are left in seconds anyway.",
    )


class Restarts(Contract):
    """How many restarts of one cause an experiment may spend. Saving on request is never counted."""

    application: int = Field(default=3, ge=0, le=10_000, description="Crashes of our or the model's code.")
    infrastructure: int = Field(default=20, ge=0, le=10_000, description="Lost pods and nodes.")
    stall: int = Field(default=3, ge=0, le=10_000, description="No step within the stall deadline.")
    preemption: int | None = Field(default=None, ge=0, le=100_000, description="Preemptions, drains and evictions. Default: unlimited.")


class Deadlines(Contract):
    """How long to wait before something counts as stuck, in seconds."""

    startup_seconds: int = Field(default=1800, ge=1, le=604_800, description="From creation of a pod until it runs.")
    stall_seconds: int = Field(default=1800, ge=1, le=604_800, description="Without a step while pods run.")
    below_min_seconds: int = Field(
        default=600, ge=1, le=604_800, description="Fewer than min workers, before the attempt gives its nodes back."
    )
