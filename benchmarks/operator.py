"""The operator's figures, measured on the cluster of `make cluster` with the chart's own settings and nothing else running.

    .venv/bin/python -m benchmarks.operator [GROUP ...]

Times are those at which a watch told of the object, not `creationTimestamp`, which has whole seconds. Steps are those of the ledger
in the storage. Groups that only the operator works for use pods that no node fits (`idle` ones), so that no figure depends on how fast
a container starts; training is a real one, of a tiny model.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.bars import report
from tests.support.experiment import wait_for
from tests.support.kube import EXPERIMENTS, Body, Witness, kubectl
from tests.support.testbed import NAMESPACE, Testbed
from tests.support.trial import EVALUATION, PRETRAINING, Trial, lives

NOWHERE = {"nodeSelector": {"transfer-operator.dev/benchmark": "nowhere"}}
ONE, MANY, PODS, FINISHED = 10, 100, 50, 1000
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Figures:
    """What was measured, by the name of its bar, and how."""

    values: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, note: str = "") -> None:
        """Notes a figure and says it at once, for who waits."""
        self.values[name], self.notes[name] = value, note
        print(f"{name}: {value:.3g} {note}", flush=True)


@contextlib.contextmanager
def place(bed: Testbed) -> Iterator[Trial]:
    """A namespace that is gone afterwards."""
    trial = Trial(bed).open()
    try:
        yield trial
    finally:
        trial.close()


# -- pods that appear


def creation(bed: Testbed, figures: Figures) -> None:
    """Apply to training pods, for one and for a hundred experiments whose data set is there already."""
    with place(bed) as trial:
        first = trial.document("first")
        trial.apply(first)
        trial.waits(lambda status: status.get("stage") == "pretraining", "its data set is made", "first")
        trial.patch("first", suspend=True)
        trial.waits(lambda status: status["phase"] == "Suspended", "suspended", "first")
        with trial.witness() as witness:
            single = [created(trial, witness, [trainee(trial, f"one-{number}")])[0] for number in range(ONE)]
            many = created(trial, witness, [trainee(trial, f"many-{number}") for number in range(MANY)])
        figures.add("apply_to_pods", statistics.median(single), f"p50 of {ONE}, 3 workers and rendezvous; worst {max(single):.2f}")
        figures.add(
            "apply_to_pods_of_hundred", percentile(many, 99), f"p99 of {MANY} at once, {4 * MANY} pods; p50 {percentile(many, 50):.2f}"
        )


def trainee(trial: Trial, name: str) -> Body:
    """An experiment with a training of its own on the same data set, whose pods fit no node."""
    kind, number = name.split("-")
    pretraining = PRETRAINING | {"learningRate": f"{1 if kind == 'one' else 2}.{int(number):03}e-3"}
    return trial.document(name, pretraining=pretraining, workers={"min": 1, "replicas": 3, "max": 3}, scheduling=NOWHERE)


def created(trial: Trial, witness: Witness, documents: list[Body], pods: int = 4) -> list[float]:
    """Seconds from the request of each experiment to the last of its pods; the experiments are gone afterwards."""
    asked: dict[str, float] = {}

    def ask(document: Body) -> None:
        asked[document["metadata"]["name"]] = time.time()
        trial.kube.ask("POST", trial.path(), document)

    def made(name: str) -> list[float]:
        label = "transfer-operator.dev/experiment"
        return [one.time for one in witness.created() if one.body["metadata"]["labels"][label] == name]

    with concurrent.futures.ThreadPoolExecutor(32) as several:
        list(several.map(ask, documents))
    wait_for(lambda: all(len(made(name)) >= pods for name in asked), 60, "all pods are created")
    seconds = [max(made(name)) - asked[name] for name in asked]
    for name in asked:
        assert len(made(name)) == pods, f"{name} has more pods than it needs"
        trial.kube.delete(trial.path(name))
    wait_for(
        lambda: not [pod for pod in trial.pods() if pod["metadata"]["labels"]["transfer-operator.dev/experiment"] in asked], 60, "gone"
    )
    return seconds


def fifty(bed: Testbed, figures: Figures) -> None:
    """Fifty one-pod experiments: all pods created, then all gone."""
    with place(bed) as trial, trial.witness() as witness:
        names = [f"pod-{number}" for number in range(PODS)]
        documents = [
            trial.document(name, pretraining=None, evaluation=EVALUATION | {"limit": number + 1}, scheduling=NOWHERE)
            for number, name in enumerate(names)
        ]
        file = trial.storage / "fifty.json"
        file.write_text(as_list(documents))
        begun = time.time()
        kubectl("apply", "-f", str(file))
        wait_for(lambda: len(witness.created()) >= PODS, 60, "fifty pods")
        figures.add(
            "fifty_created", max(one.time for one in witness.created()) - begun, "from the start of kubectl apply; pods that fit no node"
        )
        begun = time.time()
        trial.kube.delete(trial.path())
        wait_for(lambda: sum(one.type == "DELETED" for one in witness.seen) >= PODS, 60, "fifty pods are gone")
        figures.add("fifty_gone", max(one.time for one in witness.seen) - begun, "from the request to delete them all")


def as_list(documents: list[Body]) -> str:
    """Documents as kubectl takes many."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})


