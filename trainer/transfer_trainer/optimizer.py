"""AdamW in one of two forms, and the learning rate as a pure function of the step.

No scheduler object: nothing of it has to be saved, and a resumed run cannot be off by one.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from transfer_api.spec import Optimizer, Schedule
from transfer_api.stage import TrainingParameters

BETAS = (0.9, 0.95)  # as Llama and its descendants; the 0.999 of Adam remembers longer than a short run lasts
PEAK = "peak"  # key of a parameter group: its own peak learning rate


def make_optimizer(model: PreTrainedModel, parameters: TrainingParameters) -> torch.optim.Optimizer:
    """AdamW or AdamW8bit over the trainable parameters: decay for matrices only, a learning rate of their own for embeddings and head.

    Call it after sharding: FSDP2 replaces the parameters.
    """
    ends = _parameters_of_ends(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            peak = float(parameters.embedding_learning_rate if id(parameter) in ends else parameters.learning_rate)
            decay = float(parameters.weight_decay) if parameter.dim() >= 2 else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    described = [{"params": members, PEAK: peak, "lr": peak, "weight_decay": decay} for (peak, decay), members in groups.items()]
    if parameters.optimizer is Optimizer.ADAMW_8BIT:
        from transfer_trainer.adamw8bit import AdamW8bit  # asks CUDA for its devices, as only a forked worker may (lora.py)

        return AdamW8bit(described, BETAS)
    optimizer = torch.optim.AdamW(described, betas=BETAS, fused=True)
    for group in groups.values():
        for parameter in group:
            # AdamW itself does this at a parameter's first gradient. A checkpoint needs the state of all of them, also of those
            # that have had none yet.
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter),
            }  # fmt: skip
    return optimizer


def _parameters_of_ends(model: PreTrainedModel) -> set[int]:
    """Identities of the parameters of embeddings and head."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    return {id(parameter) for module in ends for parameter in module.parameters()}


def learning_rate_factor(step: int, total_steps: int, warmup: float, schedule: Schedule, decay: float = 0.0) -> float:
    """Share of the peak learning rate that step `step` (from 0) uses.

    Linear from 1/n to 1 over the n warm-up steps; then cosine or linear towards 0, which the step after the last would reach. With
    WSD (MiniCPM, arXiv 2404.06395) the line to 0 takes the last `decay` of all steps.
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
        case Schedule.WSD:
            falling = math.ceil(decay * total_steps)
            return min(1.0, (total_steps - step) / (falling + 1))


def embedding_steps(total_steps: int, share: float) -> int:
    """Steps from the first in which only embeddings and head are trained."""
    return math.ceil(share * total_steps)


def drop_gradients(model: PreTrainedModel) -> None:
    """Takes the gradients of everything but embeddings and head, so that AdamW touches neither those weights nor their moments.

    They are computed and dropped rather than not computed: which parameters want gradients is fixed when FSDP2 shards them.
    """
    ends = _parameters_of_ends(model)
    for parameter in model.parameters():
        if id(parameter) not in ends:
            parameter.grad = None


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * factor


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scales the gradients down to a global norm of `largest` (0 for none); returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest if largest > 0 else math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
