"""What the API server is asked for: golden files, the restricted Pod Security Standard, and what each field of the spec does.

`REWRITE_MANIFESTS=1 pytest tests/operator/test_manifest.py` writes the golden files anew.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.builders import EVALUATION, TRAINING, experiment
from transfer_api.errors import SpecError
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan, plan_stages
from transfer_api.task import PodTask
from transfer_operator import manifest
from transfer_operator.decide import CreatePod, Role
from transfer_operator.decide.snapshot import PodName
from transfer_operator.settings import OperatorSettings

GOLDEN = Path(__file__).parent / "manifests"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UID = "5ad17c3e-1d2f-4f0c-9f6c-3f1a2b3c4d5e"
GPUS = {"limits": {"nvidia.com/gpu": 8, "cpu": "64", "memory": "512Gi"}, "requests": {"cpu": "60"}}
HUB = {"name": "org/model", "revision": COMMIT, "tokenSecret": {"name": "hub", "key": "token"}}
SETTINGS = OperatorSettings(trainer_image="example/trainer:1", evaluator_image="example/evaluator:1", image_pull_secrets=("pull",))


def made(name: str = "tiny", **spec: Any) -> TransferExperiment:
    """An experiment as the API server has it: with an identity and a namespace."""
    wanted = experiment(**spec)
    metadata = wanted.metadata.model_copy(update={"name": name, "uid": UID, "namespace": "research"})
    return wanted.model_copy(update={"metadata": metadata})


def stage_of(wanted: TransferExperiment, name: str) -> StagePlan:
    """A stage with a key of its name alone, so that golden files do not move with the contract."""
    plan = next(plan for plan in plan_stages(wanted.spec) if plan.name == name)
    return plan.model_copy(update={"key": "0123456789abcdef" * 2})


def asked(wanted: TransferExperiment, stage: str = "pretraining", max_nodes: int = 4, **name: Any) -> CreatePod:
    plan = stage_of(wanted, stage)
    return CreatePod(
        name=PodName(**{"stage": plan.key, "kind": plan.kind.value, "attempt": 1, **name}), stage=plan, min_nodes=1, max_nodes=max_nodes
    )


def pod(wanted: TransferExperiment, stage: str = "pretraining", settings: OperatorSettings = SETTINGS, **name: Any) -> dict[str, Any]:
    return manifest.pod(wanted, asked(wanted, stage, **name), settings)


def container(body: dict[str, Any]) -> dict[str, Any]:
    (only,) = body["spec"]["containers"]
    return only


def environment(body: dict[str, Any]) -> dict[str, Any]:
    """Values as the kubelet gives them to the process; a reference stays what it is."""
    return {one["name"]: one["value"].replace("$$", "$") if "value" in one else one["valueFrom"] for one in container(body)["env"]}


# Golden files.


def gpu_worker() -> list[dict[str, Any]]:
    scheduling = {
        "queueName": "gpus", "priorityClassName": "research", "runtimeClassName": "nvidia", "nodeSelector": {"example.org/gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }  # fmt: skip
    workers = {"min": 2, "replicas": 4, "resources": GPUS, "sharedMemory": "64Gi", "networkInterface": "eth0"}
    return [pod(made(workers=workers, scheduling=scheduling), index=3, generation=2)]


def rendezvous() -> list[dict[str, Any]]:
    wanted = made(model=HUB)
    action = asked(wanted, role=Role.RENDEZVOUS)
    return [manifest.pod(wanted, action, SETTINGS), manifest.rendezvous_service(wanted, action.name, "pod-uid", SETTINGS)]


def evaluation_with_token() -> list[dict[str, Any]]:
    wanted = made(model=HUB, evaluation={"suites": ["mmlu"]}, workers={"resources": GPUS})
    return [pod(wanted, "evaluation", max_nodes=1)]


@pytest.mark.parametrize("case", [gpu_worker, rendezvous, evaluation_with_token], ids=lambda case: case.__name__)
def test_the_objects_are_those_of_the_golden_file(case):
    objects = case()
    for body in objects:
        for one in container(body)["env"] if body["kind"] == "Pod" else []:
            if one["name"] == "TRANSFER_STAGE":
                one["value"] = f"the plan of {json.loads(one['value'])['name']}"
    file = GOLDEN / f"{case.__name__}.yaml"
    if os.environ.get("REWRITE_MANIFESTS"):
        file.write_text(yaml.safe_dump_all(objects, sort_keys=False, width=130))
    assert list(yaml.safe_load_all(file.read_text())) == objects


# What every pod is, whatever was written.

STAGES = ("baseline", "vocabulary", "pretraining-dataset", "pretraining", "evaluation")
EVERYTHING = {**TRAINING, **EVALUATION, "vocabulary": {"addedTokens": 8, "corpus": [{"path": "id.txt"}]}}
QUANTITIES = st.sampled_from([0, 1, "500m", "1.5", "8Gi", "2k"])
SPECS = st.fixed_dictionaries(
    {
        "workers": st.fixed_dictionaries(
            {
                "resources": st.fixed_dictionaries(
                    {},
                    optional={
                        part: st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu", "x.org/fpga"]), QUANTITIES)
                        for part in ("limits", "requests")
                    },
                )
            },
            optional={"sharedMemory": QUANTITIES, "networkInterface": st.just("eth0")},
        ),
        "scheduling": st.fixed_dictionaries(
            {},
            optional={
                "queueName": st.just("q"),
                "priorityClassName": st.just("system-cluster-critical"),
                "runtimeClassName": st.just("kata"),
                "nodeSelector": st.dictionaries(st.text(min_size=1, max_size=5), st.sampled_from(["", "a"]), max_size=16),
                "tolerations": st.lists(st.just({"operator": "Exists"}), max_size=16),
            },
        ),
        "model": st.sampled_from([{"path": "$(HF_TOKEN)"}, HUB]),
    }
)


@given(spec=SPECS, stage=st.sampled_from(STAGES), role=st.sampled_from(list(Role)))
def test_every_pod_passes_the_restricted_standard_and_is_a_pod_to_kubernetes(spec, stage, role):
    body = pod(made(**{**EVERYTHING, **spec}), stage, role=role)
    assert list(breaches(body["spec"])) == []
    assert list(unknown_fields(body, "V1Pod")) == []


def breaches(spec: dict[str, Any]) -> Any:
    """What the standard `restricted` (Kubernetes 1.34) forbids, and what we ask for beyond it."""
    volumes = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    security, own = spec["securityContext"], container(spec_of(spec))["securityContext"]
    rules = {
        "host namespaces": not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")),
        "volume types": all(set(volume) - {"name"} <= volumes for volume in spec["volumes"]),
        "host ports": not any(port.get("hostPort") for port in container(spec_of(spec)).get("ports", [])),
        "privileged": not own.get("privileged"),
        "privilege escalation": own["allowPrivilegeEscalation"] is False,
        "root": security["runAsNonRoot"] is True
        and own.get("runAsNonRoot", True)
        and 0 not in (security["runAsUser"], own.get("runAsUser")),
        "capabilities": own["capabilities"] == {"drop": ["ALL"]},
        "seccomp": security["seccompProfile"] == {"type": "RuntimeDefault"} and "seccompProfile" not in own,
        "nothing else": not {"procMount", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & {*own, *security},
        "sysctls": "sysctls" not in security,
        "ours: read-only root": own["readOnlyRootFilesystem"] is True,
        "ours: no token of the cluster": spec["automountServiceAccountToken"] is False and "serviceAccountName" not in spec,
        "ours: one container": not {"initContainers", "ephemeralContainers"} & set(spec),
    }
    return (name for name, holds in rules.items() if not holds)


def spec_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {"spec": spec}


@cache
def model(name: str) -> Any:
    return getattr(kubernetes.client, name, None)


def unknown_fields(value: Any, kind: str, path: str = "") -> Any:
    """Fields that Kubernetes' own models do not have, which the API server would drop or refuse."""
    if kind.startswith("List["):
        for index, item in enumerate(value):
            yield from unknown_fields(item, kind[5:-1], f"{path}[{index}]")
    elif (known := model(kind)) is not None and isinstance(value, dict):
        types = {known.attribute_map[name]: kind for name, kind in known.openapi_types.items()}
        for field, item in value.items():
            if field not in types:
                yield f"{path}.{field}"
            else:
                yield from unknown_fields(item, types[field], f"{path}.{field}")


