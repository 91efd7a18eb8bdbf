"""Pod objects as API servers write them, what `decide` sees of them, and what it makes of their ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_api.progress import ArtifactReference, Outcome, Progress, ResultMessage
from transfer_api.status import Cause
from transfer_operator.decide import Pod, PodPhase
from transfer_operator.decide.snapshot import PodName
from transfer_operator.decide.verdict import Done, Refusal, Replace, verdict
from transfer_operator.manifest import CONTAINER, labels
from transfer_operator.observe import WAITING_LENGTH, last_words, observe, strip, time_of

NAME = PodName(stage="0123456789abcdef" * 2, kind="pretraining", attempt=1, index=2, generation=3)
STARTED = "2026-01-01T00:00:07Z"
COMPLETE = ResultMessage(outcome=Outcome.COMPLETE, artifact=ArtifactReference(key="k", path="artifacts/x", digest="sha256:0"))
TRACEBACK = """Traceback (most recent call last):
  File "loop.py", line 7, in step
    loss.backward()
RuntimeError: CUDA error: an illegal memory access was encountered
"""


def body(phase: str = "Running", state: dict[str, Any] | None = None, *conditions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A pod object: phase, state of the container, conditions; `deleted`, `labels` and `node`; the rest goes into the status."""
    metadata: dict[str, Any] = {
        "name": "tiny-w2", "namespace": "research", "uid": "u", "resourceVersion": "77", "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels("tiny", NAME) | fields.pop("labels", {}), "managedFields": [{"manager": "kubelet"}],
        "ownerReferences": [{"kind": "TransferExperiment", "uid": "owner"}],
    }  # fmt: skip
    if fields.pop("deleted", False):
        metadata |= {"deletionTimestamp": "2026-01-01T00:05:00Z", "deletionGracePeriodSeconds": 120}
    spec = {
        "nodeName": fields.pop("node", "node-1"),
        "containers": [{"name": CONTAINER, "env": [{"name": "TRANSFER_STAGE", "value": "x" * 2000}]}],
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": "experiments"}}, {"name": "scratch", "emptyDir": {}}],
    }  # fmt: skip
    status: dict[str, Any] = {"phase": phase, "conditions": list(conditions), **fields}
    if state is not None:
        status["containerStatuses"] = [{"name": CONTAINER, "state": state, "image": "i", "imageID": "sha256:1", "restartCount": 0}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


RUNNING = {"running": {"startedAt": STARTED}}


def ended(code: int, reason: str = "Error", message: str | None = None) -> dict[str, Any]:
    state = {"exitCode": code, "reason": reason, "startedAt": STARTED, "finishedAt": STARTED, "containerID": "containerd://1"}
    return {"terminated": state | ({"message": message} if message is not None else {})}


def waits(reason: str, message: str | None = None) -> dict[str, Any]:
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": STARTED}


def disruption(reason: str, message: str = "because") -> dict[str, Any]:
    return condition("DisruptionTarget", "True", reason, message)


def seen(thing: dict[str, Any]) -> Pod:
    found = observe(thing)
    assert found is not None
    return found


# Ends. What `decide` makes of each is the point; the fields are how it gets there.

EVICTED = {"reason": "Evicted", "message": "The node was low on resource: memory."}
SAVED = ResultMessage(outcome=Outcome.SAVED, message="saved on request").encode()
REFUSED = ResultMessage(outcome=Outcome.FAILED, reason="DataError", message="spec.pretraining: no text").encode()

ENDS = [
    ("complete", body("Succeeded", ended(0, "Completed", COMPLETE.encode())), "done", ""),
    (
        "code 0 with a result that no status holds",
        body("Succeeded", ended(0, "Completed", '{"outcome": "Complete", "step": 99999999999999999999}')),
        Cause.APPLICATION,
        "named no artifact: its result is none: step: Input should be less than or equal to",
    ),
    ("code 0 without an artifact", body("Succeeded", ended(0, "Completed")), Cause.APPLICATION, "named no artifact"),
    ("code 0 after a worker process was killed for memory", body("Succeeded", ended(0, "OOMKilled", COMPLETE.encode())), "done", ""),
    ("cannot work", body("Failed", ended(10, "Error", REFUSED)), "refused", "spec.pretraining: no text"),
    ("cannot work, killed for memory before", body("Failed", ended(10, "OOMKilled", REFUSED)), "refused", "spec.pretraining: no text"),
    (
        "cannot work, evicted while it died",
        body("Failed", ended(10, "Error", REFUSED), disruption("EvictionByEvictionAPI")),
        "refused",
        "no text",
    ),
    ("unreadable checkpoint", body("Failed", ended(11)), "refused", "code 11"),
    ("crash with its traceback", body("Failed", ended(1, "Error", TRACEBACK)), Cause.APPLICATION, "RuntimeError: CUDA error"),
    ("crash without a word", body("Failed", ended(139)), Cause.APPLICATION, "crashed with code 139"),
    (
        "program that is not in the image",
        body("Failed", ended(128, "StartError", "exec: python: not found")),
        Cause.APPLICATION,
        "not found",
    ),
    (
        "node whose runtime cannot start it",
        body("Failed", ended(128, "StartError", "error running prestart hook #0: nvidia-container-cli: initialization error")),
        Cause.INFRASTRUCTURE,
        "nvidia-container-cli",
    ),
    ("out of memory", body("Failed", ended(137, "OOMKilled")), "memory", "ran out of memory"),
    ("worker process out of memory, then a crash", body("Failed", ended(1, "OOMKilled")), "memory", "ran out of memory"),
    ("saved on request", body("Failed", ended(75, "Error", SAVED)), Cause.SAVED, "saved on request"),
    ("saved on request, killed for memory before", body("Failed", ended(75, "OOMKilled", SAVED)), Cause.SAVED, "saved on request"),
    ("deleted by somebody, still saving", body("Running", RUNNING, deleted=True), Cause.SAVED, "asked to stop"),
    ("deleted by somebody, killed after its grace", body("Failed", ended(137), deleted=True), Cause.SAVED, "asked to stop"),
    ("deleted by somebody before it started", body("Pending", None, deleted=True), Cause.SAVED, "asked to stop"),
    (
        "deleted by somebody, containers removed",
        body("Failed", ended(137, "ContainerStatusUnknown"), deleted=True),
        Cause.SAVED,
        "asked to stop",
    ),
    ("preempted, about to go", body("Running", RUNNING, disruption("PreemptionByScheduler"), deleted=True), Cause.PREEMPTION, "Preemption"),
    (
        "drained and saved",
        body("Failed", ended(75, "Error", SAVED), disruption("EvictionByEvictionAPI"), deleted=True),
        Cause.PREEMPTION,
        "saved",
    ),
    (
        "evicted, killed",
        body("Failed", ended(137), disruption("TerminationByKubelet", "low on memory"), **EVICTED),
        Cause.PREEMPTION,
        "low on memory",
    ),
    ("evicted without a condition", body("Failed", None, **EVICTED), Cause.PREEMPTION, "low on resource: memory"),
    (
        "node shut down",
        body("Failed", ended(143), reason="Terminated", message="imminent node shutdown"),
        Cause.PREEMPTION,
        "node shutdown",
    ),
    (
        "preempted by a queue",
        body("Running", RUNNING, condition("TerminationTarget", "True", "StoppedByKueue", "Preempted"), deleted=True),
        Cause.PREEMPTION,
        "StoppedByKueue: Preempted",
    ),
    ("preempted by a device", body("Failed", ended(137), disruption("DeletionByDeviceTaintManager")), Cause.INFRASTRUCTURE, "DeviceTaint"),
    (
        "node gone, seen by the taint",
        body("Running", RUNNING, disruption("DeletionByTaintManager"), deleted=True),
        Cause.INFRASTRUCTURE,
        "Taint",
    ),
    ("node gone, cleaned up", body("Failed", RUNNING, disruption("DeletionByPodGC"), deleted=True), Cause.INFRASTRUCTURE, "PodGC"),
    (
        "node gone, of an old cluster",
        body("Unknown", RUNNING, reason="NodeLost", message="unresponsive", deleted=True),
        Cause.INFRASTRUCTURE,
        "NodeLost",
    ),
    (
        "end that the kubelet only supposes",
        body("Failed", ended(137, "ContainerStatusUnknown")),
        Cause.INFRASTRUCTURE,
        "without an exit code",
    ),
    ("killed from outside", body("Failed", ended(137)), Cause.INFRASTRUCTURE, "lost"),
    (
        "kubelet refused it",
        body("Failed", None, reason="UnexpectedAdmissionError", message="no healthy devices present"),
        Cause.INFRASTRUCTURE,
        "no healthy devices present",
    ),
    (
        "disruption that came to nothing",
        body("Failed", ended(1), condition("DisruptionTarget", "False", "PreemptionByScheduler")),
        Cause.APPLICATION,
        "code 1",
    ),
    ("exit code that is none", body("Failed", {"terminated": {"exitCode": "1"}}), Cause.INFRASTRUCTURE, "without an exit code"),
]


@pytest.mark.parametrize(("thing", "meaning", "words"), [pytest.param(*rest, id=name) for name, *rest in ENDS])
def test_the_end_of_a_pod_means(thing, meaning, words):
    pod = seen(thing)
    assert not pod.alive
    match verdict(pod):
        case Done():
            assert meaning == "done"
        case Refusal(message=message):
            assert meaning == "refused"
            assert words in message
        case Replace(cause=cause, message=message, out_of_memory=out_of_memory):
            assert meaning == ("memory" if out_of_memory else cause)
            assert words in message


@pytest.mark.parametrize("thing", [pytest.param(thing, id=name) for name, thing, *_ in ENDS])
def test_what_is_remembered_of_a_pod_means_the_same(thing):
    assert observe(strip(thing)) == observe(thing)


@pytest.mark.parametrize(
    ("thing", "rejected"),
    [
        pytest.param(body("Failed", None, reason="OutOfcpu", message="no room"), True, id="the kubelet did not take it"),
        pytest.param(body("Failed", ended(128, "StartError", "prestart hook")), True, id="its node cannot start it"),
        pytest.param(body("Failed", ended(1)), False, id="it ran and crashed"),
        pytest.param(body("Failed", RUNNING, reason="NodeLost"), False, id="it ran when last seen"),
        pytest.param(body("Pending", None), False, id="it waits"),
    ],
)
def test_a_pod_that_ended_without_having_run_was_rejected(thing, rejected):
    assert seen(thing).rejected is rejected


def test_a_pod_of_a_queue_waits_for_its_node_and_is_placed_then():
    label, placed = (
        {"kueue.x-k8s.io/queue-name": "q"},
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:05:00Z"},
    )
    waits_for_it = seen(body("Pending", None, condition("PodScheduled", "False", "SchedulingGated", "gates"), labels=label, node=None))
    assert (waits_for_it.queued, waits_for_it.placed) == (True, None)
    there = seen(body("Pending", None, placed, labels=label))
    assert (there.queued, there.placed) == (False, datetime(2026, 1, 1, 0, 5, tzinfo=UTC))
    assert not seen(body("Pending", None, placed)).queued


# Lives.


def test_a_pod_that_runs():
    progress = Progress(step=7)
    pod = observe(body("Running", RUNNING), progress)
    assert pod == Pod(
        name=NAME, phase=PodPhase.RUNNING, created=datetime(2026, 1, 1, tzinfo=UTC),
        started=datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC), progress=progress,
    )  # fmt: skip
    assert pod.alive


