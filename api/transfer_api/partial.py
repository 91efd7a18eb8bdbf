"""What of a spec can be read where some of it cannot, so that the rules that need nothing of that speak at once.

A field that could not be read is no attribute of what is given here: a rule that asks for it ends with AttributeError, and says nothing.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_snake

from transfer_api.spec import ExperimentSpec

Place = tuple[int | str, ...]

_STAND_INS: dict[str, Any] = {"model": {}, "language": "en", "storage": {}}
"""For required fields of the spec itself: they keep it from being read, and are forgotten again."""
_ROUNDS = 8  # each takes out what the one before has left without a required field


def readable_part(spec: Any, error: ValidationError) -> ExperimentSpec | None:
    """The spec without the fields that could not be read; None where that leaves nothing to be told.

    Args:
        spec: as it was parsed.
        error: of the experiment that it is part of.
    """
    if not isinstance(spec, dict):
        return None
    rest = copy.deepcopy(spec)
    places = [_place(detail) for detail in error.errors() if detail["loc"][0] == "spec"]
    unread: list[Place] = []
    for _ in range(_ROUNDS):
        if () in places:
            return None
        for place in places:
            _remove(rest, place)
        unread += places
        try:
            part = ExperimentSpec.model_validate_json(json.dumps({**_STAND_INS, **rest}), strict=True, by_alias=True, by_name=False)
        except ValidationError as again:
            places = [_place({**detail, "loc": ("spec", *detail["loc"])}) for detail in again.errors()]
        else:
            for place in unread:
                _forget(part, place)
            return part
    return None


def _place(detail: Any) -> Place:
    """What an error makes unreadable, below the spec. A name that is not known may mean any field beside it, so none of those is known."""
    place: Place = tuple(itertools.takewhile(lambda step: step != "[key]", detail["loc"][1:]))
    if detail["type"] == "extra_forbidden" or (detail["type"] == "missing" and len(place) > 1):
        place = place[:-1]
    while place and isinstance(place[-1], int):  # without an item the others would have other numbers
        place = place[:-1]
    return place


def _remove(node: Any, place: Place) -> None:
    with contextlib.suppress(LookupError, TypeError):  # taken out already, with what it stood in
        for step in place[:-1]:
            node = node[step]
        del node[place[-1]]


def _forget(node: BaseModel, place: Place) -> None:
    name, rest = to_snake(str(place[0])), place[1:]
    child = node.__dict__.get(name)
    while rest and isinstance(child, list) and isinstance(rest[0], int) and rest[0] < len(child):
        child, rest = child[rest[0]], rest[1:]
    if rest and isinstance(child, BaseModel):
        _forget(child, rest)
    else:
        node.__dict__.pop(name, None)