def test_unknown_fields_are_found():
    body = pod(made())
    container(body)["securityContext"]["readOnlyRoot"] = True
    assert list(unknown_fields(body, "V1Pod")) == [".spec.containers[0].securityContext.readOnlyRoot"]


# Names and labels.


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", ["pretraining", "instruction-tuning", "evaluation"])
def test_a_name_comes_back_from_the_labels(kind, role):
    name = PodName(stage="f" * 32, kind=kind, attempt=12, role=role, index=0 if role is Role.RENDEZVOUS else 7)
    assert manifest.parse_name({"metadata": {"labels": manifest.labels("tiny", name)}}) == name


def labelled(**changes: Any) -> dict[str, Any]:
    known = manifest.labels("tiny", PodName(stage="f" * 32, kind="pretraining", attempt=1))
    for label, value in changes.items():
        known[next(name for name in known if name.endswith(f"/{label.replace('_', '-')}"))] = value
    return {"metadata": {"labels": {label: value for label, value in known.items() if value is not None}}}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"metadata": None}, id="no metadata"),
        pytest.param({"metadata": {"labels": ["x"]}}, id="labels that are none"),
        *(
            pytest.param(labelled(**{label: None}), id=f"without {label}")
            for label in ("part_of", "managed_by", "experiment", "stage", "stage_key", "attempt", "role", "index", "generation")
        ),
        pytest.param(labelled(managed_by="Helm"), id="of somebody else"),
        pytest.param(labelled(stage="cooking"), id="unknown stage"),
        pytest.param(labelled(stage_key="../../etc"), id="key that is none"),
        pytest.param(labelled(role="chief"), id="unknown role"),
        pytest.param(labelled(attempt="one"), id="attempt in words"),
        pytest.param(labelled(index="-1"), id="negative index"),
        pytest.param(labelled(generation="１"), id="digit of another script"),
        pytest.param(labelled(generation="9" * 5000), id="very large generation"),
        pytest.param(labelled(attempt=1), id="number for a text"),
    ],
)
def test_what_is_not_ours_has_no_name(body):
    assert manifest.parse_name(labelled()) is not None
    assert manifest.parse_name(body) is None