@pytest.mark.parametrize(
    ("thing", "phase"),
    [
        pytest.param(body("Unknown", RUNNING), PodPhase.RUNNING, id="unknown, ran when last seen"),
        pytest.param(body("Unknown", ended(0)), PodPhase.SUCCEEDED, id="unknown, had ended"),
        pytest.param(body("Unknown", None), PodPhase.PENDING, id="unknown, never started"),
        pytest.param(body("Running", ended(3)), PodPhase.FAILED, id="goes on for a sidecar, ours has ended"),
        pytest.param(body("Running", waits("ContainerCreating")), PodPhase.PENDING, id="goes on for a sidecar, ours has not begun"),
        pytest.param(body("Succeeded", None), PodPhase.SUCCEEDED, id="succeeded, statuses gone"),
        pytest.param(body("Nonsense", None), PodPhase.PENDING, id="no phase that we know"),
    ],
)
def test_the_phase_is_that_of_our_container(thing, phase):
    assert seen(thing).phase is phase


def test_sidecars_do_not_speak_for_the_stage():
    thing = body("Running", RUNNING)
    thing["status"]["containerStatuses"].insert(0, {"name": "istio-proxy", "state": ended(1)})
    assert seen(thing).alive


def test_a_pod_of_somebody_else_is_not_seen():
    thing = body()
    thing["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "Helm"
    assert observe(thing) is None
    del (thing := body())["metadata"]["creationTimestamp"]
    assert observe(thing) is None


# Why a pod does not start.

NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
NOT_FOUND = 'failed to pull and unpack image "x:1": not found'
READY_TO_START = condition("PodReadyToStartContainers", "True")

WAITING = [
    ("just created", body("Pending", node=None), "", False),
    (
        "no room",
        body("Pending", None, condition("PodScheduled", "False", "Unschedulable", NO_NODE), node=None),
        f"Unschedulable: {NO_NODE}",
        False,
    ),
    (
        "claim that does not exist",
        body("Pending", None, condition("PodScheduled", "False", "Unschedulable", 'persistentvolumeclaim "x" not found'), node=None),
        'Unschedulable: persistentvolumeclaim "x" not found',
        False,
    ),
    (
        "queue",
        body(
            "Pending",
            None,
            condition("PodScheduled", "False", "SchedulingGated", "gates"),
            labels={"kueue.x-k8s.io/queue-name": "q"},
            node=None,
        ),
        "SchedulingGated: waits until queue q admits it (does the LocalQueue exist, has it quota?)",
        False,
    ),
    (
        "other gate",
        body("Pending", None, condition("PodScheduled", "False", "SchedulingGated", "gates"), node=None),
        "SchedulingGated: gates",
        False,
    ),
    ("image", body("Pending", waits("ErrImagePull", NOT_FOUND)), f"ImagePull: {NOT_FOUND}", False),
    (
        "image, between two tries",
        body("Pending", waits("ImagePullBackOff", f'Back-off pulling image "x:1": ErrImagePull: {NOT_FOUND}')),
        f"ImagePull: {NOT_FOUND}",
        False,
    ),
    (
        "secret",
        body("Pending", waits("CreateContainerConfigError", 'secret "hub" not found')),
        'CreateContainerConfigError: secret "hub" not found',
        False,
    ),
    ("a reason alone", body("Pending", waits("InvalidImageName")), "InvalidImageName", False),
    ("volumes", body("Pending", waits("ContainerCreating")), "ContainerCreating: node node-1 mounts claim experiments", True),
    ("volumes, no status yet", body("Pending"), "ContainerCreating: node node-1 mounts claim experiments", True),
    (
        "image on its way",
        body("Pending", waits("ContainerCreating"), READY_TO_START),
        "ContainerCreating: node node-1 pulls the image",
        True,
    ),
    ("runs", body("Running", RUNNING, condition("PodScheduled", "False", "Unschedulable", "old")), "", False),
]


@pytest.mark.parametrize(("thing", "text", "on_its_way"), [pytest.param(*rest, id=name) for name, *rest in WAITING])
def test_a_pod_says_what_it_waits_for(thing, text, on_its_way):
    pod = seen(thing)
    assert (pod.waiting, pod.on_its_way) == (text, on_its_way)
    assert observe(strip(thing)) == pod


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("a\x1b[31m\n\tb\x00c", "a [31m b c", id="control characters"),
        pytest.param("pull https://me:geheim@registry.example/x", "pull https://…registry.example/x", id="password of a registry"),
        pytest.param("token hf_abcdefghijklmn refused", "token … refused", id="hub token"),
        pytest.param("header Authorization: Bearer abc.def", "header Authorization: Bearer …", id="bearer"),
    ],
)
def test_what_others_say_is_one_line_without_credentials(said, kept):
    assert seen(body("Pending", waits("Why", said))).waiting == f"Why: {kept}"


