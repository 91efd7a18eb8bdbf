"""What the API server itself refuses, and with which words; and what only the operator can know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_rules_agree import CASES, validate
from tests.support.documents import COMMIT, DROP, EVALUATION, TUNING, VOCABULARY, changed, document
from tests.support.kube import EXPERIMENTS, RefusedError, kubectl
from tests.support.testbed import Testbed, as_json
from tests.support.trial import Trial

LONG = "a" * 10_000
ALL = document(vocabulary=VOCABULARY, instructionTuning=TUNING, evaluation=EVALUATION)
# Name, document, and the words of the answer: the field and what is wrong with it.
REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown field", changed(document(), "spec.pretraining.batchSize", 8), ["spec.pretraining.batchSize", "unknown field"]),
    ("unknown field beside the spec", {**document(), "extra": 1}, ["extra", "unknown field"]),
    ("min over replicas", document(workers={"min": 3, "replicas": 2}), ["spec.workers", "min is larger than replicas"]),
    ("replicas over max", document(workers={"replicas": 3, "max": 2}), ["spec.workers", "replicas is larger than max"]),
    ("two budgets", changed(document(), "spec.pretraining.epochs", 1), ["spec.pretraining", "exactly one budget"]),
    ("tokens that are no number", changed(document(), "spec.pretraining.tokens", "5OOM"), ["spec.pretraining.tokens", "should match"]),
    ("tokens of nothing", changed(document(), "spec.pretraining.tokens", 0), ["spec.pretraining.tokens", "or equal to 1"]),
    ("language that is none", document(language="klingon language"), ["spec.language", "should match"]),
    ("model by nothing", changed(document(), "spec.model", {}), ["spec.model", "exactly one of name"]),
    ("model by a branch", changed(document(), "spec.model", {"name": "a/b", "revision": "main"}), ["spec.model.revision"]),
    ("weights of zero", changed(document(), "spec.pretraining.mixture", [{"path": "*", "weight": 0}]), ["mixture", "only weights of 0"]),
    ("an empty mixture", changed(document(), "spec.pretraining.mixture", []), ["spec.pretraining.mixture", "at least 1"]),
    ("nothing to do", document(pretraining=None), ["spec", "nothing to do"]),
    ("no model", changed(document(), "spec.model", DROP), ["spec.model", "Required"]),
    ("no spec", {key: value for key, value in document().items() if key != "spec"}, ["spec", "Required"]),
    ("number as text", changed(document(), "spec.pretraining.sequenceLength", "128"), ["spec.pretraining.sequenceLength", "integer"]),
    ("text as number", changed(document(), "spec.pretraining.learningRate", 1), ["spec.pretraining.learningRate", "string"]),
    ("unknown method", changed(document(), "spec.pretraining.method", "DoRA"), ["spec.pretraining.method", "Full", "LoRA"]),
    ("row over batch", changed(document(), "spec.pretraining.sequenceLength", 1025), ["spec.pretraining", "less than one row"]),
    ("row beyond all models", changed(document(), "spec.pretraining.sequenceLength", 1 << 21), ["sequenceLength", "less than or equal"]),
    ("name of 53 characters", changed(document(), "metadata.name", "a" * 53), ["metadata.name", "52"]),
    ("name of 10,000 characters", changed(document(), "metadata.name", LONG), ["metadata.name", "52"]),
    ("name in capitals", changed(document(), "metadata.name", "Demo"), ["metadata.name"]),
    ("claim of 10,000 characters", document(storage={"claim": LONG}), ["spec.storage.claim", "63"]),
    ("queue of 10,000 characters", document(scheduling={"queueName": LONG}), ["spec.scheduling.queueName", "63"]),
    ("path of 10,000 characters", document(model={"path": LONG}), ["spec.model.path", "1024"]),
    ("text name of 10,000 characters", document(evaluation={"texts": [{"name": LONG, "path": "*"}]}), ["evaluation.texts[0].name", "63"]),
    ("language of 10,000 characters", document(language=LONG), ["spec.language", "35"]),
    ("tokens of 10,000 digits", changed(document(), "spec.pretraining.tokens", "9" * 10_000), ["spec.pretraining.tokens"]),
    ("revision of 10,000 characters", document(model={"name": "a/b", "revision": "0" * 10_000}), ["spec.model.revision", "40"]),
    ("texts as CSV", changed(document(), "spec.pretraining.mixture.0.path", "id.csv"), ["mixture[0]", "not read as texts"]),
    ("1,000 sources", changed(document(), "spec.pretraining.mixture", [{"path": f"t{i}.txt"} for i in range(1000)]), ["mixture", "32"]),
    ("replicas without end", document(workers={"replicas": 10**12}), ["spec.workers.replicas", "1024"]),
    ("amount of memory that is none", document(workers={"resources": {"limits": {"memory": "64 GB"}}}), ["resources.limits", "memory"]),
    ("path with a commit", changed(document(), "spec.model.revision", COMMIT), ["spec.model", "a path has none"]),
]  # fmt: skip


def post(bed: Testbed, wanted: dict[str, Any]) -> str:
    """What the API server answers to a creation that is only tried; empty where it would take it."""
    path = f"{EXPERIMENTS}/namespaces/default/transferexperiments"
    try:
        bed.kube.ask("POST", path, wanted, dryRun="All", fieldValidation="Strict")
    except RefusedError as error:
        if error.status not in (400, 422):
            raise
        return error.message
    return ""


@pytest.mark.parametrize(("wanted", "says"), [pytest.param(wanted, says, id=name) for name, wanted, says in REFUSED])
def test_bad_input_is_refused_by_a_message_that_names_the_field(bed: Testbed, wanted: dict[str, Any], says: list[str]) -> None:
    said = post(bed, wanted)
    assert said, "it was taken"
    for words in says:
        assert words in said
    assert len(said) < 25_000


def test_the_api_server_refuses_what_transfer_validate_refuses(bed: Testbed) -> None:
    """Every case that the two are held against each other with, by the real schema and the real CEL."""
    differ = {name: said for name, wanted, _ in CASES if bool(said := post(bed, wanted)) != bool(validate(wanted))}
    assert not differ


def test_an_unknown_version_or_kind_is_told_at_once(bed: Testbed) -> None:
    for field, value in (("apiVersion", "transfer-operator.dev/v9"), ("kind", "TransferExperiments")):
        said = kubectl("apply", "--dry-run=server", "-f", "-", stdin=as_json(document() | {field: value}), check=False)
        assert value.rsplit("/", 1)[-1] in said
        assert "no matches for kind" in said


def test_kubectl_shows_the_refusal_to_who_types_it(bed: Testbed) -> None:
    wanted = document(workers={"min": 3, "replicas": 2})
    said = kubectl("apply", "--dry-run=server", "-f", "-", stdin=as_json(wanted), check=False)
    assert 'The TransferExperiment "demo" is invalid: spec.workers' in said
    assert "min is larger than replicas" in said


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param({"language": "xx"}, ["spec.language", "'xx'"], id="language code that does not exist"),
        pytest.param({"storage": {"url": "s3://bucket/prefix"}}, ["spec.storage", "claim"], id="object storage"),
    ],
)
def test_what_only_the_operator_knows_is_not_accepted(trial: Trial, spec: dict[str, Any], says: list[str]) -> None:
    trial.apply(trial.document(**spec))
    condition = trial.waits(lambda _: trial.condition("Accepted") or None, "a verdict", seconds=20)
    assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
    for words in says:
        assert words in condition["message"]
    assert not trial.pods()
    assert "InvalidSpec" in kubectl("describe", "txp", "tiny", "-n", trial.name)


def test_the_longest_names_work(trial: Trial) -> None:
    name = "n" * 52
    trial.apply(
        trial.document(
            name, pretraining=None, evaluation={"suites": ["perplexity"], "texts": [{"name": "t" * 63, "path": "texts/heldout.jsonl"}]}
        )
    )
    assert trial.ends("Complete", name)["results"]["scores"][0]["task"] == "t" * 63
