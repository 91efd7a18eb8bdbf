"""From `kubectl apply` to a table in the status: every stage in pods, shared where two experiments need the same."""

from __future__ import annotations

import json

import pytest

from tests.support.kube import kubectl
from tests.support.trial import EVALUATION, PRETRAINING, TUNING, Trial, exit_code
from transfer_api.stage import StageKind

KEPT = 10
"""Step whose model is kept as a snapshot."""


def test_an_experiment_with_every_stage_becomes_complete_with_a_score(trial: Trial) -> None:
    document = trial.document(
        pretraining=PRETRAINING | {"ema": {"decay": "0.9"}, "snapshotTokens": [KEPT * PRETRAINING["globalBatchTokens"]]},
        instructionTuning=TUNING, evaluation=EVALUATION | {"shards": 2, "when": "EachCheckpoint"},
        workers={"min": 1, "replicas": 2, "max": 2},
        vocabulary={"addedTokens": 20, "corpus": [{"path": "texts/id.jsonl"}]},
    )  # fmt: skip
    with trial.witness() as witness:
        trial.apply(document)
        status = trial.ends("Complete", seconds=400)
    plan = trial.plan(document)
    assert [stage["name"] for stage in status["stages"]] == list(plan)
    assert {stage["state"] for stage in status["stages"]} == {"Complete"}
    assert status["restarts"]["total"] == 0
    assert {stage["attempt"] for stage in status["stages"]} == {1}

    # What the status says is what lies in the storage.
    for stage in status["stages"]:
        manifest = trial.storage / stage["artifact"]["path"] / "manifest.json"
        assert json.loads(manifest.read_text())["key"] == stage["key"]
    results = json.loads((trial.storage / status["results"]["artifact"]["path"] / "results.json").read_text())["scores"]
    told = {(score["task"], score["metric"]): score for score in status["results"]["scores"]}
    assert told.keys() == {(score["task"], score["metric"]) for score in results}
    for score in results:
        line = told[score["task"], score["metric"]]
        for name in (name for name in ("value", "baseline", "difference") if score[name] is not None):
            assert float(line[name]) == pytest.approx(score[name], rel=1e-4), (score["task"], score["metric"], name)
        assert [float(end) for end in line["interval"]] == pytest.approx(list(score["interval"]), rel=1e-4)
    assert len(trial.ledger(document)) == PRETRAINING["steps"]

    between = next(stage for stage in status["stages"] if stage["name"].startswith("evaluation-at-"))
    scored = json.loads((trial.storage / between["artifact"]["path"] / "results.json").read_text())["scores"]
    assert {score["baseline"] for score in scored} == {score["baseline"] for score in results}
    assert [score["value"] for score in scored] != [score["value"] for score in results]

    trained = trial.storage / next(stage["artifact"]["path"] for stage in status["stages"] if stage["name"] == "pretraining")
    assert len(list(trained.parent.glob(f"{trained.name}-at-*/model/model.safetensors"))) == 1

    # What a user looks at.
    row = dict(zip(*(line.split() for line in kubectl("get", "txp", "-n", trial.name).splitlines()), strict=False))
    assert row["PHASE"] == "Complete"
    assert "heldout" in kubectl("get", "txp", "-n", trial.name)
    events = kubectl("describe", "txp", "tiny", "-n", trial.name)
    assert "StageComplete" in events
    assert "Complete" in events

    # Pods that ended well stay for their logs; none was made twice.
    names = [one.name for one in witness.created()]
    assert len(names) == len(set(names))
    workers = [pod for pod in trial.pods() if pod["metadata"]["labels"]["transfer-operator.dev/role"] == "worker"]
    kinds = [pod["metadata"]["labels"]["transfer-operator.dev/stage"] for pod in workers]
    assert kinds.count(StageKind.EVALUATION) == 3 * 2, "two share each: the baseline's evaluation, the checkpoint's and the result's"
    assert {exit_code(pod) for pod in workers} == {0}
    assert not [pod for pod in trial.pods() if pod["spec"].get("serviceAccountName") and pod["spec"]["automountServiceAccountToken"]]


def test_a_finished_experiment_that_is_applied_again_runs_nothing(trial: Trial) -> None:
    document = trial.document(pretraining=None, evaluation=EVALUATION)
    trial.apply(document)
    first = trial.ends("Complete")
    kubectl("delete", "txp", "tiny", "-n", trial.name, "--wait=true")
    trial.apply(document)
    again = trial.ends("Complete")
    assert [stage["artifact"]["digest"] for stage in again["stages"]] == [stage["artifact"]["digest"] for stage in first["stages"]]
    assert all(stage["artifact"]["reused"] for stage in again["stages"])
    assert again["results"]["scores"] == first["results"]["scores"]


def test_two_experiments_that_need_the_same_baseline_score_it_once(trial: Trial) -> None:
    documents = [
        trial.document(name, pretraining=PRETRAINING | {"learningRate": rate}, evaluation=EVALUATION)
        for name, rate in (("one", "1e-3"), ("two", "2e-3"))
    ]
    with trial.witness() as witness:
        for document in documents:
            trial.apply(document)
        one, two = (trial.ends("Complete", name) for name in ("one", "two"))
    plans = [trial.plan(document) for document in documents]
    shared = {plans[0][name].key for name in ("pretraining-dataset", "baseline")}
    assert shared == {plans[1][name].key for name in ("pretraining-dataset", "baseline")}
    labels = [pod.body["metadata"]["labels"] for pod in witness.created()]
    keys = [label["transfer-operator.dev/stage-key"] for label in labels if label["transfer-operator.dev/role"] == "worker"]
    assert sorted(keys.count(key) for key in set(keys)) == [1] * len(set(keys)), "each stage has one worker"
    baselines = [{(s["task"], s["metric"]): s.get("baseline") for s in status["results"]["scores"]} for status in (one, two)]
    assert baselines[0] == baselines[1]
    assert one["results"]["scores"] != two["results"]["scores"]


def test_two_experiments_that_differ_only_in_workers_train_once(trial: Trial) -> None:
    documents = [trial.document(name, workers={"min": 1, "replicas": count, "max": 3}) for name, count in (("one", 1), ("two", 3))]
    with trial.witness() as witness:
        for document in documents:
            trial.apply(document)
        one, two = (trial.ends("Complete", name) for name in ("one", "two"))
    digests = [[stage["artifact"]["digest"] for stage in status["stages"]] for status in (one, two)]
    assert digests[0] == digests[1]
    trained = {
        pod.body["metadata"]["labels"]["transfer-operator.dev/experiment"]
        for pod in witness.created()
        if pod.body["metadata"]["labels"]["transfer-operator.dev/stage"] == StageKind.PRETRAINING
    }
    assert len(trained) == 1, "only one of them had training pods"
