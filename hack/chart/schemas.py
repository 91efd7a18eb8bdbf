"""JSON schemas of every kind that the chart may hold, for kubeconform without a network.

The public collections of such schemas are addresses; here they come out of Go modules that `schemas/go.mod` pins by hash: the API
description inside `k8s.io/kubernetes`, and the CRDs inside the Prometheus operator's module. Strict: unknown fields are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KUBERNETES = "k8s.io/kubernetes"
MONITORING = "github.com/prometheus-operator/prometheus-operator"
MONITORED = ("servicemonitors", "podmonitors", "prometheusrules")
TEMPLATE = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""How kubeconform names a kind's file: deployment-apps-v1.json."""

# What the API description calls a string may be a number in YAML.
EITHER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
LOOSE = {"io.k8s.apimachinery.pkg.util.intstr.IntOrString": EITHER, "io.k8s.apimachinery.pkg.api.resource.Quantity": EITHER}

Schema = dict[str, Any]


def folder() -> Path:
    """Folder with the schemas, made when it is not there for the pinned versions.

    Raises:
        subprocess.CalledProcessError: Go or a module cannot be had; the message is on the error stream.
    """
    cache = Path(os.environ.get("TRANSFER_CACHE") or Path.home() / ".cache" / "transfer-operator")
    pins = hashlib.sha256((HERE / "schemas" / "go.sum").read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    found = cache / "cluster" / f"schemas-{pins}"
    if not found.is_dir():
        made = found.with_name(f"{found.name}.{os.getpid()}")
        made.mkdir(parents=True)
        for name, schema in (*_kubernetes(_module(KUBERNETES)), *_monitoring(_module(MONITORING))):
            (made / name).write_text(json.dumps(schema))
        made.rename(found)
    return found


def _module(name: str) -> Path:
    """Folder of a Go module, downloaded if need be and checked against go.sum."""
    go = subprocess.run([ROOT / "hack" / "cluster" / "tool", "go"], capture_output=False, stdout=subprocess.PIPE, text=True, check=True)
    told = subprocess.run([go.stdout.strip(), "mod", "download", "-json", name], cwd=HERE / "schemas", stdout=subprocess.PIPE, check=True)
    return Path(json.loads(told.stdout)["Dir"])


def _kubernetes(module: Path) -> Iterator[tuple[str, Schema]]:
    described = json.loads((module / "api" / "openapi-spec" / "swagger.json").read_text())["definitions"]
    definitions = {name: LOOSE.get(name) or _strict(schema) for name, schema in described.items()}
    for name, schema in described.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if not kind["kind"].endswith(("List", "Options", "Event")) and kind["version"] == "v1":
                wanted = {one: definitions[one] for one in _reachable(name, definitions)}
                yield _file(kind["kind"], kind["group"], kind["version"]), {"$ref": f"#/definitions/{name}", "definitions": wanted}


def _monitoring(module: Path) -> Iterator[tuple[str, Schema]]:
    for plural in MONITORED:
        text = (module / "example" / "prometheus-operator-crd" / f"monitoring.coreos.com_{plural}.yaml").read_text()
        spec = yaml.safe_load(text)["spec"]
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            yield _file(spec["names"]["kind"], spec["group"], version["name"]), schema


def _file(kind: str, group: str, version: str) -> str:
    return "-".join([kind.lower(), *([group.split(".")[0]] if group else []), version]) + ".json"


def _strict(schema: Any) -> Any:
    """A copy in which an object with named properties takes no others."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _strict(value) for key, value in schema.items()}
    named = isinstance(copy.get("properties"), dict) and copy.get("type") == "object"
    if named and not copy.get("x-kubernetes-preserve-unknown-fields"):
        copy.setdefault("additionalProperties", False)
    return copy


def _reachable(start: str, definitions: Schema) -> set[str]:
    found, open_ = {start}, [definitions[start]]
    while open_:
        part = open_.pop()
        children = part if isinstance(part, list) else list(part.values()) if isinstance(part, dict) else []
        open_ += children
        target = part.get("$ref") if isinstance(part, dict) else None
        if isinstance(target, str) and (name := target.removeprefix("#/definitions/")) not in found:
            found.add(name)
            open_.append(definitions[name])
    return found
