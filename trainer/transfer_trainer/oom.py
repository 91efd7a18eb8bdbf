"""What a training pod says when its memory is not enough: how much there is, what is needed, and what to set.

Imports nothing of torch: the launcher asks after its worker was killed, at a moment when memory is short.
"""

from __future__ import annotations

import math

from transfer_api.cost import ModelSize, micro_batch_tokens
from transfer_api.errors import TransferError
from transfer_api.fit import advice
from transfer_pod.context import PodContext
from transfer_pod.model import model_folder, read_config, safetensors_header


def memory_advice(context: PodContext, *, processes: int, available: int, gpu: bool) -> str:
    """Advice for the pod's stage.

    Args:
        context: the pod's task.
        processes: of the round.
        available: bytes that one process has; 0 where that is unknown.
        gpu: whether it was a GPU's memory that was short.
    """
    length = int(context.stage.parameters["sequenceLength"])
    micro = max(length, micro_batch_tokens(context.stage.execution, gpu=gpu) // length * length)
    return advice(context.stage, model_size(context), processes=processes, available=available, micro_batch_tokens=micro, gpu=gpu)


def model_size(context: PodContext) -> ModelSize | None:
    """Of the model that the stage starts from; None where its files do not tell."""
    try:
        folder = model_folder(context)
        headers = [safetensors_header(path) for path in sorted(folder.glob("*.safetensors"))]
        parameters = sum(math.prod(entry["shape"]) for header in headers for entry in header.values())
        return ModelSize.from_config(parameters, "counted in its safetensors", read_config(folder))
    except (TransferError, OSError):
        return None