def test_the_longest_names_fit():
    wanted = made("a" * 52)
    name = PodName(stage="f" * 32, kind="instruction-tuning", attempt=99_999, index=1023, generation=99_999)
    assert len(manifest.object_name(wanted.metadata.name, name)) < 128
    assert len(manifest.service_name(wanted, name)) <= 63


def test_two_experiments_may_have_the_same_stage():
    names = {pod(made(name))["metadata"]["name"] for name in ("one", "two")}
    assert len(names) == 2


def test_a_pod_belongs_to_its_experiment_and_the_service_to_its_pod():
    body, service = rendezvous()
    assert [(one["kind"], one["uid"], one["controller"]) for one in body["metadata"]["ownerReferences"]] == [
        ("TransferExperiment", UID, True)
    ]
    assert [(one["kind"], one["name"], one["uid"]) for one in service["metadata"]["ownerReferences"]] == [
        ("Pod", body["metadata"]["name"], "pod-uid")
    ]
    assert "finalizers" not in body["metadata"]


def test_the_service_selects_the_rendezvous_pod_of_its_attempt_alone():
    body, service = rendezvous()
    wanted = made(model=HUB)
    selector = service["spec"]["selector"].items()
    assert selector <= body["metadata"]["labels"].items()
    for other in (pod(wanted), pod(wanted, role=Role.RENDEZVOUS, attempt=2), pod(made("other"), role=Role.RENDEZVOUS)):
        assert not selector <= other["metadata"]["labels"].items()
    assert list(unknown_fields(service, "V1Service")) == []


# The environment.


@pytest.mark.parametrize("path", ["model", "a $(HF_TOKEN) b", "$$(X)", "5$", "$$$", '"quoted" \\ ünïcode'])
def test_the_task_arrives_as_it_was_sent(path):
    wanted = made(model={"path": path})
    action = asked(wanted, index=2)
    values = {name: value for name, value in environment(manifest.pod(wanted, action, SETTINGS)).items() if isinstance(value, str)}
    task = PodTask.read(values)
    assert task.stage == action.stage
    assert (task.index, task.min_nodes, task.max_nodes, str(task.storage)) == (2, 1, 4, "/storage")
    assert task.attempt == "pretraining-0123456789-a1"
    assert task.pod == "tiny-pretraining-0123456789-a1-w2-g1"


