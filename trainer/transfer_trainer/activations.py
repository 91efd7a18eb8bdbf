"""Activation checkpointing (arXiv 1604.06174): a decoder layer keeps its input only, and is computed again in the backward pass.

For all layers about a third more computing for a tenth or less of the memory of a pass; a part of them costs and saves its share. It is
the first ones: the backward pass comes to them last, when what the others kept is free. The layer computes the same the second time
(there is no dropout), so gradients are the same bits.

transformers' own switch does this only for a model in training mode, which ours is not (model.py). Here the layer's forward is
replaced, within its hooks: FSDP2 has gathered the weights before the layer runs either time, and `ComputeTimer` sees the first.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transfer_api.fit import layers_again
from transfer_pod.context import PodContext
from transfer_pod.memory import memory_limit
from transfer_trainer.oom import model_size
from transfer_trainer.parallel import Team, decoder_layers

logger = logging.getLogger(__name__)


def checkpointed_layers(context: PodContext, team: Team, layers: int, micro_batch_tokens: int) -> int:
    """How many layers the stage asks for, or (Auto) the process with the least memory needs; all take part and do the same.

    Args:
        context: the pod's task.
        team: the round's processes.
        layers: that the model has.
        micro_batch_tokens: in one pass.
    """
    if team.device.type == "cuda":
        available = torch.cuda.get_device_properties(team.device).total_memory
    else:
        available = memory_limit() // team.local_world_size
    needed = layers_again(
        context.stage, model_size(context), layers=layers, processes=team.world_size, available=available,
        micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip
    decided = int(max(team.gather(needed)))
    if decided:
        asked = context.stage.execution.activation_checkpointing.value
        logger.info("%d of %d layers are computed again in the backward pass (%s)", decided, layers, asked)
    return decided


def checkpoint_activations(model: nn.Module, layers: int) -> None:
    """Has the first decoder layers be computed again in the backward pass; names of modules and parameters stay.

    Raises:
        ModelError: the model has no list of decoder layers.
    """
    for layer in decoder_layers(model)[:layers]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
