"""AdamW, and the learning rate as a pure function of the step.

No scheduler object: nothing of it has to be saved, and a resumed run cannot be off by one.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from transfer_api.spec import Schedule
from transfer_api.stage import TrainingParameters

BETAS = (0.9, 0.95)  # as Llama and its descendants; the 0.999 of Adam remembers longer than a short run lasts
PEAK = "peak"  # key of a parameter group: its own peak learning rate


def make_optimizer(model: PreTrainedModel, parameters: TrainingParameters) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: decay for matrices only, a learning rate of their own for embeddings and head.

    Call it after sharding: FSDP2 replaces the parameters.
    """
    ends = {id(parameter) for module in _ends(model) for parameter in module.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            peak = float(parameters.embedding_learning_rate if id(parameter) in ends else parameters.learning_rate)
            decay = float(parameters.weight_decay) if parameter.dim() >= 2 else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    described = [{"params": members, PEAK: peak, "lr": peak, "weight_decay": decay} for (peak, decay), members in groups.items()]
    return torch.optim.AdamW(described, betas=BETAS, fused=True)


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """Embeddings and head, where they are trained in full."""
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def learning_rate_factor(step: int, total_steps: int, warmup: float, schedule: Schedule) -> float:
    """Share of the peak learning rate that step `step` (from 0) uses.

    Linear from 1/n to 1 over the n warm-up steps; then cosine or linear towards 0, which the step after the last would reach.
    """
    warm = math.ceil(warmup * total_steps)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, total_steps - warm)
    match schedule:
        case Schedule.COSINE:
            return 0.5 * (1 + math.cos(math.pi * done))
        case Schedule.LINEAR:
            return 1 - done
        case Schedule.CONSTANT:
            return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * factor


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scales the gradients down to a global norm of `largest` (0 for none); returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest if largest > 0 else math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