def test_no_value_is_one_that_the_kubelet_expands():
    body = pod(made(model={"path": "a $(HF_TOKEN) b"}))
    for one in container(body)["env"]:
        assert "$(" not in one.get("value", "").replace("$$", ""), one


def test_the_address_is_the_pods_own():
    assert environment(pod(made()))["TRANSFER_ADDRESS"] == {"fieldRef": {"fieldPath": "status.podIP"}}


@pytest.mark.parametrize(
    ("stage", "name", "max_nodes", "meets"),
    [
        pytest.param("pretraining", {}, 4, True, id="one of several workers"),
        pytest.param("pretraining", {"role": Role.RENDEZVOUS}, 4, True, id="rendezvous"),
        pytest.param("pretraining", {}, 1, False, id="a worker that will always be alone"),
        pytest.param("evaluation", {}, 1, False, id="evaluation"),
    ],
)
def test_workers_meet_where_the_rendezvous_listens(stage, name, max_nodes, meets):
    wanted = made()
    _, service = rendezvous()
    address = environment(pod(wanted, stage, max_nodes=max_nodes, **name))["TRANSFER_RENDEZVOUS"]
    assert address == (f"{service['metadata']['name']}.research.svc:29400" if meets else "")


@pytest.mark.parametrize(
    ("spec", "stage", "fetches"),
    [
        pytest.param({"model": HUB}, "pretraining", True, id="model of the hub"),
        pytest.param({}, "pretraining", False, id="everything in the storage"),
        pytest.param({"evaluation": {"suites": ["mmlu"]}}, "evaluation", True, id="questions of the harness"),
        pytest.param({"evaluation": {"suites": ["mmlu"]}}, "pretraining", False, id="training before such an evaluation"),
        pytest.param({"evaluation": {"suites": ["x"], "taskFolders": ["tasks"]}}, "evaluation", True, id="a task that may be in a folder"),
        pytest.param({}, "evaluation", False, id="texts in the storage"),
        pytest.param(
            {"evaluation": {"suites": ["perplexity"], "texts": [{"name": "x", "hub": "a/b"}]}}, "evaluation", True, id="text of the hub"
        ),
        pytest.param(
            {"pretraining": {**TRAINING["pretraining"], "mixture": [{"path": "a.jsonl"}, {"hub": "a/b"}]}}, "pretraining-dataset", True,
            id="mixture with a part of the hub",
        ),
    ],
)  # fmt: skip
def test_the_hub_is_there_only_for_stages_that_may_fetch(spec, stage, fetches):
    values = environment(pod(made(**spec), stage))
    assert ("HF_HUB_OFFLINE" in values, "HF_DATASETS_OFFLINE" in values) == (not fetches, not fetches)
    assert values.get("HF_HOME") == ("/storage/.cache/huggingface" if fetches else None)


@pytest.mark.parametrize(
    ("path", "stage", "given"),
    [
        ("s3://bucket/*.jsonl", "pretraining-dataset", True),
        ("s3://bucket/*.jsonl", "pretraining", False),
        ("a", "pretraining-dataset", False),
    ],
)
def test_only_pods_that_read_addresses_get_the_credentials_and_no_other_variable_of_their_secret(path, stage, given):
    spec = {"dataSecret": "bucket", "pretraining": {**TRAINING["pretraining"], "mixture": [{"path": path}]}}
    values = environment(pod(made(**spec), stage))
    found = {name: value for name, value in values.items() if name.startswith("AWS_")}
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
    assert found == ({name: {"secretKeyRef": {"name": "bucket", "key": name, "optional": True}} for name in names} if given else {})


@pytest.mark.parametrize(
    ("spec", "stage", "role", "token"),
    [
        pytest.param({"model": HUB}, "pretraining", Role.WORKER, True, id="may fetch"),
        pytest.param({"model": HUB}, "pretraining", Role.RENDEZVOUS, False, id="rendezvous"),
        pytest.param({"model": {**HUB, "tokenSecret": None}}, "pretraining", Role.WORKER, False, id="no token named"),
        pytest.param({"model": {"path": "m", "tokenSecret": HUB["tokenSecret"]}}, "pretraining", Role.WORKER, False, id="fetches nothing"),
    ],
)
def test_the_token_is_a_reference_and_only_where_it_is_used(spec, stage, role, token):
    values = environment(pod(made(**spec), stage, role=role))
    assert values.get("HF_TOKEN") == ({"secretKeyRef": {"name": "hub", "key": "token"}} if token else None)


