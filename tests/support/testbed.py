"""The cluster of `make cluster` and the operator in it: what tests and benchmarks do to them from outside.

Blows are real ones. A container dies by SIGKILL to its processes, which this machine can see because the nodes run on it; a node dies
by `hack/cluster/cluster node-kill`; components freeze by SIGSTOP.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import psutil

from tests.support.experiment import wait_for
from tests.support.kube import Body, Kube, kubectl

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "hack" / "cluster" / "cluster"
INSTALL = ROOT / "hack" / "cluster" / "install"
TRIAL = "transfer-operator.dev/trial"
"""Label of the namespaces that tests make."""
NAMESPACE = RELEASE = "transfer-operator"
OPERATORS = f"/api/v1/namespaces/{NAMESPACE}/pods"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}"
FOR_TESTS: dict[str, str] = {
    # Status tells of progress sooner than by default, and pods have less time to save: tests wait less.
    "settings.statusSeconds": "2",
    "settings.progressSeconds": "1",
    "settings.graceSeconds": "30",
}


def environment() -> dict[str, str]:
    """The variables that `hack/cluster/cluster env` tells of.

    Raises:
        AssertionError: there is no cluster that answers; the message says how to get one.
    """
    told = subprocess.run([str(CLUSTER), "env"], capture_output=True, text=True)
    assert told.returncode == 0, f"hack/cluster/cluster env failed: {told.stderr}"
    found = dict(word.split("=", 1) for word in shlex.split(told.stdout) if "=" in word)
    found["PATH"] = found["PATH"].replace("$PATH", os.environ["PATH"])
    ready = subprocess.run(["kubectl", "get", "--raw", "/readyz"], env=os.environ | found, capture_output=True, text=True)
    assert ready.returncode == 0, (
        f"no cluster answers at {found['KUBECONFIG']}: start it with `make cluster`, and bring the images into it with `make images` "
        f"(both are part of `make test-cluster`). kubectl said: {ready.stderr.strip()[:300]}"
    )
    return found


class Testbed:
    """Nodes, processes and the release of the operator.

    Args:
        settings: values of the chart that differ from its defaults.
    """

    __test__ = False

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._settings = dict(settings or {})
        found = environment()
        os.environ.update(found)
        self.kube = Kube()
        self.state = Path(found["CLUSTER_STATE"])
        self.storage = self.state / "storage"
        self._alone = self._lock()
        self._sweep()

    def _lock(self) -> TextIO:
        """Nodes die and API servers restart here: one run at a time has the cluster, until its process ends."""
        file = (self.state / "tests.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise AssertionError(f"another run has the cluster, process {file.read().strip()}: wait for its end, or stop it") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def _sweep(self) -> None:
        """Removes what a run that was killed has left behind."""
        for space in self.kube.list("/api/v1/namespaces", labelSelector=TRIAL):
            self.kube.delete(f"/api/v1/namespaces/{space['metadata']['name']}")

    # -- the operator

    def install(self, **settings: str) -> None:
        """Installs or changes the release with the chart of this tree and the newest images, and waits until it is rolled out."""
        values = self._settings | {name.replace("__", "."): value for name, value in settings.items()}
        chosen = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        # A CRD that somebody applied by hand would otherwise be in the way.
        done = subprocess.run([str(INSTALL), "--take-ownership", *chosen], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{done.stderr}\n{kubectl('get', 'pods', '-n', NAMESPACE, '-o', 'wide', check=False)}"
        self.leader()

    @contextlib.contextmanager
    def settings(self, **settings: str) -> Iterator[None]:
        """The operator with other settings, for a while; dots are written as two underscores."""
        self.install(**settings)
        try:
            yield
        finally:
            self.install()

    def leader(self, besides: str = "") -> str:
        """Name of the operator pod that holds the Lease and is ready; waits until there is one (another than `besides`)."""

        def look() -> str | None:
            lease = self.kube.get(LEASE)
            holder = str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")
            pod = self.kube.get(f"{OPERATORS}/{holder}") if holder and holder != besides else None
            return holder if pod is not None and is_ready(pod) else None

        return wait_for(look, 90, "an operator that leads")

    def operators(self) -> list[Body]:
        """Pods of the operator that are not about to go."""
        pods = self.kube.list(OPERATORS, labelSelector=f"app.kubernetes.io/name={RELEASE}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def operators_ready(self) -> None:
        """Waits for both replicas, and for one of them to lead."""
        wait_for(lambda: len([pod for pod in self.operators() if is_ready(pod)]) == 2, 120, "two operators that are ready")
        self.leader()

    def kill_operators(self) -> None:
        """kill -9 of every replica at once. New pods take their places, since the kubelet would wait longer with each restart."""
        pods = self.operators()
        for pod in pods:
            if containers(pod):  # one that took the place of another a moment ago may have none yet
                self.signal(pod, signal.SIGKILL)
        for pod in pods:
            self.remove(pod)

    def metrics(self, pod: str) -> dict[str, float]:
        """Series of an operator pod by their name with labels."""
        address = self.kube.ask("GET", f"{OPERATORS}/{pod}")["status"]["podIP"]
        return scrape(f"http://{address}:8080/metrics")

    # -- pods and their processes

    def remove(self, pod: Body) -> None:
        """Deletes a pod without any grace; it may be gone already."""
        self.kube.delete(f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}", grace=0)

    def processes(self, pod: Body) -> list[int]:
        """Process ids, on this machine, of a pod's containers."""
        ids = containers(pod)
        assert ids, f"{pod['metadata']['name']} has no container yet"
        found = []
        for path in Path("/proc").glob("[0-9]*/cgroup"):
            with contextlib.suppress(OSError):
                if any(one in path.read_text() for one in ids):
                    found.append(int(path.parent.name))
        return sorted(found)

    def signal(self, pod: Body, number: int) -> None:
        """Sends a signal to every process of a pod."""
        pids = self.processes(pod)
        assert pids, f"no process of {pod['metadata']['name']} is on this machine: these tests need the nodes to run on it"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def training_processes(self, pod: Body) -> list[int]:
        """Those of a training pod that its nursery has forked: neither the launcher nor the nursery itself."""
        pids, found = set(self.processes(pod)), []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                if {one.pid for one in psutil.Process(pid).parents()[:2]} <= pids:
                    found.append(pid)
        return found

    def memory(self, pod: Body) -> float:
        """Resident memory of a pod's processes, MiB, shared pages counted once."""
        total = 0
        for pid in self.processes(pod):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)[1])  # type: ignore[index]
        return total / 1024

    # -- nodes and components

    def cluster(self, *command: str) -> None:
        """Runs a command of hack/cluster/cluster."""
        done = subprocess.run([str(CLUSTER), *command], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"cluster {' '.join(command)}: {done.stderr}"

    @contextlib.contextmanager
    def dead_node(self, node: str) -> Iterator[None]:
        """A node whose power failed; it is back, and ready, afterwards."""
        number = node.removeprefix("node")
        self.cluster("node-kill", number)
        try:
            yield
        finally:
            self.node_up(node)

    def node_up(self, node: str) -> None:
        """Starts a node again, unless it runs, and waits until pods are scheduled on it."""
        if self.node_is_free(node):
            return
        self.cluster("node-up", node.removeprefix("node"))
        wait_for(lambda: self.node_is_free(node), 60, f"{node} is ready")

    def node_is_free(self, node: str) -> bool:
        """Whether a node is ready and has no taint."""
        body = self.kube.ask("GET", f"/api/v1/nodes/{node}")
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in body["status"]["conditions"])
        return ready and not body["spec"].get("taints")


def containers(pod: Body) -> list[str]:
    """Ids of the containers that a pod has, or had."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return [status["containerID"].split("://")[1] for status in statuses if status.get("containerID")]


def is_ready(pod: Body) -> bool:
    """Whether a pod is ready and stays."""
    conditions = pod.get("status", {}).get("conditions") or []
    return "deletionTimestamp" not in pod["metadata"] and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def scrape(address: str) -> dict[str, float]:
    """Series at an address by name with labels."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and not line.startswith("#")}


def as_json(value: Any) -> str:
    """JSON is YAML in which every string has quotes."""
    return json.dumps(value, indent=1, ensure_ascii=False)
