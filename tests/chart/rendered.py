"""The chart as Helm renders it, for tests that look at its objects."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import yaml

from hack.chart.check import CHART, ROOT, render

Object = dict[str, Any]
DOCUMENT = (ROOT / "docs" / "operator.md").read_text()
EVERYTHING = ("--values", str(CHART / "ci" / "everything-values.yaml"))
NAMESPACED = ("--values", str(CHART / "ci" / "namespaced-values.yaml"))
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())


@functools.cache
def text(*options: str) -> str:
    """The chart as YAML."""
    return render(*options)


def objects(*options: str) -> list[Object]:
    """All of its objects, to be changed at will."""
    return copy.deepcopy(_parsed(*options))


@functools.cache
def _parsed(*options: str) -> list[Object]:
    # The CRD alone takes PyYAML's own parser a second.
    return [document for document in yaml.load_all(text(*options), Loader=yaml.CSafeLoader) if document]


def of_kind(kind: str, *options: str) -> list[Object]:
    """Its objects of a kind."""
    return [one for one in objects(*options) if one["kind"] == kind]


def values_file(folder: Path, values: Object) -> tuple[str, str]:
    """Options that render the chart with these values."""
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return "--values", str(path)


def container(*options: str) -> Object:
    """The operator's container."""
    (deployment,) = of_kind("Deployment", *options)
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(*options: str) -> dict[str, str]:
    """What the operator's container gets; the downward API's part as the pod `name` of the namespace `ns` has it."""
    downward = {"metadata.namespace": "ns", "metadata.name": "name"}
    return {one["name"]: one.get("value") or downward[one["valueFrom"]["fieldRef"]["fieldPath"]] for one in container(*options)["env"]}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "Exists" for one in expressions)
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return equal and all(one["key"] in labels for one in expressions)
