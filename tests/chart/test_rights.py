"""The operator may do what its code does, and nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

import transfer_operator
from tests.chart.rendered import DOCUMENT, EVERYTHING, NAMESPACED, Object, objects, of_kind, values_file
from transfer_operator import cluster

CODE = Path(transfer_operator.__file__).parent
VERBS = {"get": "get", "list": "list", "create": "create", "insert": "create", "delete": "delete", "replace": "update"}

Rights = dict[str, set[str]]


def asked() -> Rights:
    """Resource to verbs that the code asks of the API server, watches of Kopf included."""
    found: Rights = defaultdict(set)
    for path in CODE.rglob("*.py"):
        text = path.read_text()
        for verb, name in re.findall(r"cluster\.(\w+)\(\s*([A-Z]+)\b", text):
            plural = getattr(cluster, name).plural
            if verb == "apply_status":
                found[plural + "/status"].add("patch")
            else:
                found[plural].add(VERBS[verb])
        for name in re.findall(r"\._make\([^()]*?\b([A-Z]+)\b", text):  # child.make: creates it, or looks at what has its name
            found[getattr(cluster, name).plural] |= {"create", "get"}
        for plural in re.findall(r'kopf\.on\.event\("?[\w.]*"?, "v1\w*", "(\w+)"', text):
            found[plural] |= {"list", "watch"}
        if '"blockOwnerDeletion": True' in text:
            found["transferexperiments/finalizers"].add("update")
    return dict(found)


def granted(*roles: Object) -> Rights:
    found: Rights = defaultdict(set)
    for role in roles:
        for rule in role["rules"]:
            for resource in rule["resources"]:
                found[resource] |= set(rule["verbs"])
    return dict(found)


def operators(*options: str) -> list[Object]:
    """Roles that are bound to the operator."""
    bound = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in objects(*options) if one["kind"].endswith("RoleBinding")}
    return [one for one in objects(*options) if (one["kind"], one["metadata"]["name"]) in bound]


@pytest.mark.parametrize("options", [(), NAMESPACED, EVERYTHING], ids=["default", "namespaced", "everything"])
def test_rights_are_those_that_the_code_needs(options: tuple[str, ...]) -> None:
    assert asked()["pods"] >= {"create", "delete", "list", "watch"}
    assert granted(*operators(*options)) == asked()


@pytest.mark.parametrize("options", [(), NAMESPACED, EVERYTHING], ids=["default", "namespaced", "everything"])
def test_no_role_has_a_wildcard_or_reaches_secrets_nodes_or_other_pods_insides(options: tuple[str, ...]) -> None:
    for role in (*of_kind("Role", *options), *of_kind("ClusterRole", *options)):
        for rule in role["rules"]:
            assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            assert not {"secrets", "configmaps", "nodes", "pods/exec", "pods/log", "pods/attach", "serviceaccounts"} & set(
                rule["resources"]
            )
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_watching_namespaces_needs_nothing_of_the_cluster() -> None:
    kinds = {one["kind"] for one in objects(*NAMESPACED)}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    namespaces = [one["metadata"]["namespace"] for one in of_kind("RoleBinding", *NAMESPACED)]
    assert sorted(namespaces) == ["team-a", "team-b", "transfer-operator"]


def test_a_lease_is_read_and_written_by_its_name_only() -> None:
    (role,) = (one for one in of_kind("Role") if one["metadata"]["name"].endswith("-lease"))
    assert [(rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"]] == [
        (None, ["create"]), (["transfer-operator"], ["get", "update"]),
    ]  # fmt: skip


def test_every_binding_is_of_the_operators_account() -> None:
    (account,) = of_kind("ServiceAccount")
    for binding in (*of_kind("RoleBinding"), *of_kind("ClusterRoleBinding")):
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": account["metadata"]["namespace"]}
        ]


def test_nothing_is_granted_when_somebody_else_grants(tmp_path: Path) -> None:
    found = {one["kind"] for one in objects(*values_file(tmp_path, {"rbac": {"create": False}}))}
    assert not found & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def test_editors_of_a_namespace_cannot_write_a_status() -> None:
    roles = [one for one in of_kind("ClusterRole") if "rbac.authorization.k8s.io/aggregate-to-edit" in one["metadata"]["labels"]]
    rights = granted(*roles)
    assert rights["transferexperiments/status"] == {"get", "list", "watch"}
    assert rights["transferexperiments"] >= {"create", "delete", "patch", "update"}
    viewers = [one for one in roles if "rbac.authorization.k8s.io/aggregate-to-view" in one["metadata"]["labels"]]
    assert all(verbs == {"get", "list", "watch"} for verbs in granted(*viewers).values())


def test_the_document_lists_these_rights() -> None:
    section = DOCUMENT.split("## Rights")[1].split("## ")[0]
    listed: Rights = defaultdict(set)
    for resource, verbs in re.findall(r"^\| (?:watched|own) \| `([\w/]+)` \| ([a-z, ]+) \|", section, re.M):
        listed[resource] |= set(verbs.split(", "))
    assert listed == asked()