# -- training that is disturbed


def disturbance(bed: Testbed, figures: Figures) -> None:
    """Workers are evicted, deleted and killed; then the experiment is scaled, and a node dies."""
    with place(bed) as trial:
        document = trial.train(replicas=3)
        with trial.witness() as witness:
            blows: list[tuple[str, Callable[[Body], None], int]] = [("evicted", trial.evict, 1)] * 5
            blows += [("deleted", lambda pod: remove(trial, pod), 2)] * 2
            blows += [("crashed", lambda pod: bed.signal(pod, signal.SIGKILL), 0)] * 2
            healed = [(name, *heal(trial, document, witness, blow, index)) for name, blow, index in blows]
            for at, name in enumerate(("replacement_created", "others_stepping", "all_stepping"), 1):
                each = ", ".join(f"{one[0]} {one[at]:.2g}" for one in healed)
                figures.add(name, max(one[at] for one in healed), f"worst of: {each}")
            scale(trial, document, witness, figures)
            node(bed, trial, document, witness, figures)


def remove(trial: Trial, pod: Body) -> None:
    """As `kubectl delete pod` does it, with the pod's own grace."""
    trial.kube.delete(f"{trial.pods_path}/{pod['metadata']['name']}")


def heal(trial: Trial, document: Body, witness: Witness, blow: Callable[[Body], None], index: int) -> tuple[float, float, float]:
    """Seconds from a blow to the replacement, to steps of the others, to steps of all.

    A crash is told by the kubelet, which looks once a second: to the replacement it counts from when the API tells of it.
    """
    victim = trial.worker(index)
    name = victim["metadata"]["name"]
    before, struck = trial.round(document), time.time()
    blow(victim)
    trial.replaced(victim)
    replacement = wait_for(lambda: witness.first("ADDED", name.rsplit("-g", 1)[0] + f"-g{generation(victim) + 1}"), 30, "the replacement")
    told = next((one.time for one in witness.seen if one.name == name and one.time >= struck and not lives(one.body)), struck)
    others, everyone = trial.heals(document, 3, after=before)
    return max(0.0, replacement - told), others - struck, everyone - struck


def generation(pod: Body) -> int:
    """The how-manieth pod of its index."""
    return int(pod["metadata"]["labels"]["transfer-operator.dev/generation"])


def scale(trial: Trial, document: Body, witness: Witness, figures: Figures) -> None:
    """Three workers become two, then three again."""
    kubectl("scale", "txp/tiny", "-n", trial.name, "--replicas=2")
    trial.steps(document, 2, since=time.time())
    asked = time.time()
    kubectl("scale", "txp/tiny", "-n", trial.name, "--replicas=3")
    made = wait_for(lambda: next((one.time for one in witness.created(asked)), None), 30, "a pod")
    figures.add("scale_to_pods", made - asked, "from the start of kubectl scale, 2 to 3 workers")
    figures.add("scale_to_steps", trial.steps(document, 3, since=made) - asked)


