"""What cannot be changed after creation."""

from __future__ import annotations

from pydantic.alias_generators import to_snake

from transfer_api.rules.rule import Rule

IMMUTABLE = ("model", "language", "storage", "vocabulary", "pretraining", "instructionTuning", "evaluation", "seed")
_OPTIONAL_STAGES = ("vocabulary", "pretraining", "instructionTuning", "evaluation")


def _unchanged(field: str) -> Rule:
    same = f"self.{field} == oldSelf.{field}"
    if field in _OPTIONAL_STAGES:
        same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})"
    return Rule(
        name=f"{to_snake(field).replace('_', '-')}-unchanged", paths=("spec",), cel=same,
        message=f"{field} cannot be changed: a finished stage would no longer be of this experiment; create another one",
    )  # fmt: skip


UNCHANGED = tuple(_unchanged(field) for field in IMMUTABLE)
