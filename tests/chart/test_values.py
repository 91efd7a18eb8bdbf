"""Helm refuses values that mean nothing, before anything is applied."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.chart.check import CheckError, render, run, tool
from tests.chart.rendered import CHART, DOCUMENT, VALUES, Object, container, values_file

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def paths(values: Object, prefix: str = "") -> Iterator[tuple[str, Object]]:
    yield prefix, values
    for key, value in values.items():
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}.{key}" if prefix else key)


def at(path: str) -> Object:
    node: Any = SCHEMA
    for part in path.split(".") if path else []:
        node = node["properties"][part]
    return dict(node)


def closed() -> Iterator[str]:
    """Places in the schema that list their keys."""
    stack = [("", SCHEMA)]
    while stack:
        path, node = stack.pop()
        if "properties" in node:
            yield path
            stack += [(f"{path}.{key}" if path else key, child) for key, child in node["properties"].items()]


@pytest.mark.parametrize("path", sorted(closed()))
def test_schema_and_values_have_the_same_keys(path: str) -> None:
    node: Any = VALUES
    for part in path.split(".") if path else []:
        node = node[part]
    schema = at(path)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"global"} == set(node)


REFUSED: list[tuple[str, Object, str]] = [
    ("a value that does not exist", {"replica": 3}, "replica"),
    ("a setting that does not exist", {"settings": {"leaseSecond": 3}}, "leaseSecond"),
    ("a number out of its range", {"settings": {"concurrency": 0}}, "concurrency"),
    ("a word for a number", {"settings": {"leaseSeconds": "ten"}}, "leaseSeconds"),
    ("a log level that does not exist", {"settings": {"logLevel": "LOUD"}}, "logLevel"),
    ("an alert that does not exist", {"prometheusRule": {"alerts": {"operatorsDown": {"enabled": False}}}}, "operatorsDown"),
    ("a namespace that cannot be one", {"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
    ("a namespace twice", {"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
    ("a digest that is none", {"image": {"digest": "latest"}}, "digest"),
    ("a port that needs root", {"ports": {"http": 80}}, "http"),
    ("two replicas without a Lease", {"settings": {"leaderElection": False}}, "set replicas to 1"),
    ("a renewal too late for the Lease", {"settings": {"renewSeconds": 4}}, "lower it to at most 3.5 or raise settings.leaseSeconds"),
    ("a Lease too short for its renewals", {"settings": {"leaseSeconds": 5}}, "at most 1.75"),
    ("a name with a dot", {"nameOverride": "team.a"}, "nameOverride: .*team.a.*use at most 50 lower-case"),
    ("a full name with a dot", {"fullnameOverride": "team.a"}, "fullnameOverride: .*team.a.*use at most 50 lower-case"),
    ("a full name that begins with a digit", {"fullnameOverride": "1a"}, "fullnameOverride: .*a letter first"),
    ("a name that is too long", {"nameOverride": "a" * 51}, "nameOverride: .*use at most 50"),
    ("a name that ends with a dash", {"nameOverride": "a-"}, "nameOverride: .*no - at the end"),
    (
        "a variable of the chart's own", {"extraEnv": [{"name": "TRANSFER_OPERATOR_NAMESPACE", "value": "x"}]},
        "extraEnv: TRANSFER_OPERATOR_NAMESPACE is the chart's own; remove it",
    ),
    (
        "a variable of a setting", {"extraEnv": [{"name": "TRANSFER_OPERATOR_LOG_LEVEL", "value": "DEBUG"}]}, "settings.logLevel",
    ),
    ("a variable twice", {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "extraEnv: A stands there twice"),
    ("a volume of the chart's own", {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, 'extraVolumes: "tmp" is there already'),
    ("a mount without its volume", {"extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}]}, 'no volume is named "ca"; name one of tmp'),
    (
        "a mount over the chart's own", {"extraVolumeMounts": [{"name": "tmp", "mountPath": "/tmp/"}]},
        "something is mounted at /tmp already",
    ),
    (
        "a ServiceMonitor without its Service",
        {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}}, "metrics.service.enabled",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "named"), [pytest.param(values, named, id=name) for name, values, named in REFUSED])
def test_helm_refuses(values: Object, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=named):
        render(*values_file(tmp_path, values))


@pytest.mark.parametrize("release", ["1st", "team.a"])
def test_helm_refuses_a_release_whose_name_no_service_can_have(release: str) -> None:
    command = (tool("helm"), "template", release, CHART)
    with pytest.raises(CheckError, match="set fullnameOverride to lower-case letters"):
        run(*command)
    assert run(*command, "--set", "fullnameOverride=team-a")


@pytest.mark.parametrize("text", re.findall(r"^```yaml values\n(.*?)^```", DOCUMENT, re.M | re.S))
def test_values_in_the_document_are_accepted(text: str, tmp_path: Path) -> None:
    assert render(*values_file(tmp_path, yaml.safe_load(text)))


def test_the_document_names_only_values_that_exist() -> None:
    section = DOCUMENT.split("## Other values")[1].split("## Rights")[0]
    for cell in re.findall(r"^\| (`.+?) \|", section, re.M):
        parent = ""
        for name in re.findall(r"`([^`]+)`", cell):
            path = (parent + name if name.startswith(".") else name).removesuffix(".*")
            parent = path.rpartition(".")[0] if not name.startswith(".") else parent
            at(path)


IMAGES: list[tuple[str, Object, str]] = [
    ("nothing given", {}, "transfer-operator:0.1.0"),
    ("a registry", {"registry": "r.example:5000/team/"}, "r.example:5000/team/transfer-operator:0.1.0"),
    ("a tag that looks like a number", {"tag": "1.10"}, "transfer-operator:1.10"),
    ("a digest wins over a tag", {"tag": "1", "digest": "sha256:" + "0" * 64}, "transfer-operator@sha256:" + "0" * 64),
]


@pytest.mark.parametrize(("image", "expected"), [pytest.param(image, expected, id=name) for name, image, expected in IMAGES])
def test_an_image_is_named(image: Object, expected: str, tmp_path: Path) -> None:
    assert container(*values_file(tmp_path, {"image": image}))["image"] == expected
