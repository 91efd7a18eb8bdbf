"""What a rule is, and what several checks find in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, kw_only=True)
class Violation:
    """What a rule found. `field` is relative to the rule's place; empty for the place itself."""

    field: str = ""
    value: object = None
    allowed: str | None = None
    next_step: str | None = None


Check = Callable[[Any], Violation | None]
"""Gets the node at a rule's place, as a model."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule, in CEL, as a `check`, or both.

    `cel` sees `self` (and `oldSelf` in a rule about changes, which has no `check`: a file has no past).
    """

    name: str
    paths: tuple[str, ...]
    """Where it stands: `spec.pretraining`, `spec.pretraining.mixture[]` for every item."""
    cel: str | None
    """None where it would cost more than the API server lets an expression cost; then only `check` refuses."""
    message: str
    """One sentence without a full stop that follows the field's name."""
    check: Check | None = None


def rule(*paths: str, cel: str | None, message: str) -> Callable[[Check], Rule]:
    """Makes the check below it a rule of the same name: `_one_storage` is one-storage."""

    def made(check: Check) -> Rule:
        return Rule(name=check.__name__.lstrip("_").replace("_", "-"), paths=paths, cel=cel, message=message, check=check)

    return made


def exactly_one(node: BaseModel, *fields: str) -> Violation | None:
    """What there is to say where none or several of the fields are given."""
    given = {field: value for field in fields if (value := getattr(node, field)) is not None}
    if len(given) == 1:
        return None
    allowed = f"exactly one of {', '.join(fields)}"
    if not given:
        return Violation(allowed=allowed, next_step=f"Add {' or '.join(fields)}")
    return Violation(value=given, allowed=allowed, next_step=f"Choose one, remove the other{'s' if len(given) > 2 else ''}")


def share(field: str, value: str, example: str) -> Violation:
    """What there is to say of a share that is more than 1."""
    return Violation(field=field, value=value, allowed="0 to 1", next_step=f"Write {example}")