@pytest.mark.parametrize(
    ("suites", "stage", "tokens"),
    [
        pytest.param(["llm-eval"], "evaluation", {"JUDGE_TOKEN": "first", "SECOND_JUDGE_TOKEN": "second"}, id="judged"),
        pytest.param(["gaokao-bench_open"], "evaluation", {"JUDGE_TOKEN": "first", "SECOND_JUDGE_TOKEN": "second"}, id="judged exam"),
        pytest.param(["mmlu"], "evaluation", {}, id="no judge is asked"),
        pytest.param(["llm-eval"], "pretraining", {}, id="training"),
    ],
)
def test_the_tokens_of_judges_are_references_and_only_where_they_are_asked(suites, stage, tokens):
    judge = {"url": "https://judge.example/v1", "model": "a", "tokenSecret": {"name": "first", "key": "k"}}
    second = {**judge, "model": "b", "tokenSecret": {"name": "second", "key": "k"}}
    questions = [{"name": "open", "path": "questions.jsonl"}]
    values = environment(pod(made(evaluation={"suites": suites, "questions": questions, "judge": judge, "secondJudge": second}), stage))
    found = {name: value for name, value in values.items() if "JUDGE" in name}
    assert found == {name: {"secretKeyRef": {"name": secret, "key": "k"}} for name, secret in tokens.items()}


@pytest.mark.parametrize(
    ("stage", "role", "given"),
    [
        pytest.param("pretraining", Role.WORKER, True, id="training"),
        pytest.param("pretraining", Role.RENDEZVOUS, False, id="rendezvous"),
        pytest.param("evaluation", Role.WORKER, False, id="evaluation"),
        pytest.param("pretraining-dataset", Role.WORKER, False, id="dataset"),
    ],
)
def test_the_credentials_of_trackers_are_references_and_only_in_training_pods(stage, role, given):
    mlflow = {"uri": "https://mlflow.example", "credentialsSecret": "of-mlflow"}
    wandb = {"project": "transfer", "tokenSecret": {"name": "of-wandb", "key": "k"}}
    body = pod(made(tracking={"mlflow": mlflow, "wandb": wandb}, evaluation={"suites": ["mmlu"]}), stage, role=role)
    values = environment(body)
    found = {name: value for name, value in values.items() if name.startswith(("MLFLOW_", "WANDB_"))}
    names = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    expected = {name: {"secretKeyRef": {"name": "of-mlflow", "key": name, "optional": True}} for name in names}
    assert found == (expected | {"WANDB_API_KEY": {"secretKeyRef": {"name": "of-wandb", "key": "k"}}} if given else {})
    assert "of-" not in values["TRANSFER_STAGE"]
    if role is Role.WORKER and stage == "pretraining":
        tracking = StagePlan.model_validate_json(values["TRANSFER_STAGE"]).execution.tracking
        assert tracking is not None
        assert (tracking.mlflow.uri, tracking.wandb.project) == ("https://mlflow.example", "transfer")


# Resources.


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        pytest.param({}, 1, None, id="nothing said"),
        pytest.param({"limits": {"cpu": 16}}, 1, "16", id="cores"),
        pytest.param({"requests": {"cpu": "2500m"}}, 1, "2", id="requested cores, rounded down"),
        pytest.param({"limits": {"cpu": "500m"}, "requests": {"cpu": 8}}, 1, "1", id="less than a core"),
        pytest.param({"limits": {"nvidia.com/gpu": 8, "cpu": "96"}}, 8, "12", id="cores shared among processes"),
        pytest.param({"limits": {"amd.com/gpu": "4"}}, 4, None, id="another vendor"),
        pytest.param({"limits": {"nvidia.com/gpu": 0}}, 1, None, id="no GPU"),
        pytest.param({"limits": {"nvidia.com/mig-1g.5gb": 2}}, 1, None, id="slices of a GPU"),
    ],
)
def test_a_process_for_each_gpu_with_its_share_of_the_cores(resources, processes, threads):
    values = environment(pod(made(workers={"resources": resources})))
    assert (values["TRANSFER_PROCESSES"], values.get("OMP_NUM_THREADS")) == (str(processes), threads)


