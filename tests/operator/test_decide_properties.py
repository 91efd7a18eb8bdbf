"""Whatever happens in whatever order: nothing ends twice, nothing is forgotten, nothing is counted twice, and it comes to an end."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.operator.builders import EVALUATION, TRAINING, experiment
from tests.operator.cluster import Cluster
from tests.operator.test_decide_checkpoints import LOST
from transfer_api.status import Cause, Phase
from transfer_operator.decide import PodPhase, Role, Settings

PICK = st.integers(0, 7)
CODES = [
    (75, {}), (78, {}), (1, {}), (137, {"out_of_memory": True}), (137, {}), (0, {"result": None}), (None, {}), (1, {"disrupted": True}),
]  # fmt: skip
LOOK = st.one_of(
    st.tuples(st.just("look"), st.none()),
    st.tuples(st.just("look and die after some actions"), st.integers(0, 4)),
    st.tuples(st.just("look in vain"), st.none()),
    st.tuples(st.just("look at old pods"), st.none()),
)
QUIET = st.one_of(
    st.tuples(st.just("time passes"), st.sampled_from([0.4, 1, 11, 61, 130, 700])),
    st.tuples(st.just("pods start"), PICK),
    st.tuples(st.just("all pods start"), st.none()),
    st.tuples(st.just("pods step"), st.integers(-3, 5)),
    st.tuples(st.just("deleted pods go"), st.none()),
)
CALM = st.one_of(LOOK, LOOK, QUIET)
WILD = st.one_of(
    LOOK,
    LOOK,
    LOOK,
    QUIET,
    QUIET,
    st.tuples(st.just("a pod ends"), st.tuples(PICK, st.sampled_from(CODES))),
    st.tuples(st.just("a pod completes"), PICK),
    st.tuples(st.just("a pod completes, and English was lost"), PICK),
    st.tuples(st.just("a pod refuses"), PICK),
    st.tuples(st.just("a pod is evicted"), PICK),
    st.tuples(st.just("a pod is deleted"), PICK),
    st.tuples(st.just("a pod vanishes"), PICK),
    st.tuples(st.just("a wave of crashes"), st.none()),
    st.tuples(st.just("a node dies"), PICK),
    st.tuples(st.just("the user suspends"), st.booleans()),
    st.tuples(st.just("the user scales"), st.integers(0, 4)),
)
BUDGETS = {"application": 100, "infrastructure": 100, "stall": 100}


def act(cluster: Cluster, what: str, value) -> None:
    """Applies one event; those that find no pod to happen to do nothing."""
    live = cluster.live()
    chosen = live[value % len(live)] if live and isinstance(value, int) else None
    match what:
        case "look":
            cluster.look()
        case "look and die after some actions":
            cluster.look(actions=value)
        case "look in vain":
            cluster.look(write_lost=True)
        case "look at old pods":
            cluster.look(stale=True)
        case "time passes":
            cluster.after(value)
        case "pods start" if chosen and cluster.pods[chosen].phase is PodPhase.PENDING:
            cluster.runs(chosen)
        case "all pods start":
            cluster.runs()
        case "pods step":
            for name in live:
                cluster.work(name, value)
        case "deleted pods go":
            cluster.remove_deleted()
        case "the user suspends":
            cluster.edit(suspend=value)
        case "the user scales":
            cluster.edit(workers={"replicas": max(1, value)})
        case _:
            misfortune(cluster, what, value, chosen)


def misfortune(cluster: Cluster, what: str, value, chosen: str | None) -> None:
    live = cluster.live()
    if what == "a pod ends" and live:
        index, (code, fields) = value
        cluster.ends(live[index % len(live)], code, **fields)
    elif what == "a wave of crashes":
        for name in live:
            cluster.ends(name, 1)
    elif what == "a node dies":
        for name in live[::2]:
            cluster.ends(name, None)
    elif chosen is None:
        return
    elif what == "a pod completes" and cluster.pods[chosen].name.role is Role.WORKER:
        cluster.complete(chosen)
    elif what == "a pod completes, and English was lost" and cluster.pods[chosen].name.kind == "evaluation":
        cluster.complete(chosen, [LOST])
    elif what == "a pod refuses":
        cluster.ends(chosen, 10)
    elif what == "a pod is evicted":
        cluster.change(chosen, terminating=True, disrupted=True)
    elif what == "a pod is deleted":
        cluster.change(chosen, terminating=True)
    elif what == "a pod vanishes" and chosen in cluster.ever_seen:
        cluster.vanishes(chosen)


ON_THE_WAY = {
    "pretraining": {**TRAINING["pretraining"], "snapshotTokens": [1024]},
    "evaluation": {**EVALUATION["evaluation"], "when": "EachCheckpoint", "retention": {"stop": True}},
}


@example(
    events=[("look", None), ("a pod refuses", 0), ("look", None), ("the user suspends", False), ("look", None)],
    workers={"min": 1, "replicas": 2, "max": 4}, budgets={}, slots=None, checkpoints=False,
)  # fmt: skip
@given(
    events=st.lists(WILD, max_size=60),
    workers=st.sampled_from([{"min": 1, "replicas": 2, "max": 4}, {"min": 2, "replicas": 3}, {"min": 1, "replicas": 1}]),
    budgets=st.sampled_from([{}, BUDGETS]),
    slots=st.sampled_from([None, 1, 2]),
    checkpoints=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_whatever_happens_the_invariants_hold_and_it_ends_when_bad_events_stop(events, workers, budgets, slots, checkpoints):
    more = ON_THE_WAY if checkpoints else {}
    spec = experiment(workers=workers, restarts=budgets, deadlines={"stallSeconds": 120, "belowMinSeconds": 100}, **more)
    cluster = Cluster(experiment=spec, settings=Settings(parallel_stages=slots))
    for event in events:
        act(cluster, *event)
    cluster.calm()
    assert cluster.status.phase.terminal


INCIDENTS = {
    "application": lambda cluster, name: cluster.ends(name, 1),
    "infrastructure": lambda cluster, name: cluster.ends(name, None),
    "gone": lambda cluster, name: cluster.vanishes(name),
    "preemption": lambda cluster, name: cluster.change(name, terminating=True, disrupted=True),
    "saved": lambda cluster, name: cluster.change(name, terminating=True),
}
INCIDENT = st.tuples(st.sampled_from(sorted(INCIDENTS)), PICK)


@given(events=st.lists(st.one_of(CALM, INCIDENT), max_size=50))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_each_incident_is_counted_exactly_once(events):
    budgets = {"application": 10_000, "infrastructure": 10_000}
    deadlines = {"stallSeconds": 604_800, "startupSeconds": 604_800, "belowMinSeconds": 604_800}
    cluster = Cluster(experiment=experiment(evaluation=None, workers={"min": 1, "replicas": 3}, restarts=budgets, deadlines=deadlines))
    cluster.has_artifact("pretraining-dataset").look()
    for what, value in events:
        if what == "deleted pods go":  # who is gone before anybody saw why is a loss, whatever it was
            cluster.remove_deleted(seen_going=True)
            continue
        if what not in INCIDENTS:
            act(cluster, what, value)
            continue
        if what == "application":  # crashes within a minute of each other are one wave
            cluster.look()
            cluster.after(61)
        if wanted := cluster.wanted():
            name = wanted[value % len(wanted)]
            INCIDENTS[what](cluster, name)
            cluster.incidents["infrastructure" if what == "gone" else what] += 1
        if what == "application":
            cluster.look()
    cluster.look()
    cluster.look()
    assert {cause.value: cluster.status.restarts.count(cause) for cause in Cause} == {
        cause.value: cluster.incidents[cause.value] for cause in Cause
    }
    assert cluster.status.phase is Phase.RUNNING
    cluster.calm()
    assert cluster.status.phase is Phase.COMPLETE
