"""Turns pydantic's errors into sentences about the file as the user wrote it.

Every problem gets the field's path, the value, what would be accepted and the way out. Nothing here depends on the wording
of pydantic: only on its error types and on the models.
"""

from __future__ import annotations

import difflib
import enum
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from transfer_api.amount import AMOUNT_ALLOWED, DECIMAL_ALLOWED
from transfer_api.errors import SpecError
from transfer_api.spec import (
    NAME_PATTERN,
    QUANTITY_PATTERN,
    HubName,
    InterfaceName,
    LabelKey,
    LabelValue,
    ObjectName,
    Revision,
    Suite,
)

_LONGEST_NAME = 128  # characters of a field's name that are told; no field of ours has so many
Place = tuple[int | str, ...]


def _pattern_of(annotation: Any) -> str:
    metadata = annotation.__metadata__[0]
    return str(next(item.pattern for item in metadata.metadata if getattr(item, "pattern", None)))


PATTERNS: Mapping[str, str] = {
    NAME_PATTERN: "lower-case letters, digits and -, beginning and ending with a letter or digit",
    QUANTITY_PATTERN: "a quantity as in a pod, such as 8, 500m or 64Gi",
    _pattern_of(Revision): "40 hexadecimal digits of a commit",
    _pattern_of(HubName): "a repository such as meta-llama/Llama-2-7b-hf",
    _pattern_of(Suite): "letters, digits, -, _ and ., such as mmlu or ceval-valid_law",
    _pattern_of(ObjectName): "lower-case letters, digits, - and ., beginning and ending with a letter or digit",
    _pattern_of(LabelKey): "the key of a label, such as gpu or cloud.example/gpu",
    _pattern_of(LabelValue): "the value of a label: letters, digits, -, _ and ., or nothing",
    _pattern_of(InterfaceName): "the name of a network interface, such as eth0",
    r"^[a-z0-9]+://.+": "a URL such as s3://bucket/prefix",
}
"""What a pattern means, in words."""

EXAMPLES: Mapping[str, str] = {
    "metadata": "metadata: {name: my-experiment}",
    "metadata.name": "name: my-experiment",
    "spec.model": "model: {path: models/smollm2-135m}",
    "spec.language": "language: id",
    "spec.storage": "storage: {claim: experiments}",
    "spec.pretraining.mixture": "- path: texts/id.jsonl",
    "spec.instructionTuning.data": "- path: instructions/id.jsonl",
    "spec.evaluation.texts": "- {name: news, path: texts/news.jsonl}",
}
"""What could stand in the fields that every experiment has, and in lists."""
_ALLOWED_BY_PROBLEM = {
    "is not an amount": AMOUNT_ALLOWED,
    "is not a decimal number": DECIMAL_ALLOWED,
    "is not a quantity": PATTERNS[QUANTITY_PATTERN],
}
_WANTED_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[SpecError]:
    """One SpecError for each of pydantic's errors, in the order of the file's models."""
    return [_explain_one(dict(detail), model) for detail in error.errors(include_url=False)]


def faults(error: ValidationError) -> str:
    """The first of pydantic's errors on one line, for what no person has written: fields and what they take, without the values."""
    details = error.errors(include_url=False, include_input=False)[:3]
    found = "; ".join(f"{field_path(detail['loc'])}: {detail['msg']}".removeprefix(": ") for detail in details)
    return " ".join(found.split())[:600]


def field_path(place: Sequence[int | str]) -> str:
    """`("spec", "mixture", 0, "weight")` as `spec.mixture[0].weight`."""
    text = ""
    for step in place:
        if isinstance(step, str) and len(step) > _LONGEST_NAME:
            text += f"[{step[: _LONGEST_NAME // 2]}...]"
        elif isinstance(step, str) and re.fullmatch(r"[A-Za-z_]\w*", step):
            text += f".{step}"
        else:
            text += f"[{step}]"
    return text.removeprefix(".")


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """`Did you mean …?` when a known word is near."""
    lower = {item.lower(): item for item in known}
    plain = word.replace("_", "").lower()
    near = difflib.get_close_matches(plain, lower, n=1, cutoff=0.7)
    return f"Did you mean {lower[near[0]]}?" if near else None


def no_value(place: Place, model: type[BaseModel]) -> SpecError:
    """The error of a field with nothing behind its colon: a required one cannot just be removed."""
    field, info = field_path(place), _info(model, place)
    if info is None or not info.is_required():
        return SpecError("has no value", field=field, next_step="Fill it in or remove the line")
    return SpecError("is required and has no value", field=field, allowed=_described(info), next_step=f"Fill it in{_example(place)}")


