"""Rules of the stage `vocabulary`."""

from __future__ import annotations

from transfer_api.rules.rule import Violation, rule
from transfer_api.spec import Initialization, Vocabulary


@rule(
    "spec.vocabulary",
    cel="!has(self.distillation) || (double(self.distillation.learningRate) > 0.0 && double(self.distillation.learningRate) <= 1.0)",
    message="a learning rate is more than 0 and at most 1",
)
def _distillation_rate(vocabulary: Vocabulary) -> Violation | None:
    rate = vocabulary.distillation.learning_rate if vocabulary.distillation else None
    if rate is None or 0 < float(rate) <= 1:
        return None
    return Violation(field="distillation.learningRate", value=rate, allowed="more than 0, at most 1", next_step='Write it such as "1e-4"')


@rule(
    "spec.vocabulary",
    cel="!has(self.distillation) || self.initialization == 'Distillation'",
    message="distillation is the budget of initialization: Distillation",
)
def _distillation_of_its_initialization(vocabulary: Vocabulary) -> Violation | None:
    if vocabulary.distillation is None or vocabulary.initialization is Initialization.DISTILLATION:
        return None
    return Violation(
        field="distillation", allowed="only with initialization: Distillation",
        next_step="Set initialization: Distillation, or remove distillation",
    )  # fmt: skip
