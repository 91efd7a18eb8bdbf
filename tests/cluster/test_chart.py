"""The chart on a real cluster: what `helm test` finds, and what an operator of chosen namespaces may and does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.kube import kubectl
from tests.support.testbed import NAMESPACE, RELEASE, ROOT, Testbed
from tests.support.trial import PRETRAINING, Trial


@pytest.fixture
def other(bed: Testbed) -> Iterator[Trial]:
    """A second namespace."""
    trial = Trial(bed).open()
    yield trial
    trial.close()


def may(verb: str, what: str, namespace: str) -> bool:
    """Whether the operator's service account is allowed something in a namespace."""
    account = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}"
    return kubectl("auth", "can-i", verb, what, "-n", namespace, account, check=False).strip() == "yes"


def test_helm_test_finds_the_kind_served_an_operator_that_answers_and_a_leader(bed: Testbed) -> None:
    helm = subprocess.run([str(ROOT / "hack/cluster/tool"), "helm"], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(
        [helm, "test", RELEASE, "--namespace", NAMESPACE, "--logs", "--timeout", "3m"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("crd_is_served", "operator_answers", f"one_leads: {bed.leader()} leads"):
        assert f"ok   {check}" in done.stdout, done.stdout


def test_an_operator_of_one_namespace_runs_what_is_there_and_may_nothing_elsewhere(bed: Testbed, trial: Trial, other: Trial) -> None:
    short = {"workers": {"min": 1, "replicas": 1, "max": 1}, "pretraining": PRETRAINING | {"steps": 4}}
    with bed.settings(watchNamespaces=f"{{{trial.name}}}"):
        assert may("create", "pods", trial.name)
        for verb, what in (("create", "pods"), ("list", "transferexperiments.transfer-operator.dev"), ("delete", "services")):
            assert not may(verb, what, other.name), f"{verb} {what}"
        other.apply(other.document(**short))
        trial.apply(trial.document(**short))
        trial.ends("Complete")
        assert not other.status(), "nobody looks there"
        assert not other.pods()
    other.ends("Complete")
