"""What cannot work ends as Failed, or waits, with a reason that says what to do; nothing is tried again in vain."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.support.experiment import wait_for
from tests.support.kube import Body, Witness
from tests.support.meanwhile import meanwhile
from tests.support.testbed import containers
from tests.support.trial import EVALUATION, LABEL, LONG, PRETRAINING, Trial, exit_code, lives, none_twice


def changed_source(path: str, **changes: object) -> dict:
    return PRETRAINING | changes | {"mixture": [{"path": path}]}


def pickle(trial: Trial) -> None:
    folder = trial.storage / "models" / "pickle"
    shutil.copytree(trial.storage / "models" / "tiny", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(trial: Trial) -> None:
    folder = trial.storage / "models" / "mute"
    shutil.copytree(trial.storage / "models" / "tiny", folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()


def text(name: str, content: bytes) -> Callable[[Trial], None]:
    return lambda trial: (trial.storage / "texts" / name).write_bytes(content) and None


# Name, what is done to the storage, what the spec says, and what the failure has to say.
BAD: list[tuple[str, Callable[[Trial], None] | None, dict, list[str]]] = [
    ("model-missing", None, {"model": {"path": "models/none"}}, ["spec.model.path", "models/none"]),
    ("model-pickle", pickle, {"model": {"path": "models/pickle"}, "pretraining": None, "evaluation": EVALUATION}, ["spec.model", "pickle"]),
    ("no-tokenizer", no_tokenizer, {"model": {"path": "models/mute"}}, ["spec.model", "tokenizer"]),
    ("data-missing", None, {"pretraining": changed_source("texts/none.jsonl")}, ["mixture", "texts/none.jsonl"]),
    ("data-empty", text("empty.jsonl", b""), {"pretraining": changed_source("texts/empty.jsonl")}, ["texts/empty.jsonl", "empty"]),
    ("data-not-utf8", text("latin.txt", b"caf\xe9\n"), {"pretraining": changed_source("texts/latin.txt")}, ["texts/latin.txt", "UTF-8"]),
    ("data-no-field", text("field.jsonl", b'{"body": "a"}\n'), {"pretraining": changed_source("texts/field.jsonl")}, ["field", "text"]),
    ("too-many-tokens", None, {"pretraining": changed_source("texts/id.jsonl", maxEpochs=1, steps=5000)}, ["epochs", "maxEpochs"]),
    (
        "too-long-rows", None,
        {"pretraining": changed_source("texts/id.jsonl", sequenceLength=512, globalBatchTokens=1024)}, ["sequenceLength", "256"],
    ),
]  # fmt: skip


@pytest.mark.timeout(600)
def test_bad_models_and_data_fail_by_what_the_pod_found(trial: Trial) -> None:
    """All at once, since each costs little but the start of a pod; a problem in one says nothing of the others."""
    for name, spoil, spec, _ in BAD:
        if spoil is not None:
            spoil(trial)
        trial.own()
        trial.apply(trial.document(name, **spec))
    wrong = {}
    for name, _, _, says in BAD:
        status = trial.ends("Failed", name, seconds=400)
        failure = status["failure"]
        if (failure["reason"], failure.get("exitCode")) != ("CannotWork", 10) or not all(word in failure["message"] for word in says):
            wrong[name] = failure
        assert status["restarts"]["total"] == 0, "what cannot work is not tried again"
        condition = trial.condition("Failed", name)
        assert (condition["status"], condition["message"]) == ("True", failure["message"])
    assert not wrong, json.dumps(wrong, indent=1)
    wait_for(
        lambda: not [pod for pod in trial.pods() if lives(pod)], 150, "a failed experiment holds nothing, once its pods had their grace"
    )


def test_a_storage_that_cannot_be_written_is_named(trial: Trial) -> None:
    os.chown(trial.storage, 0, 0)
    trial.storage.chmod(0o555)
    trial.apply(trial.document())
    failure = trial.ends("Failed")["failure"]
    assert (failure["reason"], failure["exitCode"]) == ("CannotWork", 10)
    assert "storage" in failure["message"]


def test_a_checkpoint_that_was_cut_short_fails_with_code_11(trial: Trial) -> None:
    document = trial.train(replicas=1)
    trial.patch("tiny", suspend=True)
    trial.waits(lambda status: status["phase"] == "Suspended", "suspended")
    stage = trial.plan(document)["pretraining"]
    folder = trial.storage / "work" / stage.kind.value / stage.key / "checkpoints"
    damaged = list(folder.rglob("*.distcp"))
    assert damaged, "it was saved"
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    trial.patch("tiny", suspend=False)
    status = trial.ends("Failed")
    assert (status["failure"]["reason"], status["failure"]["exitCode"]) == ("CheckpointUnreadable", 11)
    assert "checkpoints" in status["failure"]["message"]
    assert "remove" in status["failure"]["message"], "the way out"
    assert status["restarts"]["total"] == 0


def struck_down(trial: Trial) -> contextlib.AbstractContextManager[None]:
    """Every process that trains dies by SIGSEGV as soon as it is there, as with a broken driver."""

    def strike(over: threading.Event) -> None:
        for pod in trial.pods(stage="pretraining", role="worker"):
            if pod["status"].get("phase") == "Running" and containers(pod):
                for pid in trial.bed.training_processes(pod):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSEGV)

    return meanwhile(strike, 0.05)


def test_workers_that_crash_again_and_again_spend_their_budget_more_and_more_slowly(trial: Trial) -> None:
    with trial.witness() as witness, struck_down(trial):
        trial.apply(trial.document(pretraining=PRETRAINING | LONG, restarts={"application": 2}))
        status = trial.ends("Failed", seconds=300)
    none_twice(witness)
    failure = status["failure"]
    assert (failure["reason"], failure["exitCode"]) == ("RestartLimitExceeded", 1)
    assert "SIGSEGV" in failure["message"]
    assert "spec.restarts.application" in failure["message"], "the way out"
    assert (status["restarts"]["application"], status["restarts"]["total"]) == (3, 3), "each pod once, not each of its processes"
    waits = [made_of(witness, count + 1) - end_of(witness, count) for count in (1, 2)]
    assert waits[0] < 5 < 9 < waits[1], f"replaced after {waits} s: the first at once, the second after a while"


def made_of(witness: Witness, generation: int) -> float:
    """When the pod of worker 0 of the pretraining was made."""
    return next(one.time for one in witness.created() if of_generation(one.body, generation))


def end_of(witness: Witness, generation: int) -> float:
    """When its end was told."""
    return next(one.time for one in witness.seen if of_generation(one.body, generation) and exit_code(one.body) is not None)


def of_generation(pod: Body, generation: int) -> bool:
    labels = pod["metadata"]["labels"]
    wanted = {"stage": "pretraining", "role": "worker", "generation": str(generation)}
    return all(labels.get(f"{LABEL}/{name}") == value for name, value in wanted.items())


def test_a_worker_that_stands_still_is_begun_again_on_the_budget_of_stalls(trial: Trial) -> None:
    """Launcher and all: where the launcher lives, it finds out by itself."""
    document = trial.long(replicas=1)
    document["spec"]["deadlines"] = {"stallSeconds": 20}
    trial.apply(document)
    trial.steps(document, 1, seconds=180)
    wait_for(lambda: len(trial.ledger(document)) > 450, 60, "two checkpoints")
    before = len(trial.ledger(document))
    victim = trial.worker(0)
    with trial.witness() as witness:
        struck = time.time()
        trial.bed.signal(victim, signal.SIGSTOP)
        trial.waits(lambda status: status["restarts"]["stall"] == 1, "a stall is counted", seconds=60)
        told = time.time() - struck
        trial.steps(document, 1, since=struck + 5, seconds=150)
    none_twice(witness)
    assert told >= 20, "not before its time"
    assert trial.stage()["attempt"] == 2
    assert trial.status()["restarts"]["total"] == 1, "nothing else is counted when the one that stood still is removed"
    lines = [line for line in trial.ledger(document, kinds=("step", "lost")) if line["time"] > struck + 5]
    assert min(line["step"] for line in lines) > before - 2 * 200, "it did not begin at the beginning"


def test_an_image_that_cannot_be_pulled_fails_after_the_deadline_with_its_name(trial: Trial) -> None:
    with trial.bed.settings(experiments__trainer__image__tag="is-not-there"):
        trial.apply(trial.document(deadlines={"startupSeconds": 20}))
        condition = trial.waits(
            lambda _: found if "is-not-there" in (found := trial.condition("WorkersReady")).get("message", "") else None,
            "the condition names the image",
        )
        assert condition["status"] == "False"
        failure = trial.ends("Failed")["failure"]
    assert failure["reason"] == "StartupDeadlineExceeded"
    assert "ImagePull" in failure["message"]
    assert "is-not-there" in failure["message"]
    trial.bed.operators_ready()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param({"storage": {"claim": "no-such-claim"}}, "no-such-claim", id="claim"),
        pytest.param(
            {"model": {"name": "a/b", "revision": "0" * 40, "tokenSecret": {"name": "no-such-secret"}}}, "no-such-secret", id="secret"
        ),
        pytest.param({"scheduling": {"nodeSelector": {"disk": "no-such-label"}}}, "node", id="node label"),
        pytest.param({"scheduling": {"priorityClassName": "no-such-class"}}, "no-such-class", id="priority class"),
        pytest.param({"scheduling": {"runtimeClassName": "no-such-runtime"}}, "no-such-runtime", id="runtime class"),
    ],
)
def test_what_does_not_exist_is_waited_for_and_named(trial: Trial, spec: dict, says: str) -> None:
    trial.apply(trial.document(**spec))
    condition = trial.waits(
        lambda _: found if says in (found := trial.condition("WorkersReady")).get("message", "") else None, f"the condition names {says}"
    )
    assert (condition["status"], condition["reason"]) == ("False", "BelowMin")
    status = trial.status()
    assert status["phase"] in ("Pending", "Running")
    assert status["restarts"]["total"] == 0


def test_a_claim_that_comes_later_lets_it_begin(trial: Trial) -> None:
    trial.apply(trial.document(storage={"claim": "late"}, pretraining=None, evaluation=EVALUATION))
    wait_for(lambda: "late" in trial.condition("WorkersReady").get("message", ""), 60, "the condition names the claim")
    trial.claim("late")
    assert trial.ends("Complete")["results"]["scores"]