def test_long_words_are_cut():
    assert len(seen(body("Pending", waits("Why", "x" * 10_000))).waiting) == WAITING_LENGTH
    assert len(seen(body("Failed", ended(1, "Error", "y" * 4096))).result.message) <= 400


# Last words.


def test_a_message_in_our_form_is_told_without_credentials_too():
    said = ResultMessage(
        outcome=Outcome.FAILED, reason="HubError", message="GET https://me:secret@hub.example with Bearer abc.def"
    ).encode()
    told = seen(body("Failed", ended(10, "Error", said))).result
    assert told.message == "GET https://…hub.example with Bearer …"
    assert told.reason == "HubError"


def test_a_message_in_our_form_is_kept_whole():
    assert seen(body("Succeeded", ended(0, "Completed", COMPLETE.encode()))).result == COMPLETE


def test_a_crash_before_our_code_could_say_so_keeps_its_last_lines():
    result = seen(body("Failed", ended(1, "Error", "x" * 1000 + "\n" + TRACEBACK))).result
    assert (result.outcome, result.reason) == (Outcome.FAILED, "Crash")
    assert result.message.endswith("loss.backward() | RuntimeError: CUDA error: an illegal memory access was encountered")
    assert "xxx" not in result.message


def test_a_pod_that_lives_has_no_result():
    assert seen(body("Running", RUNNING, disruption("PreemptionByScheduler"))).result is None