def node(bed: Testbed, trial: Trial, document: Body, witness: Witness, figures: Figures) -> None:
    """The node of worker 0 dies; the rendezvous is on another one, or the attempt would begin anew."""
    store = trial.rendezvous()["spec"]["nodeName"]
    victim = next(pod for index in range(3) if (pod := trial.worker(index))["spec"]["nodeName"] != store)
    struck = time.time()
    with bed.dead_node(victim["spec"]["nodeName"]):
        others = trial.steps(document, 2, since=struck)
        trial.replaced(victim)
        made = wait_for(lambda: next((one.time for one in witness.created(struck)), None), 30, "a replacement")
        everyone = trial.steps(document, 3, since=made)
    index = victim["metadata"]["labels"]["transfer-operator.dev/index"]
    figures.add("node_killed_others_stepping", others - struck, f"the node of worker {index}")
    figures.add(
        "node_killed_full_size", everyone - made, f"from the replacement, which other nodes had room for; {everyone - struck:.0f} s in all"
    )


# -- the operator itself


def failover(bed: Testbed, figures: Figures) -> None:
    """The leader dies by kill -9; an experiment that is applied at that moment gets its pod from the new one."""
    bed.operators_ready()
    with place(bed) as trial, trial.witness() as witness:
        leader = bed.leader()
        pod = next(pod for pod in bed.operators() if pod["metadata"]["name"] == leader)
        struck = time.time()
        bed.signal(pod, signal.SIGKILL)
        bed.remove(pod)  # or the kubelet would start its container again at once, and it would still be the holder of the Lease
        names = [f"orphan-{number}" for number in range(5)]
        for name in names:
            limit = EVALUATION | {"limit": names.index(name) + 1}
            trial.kube.ask("POST", trial.path(), trial.document(name, pretraining=None, evaluation=limit, scheduling=NOWHERE))
        wait_for(lambda: len(witness.created()) >= len(names), 90, "their pods")
        figures.add("leader_killed", max(one.time for one in witness.created()) - struck)
        bed.operators_ready()
        figures.add("duplicates", len(witness.created()) - len(names))


def requests(bed: Testbed, figures: Figures) -> None:
    """What the operator asks of the API server, by its own count."""
    with place(bed) as trial:
        alone(bed)
        trial.apply(trial.document("warm", pretraining=None, evaluation=EVALUATION))
        trial.ends("Complete", "warm")
        time.sleep(15)
        before = counts(bed)
        time.sleep(60)
        quiet = difference(counts(bed), before)
        figures.add("writes_in_a_quiet_minute", sum(quiet.get(verb, 0) for verb in WRITES))

        alone(bed)
        before, begun = counts(bed), time.time()
        names = [f"one-pod-{number}" for number in range(3)]
        for number, name in enumerate(names):
            trial.apply(trial.document(name, pretraining=None, evaluation=EVALUATION | {"limit": number + 1}))
            trial.ends("Complete", name)
        time.sleep(12)  # a last status write
        spent = difference(counts(bed), before)
        idle = quiet.get("GET", 0) * (time.time() - begun) / 60
        each = (sum(spent.values()) - idle) / len(names)
        figures.add("requests_of_a_one_pod_stage", each, f"mean of {len(names)}: " + verbs(spent, len(names)) + "; less the idle lists")

        before = counts(bed)
        trial.apply(trial.document("life", evaluation=EVALUATION | {"limit": 9}, workers={"min": 1, "replicas": 2, "max": 2}))
        status = trial.ends("Complete", "life")
        time.sleep(12)
        spent = difference(counts(bed), before)
        stages = ", ".join(stage["name"] for stage in status["stages"])
        figures.add("writes_per_life", sum(spent.get(verb, 0) for verb in WRITES), f"2 workers; {stages}; {verbs(spent, 1)}")


def alone(bed: Testbed) -> None:
    """Refuses to count what is also asked for others.

    Raises:
        SystemExit: somebody else's experiment is not finished.
    """
    others = [body for body in bed.kube.list(f"{EXPERIMENTS}/transferexperiments") if not (body.get("status") or {}).get("completionTime")]
    if others:
        names = ", ".join(f"{body['metadata']['namespace']}/{body['metadata']['name']}" for body in others)
        raise SystemExit(f"experiments that are not finished would be counted too: {names}; wait for them or delete them")


