"""Rules across fields, each once: as CEL for the API server and as Python for `transfer validate`.

A rule stands at one or several places of the spec. Its CEL is written into the CRD there and sees the node as `self`; its
check gets the same node as a model. tests/api/test_rules_agree.py holds the two against each other. Where Python knows more
than CEL can (which language codes exist, what a file holds) there is no rule here: the models and preflight say it.

A setting that nothing would read, because another one stands in its way, breaks a rule as well: who wrote it wants it to be read. Texts,
questions and judges of suites that are not asked for are none of these: suites choose among what is there.

rule.py         what a rule is
sources.py      models, texts, instructions and questions; the storage
vocabulary.py   the stage `vocabulary`
training.py     the stages `pretraining` and `instructionTuning`
evaluation.py   the stage `evaluation`, its judges among them
workers.py      workers, where they may run, where their curves go
experiment.py   between the parts
changes.py      what cannot be changed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

from transfer_api.errors import SpecError
from transfer_api.rules import evaluation, experiment, sources, training, vocabulary, workers
from transfer_api.rules.changes import IMMUTABLE, UNCHANGED
from transfer_api.rules.rule import Rule
from transfer_api.spec import ExperimentSpec

__all__ = ["RULES", "IMMUTABLE", "check_rules", "rules_at", "is_transition"]

# Those of a part in the order in which they stand there.
RULES: tuple[Rule, ...] = (
    *(
        value
        for part in (sources, vocabulary, training, evaluation, workers, experiment)
        for value in vars(part).values()
        if isinstance(value, Rule)
    ),
    *UNCHANGED,
)


def check_rules(spec: ExperimentSpec, *, whole: bool = True) -> list[SpecError]:
    """Every rule that the spec breaks, in the order of `RULES`.

    Args:
        spec: of a file.
        whole: False where it lacks fields that could not be read (`transfer_api.partial`): rules that ask for those are passed over.
    """
    return [error for rule in RULES for error in _broken(rule, spec, whole)]


def _broken(rule: Rule, spec: ExperimentSpec, whole: bool) -> Iterator[SpecError]:
    if rule.check is None:
        return
    for path in rule.paths:
        for place, node in _nodes("spec", spec, path.split(".")[1:]):
            try:
                found = rule.check(node)
            except AttributeError:
                if whole:
                    raise
                continue
            if found is not None:
                field = f"{place}.{found.field}" if found.field else place
                yield SpecError(rule.message, field=field, value=found.value, allowed=found.allowed, next_step=found.next_step)


def _nodes(place: str, node: BaseModel, steps: list[str]) -> Iterator[tuple[str, Any]]:
    """The nodes at a rule's path, each with its place as a user would write it (`spec.pretraining.mixture[0]`)."""
    if not steps:
        yield place, node
        return
    name = steps[0].removesuffix("[]")
    child = getattr(node, to_snake(name), None)
    if child is None:  # left out, or unreadable
        return
    if steps[0].endswith("[]"):
        for index, item in enumerate(child):
            yield from _nodes(f"{place}.{name}[{index}]", item, steps[1:])
    else:
        yield from _nodes(f"{place}.{name}", child, steps[1:])


def rules_at(path: str) -> list[Rule]:
    """The rules that the API server knows at a place of the schema, such as `spec.pretraining.mixture[]`."""
    return [rule for rule in RULES if path in rule.paths and rule.cel is not None]


def is_transition(rule: Rule) -> bool:
    """Whether the rule compares with the object as it was before the change."""
    return rule.cel is not None and re.search(r"\boldSelf\b", rule.cel) is not None
