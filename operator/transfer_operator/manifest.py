"""The Kubernetes objects of an experiment: what `decide` asks for, as the API server takes it. Pure; nothing is read or written here.

A pod is made from the experiment, the action and the operator's settings alone, so it is the same whoever makes it and whenever. What
it is comes back from its labels (`parse_name`), never from its name. Users choose from a closed list of fields; whatever they write, the
pod passes the `restricted` Pod Security Standard, holds no credentials of the cluster, and sees its own storage only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from transfer_api.errors import SpecError
from transfer_api.gpu import is_gpu
from transfer_api.spec import API_GROUP, API_VERSION, ExperimentSpec, SecretKey, TransferExperiment, is_harness_suite, is_judged
from transfer_api.stage import StageKind, StagePlan, models_of, names_hub, reads_addresses
from transfer_api.task import ADDRESS_VARIABLE, JUDGE_TOKENS, MLFLOW_CREDENTIALS, WANDB_TOKEN, PodTask, program
from transfer_operator.decide import CreatePod, Event, Role
from transfer_operator.decide.snapshot import PodName
from transfer_operator.settings import OperatorSettings

Body = dict[str, Any]

OPERATOR = "transfer-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
PART_OF = "app.kubernetes.io/part-of"
EXPERIMENT = f"{API_GROUP}/experiment"
STAGE = f"{API_GROUP}/stage"
STAGE_KEY = f"{API_GROUP}/stage-key"
ATTEMPT = f"{API_GROUP}/attempt"
ROLE = f"{API_GROUP}/role"
INDEX = f"{API_GROUP}/index"
GENERATION = f"{API_GROUP}/generation"
QUEUE = "kueue.x-k8s.io/queue-name"

CONTAINER = "transfer"
STORAGE = Path("/storage")
SCRATCH = "/tmp"  # noqa: S108 - a volume of the pod's own
HUB_CACHE = STORAGE / ".cache" / "huggingface"
PLAIN_RESOURCES = ("cpu", "memory", "ephemeral-storage")
# The store holds next to nothing; importing torch is what takes memory.
RENDEZVOUS_RESOURCES = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{10,63}")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|[MGTPE]|[KMGTPE]i)?", re.ASCII)
_POWERS = "kMGTPE"


def object_name(experiment: str, name: PodName | str) -> str:
    """Name of a pod object: at most 128 characters.

    The experiment is part of it because two experiments of a namespace may need stages of the same key in different storages.
    """
    return f"{experiment}-{name}"


def service_name(experiment: TransferExperiment, name: PodName) -> str:
    """Name of the Service of an attempt's rendezvous: at most 63 characters, which an experiment's name could take up alone."""
    return f"{name.attempt_name}-{experiment.metadata.uid[:8]}"


def labels(experiment: str, name: PodName) -> dict[str, str]:
    """What a pod is, complete: `parse_name` reads it back."""
    return {
        PART_OF: OPERATOR,
        MANAGED_BY: OPERATOR,
        EXPERIMENT: experiment,
        STAGE: name.kind,
        STAGE_KEY: name.stage,
        ATTEMPT: str(name.attempt),
        ROLE: name.role.value,
        INDEX: str(name.index),
        GENERATION: str(name.generation),
    }


def parse_name(body: Mapping[str, Any]) -> PodName | None:
    """What a pod is, by its labels; None for a pod that lacks one or has a value in it that is not ours."""
    found = {label: text for label, text in _mapping(_mapping(body.get("metadata")).get("labels")).items() if isinstance(text, str)}
    attempt, index, generation = (found.get(label, "") for label in (ATTEMPT, INDEX, GENERATION))
    kind, key, role = found.get(STAGE, ""), found.get(STAGE_KEY, ""), found.get(ROLE, "")
    ours = found.get(PART_OF) == OPERATOR and found.get(MANAGED_BY) == OPERATOR and EXPERIMENT in found
    if not ours or kind not in list(StageKind) or role not in list(Role) or _KEY.fullmatch(key) is None:
        return None
    if not all(_NUMBER.fullmatch(number) for number in (attempt, index, generation)):
        return None
    return PodName(stage=key, kind=kind, attempt=int(attempt), role=Role(role), index=int(index), generation=int(generation))


def pod(experiment: TransferExperiment, action: CreatePod, settings: OperatorSettings) -> Body:
    """The pod that an action asks for.

    Raises:
        SpecError: the experiment's storage is not a claim.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": object_name(experiment.metadata.name, action.name),
            "namespace": experiment.metadata.namespace,
            "labels": labels(experiment.metadata.name, action.name) | _queue(experiment.spec),
            "ownerReferences": [_owned_by_experiment(experiment)],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": settings.grace_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": _pod_security(settings),
            **_placement(experiment, action.name, settings),
            "containers": [_container(experiment, action, settings)],
            "volumes": _volumes(experiment.spec, action),
        },
    }