def counts(bed: Testbed) -> dict[str, float]:
    """Requests so far by verb, of all replicas, without those of the Lease."""
    found: dict[str, float] = {}
    for pod in bed.operators():
        for name, value in bed.metrics(pod["metadata"]["name"]).items():
            if name.startswith("transfer_operator_api_requests_total") and 'resource="leases"' not in name:
                verb = name.split('verb="')[1].split('"')[0]
                found[verb] = found.get(verb, 0.0) + value
    return found


def difference(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """What was added."""
    return {verb: count - before.get(verb, 0.0) for verb, count in now.items()}


def verbs(spent: dict[str, float], experiments: int) -> str:
    """For a note."""
    return ", ".join(f"{verb} {count / experiments:.3g}" for verb, count in sorted(spent.items()) if count)


def memory(bed: Testbed, figures: Figures) -> None:
    """Idle, and with many experiments that are finished; and how long the imports take."""
    bed.operators_ready()
    rollout(bed)
    figures.add("memory_idle", leader_memory(bed), "resident, shared pages counted once; a leader that has just begun")
    with place(bed) as trial:
        trial.apply(trial.document("model", pretraining=None, evaluation=EVALUATION))
        finished = trial.ends("Complete", "model")
        names = [f"finished-{number}" for number in range(FINISHED)]
        with concurrent.futures.ThreadPoolExecutor(16) as several:
            list(several.map(lambda name: suspended(trial, name), names))
            wait_for(lambda: all(body.get("status") for body in trial.kube.list(trial.path())), 240, "each has a status")
            list(several.map(lambda name: finish(trial, name, finished), names))
        time.sleep(35)  # a resync looks at them all
        figures.add("memory_with_finished", leader_memory(bed), f"{FINISHED} finished experiments")
        with concurrent.futures.ThreadPoolExecutor(16) as several:
            list(several.map(lambda name: trial.kube.delete(trial.path(name)), names))
    line = "import time; t = time.perf_counter(); import transfer_operator.process; print(time.perf_counter() - t)"
    pod = bed.leader()  # what the image holds: other packages of a developer's environment make imports longer
    took = [float(kubectl("exec", "-n", NAMESPACE, pod, "--", "python", "-c", line)) for _ in range(5)]
    figures.add("import_time", statistics.median(took), f"median of {len(took)}")


def suspended(trial: Trial, name: str) -> None:
    """An experiment that does nothing from its beginning."""
    trial.kube.ask("POST", trial.path(), trial.document(name, pretraining=None, evaluation=EVALUATION, suspend=True))


def finish(trial: Trial, name: str, status: Body) -> None:
    """Gives an experiment the status of one that is complete."""
    trial.kube.ask("PATCH", trial.path(name, "status"), {"status": status}, "application/merge-patch+json")


def leader_memory(bed: Testbed) -> float:
    """MiB of the leader."""
    name = bed.leader()
    return bed.memory(next(pod for pod in bed.operators() if pod["metadata"]["name"] == name))


def rollout(bed: Testbed) -> None:
    """Operators that have just begun."""
    kubectl("rollout", "restart", "deployment/transfer-operator", "-n", "transfer-operator")
    kubectl("rollout", "status", "deployment/transfer-operator", "-n", "transfer-operator", "--timeout=120s")
    bed.operators_ready()
    time.sleep(10)


def percentile(values: list[float], percent: int) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-percent * len(ordered) // 100) - 1))]


GROUPS: dict[str, Callable[[Testbed, Figures], None]] = {
    "creation": creation,
    "fifty": fifty,
    "requests": requests,
    "failover": failover,
    "memory": memory,
    "disturbance": disturbance,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all")
    chosen: list[Any] = parser.parse_args().groups or list(GROUPS)
    bed, figures = Testbed(), Figures()
    bed.install()
    bed.operators_ready()
    for group in chosen:
        GROUPS[group](bed, figures)
    return report("operator", figures.values, figures.notes)


if __name__ == "__main__":
    sys.exit(main())