def _explain_one(detail: Mapping[str, Any], model: type[BaseModel]) -> SpecError:
    place: Place = detail["loc"]
    kind: str = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    field = field_path(place)
    value = detail["input"]
    if kind == "missing":
        return SpecError("is required", field=field, allowed=_described(_info(model, place)), next_step=_add(place))
    if kind == "extra_forbidden":
        return _unknown_field(place, model)
    if kind in ("enum", "literal_error"):
        allowed = _choices(model, place)
        return SpecError(
            "is not one of the choices", field=field, value=value, allowed=", ".join(allowed), next_step=suggestion(str(value), allowed)
        )
    if kind in _WANTED_TYPES:
        wanted = _WANTED_TYPES[kind]
        return SpecError("is of another type", field=field, value=value, allowed=wanted, next_step=_mend_type(kind, value))
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return SpecError(
            "is not written as it must be", field=field, value=value, allowed=PATTERNS.get(pattern, f"text that matches {pattern}")
        )
    if kind == "value_error":
        problem = str(context["error"])
        return SpecError(problem, field=field, value=value, allowed=_ALLOWED_BY_PROBLEM.get(problem))
    problem, allowed_text = _bounds(kind, context) or (detail["msg"], None)
    way_out = f"Add an entry{_example(place)}" if kind == "too_short" else None
    return SpecError(problem, field=field, value=value, allowed=allowed_text, next_step=way_out)


def _bounds(kind: str, context: Mapping[str, Any]) -> tuple[str, str] | None:
    match kind:
        case "greater_than_equal":
            return "is too small", f"at least {context['ge']}"
        case "less_than_equal":
            return "is too large", f"at most {context['le']}"
        case "string_too_long":
            return "is too long", f"at most {context['max_length']} characters"
        case "string_too_short":
            return "is too short", f"at least {context['min_length']} characters"
        case "too_long":
            return "has too many entries", f"at most {context['max_length']}"
        case "too_short":
            return "has too few entries", f"at least {context['min_length']}"
        case _:
            return None


def _add(place: Place) -> str:
    under = f" under {field_path(place[:-1])}" if len(place) > 1 else ""
    return f"Add {place[-1]}{under}{_example(place)}"


def _example(place: Place) -> str:
    example = EXAMPLES.get(field_path(place))
    return f", such as {example}" if example else ""


def _mend_type(kind: str, value: Any) -> str | None:
    if kind == "string_type" and isinstance(value, bool):
        word = "yes, on or true" if value else "no, off or false"
        return (
            f'YAML reads {word} as a boolean; write it in quotes, such as "no"'
            if not value
            else f"YAML reads {word} as a boolean; write it in quotes"
        )
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'Write it in quotes: "{value}"'
    if kind == "int_type" and isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return f"Write it without quotes: {value}"
    if kind == "int_type" and isinstance(value, str):
        return "Write it in digits, such as 1000"
    if kind == "bool_type" and isinstance(value, str):
        return "Write true or false without quotes"
    if kind == "list_type" and isinstance(value, (str, dict)):
        return "Begin each entry with a dash, also when there is only one"
    return None


def _unknown_field(place: Place, model: type[BaseModel]) -> SpecError:
    parent, name = place[:-1], str(place[-1])
    owner = _model_at(model, parent)
    known = _fields(owner) if owner else []
    next_step = suggestion(name, known)
    if next_step is not None:
        return SpecError("is not a known field", field=field_path(place), next_step=next_step)
    if homes := [home for home in _homes(model, name) if home != field_path(parent)]:
        next_step = f"It belongs under {' or '.join(homes)}"
    return SpecError("is not a known field", field=field_path(place), allowed=", ".join(known), next_step=next_step or "Remove it")


def _fields(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _homes(model: type[BaseModel], name: str, place: Place = ()) -> Iterator[str]:
    """Where else a field of this name exists."""
    for field, info in model.model_fields.items():
        alias = info.alias or field
        if alias == name:
            yield field_path(place) or "the top of the file"
        child = _model_in(info.annotation)
        if child is not None:
            yield from _homes(child, name, (*place, alias))


def _annotation_at(model: type[BaseModel], place: Sequence[int | str]) -> Any:
    """The annotation of the field at a place; None where the models do not reach."""
    annotation: Any = model
    for step in place:
        if isinstance(step, int):
            continue  # an item of a list: `_model_in` looks into lists
        owner = _model_in(annotation)
        info = next((info for name, info in owner.model_fields.items() if (info.alias or name) == step), None) if owner else None
        if info is None:
            return None
        annotation = info.annotation
    return annotation


def _info(model: type[BaseModel], place: Place) -> FieldInfo | None:
    owner = _model_at(model, place[:-1])
    return next((info for name, info in owner.model_fields.items() if (info.alias or name) == place[-1]), None) if owner else None


def _described(info: FieldInfo | None) -> str | None:
    return info.description.rstrip(".") if info and info.description else None


def _model_at(model: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    return _model_in(_annotation_at(model, place))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part)) is not None), None)


def _choices(model: type[BaseModel], place: Place) -> list[str]:
    annotation = _annotation_at(model, place)
    if type(None) in typing.get_args(annotation):  # an optional choice
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    return [str(choice) for choice in typing.get_args(annotation)]
