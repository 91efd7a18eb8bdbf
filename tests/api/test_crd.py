"""The CRD is a structural schema as the API server wants it, without floats and with everything bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.documents import document
from tests.support.structural import defaulted
from transfer_api.crd import COLUMNS, crd, crd_yaml
from transfer_api.load import experiment_from
from transfer_api.rules import RULES

VERSION = crd()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
ALLOWED = {
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "properties",
    "additionalProperties",
    "items",
    "required",
    "default",
    "x-kubernetes-int-or-string",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + suffix)


NODES = list(nodes(SCHEMA))


def at(path: str) -> dict[str, Any]:
    return dict(NODES)[path]


def test_every_node_is_structural() -> None:
    for path, node in NODES:
        assert set(node) <= ALLOWED, path
        assert ("type" in node) != (node.get("x-kubernetes-int-or-string") is True), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert (node.get("type") == "array") == ("items" in node) == ("x-kubernetes-list-type" in node), path


def test_there_are_no_floats() -> None:
    assert not [path for path, node in NODES if node.get("type") == "number"]


def test_what_the_user_writes_is_bounded_so_that_rules_have_a_cost() -> None:
    for path, node in NODES:
        if not path.startswith(".spec"):
            continue
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(node), path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_keyed_lists_require_their_key() -> None:
    keyed = [(path, node) for path, node in NODES if node.get("x-kubernetes-list-type") == "map"]
    assert {path for path, _ in keyed} >= {".spec.evaluation.texts", ".status.conditions", ".status.stages", ".status.stages[].workers"}
    for path, node in keyed:
        assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), path
    assert at(".spec.evaluation.suites")["x-kubernetes-list-type"] == "set"


def test_patterns_are_ones_that_go_knows_too() -> None:
    for path, node in NODES:
        if "pattern" in node:
            re.compile(node["pattern"])
            assert "(?" not in node["pattern"], path
            assert "\\d" not in node["pattern"], path


def test_each_rule_stands_where_it_says() -> None:
    for rule in RULES:
        for path in rule.paths if rule.cel is not None else ():
            rules = [entry["rule"] for entry in at(f".{path}")["x-kubernetes-validations"]]
            assert rule.cel in rules, (rule.name, path)


def test_defaults_filled_in_by_the_server_are_those_of_the_models() -> None:
    wanted = document(evaluation={"suites": ["mmlu"]}, instructionTuning={"data": [{"path": "a.jsonl"}]})
    assert experiment_from(defaulted(wanted, SCHEMA)) == experiment_from(wanted)


def test_scale_and_columns_point_at_fields_that_exist() -> None:
    scale = VERSION["subresources"]["scale"]
    paths = [*scale.values(), *(path for _, _, path, _ in COLUMNS if not path.startswith(".metadata"))]
    for path in paths:
        assert dict(NODES).get(path), path
    assert VERSION["subresources"]["status"] == {}
    for name, kind, path, _ in COLUMNS:
        if not path.startswith(".metadata"):
            assert at(path)["type"] == kind, name


def test_the_columns_that_people_watch_come_without_wide() -> None:
    shown = [column["name"] for column in VERSION["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Phase", "Stage", "Progress", "ETA", "Workers", "Score", "Delta", "Restarts", "Age"]


def test_names_are_those_that_people_type() -> None:
    names = crd()["spec"]["names"]
    assert names["shortNames"] == ["txp"]
    assert names["categories"] == ["all", "transfer"]
    assert crd()["metadata"]["name"] == f"{names['plural']}.{crd()['spec']['group']}"
    assert SCHEMA["properties"]["metadata"]["properties"]["name"]["maxLength"] == 52


@pytest.mark.parametrize("value", ["2e-5", "1e-4"])
def test_decimals_are_quoted_for_readers_of_another_yaml(value: str) -> None:
    assert f"'{value}'" in crd_yaml()
    assert yaml.load(crd_yaml(), Loader=yaml.CSafeLoader) == crd()