def rendezvous_service(experiment: TransferExperiment, name: PodName, pod_uid: str, settings: OperatorSettings) -> Body:
    """The Service by which workers find the rendezvous pod `name`. It belongs to that pod and goes with it."""
    selected = (EXPERIMENT, STAGE_KEY, ATTEMPT, ROLE)
    known = labels(experiment.metadata.name, name)
    owner = {"apiVersion": "v1", "kind": "Pod", "name": object_name(experiment.metadata.name, name), "uid": pod_uid}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(experiment, name),
            "namespace": experiment.metadata.namespace,
            "labels": {label: value for label, value in known.items() if label not in (INDEX, GENERATION)},
            "ownerReferences": [owner],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {label: known[label] for label in selected},
            "ports": [{"name": "rendezvous", "port": settings.rendezvous_port, "protocol": "TCP"}],
        },
    }


def event(experiment: Body, told: Event, settings: OperatorSettings, now: datetime) -> Body:
    """A Kubernetes Event about the experiment of this metadata."""
    name, namespace, moment = experiment["name"], experiment["namespace"], now.isoformat(timespec="seconds").replace("+00:00", "Z")
    about = {"apiVersion": API_VERSION, "kind": "TransferExperiment", "name": name, "namespace": namespace, "uid": experiment["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}-", "namespace": namespace},
        "involvedObject": about,
        "reason": told.reason,
        "message": told.message[:1024],
        "type": "Warning" if told.warning else "Normal",
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": OPERATOR},
        "reportingComponent": OPERATOR,
        "reportingInstance": settings.identity,
    }


def processes(spec: ExperimentSpec) -> int:
    """Worker processes of a training pod: one for each GPU of its limits, whoever made them, and at least one."""
    counts = [quantity(value) for name, value in spec.workers.resources.limits.items() if is_gpu(name)]
    return max(1, int(sum(counts)))


