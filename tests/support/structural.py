"""What the API server does with an object and a CRD, in small: defaults, values, kinds of lists, CEL rules.

Only what our schema uses. It was held once against the API server's own packages (apiextensions-apiserver 0.34.4), which gave the same
refusals; that needs Go, this does not.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import celpy
from celpy import celtypes

Schema = dict[str, Any]
_ENVIRONMENT = celpy.Environment()  # once, and first: it raises the recursion limit
_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def defaulted(value: Any, schema: Schema) -> Any:
    """The value with every default of the schema filled in."""
    if isinstance(value, dict) and "properties" in schema:
        value = dict(value)
        for name, child in schema["properties"].items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = defaulted(value[name], child)
    elif isinstance(value, list):
        value = [defaulted(item, schema["items"]) for item in value]
    return value


def refusals(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Everything the API server would refuse in a value with defaults, as `path: why`."""
    problems = list(_value_problems(value, schema, path))
    yield from problems
    if any(problem.startswith(f"{path}: type") for problem in problems):
        return
    if isinstance(value, dict) and "properties" in schema:
        for name, item in value.items():
            if name not in schema["properties"]:
                yield f"{path}.{name}: unknown field"
            else:
                yield from refusals(item, schema["properties"][name], f"{path}.{name}")
    elif isinstance(value, dict) and "additionalProperties" in schema:
        for name, item in value.items():
            yield from refusals(item, schema["additionalProperties"], f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from refusals(item, schema["items"], f"{path}[{index}]")
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not cel(rule["rule"], self=value):
            yield f"{path}: {rule['message']}"


def _value_problems(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-int-or-string"):
        fits = isinstance(value, (int, str)) and not isinstance(value, bool)
    elif "type" in schema:
        fits = isinstance(value, _TYPES[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))
    else:
        fits = True
    if not fits:
        yield f"{path}: type"
        return
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", 1 << 30) or len(value) < schema.get("minLength", 0):
            yield f"{path}: length"
        if "pattern" in schema and re.search(schema["pattern"], value) is None:
            yield f"{path}: pattern"
    if isinstance(value, int) and not schema.get("minimum", -(1 << 62)) <= value <= schema.get("maximum", 1 << 62):
        yield f"{path}: range"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: enum"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30):
        yield f"{path}: items"
    if isinstance(value, dict):
        yield from (f"{path}.{name}: required" for name in schema.get("required", []) if name not in value)
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        names = [item.get(keys[0]) for item in value] if keys else list(value) if schema["x-kubernetes-list-type"] == "set" else []
        if len(names) != len(set(names)):
            yield f"{path}: duplicate"


def cel(expression: str, **values: Any) -> bool:
    """Result of a CEL expression. An error counts as false, as in the API server."""
    return _evaluated(expression, json.dumps(values))


@functools.cache
def _evaluated(expression: str, values: str) -> bool:
    """The same; kept, since cases that differ in one field are judged alike in all others, and an evaluation takes milliseconds."""
    try:
        return bool(program(expression).evaluate({name: celpy.json_to_cel(value) for name, value in json.loads(values).items()}))
    except celpy.CELEvalError:
        return False


@functools.cache
def program(expression: str) -> celpy.Runner:
    """A compiled expression; compiling is slow, so each is kept."""
    # Kubernetes has CEL's string library; cel-python has not.
    return _ENVIRONMENT.program(_ENVIRONMENT.compile(expression), functions={"replace": _replace})


def _replace(text: celtypes.StringType, old: celtypes.StringType, new: celtypes.StringType) -> celtypes.StringType:
    return celtypes.StringType(str(text).replace(str(old), str(new)))
