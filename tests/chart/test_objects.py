"""What is installed: hardened pods, one leader at a time, CRDs that `helm upgrade` brings up to date, closed networks."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import yaml

from hack.chart.check import ROOT, CheckError, run, schemas, tool
from tests.chart.rendered import EVERYTHING, NAMESPACED, container, objects, of_kind, selects, text, values_file
from transfer_operator import manifest
from transfer_operator.decide import Role
from transfer_operator.decide.snapshot import PodName

WORKER = manifest.labels("e", PodName(stage="0123456789", kind="pretraining", attempt=1, role=Role.WORKER, index=0, generation=1))
SETS = pytest.mark.parametrize("options", [(), NAMESPACED, EVERYTHING], ids=["default", "namespaced", "everything"])


@SETS
def test_every_pod_meets_the_restricted_standard(options: tuple[str, ...]) -> None:
    (deployment,) = of_kind("Deployment", *options)
    for spec in (deployment["spec"]["template"]["spec"], *(one["spec"] for one in of_kind("Pod", *options))):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert one["resources"]["requests"]
            assert one["resources"]["limits"]["memory"]


@SETS
def test_every_object_names_its_namespace_and_its_release(options: tuple[str, ...]) -> None:
    whole = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for one in objects(*options):
        assert ("namespace" in one["metadata"]) == (one["kind"] not in whole)
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects(*options)]
    assert len(set(names)) == len(names)


def test_replicas_are_replaced_one_by_one_and_without_a_lease_never_two_run() -> None:
    (two,), (one,) = of_kind("Deployment"), of_kind("Deployment", *NAMESPACED)
    assert two["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert one["spec"]["strategy"] == {"type": "Recreate"}


def test_probes_ask_what_the_operator_serves() -> None:
    served = (ROOT / "operator" / "transfer_operator" / "health.py").read_text()
    found = container()
    asked = {found[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"/healthz", "/readyz"}
    assert all(f'web.get("{path}"' in served for path in asked)
    assert [port["containerPort"] for port in found["ports"]] == [8080]


def test_the_crd_is_the_generated_one_and_stays_after_uninstall() -> None:
    (crd,) = of_kind("CustomResourceDefinition")
    assert crd["spec"] == yaml.load((ROOT / "crds" / "transferexperiments.yaml").read_text(), Loader=yaml.CSafeLoader)["spec"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_crd_can_go_with_the_release_or_be_somebody_elses(tmp_path: Path) -> None:
    (crd,) = of_kind("CustomResourceDefinition", *values_file(tmp_path, {"crds": {"keep": False}}))
    assert "annotations" not in crd["metadata"]
    assert not of_kind("CustomResourceDefinition", *NAMESPACED)


def test_the_operators_policy_and_budget_take_the_operator_and_no_experiment() -> None:
    (deployment,), (budget,), (policy,) = of_kind("Deployment"), of_kind("PodDisruptionBudget"), of_kind("NetworkPolicy")
    operator = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (budget["spec"]["selector"], policy["spec"]["podSelector"], deployment["spec"]["selector"]):
        assert selects(selector, operator)
        assert not selects(selector, WORKER)
    (test,) = of_kind("Pod")
    assert not selects(deployment["spec"]["selector"], test["metadata"]["labels"])


def test_experiments_are_closed_but_for_each_other_the_operator_and_prometheus() -> None:
    operator, *experiments = of_kind("NetworkPolicy", *EVERYTHING)
    assert [one["metadata"]["namespace"] for one in experiments] == ["team-a", "team-b"]
    (deployment,) = of_kind("Deployment", *EVERYTHING)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for policy in experiments:
        spec = policy["spec"]
        assert selects(spec["podSelector"], WORKER)
        assert not selects(spec["podSelector"], labels)
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        others, scrapers, extra = spec["ingress"]
        assert others == {"from": [{"podSelector": spec["podSelector"]}]}
        assert scrapers["ports"] == [{"port": 9090, "protocol": "TCP"}]
        assert selects(scrapers["from"][0]["podSelector"], labels)
        assert extra["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
        assert {"ipBlock": {"cidr": "198.51.100.7/32"}} in [peer for rule in spec["egress"] for peer in rule.get("to", [])]
        public = [
            peer["ipBlock"] for rule in spec["egress"] if rule.get("ports") == [{"port": 443, "protocol": "TCP"}] for peer in rule["to"]
        ]
        networks = {ipaddress.ip_network(block["cidr"]) for block in public}
        assert {network.version for network in networks if network.prefixlen == 0} == {4, 6}, "the hub is reached by either protocol"
        for block in public:
            for private in block["except"]:
                assert ipaddress.ip_network(private).is_private or ipaddress.ip_network(private).is_link_local
    to_experiments = [rule for rule in operator["spec"]["egress"] if rule.get("to", [{}])[0].get("podSelector")]
    assert selects(to_experiments[0]["to"][0]["podSelector"], WORKER)


def test_no_policy_is_made_when_none_is_wanted(tmp_path: Path) -> None:
    assert not of_kind("NetworkPolicy", *values_file(tmp_path, {"networkPolicy": {"enabled": False}, "watchNamespaces": ["a"]}))


def test_the_program_of_helm_test_arrives_whole() -> None:
    (pod,) = of_kind("Pod")
    (one,) = pod["spec"]["containers"]
    compile(one["args"][0], "helm_test.py", "exec")
    assert one["args"][0].strip() == (ROOT / "charts" / "transfer-operator" / "files" / "helm_test.py").read_text().strip()
    assert {entry["name"]: entry["value"] for entry in one["env"]} == {
        "NAMESPACE": "transfer-operator", "LEASE": "transfer-operator",
        "OPERATOR": "http://transfer-operator-metrics.transfer-operator.svc:8080",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("readinessProbe:", "readynessProbe:", id="a field that does not exist"),
        pytest.param("replicas: 2", "replicas: two", id="a word for a number"),
        pytest.param("honorLabels: true", "honourLabels: true", id="a field that a monitor does not have"),
    ],
)
def test_the_check_finds_what_the_api_server_would_not_take(old: str, new: str) -> None:
    rendered = text(*EVERYTHING)
    assert old in rendered
    with pytest.raises(CheckError, match="invalid"):
        run(tool("kubeconform"), "-strict", "-schema-location", f"{schemas.folder()}/{schemas.TEMPLATE}", text=rendered.replace(old, new))
