"""What the operator believes: the newest word of each object, whatever order words come in."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.operator.builders import EVALUATION, TRAINING
from transfer_api.status import ArtifactStatus, ExperimentStatus, StageState, StageStatus
from transfer_operator import manifest
from transfer_operator.decide.snapshot import PodName
from transfer_operator.view import View

Body = dict[str, Any]
SPEC = {"model": {"path": "model"}, "language": "id", "storage": {"claim": "experiments"}, **TRAINING, **EVALUATION}


def txp(name: str = "tiny", *, uid: str = "", version: int = 1, generation: int = 1, created: int = 0, **fields: Any) -> Body:
    """An experiment; `spec` are changes of its spec, `status` a status, `deleting` marks it."""
    metadata = {
        "name": name, "namespace": "lab", "uid": uid or f"uid-{name}", "resourceVersion": str(version), "generation": generation,
        "creationTimestamp": f"2026-01-01T00:00:{created:02d}Z",
    }  # fmt: skip
    if fields.get("deleting"):
        metadata["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    spec = {key: value for key, value in {**SPEC, **fields.get("spec", {})}.items() if value is not None}
    body = {"apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment", "metadata": metadata, "spec": spec}
    if "status" in fields:
        body["status"] = fields["status"]
    return body


def pod(number: int = 0, *, owner: str = "tiny", uid: str = "", version: int = 1, owner_uid: str = "", phase: str = "Pending") -> Body:
    """A worker pod of an experiment."""
    name = PodName(stage="0" * 64, kind="pretraining", attempt=1, index=number)
    return {
        "metadata": {
            "name": f"{owner}-w{number}", "namespace": "lab", "uid": uid or f"uid-pod-{owner}-{number}", "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": manifest.labels(owner, name),
            "ownerReferences": [{"uid": owner_uid or f"uid-{owner}"}],
        },
        "status": {"phase": phase},
    }  # fmt: skip


def status_with(view: View, name: str, state: StageState) -> Body:
    """A status in which the first stage has a state."""
    plan = view.experiments["lab", name].plan[0]
    record = StageStatus(name=plan.name, kind=plan.kind, key=plan.key, state=state, attempt=1)
    return ExperimentStatus(stages=[record]).model_dump(mode="json", by_alias=True, exclude_none=True)


LAB = {name: ("lab", name) for name in ("tiny", "a", "b")}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_the_newest_word_on_a_pod_wins_in_any_order(order: tuple[int, ...]) -> None:
    view = View()
    phases = ["Pending", "Running", "Failed", "Unknown"]
    for number in order:
        view.put_pod(pod(version=number + 1, phase=phases[number]))
    assert view.pods["lab", "tiny-w0"]["status"]["phase"] == "Unknown"


def test_only_what_is_new_is_looked_at() -> None:
    view = View()
    assert view.put_experiment(txp(version=5)) == {LAB["tiny"]}
    assert view.put_experiment(txp(version=5)) == set()
    assert view.put_experiment(txp(version=4)) == set()
    assert view.put_pod(pod(version=6)) == {LAB["tiny"]}
    assert view.put_pod(pod(version=6)) == set()


@pytest.mark.parametrize("seed", range(30))
def test_events_answers_and_lists_in_any_order_end_in_the_same_view(seed: int) -> None:
    """Objects come, change and go; every word is told once or twice, late and in any order, and a list comes last."""
    chance = random.Random(seed)
    view, truth, words = View(), {}, []
    for version in range(1, 60):
        number = chance.randrange(5)
        old = truth.get(number)
        if old is None:
            truth[number] = pod(number, uid=f"uid-{version}", version=version)
        elif chance.random() < 0.4:
            words.append((True, {**old, "metadata": {**old["metadata"], "resourceVersion": str(version)}}))
            del truth[number]
            continue
        else:
            truth[number] = {
                **old,
                "metadata": {**old["metadata"], "resourceVersion": str(version)},
                "status": {"phase": chance.choice(["Running", "Failed"])},
            }
        words.append((False, truth[number]))
    words += chance.sample(words, 20)
    chance.shuffle(words)
    for gone, body in words[: chance.randrange(len(words))]:
        (view.drop_pod if gone else view.put_pod)(body)
    view.replace_pods(truth.values(), "60")
    for gone, body in words:
        (view.drop_pod if gone else view.put_pod)(body)
    versions = {key: body["metadata"]["resourceVersion"] for key, body in view.pods.items()}
    assert versions == {("lab", body["metadata"]["name"]): body["metadata"]["resourceVersion"] for body in truth.values()}


def test_what_a_list_that_was_under_way_tells_of_the_dead_is_not_believed() -> None:
    view = View()
    view.put_pod(pod(version=3))
    view.put_experiment(txp(version=3))
    view.drop_pod(pod(version=7))
    view.drop_experiment(txp(version=7))
    view.replace_pods([pod(version=3)], "5")
    view.replace_experiments([txp(version=3)], "5")
    assert not view.pods
    assert not view.experiments


def test_a_list_removes_what_vanished_unheard_but_not_what_is_younger_than_it() -> None:
    view = View()
    view.put_pod(pod(0, version=3))
    view.put_pod(pod(1, version=9))
    view.put_experiment(txp("a", version=3))
    view.put_experiment(txp("b", version=9))
    keys, drift = view.replace_pods([], "5")
    assert (keys, drift) == ({LAB["tiny"]}, 1)
    assert set(view.pods) == {("lab", "tiny-w1")}
    keys, drift = view.replace_experiments([], "5")
    assert LAB["a"] in keys
    assert drift == 1
    assert set(view.experiments) == {LAB["b"]}


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    view = View()
    view.put_pod(pod(version=3))
    view.put_experiment(txp(version=3))
    view.replace_pods([], "5", "elsewhere")
    view.replace_experiments([], "5", "elsewhere")
    assert view.pods
    assert view.experiments


def test_the_late_death_of_an_earlier_experiment_does_not_touch_its_namesake() -> None:
    view = View()
    view.put_experiment(txp(uid="first", version=1))
    assert view.put_experiment(txp(uid="second", version=5)) == {LAB["tiny"]}
    assert view.drop_experiment(txp(uid="first", version=4)) == set()
    assert view.put_experiment(txp(uid="first", version=3)) == set()
    assert view.experiments[LAB["tiny"]].uid == "second"


def test_a_namesake_made_within_the_same_second_is_told_apart_by_its_version() -> None:
    view = View()
    view.put_experiment(txp(uid="second", version=5))
    view.put_experiment(txp(uid="first", version=4))
    assert view.experiments[LAB["tiny"]].uid == "second"


def test_pods_of_an_earlier_experiment_of_the_same_name_are_not_ours() -> None:
    view = View()
    view.put_experiment(txp(uid="second"))
    view.put_pod(pod(0, owner_uid="first"))
    view.put_pod(pod(1, owner_uid="second"))
    assert [body["metadata"]["name"] for body in view.pods_of(LAB["tiny"])] == ["tiny-w1"]


def test_pods_that_came_before_their_experiment_are_found() -> None:
    view = View()
    view.put_pod(pod(0))
    view.put_experiment(txp())
    assert len(view.pods_of(LAB["tiny"])) == 1


def completed(view: View) -> set[tuple[str, str]]:
    """The first of two sharers completes a stage."""
    return view.put_experiment(txp("a", version=9, status=status_with(view, "a", StageState.COMPLETE)))


def shared() -> View:
    """A view in which two experiments need the same stages."""
    view = View()
    view.put_experiment(txp("a", version=1))
    view.put_experiment(txp("b", version=2, created=1))
    return view


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(completed, id="completes"),
        pytest.param(lambda view: view.put_experiment(txp("a", version=9, status={"phase": "Failed"})), id="fails"),
        pytest.param(lambda view: view.put_experiment(txp("a", version=9, deleting=True)), id="is being deleted"),
        pytest.param(lambda view: view.drop_experiment(txp("a", version=9)), id="is gone"),
        pytest.param(lambda view: view.replace_experiments([txp("b", version=2, created=1)], "9")[0], id="is missing in a list"),
        pytest.param(lambda view: view.put_experiment(txp("a", version=9, generation=2, spec={"suspend": True})), id="is suspended"),
        pytest.param(lambda view: view.put_experiment(txp("a", uid="new", version=9, spec={"language": "pl"})), id="is another one now"),
        pytest.param(lambda view: view.put_experiment(txp("a", version=9, generation=2, spec={"model": None})), id="becomes invalid"),
    ],
)  # fmt: skip
def test_who_needs_the_same_stage_is_told_when_its_maker(change: Any) -> None:
    assert LAB["b"] in change(shared())


def test_who_needs_other_stages_or_another_storage_is_told_nothing() -> None:
    view = View()
    view.put_experiment(txp("a", version=1))
    view.put_experiment(txp("b", version=2, spec={"storage": {"claim": "other"}}))
    assert view.drop_experiment(txp("a", version=9)) == {LAB["a"]}
    key = view.experiments[LAB["b"]].plan[0].key
    assert view.sharers(LAB["b"], key) == []


def test_an_unreadable_status_is_told_and_nothing_is_begun() -> None:
    view = View()
    view.put_experiment(txp(status={"phase": "Elsewhere"}))
    known = view.experiments[LAB["tiny"]]
    assert "phase" in known.unreadable
    assert not known.active


def test_of_a_status_that_cannot_be_read_the_complete_stages_still_count() -> None:
    view = View()
    view.put_experiment(txp("a", version=1))
    stage = view.experiments[LAB["a"]].plan[0]
    artifact = {"path": "artifacts/x", "digest": "sha256:0"}
    complete = {"name": stage.name, "kind": stage.kind.value, "key": stage.key, "state": "Complete", "artifact": artifact}
    told = {**complete, "key": "0" * 64, "state": "Running"}
    view.put_experiment(txp("a", version=2, status={"phase": "Elsewhere", "stages": [complete, told, {"state": 7}, "x"]}))
    view.put_experiment(txp("b", version=3))
    assert view.experiments[LAB["a"]].stages.keys() == {stage.key}
    assert view.maker(LAB["b"], stage.key) is view.experiments[LAB["a"]]


@pytest.mark.parametrize(("provisional", "taken"), [(False, True), (True, False)], ids=["whole", "provisional"])
def test_an_artifact_is_taken_over_unless_a_judge_was_down(provisional: bool, taken: bool) -> None:
    view = View()
    view.put_experiment(txp("a", version=1))
    plan = view.experiments[LAB["a"]].plan[0]
    artifact = ArtifactStatus(path="artifacts/x", digest="sha256:0", provisional=provisional)
    record = StageStatus(name=plan.name, kind=plan.kind, key=plan.key, state=StageState.COMPLETE, artifact=artifact)
    status = ExperimentStatus(stages=[record]).model_dump(mode="json", by_alias=True, exclude_none=True)
    view.put_experiment(txp("a", version=2, status=status))
    view.put_experiment(txp("b", version=3))
    assert (view.maker(LAB["b"], plan.key) is not None) == taken


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"workers": {"min": 3, "replicas": 2}}, "spec.workers"),
        ({"model": None}, "spec.model"),
        ({"storage": {"url": "s3://bucket/prefix"}}, "spec.storage.url"),
    ],
    ids=["rules", "fields", "storage"],
)
def test_a_spec_that_cannot_work_says_why(spec: Body, words: str) -> None:
    view = View()
    view.put_experiment(txp(spec=spec))
    known = view.experiments[LAB["tiny"]]
    assert words in known.problem
    assert known.experiment is None
    assert not known.active


def test_an_edit_that_mends_the_spec_is_read() -> None:
    view = View()
    view.put_experiment(txp(spec={"model": None}))
    view.put_experiment(txp(version=2, generation=2))
    assert view.experiments[LAB["tiny"]].active
    assert view.experiments[LAB["tiny"]].plan


def test_an_experiment_that_breaks_the_reader_does_not_break_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Body) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("transfer_operator.view.experiment_from", broken)
    view = View()
    assert view.put_experiment(txp()) == {LAB["tiny"]}
    assert "RecursionError" in view.experiments[LAB["tiny"]].problem


def test_nothing_is_left_of_what_came_and_went() -> None:
    view = View()
    for number in range(300):
        view.put_experiment(txp(uid=f"e{number}", version=3 * number + 1))
        view.put_pod(pod(uid=f"p{number}", version=3 * number + 2))
        view.drop_pod(pod(uid=f"p{number}", version=3 * number + 3))
        view.drop_experiment(txp(uid=f"e{number}", version=3 * number + 3))
    assert not any((view.experiments, view.pods, view._pods_of, view._sharers))
