"""Whole experiments on a cluster in memory: what is written, how often, and what comes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.operator.api_server import Refused
from tests.operator.kubelet import Paced
from tests.operator.rig import NAMESPACE, Rig, counted, outcome
from tests.operator.virtual_time import clock, run
from transfer_api.status import ConditionType, Phase, Reason, StageState
from transfer_operator import metrics
from transfer_operator.cluster import Body
from transfer_operator.settings import OperatorSettings

Case = Callable[[Rig], Awaitable[None]]


def on(case: Case, rig: Rig | None = None) -> None:
    """Runs a case on a cluster with an operator."""

    async def whole() -> None:
        async with (rig or Rig()).going() as made:
            await case(made)

    run(whole())


def condition(rig: Rig, kind: ConditionType, name: str = "tiny") -> Any:
    return next(one for one in rig.status(name).conditions if one.type is kind)


def stage(rig: Rig, kind: str = "pretraining", name: str = "tiny") -> Any:
    return next(one for one in rig.status(name).stages if one.name == kind)


def events(rig: Rig, reason: str) -> list[str]:
    """Messages of the events of a reason."""
    return [event["message"] for event in rig.server.every("events") if event["reason"] == reason]


async def trains(rig: Rig, workers: int = 2, name: str = "tiny") -> None:
    """Waits until so many workers train."""
    await rig.until(
        lambda: sum(1 for index in range(4) for g in range(1, 5) if _runs(rig.worker(index, g, name))) == workers, what="trains"
    )


def _runs(pod: Body | None) -> bool:
    return pod is not None and pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


def test_the_happy_path_with_its_writes() -> None:
    """Two workers, their rendezvous and its Service, a data set by both, a baseline and an evaluation: nineteen writes."""

    async def case(rig: Rig) -> None:
        rig.apply()
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().results is not None
        await rig.is_quiet()
        writes = counted(rig.server.writes)
        assert writes["POST pods"] == 7
        assert writes["POST services"] == 1
        assert writes["DELETE pods"] <= 1
        assert writes["PATCH transferexperiments"] <= 6
        assert writes.total() <= 25

    on(case)


def test_a_stage_of_one_pod_costs_four_requests() -> None:
    async def case(rig: Rig) -> None:
        rig.apply(pretraining=None, evaluation={**_EVALUATION, "baseline": False})
        await rig.ends()
        await rig.is_quiet()
        kubernetes = counted(rig.server.writes)
        del kubernetes["POST events"]
        assert kubernetes.total() <= 4, kubernetes
        assert len(rig.server.writes) <= 6

    on(case)


RESYNC = OperatorSettings(identity="any").resync_seconds
_EVALUATION = {"suites": ["perplexity"], "texts": [{"name": "id", "path": "held-out.txt"}]}


def test_pods_are_made_at_once() -> None:
    async def case(rig: Rig) -> None:
        await asyncio.sleep(1)
        begun = clock()
        rig.apply()
        await rig.until(lambda: len(rig.pods()) == 3)
        assert clock() - begun < 0.3

    on(case)


def test_progress_is_written_at_most_once_in_ten_seconds() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.steps = _Slow()
        rig.apply(evaluation=None)
        await trains(rig)
        await asyncio.sleep(2)
        before = counted(rig.server.writes)["PATCH transferexperiments"]
        await asyncio.sleep(60)
        assert rig.status().phase is Phase.RUNNING
        assert 4 <= counted(rig.server.writes)["PATCH transferexperiments"] - before <= 7

    on(case)


def test_an_idle_operator_writes_nothing() -> None:
    async def case(rig: Rig) -> None:
        rig.apply(suspend=True)
        await rig.until(lambda: rig.status().phase is Phase.SUSPENDED)
        await rig.is_quiet(300)

    on(case)


@pytest.mark.parametrize(("status", "words"), [(403, "exceeded quota: pods=0"), (500, "failed calling webhook policy: no endpoints")])
def test_a_pod_that_is_refused_is_told_of_and_made_once_there_is_room(status: int, words: str) -> None:
    full = True

    def admit(plural: str, body: Body) -> None:
        if plural == "pods" and full:
            raise Refused(status, words)

    async def case(rig: Rig) -> None:
        nonlocal full
        rig.server.admit = admit
        rig.apply()
        await asyncio.sleep(25)
        assert words in condition(rig, ConditionType.WORKERS_READY).message
        tries = counted(rig.server.writes)["POST pods"]
        assert tries <= 9, "three pods, each not more often than every ten seconds"
        full = False
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0

    on(case)


def test_a_conflict_is_read_again_and_decided_anew() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        rig.server.delivery = lambda number, plural, kind, body: 20.0 if plural == "transferexperiments" else 0.0
        await rig.until(lambda: rig.worker(0, kind="pretraining-dataset") or len(rig.pods()) >= 2)
        rig.server.edit(NAMESPACE, "tiny", workers={"replicas": 3})  # the operator hears of it late
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.worker(2) is not None

    on(case)


def test_two_experiments_that_need_the_same_stages_run_them_once() -> None:
    async def case(rig: Rig) -> None:
        rig.apply("first")
        await asyncio.sleep(1.5)
        rig.apply("second", workers={"min": 1, "replicas": 1})
        await rig.ends("first", "second")
        assert rig.status("first").phase is rig.status("second").phase is Phase.COMPLETE
        made = [pod["metadata"]["labels"]["transfer-operator.dev/stage"] for pod in rig.pods("second")]
        assert "pretraining" not in made
        assert rig.status("second").results is not None

    on(case)


@pytest.mark.parametrize("moment", [0.5, 4.0, 12.0], ids=["before it trains", "at the start", "while it trains"])
def test_when_the_maker_is_deleted_the_other_takes_over(moment: float) -> None:
    async def case(rig: Rig) -> None:
        rig.apply("first")
        await asyncio.sleep(1.1)
        rig.apply("second")
        await asyncio.sleep(moment)
        rig.server.remove("transferexperiments", NAMESPACE, "first")
        await asyncio.sleep(3)
        assert rig.pods("second")
        await rig.ends("second")
        assert rig.status("second").phase is Phase.COMPLETE
        assert not rig.pods("first", live=True)

    on(case)


def test_when_the_maker_is_suspended_the_other_takes_over_at_once() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.starts = lambda pod: False
        rig.apply("first")
        await asyncio.sleep(1.1)
        rig.apply("second")
        await asyncio.sleep(2)
        assert not rig.pods("second")
        rig.server.edit(NAMESPACE, "first", suspend=True)
        await rig.until(lambda: rig.pods("second"), seconds=5)

    on(case)


def test_pods_of_an_earlier_experiment_of_the_same_name_are_waited_out() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        rig.server.remove("transferexperiments", NAMESPACE, "tiny")
        rig.apply()  # while the pods of the first still save
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0
        owner = rig.experiment()
        assert owner is not None
        assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in rig.pods()} == {owner["metadata"]["uid"]}

    on(case)


def test_a_pod_that_nobody_owns_is_named_until_somebody_deletes_it() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        _orphan(rig, "pods")
        rig.server.remove("transferexperiments", NAMESPACE, "tiny")
        await asyncio.sleep(1)
        left = [pod["metadata"]["name"] for pod in rig.pods()]
        assert left
        before = len(rig.server.writes)
        rig.apply()
        await asyncio.sleep(60)
        assert len(rig.server.writes) - before <= 40, "not more often than every ten seconds"
        message = condition(rig, ConditionType.WORKERS_READY).message
        assert any(f"kubectl delete pod {name} --namespace {NAMESPACE}" in message for name in left), message
        taken = events(rig, "NameTaken")
        assert len(taken) == len(set(taken)) > 0, "told once"
        for name in left:
            rig.server.remove("pods", NAMESPACE, name)
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0

    on(case)


def test_a_pod_that_nobody_owns_ends_the_experiment_at_its_deadline() -> None:
    async def case(rig: Rig) -> None:
        rig.apply(evaluation=None)
        await rig.until(lambda: rig.pods())
        _orphan(rig, "pods")
        rig.server.remove("transferexperiments", NAMESPACE, "tiny")
        rig.kubelet.silent = lambda pod: not pod["metadata"]["ownerReferences"]
        await asyncio.sleep(1)
        rig.apply(evaluation=None, deadlines={"startupSeconds": 60})
        await rig.until(lambda: rig.status().phase is Phase.FAILED, seconds=90)
        failure = rig.status().failure
        assert failure is not None
        assert failure.reason is Reason.STARTUP_DEADLINE_EXCEEDED
        assert "kubectl delete pod" in failure.message
        assert failure.pod in {pod["metadata"]["name"] for pod in rig.pods()}, "by the name that kubectl knows"

    on(case)


def test_a_service_of_somebody_else_is_named_until_somebody_deletes_it() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.starts = lambda pod: bool(rig.server.every("services")) or "rendezvous" not in pod["metadata"]["name"]

        def foreign(plural: str, old: Body | None, new: Body | None) -> None:
            if plural == "pods" and old is None and new is not None and "rendezvous" in new["metadata"]["name"]:
                experiment = rig.experiment()
                assert experiment is not None
                name = f"{new['metadata']['name'].removeprefix('tiny-').removesuffix('-rendezvous')}-{experiment['metadata']['uid'][:8]}"
                rig.server.on_commit.remove(foreign)
                rig.server.create("services", NAMESPACE, {"kind": "Service", "metadata": {"name": name}})

        rig.server.on_commit.append(foreign)
        rig.kubelet.steps = _Slow()
        rig.apply()
        await trains(rig)
        await asyncio.sleep(30)
        (service,) = rig.server.every("services")
        told = condition(rig, ConditionType.WORKERS_READY)
        assert (told.status, told.reason) == ("False", Reason.BELOW_MIN)
        assert f"kubectl delete service {service['metadata']['name']}" in told.message
        assert len(events(rig, "NameTaken")) == 1
        assert counted(rig.server.writes)["POST services"] <= 5
        rig.server.remove("services", NAMESPACE, service["metadata"]["name"])
        await rig.until(lambda: condition(rig, ConditionType.WORKERS_READY).status == "True", seconds=30)
        await rig.ends()
        assert rig.status().restarts.total == 0

    on(case)


def test_a_service_that_somebody_deletes_is_made_again() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.steps = _Slow()
        rig.apply()
        await trains(rig)
        (service,) = rig.server.every("services")
        rig.server.remove("services", NAMESPACE, service["metadata"]["name"])
        await rig.until(lambda: rig.server.every("services"), seconds=2 * RESYNC)
        (again,) = rig.server.every("services")
        assert again["metadata"]["name"] == service["metadata"]["name"]
        assert again["metadata"]["uid"] != service["metadata"]["uid"]
        made = counted(rig.server.writes)["POST services"]
        await asyncio.sleep(4 * RESYNC)
        assert counted(rig.server.writes)["POST services"] == made, "one that is there is only looked at"

    on(case)


def test_the_time_to_the_first_pod_that_runs_is_measured_once() -> None:
    def measured() -> float:
        return metrics.REGISTRY.get_sample_value("transfer_operator_experiment_time_to_running_seconds_count") or 0.0

    async def case(rig: Rig) -> None:
        before = measured()
        rig.apply()
        await trains(rig)
        assert measured() == before + 1
        await rig.ends()
        assert measured() == before + 1

    on(case)


def _orphan(rig: Rig, plural: str) -> None:
    """As the first half of `kubectl delete --cascade=orphan`."""
    for body in list(rig.server.every(plural)):
        rig.server.put(plural, {**body, "metadata": {**body["metadata"], "ownerReferences": []}})


def test_a_spec_that_cannot_work_is_told_and_begun_once_it_is_mended() -> None:
    async def case(rig: Rig) -> None:
        rig.apply(workers={"min": 3, "replicas": 2})
        await rig.until(lambda: rig.status().conditions, seconds=2)
        accepted = condition(rig, ConditionType.ACCEPTED)
        assert (accepted.status, accepted.reason) == ("False", Reason.INVALID_SPEC)
        assert "spec.workers" in accepted.message
        await rig.is_quiet()
        assert not rig.pods()
        (told,) = events(rig, "InvalidSpec")
        assert "spec.workers" in told
        rig.server.edit(NAMESPACE, "tiny", workers={"min": 1})
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert condition(rig, ConditionType.ACCEPTED).status == "True"

    on(case)


def test_suspend_releases_the_pods_and_resume_goes_on() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        rig.server.edit(NAMESPACE, "tiny", suspend=True)
        await rig.until(lambda: rig.status().phase is Phase.SUSPENDED and not rig.pods(live=True), seconds=10)
        done = dict(rig.kubelet.steps)
        await rig.is_quiet()
        rig.server.edit(NAMESPACE, "tiny", suspend=False)
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0
        assert done
        assert stage(rig).attempt == 2
        assert (len(events(rig, "Suspended")), len(events(rig, "Resumed"))) == (1, 1)

    on(case)


def test_a_suspension_beside_a_silent_node_ends_and_lets_who_waits_make_the_stage() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.steps = _Slow()
        rig.apply("first")
        await trains(rig, name="first")
        silent = rig.worker(1, name="first")
        assert silent is not None
        rig.kubelet.silent = lambda pod: pod["metadata"]["uid"] == silent["metadata"]["uid"]
        rig.apply("second")
        await asyncio.sleep(5)
        assert not rig.pods("second")
        rig.server.edit(NAMESPACE, "first", suspend=True)
        await rig.until(lambda: rig.status("first").phase is Phase.SUSPENDED, seconds=120)
        assert silent["metadata"]["name"].removeprefix("first-") in stage(rig, name="first").message
        await trains(rig, name="second")
        assert rig.worker(1, name="first") is not None, "nobody removed the pod"

    on(case)


def test_a_resize_adds_and_takes_workers_at_once() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        rig.server.edit(NAMESPACE, "tiny", workers={"replicas": 3})
        begun = clock()
        await rig.until(lambda: rig.worker(2), seconds=2)
        assert clock() - begun < 1
        await trains(rig, 3)
        rig.server.edit(NAMESPACE, "tiny", workers={"replicas": 1})
        await trains(rig, 1)
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0
        assert stage(rig).attempt == 1

    on(case)


@pytest.mark.parametrize("gpus", [0, 4], ids=["a process a pod", "four processes a pod"])
@pytest.mark.parametrize("replicas", [3, 1], ids=["more workers", "fewer workers"])
def test_a_resize_is_over_when_as_many_processes_train_as_are_wanted(gpus: int, replicas: int) -> None:
    async def case(rig: Rig) -> None:
        rig.apply(workers={"min": 1, "replicas": 2, "max": 4, "resources": {"limits": {"nvidia.com/gpu": gpus} if gpus else {}}})
        each = max(1, gpus)
        await rig.until(lambda: rig.status().workers.world_size == 2 * each)
        before = _resizes()
        rig.kubelet.meeting = True
        rig.server.edit(NAMESPACE, "tiny", workers={"replicas": replicas})
        await rig.until(lambda: rig.status().workers.ready == replicas)
        assert _resizes() == before, "the workers are there, and have not met"
        rig.kubelet.meeting = False
        await rig.until(lambda: _resizes() > before)
        assert rig.status().workers.world_size == replicas * each
        await rig.ends()
        assert _resizes() == before + 1

    on(case)


def _resizes() -> float:
    """How many resizes the metric has seen come to their end."""
    return sum(sample.value for one in metrics.RESIZE_SECONDS.collect() for sample in one.samples if sample.name.endswith("_count"))


def test_five_lost_workers_in_a_row_are_each_replaced_at_once() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        rig.kubelet.steps = _Slow()
        for generation in range(1, 6):
            await rig.until(lambda generation=generation: _runs(rig.worker(0, generation)), what="runs")
            pod = rig.worker(0, generation)
            assert pod is not None
            await asyncio.sleep(1)
            rig.kubelet.lose(pod)
            begun = clock()
            await rig.until(lambda generation=generation: rig.worker(0, generation + 1), seconds=5)
            assert clock() - begun < 1
        await rig.ends()
        assert rig.status().restarts.infrastructure == 5
        assert rig.status().phase is Phase.COMPLETE

    on(case)


class _Slow(dict[str, float]):
    """A training of which a step takes five times as long."""

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, max(self.get(key, 0.0), value - 0.8))


def test_a_pod_that_vanishes_before_a_status_tells_of_it_is_counted_all_the_same() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await rig.until(lambda: rig.worker(0))
        pod = rig.worker(0)
        assert pod is not None
        await asyncio.sleep(0.02)
        rig.kubelet.lose(pod)
        await rig.ends()
        assert rig.status().restarts.infrastructure == 1

    on(case)


def test_deleting_an_experiment_leaves_nothing_of_it() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        rig.server.remove("transferexperiments", NAMESPACE, "tiny")
        await asyncio.sleep(6)
        assert not rig.pods()
        assert not rig.server.every("services")
        await rig.is_quiet()
        assert rig.operator is not None
        assert not rig.operator.reconciler._memories
        assert not rig.operator.view.experiments

    on(case)


def test_a_status_that_cannot_be_read_is_left_alone() -> None:
    async def case(rig: Rig) -> None:
        rig.server.objects["transferexperiments", NAMESPACE, "tiny"] = {**rig.apply(), "status": {"phase": "Elsewhere"}}
        await rig.is_quiet(120)
        assert not rig.pods()
        (told,) = events(rig, "StatusUnreadable")
        assert "phase" in told, "what is wrong"
        assert "kubectl edit txp tiny --namespace lab --subresource=status" in told, "the way out"

    on(case)


def test_a_stage_is_not_made_twice_because_a_status_cannot_be_read() -> None:
    async def case(rig: Rig) -> None:
        rig.apply("first")
        await trains(rig, name="first")
        first = rig.experiment("first")
        assert first is not None
        _garble(rig, first)
        rig.apply("second")
        await rig.ends("second")
        assert rig.status("second").phase is Phase.COMPLETE
        adopted = {one.name for one in rig.status("second").stages if one.artifact is not None and one.artifact.reused}
        assert "pretraining-dataset" in adopted, "complete before, as the rest of the status says"
        assert rig.worker(0, name="first") is not None
        trained = [pod for pod in rig.pods("second") if "pretraining" in pod["metadata"]["name"]]
        made = min(pod["metadata"]["creationTimestamp"] for pod in trained) if trained else None
        ended = max(pod["status"]["since"] for pod in rig.pods("first") if "pretraining" in pod["metadata"]["name"])
        assert made is None or made >= ended, "nobody begins it while pods of the first may still finish it"

    on(case)


def test_a_stage_whose_pods_are_gone_is_made_by_another_though_a_status_cannot_be_read() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.steps = _Slow()
        rig.apply("first")
        await trains(rig, name="first")
        first = rig.experiment("first")
        assert first is not None
        _garble(rig, first)
        rig.apply("second")
        await asyncio.sleep(15)
        assert "waits for first" in stage(rig, name="second").message
        for pod in rig.pods("first", live=True):
            rig.kubelet.lose(pod)
        await rig.until(lambda: rig.pods("second"), seconds=40)

    on(case)


def _garble(rig: Rig, body: Body) -> None:
    """A status of which only its stages can be read, but for the one that runs."""
    stages = [one if one["state"] == "Complete" else {**one, "state": "Elsewhere"} for one in body["status"]["stages"]]
    rig.server.on_commit.clear()  # whose checks read every status
    rig.server.put("transferexperiments", {**body, "status": {**body["status"], "phase": "Elsewhere", "stages": stages}})


def test_one_broken_experiment_does_not_hold_up_the_others() -> None:
    async def case(rig: Rig) -> None:
        for number in range(10):
            name = f"broken-{number}"
            rig.server.objects["transferexperiments", NAMESPACE, name] = {**rig.apply(name), "status": {"stages": "none"}}
        rig.apply(evaluation=None)
        await rig.ends()
        assert clock() < 60

    on(case)


@pytest.mark.parametrize("seconds", [15, 90, 600])
def test_an_api_server_that_is_down_for_a_while_costs_only_the_while(seconds: int) -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        rig.server.down = True
        await asyncio.sleep(seconds)
        rig.server.down = False
        begun = clock()
        await rig.ends()
        assert clock() - begun < 60
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0

    on(case)


def test_a_long_list_comes_in_pages() -> None:
    async def case(rig: Rig) -> None:
        rig.server.page = 3
        for number in range(10):
            rig.apply(f"e{number}", language="id", suspend=True)
        await asyncio.sleep(40)
        assert rig.operator is not None
        await rig.operator._list()
        assert len(rig.operator.view.experiments) == 10
        assert not rig.operator.health.deaf

    on(case)


def test_a_hundred_experiments_at_once_are_all_begun_soon() -> None:
    async def case(rig: Rig) -> None:
        await asyncio.sleep(1)
        rig.kubelet.starts = lambda pod: False
        for number in range(100):
            rig.apply(f"e{number}", model={"path": f"model-{number}"}, pretraining=None)
        await rig.until(lambda: len(rig.server.every("pods")) >= 100, seconds=5)

    on(case)


def test_stages_that_are_stuck_end_at_their_deadline() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.starts = lambda pod: False
        rig.apply(deadlines={"startupSeconds": 120})
        await rig.ends()
        assert rig.status().failure is not None
        assert rig.status().failure.reason is Reason.STARTUP_DEADLINE_EXCEEDED
        assert 115 < clock() < 200
        await rig.is_quiet()

    on(case)


def test_a_training_that_went_on_while_no_operator_was_there_has_not_stalled() -> None:
    async def case() -> None:
        rig = Rig()
        rig.kubelet.steps = Paced(0.01)  # 80 steps in 400 s
        nodes = asyncio.create_task(rig.kubelet.work())
        rig.start()
        rig.apply(evaluation=None, deadlines={"stallSeconds": 100})
        await trains(rig)
        await asyncio.sleep(30)
        await rig.stop()
        await asyncio.sleep(200)
        rig.start("two")
        await rig.ends()
        assert rig.status().phase is Phase.COMPLETE
        assert rig.status().restarts.total == 0
        nodes.cancel()
        await rig.stop()

    run(case())


def test_a_pod_that_cannot_work_ends_the_experiment_and_its_other_pods() -> None:
    async def case(rig: Rig) -> None:
        rig.kubelet.code = lambda pod: 10 if pod["metadata"]["labels"]["transfer-operator.dev/stage"] == "dataset" else None
        rig.apply()
        await rig.ends()
        assert rig.status().phase is Phase.FAILED
        assert any(one.state is StageState.FAILED for one in rig.status().stages)
        await asyncio.sleep(5)
        end = outcome(rig)
        await rig.is_quiet()
        assert outcome(rig) == end

    on(case)


def test_the_operator_ends_within_a_second_of_being_asked_and_leaves_the_pods() -> None:
    async def case(rig: Rig) -> None:
        rig.apply()
        await trains(rig)
        operator, task = rig.operator, rig.running
        assert operator is not None
        assert task is not None
        rig.running = None
        operator.stop.set()
        assert await asyncio.wait_for(task, 1) == 0
        assert len(rig.pods(live=True)) == 3

    on(case)


def test_the_operator_ends_when_asked_though_the_first_list_does_not_come() -> None:
    async def case(rig: Rig) -> None:
        await rig.stop()
        rig.server.down = True
        operator, task = rig.start("two"), rig.running
        assert task is not None
        rig.running = None
        await asyncio.sleep(10)
        operator.stop.set()
        assert await asyncio.wait_for(task, 1) == 0

    on(case)


@pytest.mark.parametrize("gap", [0.0, 0.002, 0.004, 0.008, 0.015])
def test_experiments_that_are_applied_within_a_moment_make_a_shared_stage_once(gap: float) -> None:
    """The younger names come first: seniority alone, which counts whole seconds, would let each of them begin."""

    async def moment() -> Counter[str]:
        rig = Rig()
        async with rig.going():
            await rig.is_quiet()
            for name in ("d", "c", "b", "a"):
                rig.apply(name)
                await asyncio.sleep(gap)
            await asyncio.sleep(0.5)
            return Counter(stage.key for name in "abcd" for stage in rig.status(name).stages if stage.state is StageState.RUNNING)

    found = run(moment())
    assert found, "something runs"
    assert set(found.values()) == {1}