def quantity(value: int | str) -> Decimal:
    """A Kubernetes quantity as a number.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"not a quantity: {value!r}")
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix == "m":
        return number / 1000
    power = _POWERS.index(suffix[0].replace("K", "k")) + 1 if suffix else 0
    return number * Decimal((1024 if suffix.endswith("i") else 1000) ** power)


def _owned_by_experiment(experiment: TransferExperiment) -> Body:
    meta = experiment.metadata
    owner = {"apiVersion": API_VERSION, "kind": "TransferExperiment", "name": meta.name, "uid": meta.uid}
    return {**owner, "controller": True, "blockOwnerDeletion": True}


def _queue(spec: ExperimentSpec) -> dict[str, str]:
    return {QUEUE: spec.scheduling.queue_name} if spec.scheduling.queue_name else {}


def _pod_security(settings: OperatorSettings) -> Body:
    return {
        "runAsNonRoot": True,
        "runAsUser": settings.pod_user,
        "runAsGroup": settings.pod_user,
        "fsGroup": settings.pod_user,
        # Else every pod would walk through the whole storage before it starts.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _placement(experiment: TransferExperiment, name: PodName, settings: OperatorSettings) -> Body:
    """Where the pod may run, and how soon a node that does not answer is given up."""
    wanted = experiment.spec.scheduling
    impatient = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": settings.unreachable_seconds}
        for key in ("not-ready", "unreachable")
    ]
    tolerations = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in wanted.tolerations]
    known = labels(experiment.metadata.name, name)
    together = {label: known[label] for label in (EXPERIMENT, STAGE_KEY, ATTEMPT)}
    term = {"labelSelector": {"matchLabels": together}, "topologyKey": "kubernetes.io/hostname"}
    placement: Body = {
        # One lost node then costs one worker. By preference only: two workers on a node are better than one that waits.
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}},
        "tolerations": [*impatient, *tolerations],
    }
    optional = {
        "nodeSelector": dict(wanted.node_selector),
        "priorityClassName": wanted.priority_class_name,
        "runtimeClassName": wanted.runtime_class_name,
        "imagePullSecrets": [{"name": secret} for secret in settings.image_pull_secrets],
    }
    return placement | {field: value for field, value in optional.items() if value}


def _container(experiment: TransferExperiment, action: CreatePod, settings: OperatorSettings) -> Body:
    rendezvous = action.name.role is Role.RENDEZVOUS
    module = program(action.stage.kind, rendezvous=rendezvous)
    port = {"name": "rendezvous", "containerPort": settings.rendezvous_port}
    return {
        "name": CONTAINER,
        "image": settings.evaluator_image if module == "transfer_evaluator" else settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", module],
        "workingDir": SCRATCH,
        "env": _environment(experiment, action, settings),
        "ports": [port if rendezvous else {"name": "metrics", "containerPort": settings.pod_port}],
        "resources": _resources(experiment.spec, action),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": volume["name"], "mountPath": _MOUNTS[volume["name"]]} for volume in _volumes(experiment.spec, action)],
    }


DATA_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
"""Keys of `spec.dataSecret`, by the names under which every S3 client looks for them."""
_MOUNTS = {"storage": str(STORAGE), "scratch": SCRATCH, "shared-memory": "/dev/shm"}  # noqa: S108


def _volumes(spec: ExperimentSpec, action: CreatePod) -> list[Body]:
    scratch: Body = {"name": "scratch", "emptyDir": {}}
    if action.name.role is Role.RENDEZVOUS:
        return [scratch]
    if spec.storage.claim is None:
        raise SpecError(
            "object storage cannot be mounted into pods", field="spec.storage.url", value=spec.storage.url, allowed="claim",
            next_step="Name a ReadWriteMany PersistentVolumeClaim in spec.storage.claim",
        )  # fmt: skip
    memory: Body = {"medium": "Memory"}
    if spec.workers.shared_memory is not None:
        memory["sizeLimit"] = str(spec.workers.shared_memory)
    return [
        {"name": "storage", "persistentVolumeClaim": {"claimName": spec.storage.claim}},
        scratch,
        {"name": "shared-memory", "emptyDir": memory},
    ]


def _resources(spec: ExperimentSpec, action: CreatePod) -> Body:
    """Training pods get what a worker gets; evaluation uses one GPU; what only reads and writes texts needs none."""
    if action.name.role is Role.RENDEZVOUS:
        return RENDEZVOUS_RESOURCES
    kind = action.stage.kind
    found = {}
    for field, given in (("limits", spec.workers.resources.limits), ("requests", spec.workers.resources.requests)):
        if kind is StageKind.EVALUATION:
            amounts = {name: "1" if is_gpu(name) and quantity(value) > 1 else str(value) for name, value in given.items()}
        else:
            amounts = {name: str(value) for name, value in given.items() if kind.elastic or name in PLAIN_RESOURCES}
        if amounts:
            found[field] = amounts
    return found


def _environment(experiment: TransferExperiment, action: CreatePod, settings: OperatorSettings) -> list[Body]:
    values = _task(experiment, action, settings).environment() | _surroundings(experiment.spec, action)
    # The kubelet would put variables in the place of $(NAME), also in a path that somebody wrote: $$ is a plain $.
    entries: list[Body] = [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]
    for entry in entries:
        if entry["name"] == ADDRESS_VARIABLE:
            del entry["value"]
            entry["valueFrom"] = {"fieldRef": {"fieldPath": "status.podIP"}}
    # A pod has one token: that of the base model, else that of the model to compare with.
    token = next((model.token_secret for model in models_of(experiment.spec).values() if model.token_secret is not None), None)
    if token is not None and action.name.role is Role.WORKER and may_fetch(action.stage):
        entries.append(_secret("HF_TOKEN", token))
    judges = experiment.spec.evaluation if action.stage.kind is StageKind.EVALUATION else None
    if judges is not None and is_judged(judges.suites):
        given = ((name, judge.token_secret) for name, judge in zip(JUDGE_TOKENS, (judges.judge, judges.second_judge), strict=True) if judge)
        entries += [_secret(name, token) for name, token in given if token is not None]
    secret = experiment.spec.data_secret
    if secret is not None and action.name.role is Role.WORKER and reads_addresses(action.stage):
        entries += _named(DATA_VARIABLES, secret)
    tracking = experiment.spec.tracking
    if tracking is not None and action.name.role is Role.WORKER and action.stage.kind.elastic:
        if tracking.mlflow is not None and tracking.mlflow.credentials_secret is not None:
            entries += _named(MLFLOW_CREDENTIALS, tracking.mlflow.credentials_secret)
        if tracking.wandb is not None and tracking.wandb.token_secret is not None:
            entries.append(_secret(WANDB_TOKEN, tracking.wandb.token_secret))
    return entries


def _named(variables: tuple[str, ...], secret: str) -> list[Body]:
    """Variables from the keys of their names, as far as there are any.

    One by one, not the whole Secret: a variable that happens to be named PYTHONPATH is not ours to set.
    """
    references = {name: {"name": secret, "key": name, "optional": True} for name in variables}
    return [{"name": name, "valueFrom": {"secretKeyRef": reference}} for name, reference in references.items()]


def _secret(name: str, key: SecretKey) -> Body:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}}


def _task(experiment: TransferExperiment, action: CreatePod, settings: OperatorSettings) -> PodTask:
    name = action.name
    meets = name.role is Role.RENDEZVOUS or (action.stage.kind.elastic and action.max_nodes > 1)
    host = f"{service_name(experiment, name)}.{experiment.metadata.namespace}.svc"
    return PodTask(
        stage=action.stage,
        experiment=experiment.metadata.name,
        namespace=experiment.metadata.namespace,
        storage=STORAGE,
        pod=object_name(experiment.metadata.name, name),
        attempt=name.attempt_name,
        lineage=experiment.metadata.uid,
        attempt_number=name.attempt,
        generation=name.generation,
        index=name.index,
        port=settings.pod_port,
        rendezvous=f"{host}:{settings.rendezvous_port}" if meets else "",
        min_nodes=action.min_nodes,
        max_nodes=action.max_nodes,
        processes=processes(experiment.spec) if action.stage.kind.elastic and name.role is Role.WORKER else 1,
    )


def _surroundings(spec: ExperimentSpec, action: CreatePod) -> dict[str, str]:
    """What libraries look for: writable folders, threads, network interface, the hub or its absence."""
    variables = {
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "USER": "transfer",  # torch asks for the user's name, and the image knows no user of that number
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if action.name.role is Role.RENDEZVOUS:
        return variables
    if (threads := _threads(spec, action)) is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    if (interface := spec.workers.network_interface) is not None:
        # NCCL takes a name for the beginning of one unless told that it is whole; Gloo takes it as it is.
        variables |= {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface}
    if may_fetch(action.stage):
        variables["HF_HOME"] = str(HUB_CACHE)  # fetched once for all pods, and still there for the next ones
    else:
        variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return variables


def _threads(spec: ExperimentSpec, action: CreatePod) -> int | None:
    """Whole cores for each process; None where the spec names none."""
    resources = spec.workers.resources
    cores = resources.limits.get("cpu", resources.requests.get("cpu"))
    if cores is None:
        return None
    return max(1, int(quantity(cores)) // (processes(spec) if action.stage.kind.elastic else 1))


def may_fetch(stage: StagePlan) -> bool:
    """Whether a stage may need the hub: for its model, a text, or the questions of a task, which only the pod can look up."""
    if _mapping(stage.parameters.get("model")).get("name") is not None:
        return True
    here = stage.kind is not StageKind.EVALUATION or stage.parameters.get("mirror") is not None
    tasks = not here and any(map(is_harness_suite, stage.parameters.get("suites", [])))
    return tasks or names_hub(stage.parameters) or names_hub(stage.execution.model_dump(mode="json"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
