"""Every setting of the operator is set by a chart value and explained, or said not to be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.chart.rendered import CHART, DOCUMENT, EVERYTHING, NAMESPACED, VALUES, Object, environment, values_file
from transfer_operator.settings import PREFIX, OperatorSettings

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ROW = re.compile(rf"^\| `{PREFIX}([A-Z_]+)` \| (.+?) \| (.*?) \| (.+?) \|$", re.M)
ELSEWHERE = {"namespace", "identity", "lease_name"}
"""Facts of the pod and the release, which no value sets."""

CHANGED: dict[str, tuple[Object, object]] = {
    "watch_namespaces": ({"watchNamespaces": ["a", "b"]}, ("a", "b")),
    "trainer_image": ({"experiments": {"trainer": {"image": {"registry": "r.example", "tag": "7"}}}}, "r.example/transfer-trainer:7"),
    "evaluator_image": ({"image": {"registry": "own.example", "tag": "6"}}, "own.example/transfer-evaluator:6"),
    "image_pull_policy": ({"experiments": {"imagePullPolicy": "Never"}}, "Never"),
    "image_pull_secrets": ({"experiments": {"imagePullSecrets": ["a", "b"]}}, ("a", "b")),
    "pod_user": ({"experiments": {"user": 1000650000}}, 1000650000),
    "http_port": ({"ports": {"http": 8081}}, 8081),
    "pod_port": ({"ports": {"pod": 9091}}, 9091),
    "rendezvous_port": ({"ports": {"rendezvous": 29401}}, 29401),
    "leader_election": ({"settings": {"leaderElection": False}, "replicas": 1}, False),
    "log_level": ({"settings": {"logLevel": "DEBUG"}}, "DEBUG"),
    "parallel_stages": ({"settings": {"parallelStages": 3}}, 3),
}


def camel(name: str) -> str:
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def test_the_chart_sets_what_the_operator_takes_and_nothing_else() -> None:
    optional = {"watch_namespaces", "image_pull_secrets", "parallel_stages"}
    by_default = set(OperatorSettings.model_fields) - optional
    assert {name.removeprefix(PREFIX).lower() for name in environment()} == by_default
    full = {name for name in environment(*NAMESPACED) if name.startswith(PREFIX)}
    assert {name.removeprefix(PREFIX).lower() for name in full} == by_default | {"watch_namespaces", "parallel_stages"}


def test_default_values_are_the_operators_own_defaults() -> None:
    read, own = OperatorSettings.read(environment()), OperatorSettings(namespace="ns", identity="name")
    assert read.trainer_image == "transfer-trainer:0.1.0"
    assert read.evaluator_image == "transfer-evaluator:0.1.0"
    images = {"trainer_image", "evaluator_image"}
    assert read.model_dump(exclude=images) == own.model_dump(exclude=images)


def test_every_value_reaches_its_setting(tmp_path: Path) -> None:
    changes = CHANGED | {
        name: ({"settings": {camel(name): 7}}, 7) for name in OperatorSettings.model_fields if name not in {*CHANGED, *ELSEWHERE}
    }
    values: Object = {}
    for change, _ in changes.values():
        merge(values, change)
    given = {key: text for key, text in environment(*values_file(tmp_path, values)).items() if key.startswith(PREFIX)}
    assert OperatorSettings.read(given).model_dump(exclude=ELSEWHERE) == {name: expected for name, (_, expected) in changes.items()}


def merge(into: Object, change: Object) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def test_the_pods_namespace_and_name_and_the_releases_name_are_taken() -> None:
    read = OperatorSettings.read({name: text for name, text in environment(*EVERYTHING).items() if name.startswith(PREFIX)})
    assert (read.namespace, read.identity, read.lease_name) == ("ns", "name", "experiments")


def test_the_document_has_every_setting_with_its_value_default_and_meaning() -> None:
    rows = {name.lower(): rest for name, *rest in ROW.findall(DOCUMENT)}
    assert list(rows) == list(OperatorSettings.model_fields)
    for name, (value, default, meaning) in rows.items():
        field = OperatorSettings.model_fields[name]
        assert meaning == field.description
        assert value.startswith("not set by a value: ") == (name in ELSEWHERE)
        if name not in ELSEWHERE:
            assert exists(value.strip("`")), value
        if name != "identity":
            shown = "" if field.default in ((), None) else str(field.default).lower() if field.default is True else str(field.default)
            assert default.strip("`") == shown


def exists(path: str) -> bool:
    node = VALUES
    for part in path.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


@pytest.mark.parametrize("name", SCHEMA["properties"]["settings"]["properties"])
def test_the_schema_has_the_models_limits(name: str) -> None:
    field = OperatorSettings.model_json_schema()["properties"][re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name)]
    limits = field | next((one for one in field.get("anyOf", []) if one["type"] != "null"), {})
    written = SCHEMA["properties"]["settings"]["properties"][name]
    assert written["description"] == field["description"]
    for limit in ("minimum", "maximum", "exclusiveMinimum"):
        assert written.get(limit) == limits.get(limit)
    if "pattern" in limits:
        assert limits["pattern"] == f"^({'|'.join(written['enum'])})$"