@pytest.mark.parametrize(("log", "words"), [("", ""), ("\n \n", ""), ("a\n\nb\n", "a | b"), ("1\n2\n3\n4\n5\n6", "2 | 3 | 4 | 5 | 6")])
def test_last_words_are_the_last_lines(log, words):
    assert last_words(log) == words


# Times.


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-01T00:00:07Z", datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)),
        ("2026-01-01T00:00:07.123456Z", datetime(2026, 1, 1, 0, 0, 7, 123456, tzinfo=UTC)),
        ("2026-01-01T02:00:07+02:00", datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)),
        ("2026-01-01T00:00:07", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        (7, None),
        (None, None),
    ],
)
def test_times_are_read_in_utc_or_not_at_all(text, time):
    assert time_of(text) == time


# Whatever a pod object holds.

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
CASES = [thing for _, thing, *_ in (*ENDS, *WAITING)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value, without the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*path, key), *places(item, (*path, key)))]


@settings(max_examples=400)
@given(data=st.data())
def test_nothing_that_stands_in_a_pod_stops_the_operator(data):
    thing = json.loads(json.dumps(data.draw(st.sampled_from(CASES))))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(thing)))
        node = thing
        for key in path:
            node = node[key]
        node[last] = data.draw(JSON)
    pod = observe(thing)
    assert observe(strip(thing)) == pod
    if pod is not None and not pod.alive:
        verdict(pod)


@given(thing=st.dictionaries(st.sampled_from(["metadata", "spec", "status", "kind"]), JSON))
def test_what_is_no_pod_is_not_seen(thing):
    assert observe(thing) is None
    assert strip(thing).keys() == {"metadata", "spec", "status"}


@given(message=st.text())
def test_no_last_words_stop_the_operator(message):
    result = seen(body("Failed", ended(1, "Error", message))).result
    assert result is None or len(result.message.encode()) <= 4096


def test_what_is_remembered_is_small():
    thing = body("Running", RUNNING, READY_TO_START)
    assert len(json.dumps(strip(thing))) < len(json.dumps(thing)) / 2
    assert {"name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences"} <= strip(thing)["metadata"].keys()
