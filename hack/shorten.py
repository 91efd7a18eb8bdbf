"""`python -m hack.shorten FILE`: prints an experiment with the same stages but only a few steps and items of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

STEPS = 4
EXAMPLES = 12
ITEMS = 4


def shorten(experiment: dict[str, Any]) -> dict[str, Any]:
    """The experiment under another name, with less to do; stages, data and settings stay."""
    spec = experiment["spec"]
    experiment["metadata"]["name"] += "-short"
    training = spec.get("pretraining")
    if training is not None:
        for budget in ("tokens", "epochs"):
            training.pop(budget, None)
        training |= {"steps": STEPS, "checkpointSteps": STEPS // 2}
        if "validationSteps" in training:
            training["validationSteps"] = STEPS
    tuning = spec.get("instructionTuning")
    if tuning is not None:
        tuning.pop("epochs", None)
        tuning |= {"examples": EXAMPLES, "steps": STEPS}  # so few examples may be less than one batch
    if spec.get("evaluation") is not None:
        spec["evaluation"]["limit"] = ITEMS
    return experiment


if __name__ == "__main__":
    # JSON is YAML in which every string has quotes: "5e-4" unquoted would be a number to kubectl.
    print(json.dumps(shorten(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))), indent=1))