@pytest.mark.parametrize(
    ("stage", "role", "limits", "processes"),
    [
        pytest.param("pretraining", Role.WORKER, {"nvidia.com/gpu": "8", "cpu": "64", "memory": "512Gi"}, "8", id="training"),
        pytest.param("evaluation", Role.WORKER, {"nvidia.com/gpu": "1", "cpu": "64", "memory": "512Gi"}, "1", id="evaluation"),
        pytest.param("pretraining-dataset", Role.WORKER, {"cpu": "64", "memory": "512Gi"}, "1", id="data set"),
        pytest.param("pretraining", Role.RENDEZVOUS, manifest.RENDEZVOUS_RESOURCES["limits"], "1", id="rendezvous"),
    ],
)
def test_each_pod_gets_what_its_work_needs(stage, role, limits, processes):
    body = pod(made(workers={"resources": GPUS}), stage, role=role)
    assert container(body)["resources"]["limits"] == limits
    assert environment(body)["TRANSFER_PROCESSES"] == processes


@pytest.mark.parametrize(
    ("written", "number"),
    [(8, 8), ("500m", "0.5"), ("1.5", "1.5"), ("2k", 2000), ("2Ki", 2048), ("1.5Gi", 1_610_612_736), ("1E", 10**18)],
)
def test_quantities_are_numbers(written, number):
    assert manifest.quantity(written) == Decimal(number)


def test_what_is_no_quantity_is_refused():
    with pytest.raises(ValueError, match="not a quantity"):
        manifest.quantity("8 GB")


# The closed list of fields.


def test_shared_memory_has_the_size_that_was_asked_for():
    sizes = [
        next(volume["emptyDir"] for volume in pod(made(workers=workers))["spec"]["volumes"] if volume["name"] == "shared-memory")
        for workers in ({}, {"sharedMemory": "8Gi"})
    ]
    assert sizes == [{"medium": "Memory"}, {"medium": "Memory", "sizeLimit": "8Gi"}]


def test_the_network_interface_reaches_both_libraries():
    values = environment(pod(made(workers={"networkInterface": "eth0"})))
    assert (values["NCCL_SOCKET_IFNAME"], values["GLOO_SOCKET_IFNAME"]) == ("=eth0", "eth0")
    assert "NCCL_SOCKET_IFNAME" not in environment(pod(made()))


def test_nodes_that_do_not_answer_are_given_up_soon_whatever_else_is_tolerated():
    settings = SETTINGS.model_copy(update={"unreachable_seconds": 7})
    body = pod(made(scheduling={"tolerations": [{"operator": "Exists"}]}), settings=settings)
    *ours, users = body["spec"]["tolerations"]
    assert {(one["key"], one["tolerationSeconds"]) for one in ours} == {
        ("node.kubernetes.io/not-ready", 7), ("node.kubernetes.io/unreachable", 7),
    }  # fmt: skip
    assert users == {"operator": "Exists"}


@pytest.mark.parametrize("role", list(Role))
def test_scheduling_holds_for_every_pod(role):
    scheduling = {"queueName": "q", "priorityClassName": "p", "runtimeClassName": "r", "nodeSelector": {"a": "b"}}
    body = pod(made(scheduling=scheduling), role=role)
    spec = body["spec"]
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert (spec["priorityClassName"], spec["runtimeClassName"], spec["nodeSelector"]) == ("p", "r", {"a": "b"})


def test_what_is_not_said_is_left_to_the_cluster():
    body = pod(made(), settings=OperatorSettings())
    assert not {"nodeSelector", "priorityClassName", "runtimeClassName", "imagePullSecrets"} & set(body["spec"])


def test_how_pods_are_placed_changes_no_stage():
    plain, placed = experiment(), experiment(
        workers={"min": 1, "replicas": 2, "max": 4, "sharedMemory": "1Gi", "networkInterface": "eth0"}, scheduling={"queueName": "q"}
    )  # fmt: skip
    assert [plan.key for plan in plan_stages(plain.spec)] == [plan.key for plan in plan_stages(placed.spec)]


def test_object_storage_is_refused_by_name():
    with pytest.raises(SpecError, match=r"spec\.storage\.url.*spec\.storage\.claim"):
        pod(made(storage={"url": "s3://bucket/prefix"}))
