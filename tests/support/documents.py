"""Experiment documents as a user would write them: the smallest of each kind, changed where a case wants it."""

from __future__ import annotations

import copy
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PRETRAINING: dict[str, Any] = {
    "tokens": "41K", "sequenceLength": 128, "globalBatchTokens": "1Ki", "mixture": [{"path": "id.txt", "weight": 3}, {"path": "en.txt"}],
}  # fmt: skip
TUNING: dict[str, Any] = {"sequenceLength": 128, "globalBatchTokens": 1024, "data": [{"path": "pairs.jsonl"}]}
EVALUATION: dict[str, Any] = {"texts": [{"name": "held-out", "path": "test.txt"}]}
VOCABULARY: dict[str, Any] = {"addedTokens": 100, "corpus": [{"path": "id.txt"}]}
DROP = object()
"""As a value in `changed`: remove the field."""


def document(**spec: Any) -> dict[str, Any]:
    """A valid experiment that pretrains, with fields of its spec replaced or (None) removed."""
    base = {"model": {"path": "model"}, "language": "id", "storage": {"claim": "experiments"}, "pretraining": copy.deepcopy(PRETRAINING)}
    wanted = {key: value for key, value in {**base, **copy.deepcopy(spec)}.items() if value is not None}
    return {"apiVersion": "transfer-operator.dev/v1alpha1", "kind": "TransferExperiment", "metadata": {"name": "demo"}, "spec": wanted}


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy with the value at a dotted path replaced (`spec.pretraining.mixture.0.weight`) or removed (`DROP`)."""
    result = copy.deepcopy(value)
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    node = result
    for step in parents:
        node = node[step]
    if new is DROP:
        del node[last]
    else:
        node[last] = new
    return result
